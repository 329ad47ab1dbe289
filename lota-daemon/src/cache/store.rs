//! Files: `<folder>/v1/ab/abcdef….data`, and `….record` beside it. While it is filled, the data is `….part-…`, a
//! file of that fill alone: no file that a reader may have open is ever written or cut again.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::statvfs::statvfs,
};
use sha2::{Digest as _, Sha256};

use super::{object::Object, record::Record};
use crate::{
    lock,
    s3::{ObjectMeta, ObjectName, ObjectVersion},
};

const FORMAT: &str = "v1";
const DATA: &str = "data";
const RECORD: &str = "record";
const UNFINISHED: &str = "tmp";
const PART: &str = "part-";

/// Names an object in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NameId([u8; 16]);

/// Names an object version, in the index and on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct VersionId([u8; 32]);

/// The folder, owned by this process.
#[derive(Clone, Debug)]
pub(super) struct Store {
    folder: Arc<Path>,
    gateway: Arc<str>,
    min_free: u64,
}

/// A data file that is being filled; removed with its last owner, unless it has become an object.
#[derive(Clone, Debug)]
pub(super) struct Part(Arc<Unfinished>);

#[derive(Debug)]
struct Unfinished {
    file: Arc<File>,
    path: PathBuf,
}

/// A complete object that was there at start.
pub(super) struct Found {
    pub(super) version: VersionId,
    pub(super) name: NameId,
    pub(super) bytes: u64,
}

/// A complete object in a cache folder, as `lota cache ls` shows it.
#[derive(Debug)]
pub struct Listed {
    /// What it is.
    pub meta: ObjectMeta,
    /// The file its bytes are in.
    pub data: PathBuf,
    /// When it came in.
    pub stored: SystemTime,
}

