//! Inspection and verification of a cache folder from another process than the daemon that uses it.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::statvfs::statvfs,
};
use serde::Serialize;

use super::{
    Usage,
    progress::Progress,
    store::{StoreEntry, object_files, read_record},
    verify,
};

/// A cached object whose bytes do not match its checksums.
#[derive(Clone, Debug, Serialize)]
pub struct Corrupt {
    /// Name of the object, if its record can be read.
    pub object: Option<String>,
    /// Path of the file.
    pub file: PathBuf,
    /// Identifier of the version in the cache's index, in hexadecimal.
    pub version: String,
    /// Description of the mismatch.
    pub why: String,
    /// Size of the object in bytes.
    pub size: u64,
}

/// Returns the usage of a folder by the names of its files; zero if the folder does not exist.
///
/// # Errors
/// If the folder cannot be read.
pub fn usage(folder: &Path) -> io::Result<Usage> {
    let files = match object_files(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        files => files?,
    };
    let bytes = files.iter().map(|(_, entry)| entry.disk).sum();
    let stripes = files.iter().filter(|(_, entry)| entry.is_stripe).count();
    Ok(Usage { objects: files.len() - stripes, stripes, bytes, ..Usage::default() })
}

/// Returns the free space of a folder's disk, in bytes.
///
/// # Errors
/// If `statvfs` fails.
pub fn free(folder: &Path) -> io::Result<u64> {
    let disk = statvfs(folder)?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// Compares every complete object of a folder with its checksums. Calls `progress` with the number of bytes compared
/// since the previous call, and `corrupt` for each object that does not match.
///
/// # Errors
/// If the folder cannot be read.
pub fn compare(
    folder: &Path,
    mut progress: impl FnMut(u64),
    mut corrupt: impl FnMut(Corrupt),
) -> io::Result<()> {
    for (path, entry) in object_files(folder)? {
        // The daemon may have evicted it meanwhile.
        let Ok(file) = File::open(&path) else { continue };
        // Verification must not displace other files from the page cache.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_NOREUSE);
        let mut object = None;
        if let Err(error) = compare_one(&file, &entry, &mut object, &mut progress) {
            let (version, size) = (entry.version.to_string(), entry.size);
            corrupt(Corrupt { object, file: path, version, why: error.to_string(), size });
        }
    }
    Ok(())
}

fn compare_one(
    file: &File,
    entry: &StoreEntry,
    object: &mut Option<String>,
    progress: &mut impl FnMut(u64),
) -> io::Result<()> {
    let record = read_record(file, entry.size)?;
    *object = Some(record.meta.version.name.to_string());
    if record.held().length() != entry.size {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the sizes in the record and in the file name differ",
        ));
    }
    let chunks = Progress::new(entry.size);
    for (chunk, expected) in record.checksums.into_iter().enumerate() {
        let range = chunks.bytes(chunk..chunk + 1);
        verify::chunk(file, range, expected)?;
        progress(range.length());
    }
    Ok(())
}
