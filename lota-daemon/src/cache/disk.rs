//! One disk's share of the cache.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use nix::errno::Errno;
use tokio::sync::Semaphore;

use super::{
    DiskPlan, Fill, Join, NoRoom, Object, Plan, Usage,
    ids::{Ids, NameId, VersionId},
    index::{Index, Place},
    progress::Progress,
    store::{Entry, Opened, Part, Store},
    verify,
};
use crate::s3::ObjectMeta;

/// A folder with objects. No file is touched under its locks.
pub(super) struct Disk {
    pub(super) folder: PathBuf,
    pub(super) capacity: u64,
    pub(super) encrypted: bool,
    pub(super) store: Store,
    pub(super) plan: Plan,
    /// One for each request by which a fill brings bytes, beside its first; over all disks.
    pub(super) lanes: Arc<Semaphore>,
    index: Mutex<Index>,
    /// Another daemon has the folder: what is in it is read, and nothing is changed.
    handed_over: AtomicBool,
    /// It does not work: it is as if it were not there.
    failed: AtomicBool,
    /// There may be objects that must be checked, and the next daemon is to know.
    unchecked: AtomicBool,
    /// What says that this process is the one that writes in the folder.
    lock: Mutex<Option<File>>,
    pub(super) evictions: AtomicU64,
    pub(super) corrupt: AtomicU64,
    /// Bytes that were compared with their checksums.
    pub(super) verified: AtomicU64,
}

impl Disk {
    /// Opens a folder, sweeps what a crash left half-written, and finds what is complete.
    pub(super) fn open(
        disk: &DiskPlan,
        ids: &Ids,
        plan: &Plan,
        lanes: &Arc<Semaphore>,
        locks: &[File],
    ) -> io::Result<Self> {
        let Opened { store, lock, clean, encrypted } =
            Store::open(&disk.folder, ids, plan.min_free, plan.encryption, locks)?;
        let (index, superfluous) = Index::new(plan, disk.capacity, store.recover()?, clean)?;
        if !clean {
            tracing::warn!(
                folder = %disk.folder.display(),
                objects = index.usage().objects,
                "the daemon before came to a sudden end: objects are compared with their checksums when first read"
            );
        }
        superfluous.iter().for_each(|entry| store.remove(entry));
        store.make_blanks()?;
        Ok(Self {
            folder: disk.folder.clone(),
            capacity: disk.capacity,
            encrypted,
            store,
            plan: *plan,
            lanes: lanes.clone(),
            index: Mutex::new(index),
            handed_over: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            unchecked: AtomicBool::new(!clean),
            lock: Mutex::new(Some(lock)),
            evictions: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            verified: AtomicU64::new(0),
        })
    }

    /// The version of an object that the gateway named last, if it is here or on its way.
    pub(super) async fn find(self: &Arc<Self>, name: NameId) -> Option<Arc<Object>> {
        let version = self.index().newest(name)?;
        self.get(version).await
    }

    /// A version, if it is here or on its way.
    pub(super) async fn get(self: &Arc<Self>, version: VersionId) -> Option<Arc<Object>> {
        let place = self.index().look_up(version)?;
        let (entry, suspect) = match place {
            Place::AtHand(object) if !object.file().has_failed() => return Some(object),
            Place::AtHand(_) => {
                tracing::warn!(file = %version, "a cached object could not be read; dropping it");
                self.drop_object(version);
                return None;
            }
            Place::OnDisk { entry, suspect } => (entry, suspect),
        };
        let disk = self.clone();
        let loaded = tokio::task::spawn_blocking(move || disk.store.load(&entry)).await.ok()?;
        match loaded {
            Ok((record, file)) if suspect => {
                let progress = Arc::new(Progress::new(record.meta.size));
                let object = Arc::new(Object::suspect(record.meta, file, progress.clone()));
                let open = self.index().opened(version, object.clone());
                if Arc::ptr_eq(&open, &object) {
                    tokio::spawn(self.clone().check(entry, object, progress, record.checksums));
                }
                Some(open)
            }
            Ok((record, file)) => {
                Some(self.index().opened(version, Arc::new(Object::complete(record.meta, file))))
            }
            Err(error) => {
                tracing::warn!(file = %version, %error, "a cached object cannot be read");
                // Not for a lack of descriptors or memory: that passes, and the object is good.
                let code = error.raw_os_error().map(Errno::from_raw);
                if !matches!(code, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) {
                    self.drop_object(version);
                }
                self.notice(&error);
                None
            }
        }
    }

