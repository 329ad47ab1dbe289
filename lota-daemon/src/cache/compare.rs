//! A cache folder looked through from outside, beside the daemon that may use it.

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
    store::{Entry, object_files, read_record},
    verify,
};

/// An object whose bytes are not what they were.
#[derive(Clone, Debug, Serialize)]
pub struct Corrupt {
    /// Its name, if its record can be read.
    pub object: Option<String>,
    /// The file it is in.
    pub file: PathBuf,
    /// What the daemon knows it by.
    pub version: String,
    /// What is wrong.
    pub why: String,
    /// Its bytes.
    pub size: u64,
}

/// What a folder holds, as the names of its files tell; nothing, if it is not there yet.
///
/// # Errors
/// If it cannot be read.
pub fn usage(folder: &Path) -> io::Result<Usage> {
    let files = match object_files(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        files => files?,
    };
    let bytes = files.iter().map(|(_, entry)| entry.size).sum();
    Ok(Usage { objects: files.len(), bytes, fills: 0 })
}

/// Bytes that are free on a folder's disk.
///
/// # Errors
/// If the system cannot say.
pub fn free(folder: &Path) -> io::Result<u64> {
    let disk = statvfs(folder)?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// Compares every complete object of a folder with its checksums. `progress` is told how many bytes have been compared
/// since it was told last, `corrupt` of each object that is not what it was.
///
/// # Errors
/// If the folder cannot be read.
pub fn compare(
    folder: &Path,
    mut progress: impl FnMut(u64),
    mut corrupt: impl FnMut(Corrupt),
) -> io::Result<()> {
    for (path, entry) in object_files(folder)? {
        // Evicted meanwhile, perhaps.
        let Ok(file) = File::open(&path) else { continue };
        // A file that is only read to be compared is no reason to forget what others read.
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
    entry: &Entry,
    object: &mut Option<String>,
    progress: &mut impl FnMut(u64),
) -> io::Result<()> {
    let record = read_record(file, entry.size)?;
    *object = Some(record.meta.version.name.to_string());
    if record.meta.size != entry.size {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the record is of another size than the file's name",
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
