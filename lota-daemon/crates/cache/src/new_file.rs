//! Files in the folder `new/`, which become complete objects or are removed.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use nix::fcntl::{FallocateFlags, fallocate};
use parking_lot::Mutex;

use crate::BodyFile;

/// Files of partial objects that were dropped and still exist.
pub(super) type DroppedFiles = Arc<Mutex<Vec<Arc<TemporaryPath>>>>;

/// The file of a fill; removed when its last reference is dropped, unless it was committed.
#[derive(Clone, Debug)]
pub(super) struct NewFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    spare: SpareFile,
    allocation: Allocation,
    size: u64,
}

/// A file without an object; removed when it is dropped, unless it was committed.
#[derive(Debug)]
pub(super) struct SpareFile {
    file: Arc<BodyFile>,
    path: Arc<TemporaryPath>,
}

/// File of a partial object. It may be dropped under a lock: its path is then added to the [`DroppedFiles`].
#[derive(Debug)]
pub(super) struct KeptFile {
    path: Arc<TemporaryPath>,
    dropped: DroppedFiles,
}

/// Path of a file that is removed when the last reference is dropped, unless it was renamed.
#[derive(Debug)]
pub(super) struct TemporaryPath(PathBuf);

/// Reservation of disk space for bytes to be written; released when it is dropped.
#[derive(Debug)]
pub(super) struct Allocation {
    bytes: AtomicU64,
    /// Sum of all reservations.
    all: Arc<AtomicU64>,
    /// Whether an allocation was attempted.
    tried: AtomicBool,
}

impl NewFile {
    /// Creates the file of a fill of `size` bytes.
    pub(super) fn new(spare: SpareFile, allocation: Allocation, size: u64) -> Self {
        Self(Arc::new(Inner { spare, allocation, size }))
    }

    /// Creates the file of a fill from a partial object. `allocation` is that of the bytes that are missing: none.
    pub(super) fn of_kept(file: Arc<BodyFile>, kept: &KeptFile, allocation: Allocation, size: u64) -> Self {
        Self::new(SpareFile { file, path: kept.path.clone() }, allocation, size)
    }

    /// Keeps the file for a partial object.
    pub(super) fn keep(&self, dropped: &DroppedFiles) -> KeptFile {
        KeptFile { path: self.0.spare.path.clone(), dropped: dropped.clone() }
    }

    pub(super) fn file(&self) -> Arc<BodyFile> {
        self.0.spare.file.clone()
    }

    /// Gives the file its final name.
    pub(super) fn rename(&self, to: &Path) -> io::Result<()> {
        fs::rename(&self.0.spare.path.0, to)
    }

    /// Allocates the reserved disk space, contiguous if possible. May block. Errors are ignored, since not every file
    /// system supports it; if the disk is full, writes fail.
    pub(super) fn allocate(&self) {
        let length = i64::try_from(self.0.size).unwrap_or_default();
        if length > 0 && fallocate(&**self.0.spare.file, FallocateFlags::empty(), 0, length).is_ok() {
            self.0.allocation.release();
        }
    }

    /// Returns true for exactly one caller, which must then allocate.
    pub(super) fn is_to_allocate(&self) -> bool {
        !self.0.allocation.tried.swap(true, Ordering::Relaxed)
    }
}

impl SpareFile {
    /// Creates an empty file with a random name.
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        let path = folder.join(hex::encode(rand::random::<[u8; 8]>()));
        let file = File::options().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
        Ok(Self { file: BodyFile::new(file), path: Arc::new(TemporaryPath(path)) })
    }
}

impl KeptFile {
    /// Opens the file again.
    pub(super) fn open(&self) -> io::Result<Arc<BodyFile>> {
        File::options().read(true).write(true).open(&self.path.0).map(BodyFile::new)
    }
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        self.dropped.lock().push(self.path.clone());
    }
}

impl Drop for TemporaryPath {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

impl Allocation {
    /// Reserves bytes, and adds them to `all`.
    pub(super) fn new(bytes: u64, all: &Arc<AtomicU64>) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes: bytes.into(), all: all.clone(), tried: AtomicBool::new(false) }
    }

    fn release(&self) {
        self.all.fetch_sub(self.bytes.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Releases the reservation of bytes that were written.
    pub(super) fn written(&self, bytes: u64) {
        let held = self.bytes.load(Ordering::Relaxed);
        let released = bytes.min(held);
        self.bytes.store(held - released, Ordering::Relaxed);
        self.all.fetch_sub(released, Ordering::Relaxed);
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.release();
    }
}

/// Removes a file, if it exists.
pub(super) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(file = %path.display(), %error, "cannot remove a cached file");
    }
}