    /// Compares an object with its checksums, what readers wait for first.
    async fn check(
        self: Arc<Self>,
        entry: Entry,
        object: Arc<Object>,
        progress: Arc<Progress>,
        checksums: Vec<u32>,
    ) {
        while let Some(chunks) = progress.claim(1, false) {
            let (file, chunk) = (object.file().clone(), chunks.start);
            let (range, expected) = (progress.bytes(chunks), checksums[chunk]);
            let compared = tokio::task::spawn_blocking(move || verify::chunk(&file, range, expected)).await;
            match compared.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(()) => progress.arrived(chunk, expected),
                Err(error) => {
                    progress.end();
                    return self.found_corrupt(&entry, &error);
                }
            }
            self.verified.fetch_add(range.length(), Ordering::Relaxed);
        }
        self.trust(&entry);
    }

    /// An object's bytes are what they were.
    pub(super) fn trust(&self, entry: &Entry) {
        self.index().trust(&entry.version);
    }

    /// Notes, once, that no object is left that must be checked.
    pub(super) fn note_checked(&self) {
        let none_left = !self.index().has_suspects();
        if none_left && !self.is_handed_over() && self.unchecked.swap(false, Ordering::AcqRel) {
            self.store.all_checked();
        }
    }

    /// A file's bytes are not what they were, or cannot be read.
    pub(super) fn found_corrupt(self: &Arc<Self>, entry: &Entry, error: &io::Error) {
        self.notice(error);
        // Evicted meanwhile, perhaps.
        if self.drop_object(entry.version) {
            tracing::error!(file = %entry.version, %error, "dropped a corrupt cached object");
            self.corrupt.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The gateway has named this version of an object.
    pub(super) fn named(&self, name: NameId, version: VersionId) {
        self.index().named(name, version);
    }

    /// Begins a fill, or joins the one that brings this version already. Makes room for it.
    pub(super) async fn begin_or_join(
        self: &Arc<Self>,
        entry: Entry,
        meta: ObjectMeta,
    ) -> Result<Join, NoRoom> {
        if let Some(object) = self.get(entry.version).await {
            self.named(entry.name, entry.version);
            return Ok(Join::Follow(object));
        }
        if self.is_handed_over() {
            return Err(NoRoom("another daemon has the cache now".into()));
        }
        let evicted = self.index().reserve(&entry)?;
        let part = match self.file_for(entry, evicted).await {
            Ok(part) => part,
            Err(error) => {
                self.index().release(entry.size);
                self.notice(&error);
                return Err(NoRoom(format!("no file of {} bytes: {error}", entry.size)));
            }
        };
        let progress = Arc::new(Progress::new(entry.size));
        let object = Arc::new(Object::filling(meta, part.file(), progress.clone()));
        if self.index().register(&entry, &object) {
            return Ok(Join::Lead(Fill::new(self.clone(), entry, object, progress, part)));
        }
        // Another has come first; its bytes are as good.
        let other = self.get(entry.version).await;
        other.map(Join::Follow).ok_or_else(|| NoRoom("it came and went meanwhile".into()))
    }

    /// A file for a fill, in the room of what was `evicted`.
    async fn file_for(self: &Arc<Self>, entry: Entry, evicted: Vec<Entry>) -> io::Result<Part> {
        let at_once = if self.store.has_blank() { self.store.create(&entry).ok() } else { None };
        let disk = self.clone();
        let created = match at_once {
            Some(part) => {
                self.remove_meanwhile(evicted);
                Ok(part)
            }
            None => tokio::task::spawn_blocking(move || disk.create(&entry, evicted))
                .await
                .unwrap_or_else(|error| Err(io::Error::other(error))),
        };
        let disk = self.clone();
        tokio::task::spawn_blocking(move || disk.store.make_blanks().inspect_err(|error| disk.notice(error)));
        created
    }

    /// The same, however long it takes; where others have taken the disk, in the room of what is oldest, too.
    fn create(self: &Arc<Self>, entry: &Entry, evicted: Vec<Entry>) -> io::Result<Part> {
        let is_full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
        match self.store.create(entry) {
            Err(error) if is_full(&error) => self.remove(&evicted),
            created => {
                self.remove_meanwhile(evicted);
                return created;
            }
        }
        match self.store.create(entry) {
            Err(error) if is_full(&error) => {
                let short = u64::try_from(i128::from(entry.size) - self.store.spare()?).unwrap_or_default();
                let evicted = self.index().evict_if_enough(short);
                self.remove(&evicted);
                self.store.create(entry)
            }
            created => created,
        }
    }

    /// Removing much takes a while, which nobody needs to wait for.
    fn remove_meanwhile(self: &Arc<Self>, evicted: Vec<Entry>) {
        if !evicted.is_empty() {
            let disk = self.clone();
            tokio::task::spawn_blocking(move || disk.remove(&evicted));
        }
    }

    /// Removes the files of what has been taken out of the index.
    pub(super) fn remove(&self, evicted: &[Entry]) {
        if !self.is_handed_over() {
            evicted.iter().for_each(|entry| self.store.remove(entry));
        }
        self.index().removed(evicted);
        self.evictions.fetch_add(evicted.len() as u64, Ordering::Relaxed);
    }

    /// Hints that the gateway no longer has an object: what is here of it need not stay.
    pub(super) fn forget(self: &Arc<Self>, name: NameId) {
        let newest = self.index().newest(name);
        if let Some(version) = newest {
            self.drop_object(version);
        }
    }

    /// Drops a complete object, if there is one. A reader that has it open reads on: the file goes with its last
    /// descriptor.
    fn drop_object(self: &Arc<Self>, version: VersionId) -> bool {
        let Some(entry) = self.index().take(version) else { return false };
        let disk = self.clone();
        tokio::task::spawn_blocking(move || disk.remove(&[entry]));
        true
    }

    pub(super) fn set_handed_over(&self, handed_over: bool) {
        self.handed_over.store(handed_over, Ordering::Release);
        if handed_over {
            self.save_order();
            self.store.drop_blanks();
        }
    }

    pub(super) fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }

    /// Comes to an orderly end.
    pub(super) fn close(&self) {
        if !self.is_handed_over() && !self.has_failed() {
            self.note_checked();
            self.save_order();
            self.store.close();
        }
    }

    /// Notes which objects were used, for the next daemon.
    pub(super) fn save_order(&self) {
        let order = self.index().order();
        if let Err(error) = self.store.save_order(&order) {
            tracing::warn!(folder = %self.folder.display(), %error, "cannot note the order in which objects were used");
        }
    }

    /// What says that this process is the one that writes in the folder, to hand over.
    pub(super) fn lock(&self) -> io::Result<File> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.as_ref().map_or(Err(io::ErrorKind::NotFound.into()), File::try_clone)
    }

    pub(super) fn release_lock(&self) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Takes the disk out, if an error is one of a disk that does not work.
    pub(super) fn notice(&self, error: &io::Error) {
        if is_broken(error) && !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(
                folder = %self.folder.display(), %error,
                "this disk does not work: going on without it; mend it and restart the daemon"
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
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self) -> &Path {
        &self.folder
    }
}

/// Is it a disk that does not work which says this?
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