impl Store {
    pub(super) fn open(
        folder: &Path,
        gateway: &str,
        min_free: u64,
        handed_over: Option<&File>,
    ) -> io::Result<(Self, File)> {
        let objects = folder.join(FORMAT);
        for first in 0..=u8::MAX {
            // Other users of this machine have no grant for what is in here.
            let shard = objects.join(hex::encode([first]));
            fs::DirBuilder::new().recursive(true).mode(0o700).create(shard)?;
        }
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("lock"))?;
        let lock = lock::lock(lock, handed_over)?;
        Ok((Self { folder: objects.into(), gateway: gateway.into(), min_free }, lock))
    }

    pub(super) fn name_id(&self, name: &ObjectName) -> NameId {
        let digest = self.digest(name, []);
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        NameId(id)
    }

    pub(super) fn version_id(&self, version: &ObjectVersion) -> VersionId {
        let validator = &version.validator;
        let last_modified = validator.last_modified.as_deref().unwrap_or_default();
        VersionId(self.digest(&version.name, [validator.etag.as_str(), last_modified]))
    }

    /// Hashes length-prefixed fields, so that no two lists of fields are the same bytes.
    fn digest<const N: usize>(&self, name: &ObjectName, more: [&str; N]) -> [u8; 32] {
        let mut hash = Sha256::new();
        let version_id = name.version_id.as_deref().unwrap_or_default();
        let fields = [&*self.gateway, name.bucket.as_str(), name.key.as_str(), version_id];
        for field in fields.into_iter().chain(more) {
            hash.update((field.len() as u64).to_le_bytes());
            hash.update(field);
        }
        hash.finalize().into()
    }

    fn path(&self, id: &VersionId, extension: &str) -> PathBuf {
        let name = id.to_string();
        self.folder.join(&name[..2]).join(name).with_extension(extension)
    }

    /// A new data file with `size` bytes of disk to its name.
    ///
    /// # Errors
    /// If that would leave less than the configured rest of the disk free.
    pub(super) fn create(&self, id: &VersionId, size: u64) -> io::Result<Part> {
        let disk = statvfs(&*self.folder)?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        if free.saturating_sub(size) < self.min_free {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("{free} bytes are free on the disk, {} must stay so", self.min_free),
            ));
        }
        let path = self.path(id, &format!("{PART}{}", hex::encode(rand::random::<[u8; 8]>())));
        let mut options = OpenOptions::new();
        let file = options.create_new(true).read(true).write(true).mode(0o600).open(&path)?;
        let part = Part(Arc::new(Unfinished { file: Arc::new(file), path }));
        if size > 0 {
            let length = i64::try_from(size).map_err(io::Error::other)?;
            fallocate(&part.0.file, FallocateFlags::empty(), 0, length)?;
        }
        Ok(part)
    }

    /// Makes a filled file an object: data first, then its record, each on disk before the next step, so that
    /// no crash leaves a record without its data.
    pub(super) fn commit(&self, id: &VersionId, part: &Part, record: &Record) -> io::Result<()> {
        part.0.file.sync_data()?;
        fs::rename(&part.0.path, self.path(id, DATA))?;
        let unfinished = self.path(id, UNFINISHED);
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
        file.write_all(&record.encode()?)?;
        file.sync_data()?;
        let finished = self.path(id, RECORD);
        fs::rename(&unfinished, &finished)?;
        finished.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    /// Opens a complete object.
    pub(super) fn load(&self, id: &VersionId) -> io::Result<Object> {
        let record = Record::decode(&fs::read(self.path(id, RECORD))?)?;
        let file = File::open(self.path(id, DATA))?;
        if self.version_id(&record.meta.version) != *id || file.metadata()?.len() != record.meta.size {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the record is another file's"));
        }
        Ok(Object::complete(record.meta, file))
    }

    /// Removes an object's files. The record goes first: data without one is no object.
    pub(super) fn remove(&self, id: &VersionId) {
        for extension in [RECORD, DATA, UNFINISHED] {
            remove(&self.path(id, extension));
        }
    }

    /// Every complete object, least recently stored first; removes whatever is not one.
    pub(super) fn recover(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for path in files(&self.folder)? {
            let id = VersionId::of_path(&path);
            match (path.extension().and_then(|extension| extension.to_str()), id) {
                (Some(RECORD), Some(id)) => match self.load(&id) {
                    Ok(object) => {
                        let stored = fs::metadata(&path)?.modified()?;
                        let name = self.name_id(&object.meta().version.name);
                        found.push((stored, Found { version: id, name, bytes: object.meta().size }));
                    }
                    Err(error) => {
                        tracing::warn!(file = %path.display(), %error, "removing an unusable cached object");
                        self.remove(&id);
                    }
                },
                (Some(DATA), Some(id)) if self.path(&id, RECORD).exists() => {}
                _ => {
                    tracing::debug!(file = %path.display(), "removing a left-over");
                    remove(&path);
                }
            }
        }
        found.sort_by_key(|(stored, _)| *stored);
        Ok(found.into_iter().map(|(_, found)| found).collect())
    }
}

/// Removes a file that may be gone already.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(file = %path.display(), %error, "cannot remove a cached file");
    }
}

/// Every complete object in a cache folder, without disturbing a daemon that uses it.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(folder: &Path) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    for path in files(&folder.join(FORMAT))? {
        if path.extension().is_none_or(|extension| extension != RECORD) {
            continue;
        }
        // Evicted meanwhile, perhaps.
        let Ok(bytes) = fs::read(&path) else { continue };
        if let Ok(record) = Record::decode(&bytes) {
            let stored = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let stored = stored.unwrap_or(SystemTime::UNIX_EPOCH);
            listed.push(Listed { meta: record.meta, data: path.with_extension(DATA), stored });
        }
    }
    listed.sort_by_key(|object| object.stored);
    Ok(listed)
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for shard in fs::read_dir(folder)? {
        for file in fs::read_dir(shard?.path())? {
            files.push(file?.path());
        }
    }
    Ok(files)
}

impl Part {
    pub(super) fn file(&self) -> Arc<File> {
        self.0.file.clone()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

impl VersionId {
    fn of_path(path: &Path) -> Option<Self> {
        let mut id = [0; 32];
        hex::decode_to_slice(path.file_stem()?.to_str()?, &mut id).ok()?;
        Some(Self(id))
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
pub(super) fn tests_files(folder: &Path) -> Vec<PathBuf> {
    files(&folder.join(FORMAT)).unwrap_or_default()
}
