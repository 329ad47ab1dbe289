//! The part of the cache that is on one disk.

use std::{
    fs::File,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use lota_s3::ObjectMeta;
use nix::errno::Errno;
use parking_lot::{Mutex, MutexGuard};

use super::{
    CachePlan, DiskPlan, NoRoom, Usage,
    ids::{NameId, VersionId},
    index::{Evicted, Index},
    new_file::{Allocation, NewFile},
    plan::percent,
    room::Room,
    shares::{Share, Shares, Taking},
    store::{Opened, Store, StoreEntry},
};

/// A cache folder on one disk. No file is accessed while one of its mutexes is held.
pub(super) struct Disk {
    pub(super) folder: PathBuf,
    pub(super) capacity: u64,
    pub(super) encrypted: bool,
    pub(super) store: Store,
    pub(super) plan: CachePlan,
    /// Permits for additional range requests of fills, beyond the first of each fill; shared by all disks.
    pub(super) lanes: Arc<Shares>,
    /// Permits for concurrent fills on this disk.
    fills: Arc<Shares>,
    /// Bytes that uploads may reserve.
    uploads: Arc<Shares>,
    index: Mutex<Index>,
    /// Whether another daemon owns the folder; objects are then read, and nothing is changed.
    handed_over: AtomicBool,
    /// Whether the disk has failed; it is then ignored.
    failed: AtomicBool,
    /// Whether some objects may be unverified, which is recorded on disk for the next daemon.
    unchecked: AtomicBool,
    /// The lock by which this process owns the folder.
    lock: Mutex<Option<File>>,
    /// Serializes replacements of records, and of the saved order.
    rewriting: Mutex<()>,
    pub(super) evictions: AtomicU64,
    pub(super) corrupt: AtomicU64,
    /// Bytes verified against checksums.
    pub(super) verified: AtomicU64,
}

impl Disk {
    /// Opens a folder, removes partial files of a crashed daemon, and indexes complete objects.
    pub(super) fn open(
        disk: &DiskPlan,
        plan: &CachePlan,
        lanes: &Arc<Shares>,
        locks: &[File],
    ) -> io::Result<Self> {
        let Opened { store, lock, clean, encrypted } =
            Store::open(&disk.folder, plan.min_free, plan.encryption, locks)?;
        let (index, superfluous) = Index::new(plan, disk.capacity, plan.objects, store.recover()?, clean)?;
        if !clean {
            tracing::warn!(
                folder = %disk.folder.display(),
                objects = index.usage().objects,
                "unclean shutdown detected; verifying checksums when objects are first read"
            );
        }
        superfluous.iter().for_each(|entry| store.remove(entry));
        store.make_spare_files()?;
        Ok(Self {
            folder: disk.folder.clone(),
            capacity: disk.capacity,
            encrypted,
            store,
            plan: *plan,
            lanes: lanes.clone(),
            fills: Shares::new(plan.fills as u64),
            // The other half of what is free after evictions is left to fills.
            uploads: Shares::new(percent(disk.capacity, plan.high.saturating_sub(plan.low)) / 2),
            index: Mutex::new(index),
            handed_over: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            unchecked: AtomicBool::new(!clean),
            lock: Mutex::new(Some(lock)),
            rewriting: Mutex::default(),
            evictions: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            verified: AtomicU64::new(0),
        })
    }

    /// Marks an object as verified.
    pub(super) fn trust(&self, entry: &StoreEntry) {
        self.index().trust(&entry.version);
    }

    /// Removes the marker for unverified objects from the disk once all are verified.
    pub(super) fn note_checked(&self) {
        let none_left = !self.index().has_unverified();
        if none_left && !self.is_handed_over() && self.unchecked.swap(false, Ordering::AcqRel) {
            self.store.all_checked();
        }
    }

    /// Drops an object whose bytes are corrupt or unreadable.
    pub(super) fn found_corrupt(self: &Arc<Self>, entry: &StoreEntry, error: &io::Error) {
        self.notice(error);
        // It may have been evicted meanwhile.
        if self.drop_object(entry.version) {
            tracing::error!(file = %entry.version, %error, "dropped a corrupt cached object");
            self.corrupt.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Stores a newer description of a complete object. If this fails, only more requests go to the gateway.
    pub(super) fn keep_meta(self: &Arc<Self>, version: VersionId, meta: Arc<ObjectMeta>) {
        let Some(entry) = self.index().entry(version).filter(|_| !self.is_handed_over()) else { return };
        let disk = self.clone();
        tokio::task::spawn_blocking(move || {
            let _one = disk.rewriting.lock();
            if let Err(error) = disk.store.rewrite(&entry, &meta) {
                tracing::debug!(file = %entry.version, %error, "cannot rewrite a record");
            }
        });
    }

    /// Records the version of an object that the gateway named last.
    pub(super) fn named(&self, name: NameId, version: VersionId) {
        self.index().named(name, version);
    }

    /// Refuses changes of the folder after another daemon has taken it over.
    pub(super) fn refuse_after_handover(&self) -> Result<(), NoRoom> {
        match self.is_handed_over() {
            true => Err(NoRoom::new("another daemon owns the cache")),
            false => Ok(()),
        }
    }

    /// Takes a permit for a fill.
    pub(super) fn take_share(&self, pod: IpAddr) -> Result<Share, NoRoom> {
        self.refuse_after_handover()?;
        self.fills.take(pod, 1).map_err(|taking| match taking {
            Taking::All => NoRoom::new("limits.fills reached"),
            Taking::Pod => {
                NoRoom { reason: "pod-fills", ..NoRoom::new("the pod's share of limits.fills reached") }
            }
        })
    }

    /// Takes bytes from those that uploads may reserve.
    pub(super) fn take_upload_share(&self, pod: IpAddr, bytes: u64) -> Result<Share, NoRoom> {
        self.refuse_after_handover()?;
        let refused = |_| NoRoom::new(format!("uploads may not reserve {bytes} bytes more"));
        self.uploads.take(pod, bytes).map_err(refused)
    }

    /// Returns a file for `size` bytes of an object, for which it reserves `bytes` of disk space, and removes the files of
    /// `evicted` objects.
    pub(super) async fn file_for(
        self: &Arc<Self>,
        size: u64,
        bytes: u64,
        evicted: Vec<Evicted>,
    ) -> io::Result<NewFile> {
        let at_once = if self.store.has_spare_file() { self.store.create(size, bytes).ok() } else { None };
        let disk = self.clone();
        let created = match at_once {
            Some(part) => {
                self.remove_meanwhile(evicted);
                Ok(part)
            }
            None => tokio::task::spawn_blocking(move || disk.create(size, bytes, evicted))
                .await
                .unwrap_or_else(|error| Err(io::Error::other(error))),
        };
        let disk = self.clone();
        tokio::task::spawn_blocking(move || {
            disk.store.make_spare_files().inspect_err(|error| disk.notice(error))
        });
        created
    }

    /// Creates a file for a fill; blocks. If other programs have filled the disk, evicts the least recently used
    /// objects, too.
    fn create(self: &Arc<Self>, size: u64, bytes: u64, evicted: Vec<Evicted>) -> io::Result<NewFile> {
        let is_full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
        match self.store.create(size, bytes) {
            Err(error) if is_full(&error) => self.remove(&evicted),
            created => {
                self.remove_meanwhile(evicted);
                return created;
            }
        }
        match self.store.create(size, bytes) {
            Err(error) if is_full(&error) => {
                self.make_room(bytes)?;
                self.store.create(size, bytes)
            }
            created => created,
        }
    }

    /// Reserves disk space for a range of a partial object; blocks. If other programs have filled the disk, evicts the least
    /// recently used objects.
    pub(super) fn allocate(&self, bytes: u64) -> io::Result<Allocation> {
        match self.store.reserve(bytes) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.make_room(bytes)?;
                self.store.reserve(bytes)
            }
            reserved => reserved,
        }
    }

    /// Evicts the least recently used objects until a file of this many bytes has room on the disk, if that is possible.
    fn make_room(&self, needed: u64) -> io::Result<()> {
        let Room { bytes, files } = self.store.room()?;
        let short = Room { bytes: bytes - i128::from(needed), files: files - 1 }.short();
        let evicted = self.index().evict_if_enough(short);
        self.remove(&evicted);
        Ok(())
    }

    /// Removes the files of evicted objects in the background.
    pub(super) fn remove_meanwhile(self: &Arc<Self>, evicted: Vec<Evicted>) {
        if !evicted.is_empty() {
            let disk = self.clone();
            tokio::task::spawn_blocking(move || disk.remove(&evicted));
        }
    }

    /// Removes the files of objects that were taken out of the index.
    pub(super) fn remove(&self, evicted: &[Evicted]) {
        if !self.is_handed_over() {
            evicted.iter().filter_map(Evicted::complete).for_each(|entry| self.store.remove(entry));
        }
        self.store.remove_dropped();
        self.index().removed(evicted);
        self.evictions.fetch_add(evicted.len() as u64, Ordering::Relaxed);
    }

    /// Drops a complete or partial object; returns whether there was one. Reads in progress complete, since the file exists until
    /// its last descriptor is closed.
    pub(super) fn drop_object(self: &Arc<Self>, version: VersionId) -> bool {
        let Some(evicted) = self.index().take(version) else { return false };
        self.remove_meanwhile(vec![evicted]);
        true
    }

    pub(super) fn set_handed_over(&self, handed_over: bool) {
        self.handed_over.store(handed_over, Ordering::Release);
        if handed_over {
            self.save_order();
            self.store.drop_spare_files();
            // The other daemon removes the files of partial objects.
            self.index().discard_all_partial();
        }
    }

    pub(super) fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }

    /// Marks a clean shutdown.
    pub(super) fn close(&self) {
        if !self.is_handed_over() && !self.has_failed() {
            // Ends the run that sorts objects.
            self.index().begin_sorting();
            self.note_checked();
            self.save_order();
            self.store.close();
        }
    }

    /// Saves the LRU order for the next daemon.
    pub(super) fn save_order(&self) {
        let _one = self.rewriting.lock();
        let order = self.index().order_to_save();
        if let Err(error) = self.store.save_order(&order) {
            tracing::warn!(folder = %self.folder.display(), %error, "cannot save the LRU order");
        }
    }

    /// Returns a duplicate of the lock on the folder, for the handover.
    pub(super) fn lock(&self) -> io::Result<File> {
        let lock = self.lock.lock();
        lock.as_ref().map_or(Err(io::ErrorKind::NotFound.into()), File::try_clone)
    }

    pub(super) fn release_lock(&self) {
        *self.lock.lock() = None;
    }

    /// Marks the disk as failed if the error is that of a broken disk.
    pub(super) fn notice(&self, error: &io::Error) {
        if is_broken(error) && !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(
                folder = %self.folder.display(), %error,
                "disk failed; continuing without it. Repair it and restart the daemon"
            );
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(super) fn usage(&self) -> Usage {
        self.index().usage()
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock()
    }

    pub(super) fn path(&self) -> &Path {
        &self.folder
    }
}

/// Returns whether the error means that the disk does not work.
pub(super) fn is_broken(error: &io::Error) -> bool {
    use Errno::{EIO, ENODEV, ENOKEY, ENXIO, EROFS, ESHUTDOWN, EUCLEAN};
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(EIO | EROFS | ENXIO | ENODEV | ESHUTDOWN | EUCLEAN | ENOKEY))
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("folder", &self.folder).finish_non_exhaustive()
    }
}
