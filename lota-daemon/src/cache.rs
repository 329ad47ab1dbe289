//! Whole objects on this node's disk, found by object version.
//!
//! An overwritten object is simply another file, so nothing here is ever invalidated: what the gateway no
//! longer names is no longer read, and ages out.

mod fill;
mod lru;
mod object;
mod progress;
mod reader;
mod record;
mod store;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Semaphore, watch};

pub use fill::{Fill, FillError, How, Source, SourceError};
pub use object::Object;
pub use reader::{Broken, Reader};
pub use store::{Listed, list};

use self::{
    lru::ByteLru,
    progress::Progress,
    store::{NameId, Part, Store, VersionId},
};
use crate::s3::{ObjectMeta, ObjectName, ObjectVersion};

/// Objects whose file and record are kept at hand: one descriptor each.
const OPEN_OBJECTS: usize = 1024;

/// This node's cache. No file is touched under its locks.
#[derive(Debug)]
pub struct Cache {
    store: Store,
    plan: Plan,
    /// One for each request by which a fill brings bytes, beside its first.
    lanes: Arc<Semaphore>,
    index: Mutex<Index>,
    /// Who is asking the gateway about an object that this node knows nothing of; closed when it has asked.
    leaders: Mutex<HashMap<NameId, watch::Receiver<()>>>,
    /// Another daemon has the folder: what is in it is read, and nothing is changed.
    handed_over: AtomicBool,
    /// What says that this process is the one that writes in the folder.
    lock: Mutex<Option<File>>,
}

/// How much the cache takes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Most bytes of objects.
    pub capacity: u64,
    /// Bytes of disk to leave to others.
    pub min_free: u64,
    /// Objects that come in at once.
    pub fills: usize,
    /// Ranged requests for one of them at once.
    pub requests: usize,
    /// Bytes that each asks for.
    pub part: u64,
}

/// A version is in at most one of `lru` (complete), `filling` and `removing`.
#[derive(Debug)]
struct Index {
    /// Complete objects, by bytes.
    lru: ByteLru<VersionId, NameId>,
    /// The version of each object that the gateway named last; complete or filling.
    newest: HashMap<NameId, VersionId>,
    /// Objects on their way in.
    filling: HashMap<VersionId, Arc<Object>>,
    /// Objects on their way out: their files are not gone yet, so they cannot come in again.
    removing: HashSet<VersionId>,
    /// Complete objects, opened.
    open: caches::RawLRU<VersionId, Arc<Object>>,
}

/// How a fill begins.
#[derive(Debug)]
pub enum Join {
    /// The caller brings the bytes.
    Lead(Fill),
    /// The object is here already, or someone else is bringing it.
    Follow(Arc<Object>),
}

/// Why an object cannot be stored: too large, too little disk, or a disk that fails.
#[derive(Debug)]
pub struct NoRoom(pub String);

/// Held by the one request that asks the gateway about an object this node knows nothing of, until others can
/// find what it was told.
#[derive(Debug)]
pub struct Lead {
    cache: Arc<Cache>,
    name: NameId,
    _waiting: watch::Sender<()>,
}

/// What the cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Complete objects.
    pub objects: usize,
    /// Their bytes, and those reserved by fills.
    pub bytes: u64,
    /// Fills under way.
    pub fills: usize,
}

impl Cache {
    /// Opens the cache in `folder`, sweeps what a crash left half-written, and finds what is complete.
    /// `gateway` scopes the names in it.
    ///
    /// # Errors
    /// If the folder cannot be used, or another daemon uses it that has not handed over its `lock`.
    pub fn open(folder: &Path, gateway: &str, plan: Plan, lock: Option<&File>) -> io::Result<Self> {
        let (store, lock) = Store::open(folder, gateway, plan.min_free, lock)?;
        let mut lru = ByteLru::new(plan.capacity);
        let mut newest = HashMap::new();
        for found in store.recover()? {
            newest.insert(found.name, found.version);
            for (evicted, _) in lru.insert(found.version, found.name, found.bytes) {
                store.remove(&evicted);
            }
        }
        newest.retain(|_, version| lru.contains(version));
        let open = caches::RawLRU::new(OPEN_OBJECTS).map_err(|error| io::Error::other(error.to_string()))?;
        let (filling, removing) = (HashMap::new(), HashSet::new());
        let index = Mutex::new(Index { lru, newest, filling, removing, open });
        Ok(Self {
            store,
            plan,
            lanes: Arc::new(Semaphore::new(plan.fills)),
            index,
            leaders: Mutex::default(),
            handed_over: AtomicBool::new(false),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// The version of an object that the gateway named last, if it is here or on its way.
    pub async fn find(self: &Arc<Self>, name: &ObjectName) -> Option<Arc<Object>> {
        let id = self.index().newest.get(&self.store.name_id(name)).copied()?;
        self.get_by_id(id).await
    }

    /// This version of an object, if it is here or on its way. The gateway has just named it.
    pub async fn get(self: &Arc<Self>, version: &ObjectVersion) -> Option<Arc<Object>> {
        let id = self.store.version_id(version);
        let object = self.get_by_id(id).await?;
        self.index().newest.insert(self.store.name_id(&version.name), id);
        Some(object)
    }

    async fn get_by_id(self: &Arc<Self>, id: VersionId) -> Option<Arc<Object>> {
        {
            let mut index = self.index();
            if let Some(object) = index.filling.get(&id) {
                return Some(object.clone());
            }
            index.lru.touch(&id)?;
            if let Some(object) = caches::Cache::get(&mut index.open, &id) {
                return Some(object.clone());
            }
        }
        let cache = self.clone();
        let opened = tokio::task::spawn_blocking(move || cache.store.load(&id)).await.ok()?;
        match opened {
            Ok(object) => {
                let object = Arc::new(object);
                caches::Cache::put(&mut self.index().open, id, object.clone());
                Some(object)
            }
            Err(error) => {
                tracing::warn!(file = %id, %error, "a cached object cannot be read");
                // Not for a lack of descriptors, say: that passes, and the object is good.
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) {
                    self.drop_object(id);
                }
                None
            }
        }
    }

    /// Makes the caller the one that asks the gateway about an object nobody here knows; or waits until the
    /// one that is asking already has been told, and returns `None`.
    pub async fn lead(self: &Arc<Self>, name: &ObjectName) -> Option<Lead> {
        let name = self.store.name_id(name);
        let mut asking = {
            let mut leaders = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
            match leaders.get(&name) {
                Some(asking) => asking.clone(),
                None => {
                    let (waiting, asking) = watch::channel(());
                    leaders.insert(name, asking);
                    return Some(Lead { cache: self.clone(), name, _waiting: waiting });
                }
            }
        };
        // Nothing is ever sent: the channel closes.
        let _ = asking.changed().await;
        None
    }

    /// Begins a fill, or joins the one that brings this version already. Makes room first.
    ///
    /// # Errors
    /// [`NoRoom`]: the object must pass through uncached.
    pub async fn begin_fill(self: &Arc<Self>, meta: &ObjectMeta) -> Result<Join, NoRoom> {
        let (cache, meta) = (self.clone(), meta.clone());
        // A task of its own: what it has set aside must be given back even if the client is gone meanwhile.
        let begun = tokio::spawn(async move { cache.begin_or_join(&meta).await });
        begun.await.unwrap_or_else(|error| Err(NoRoom(error.to_string())))
    }

    async fn begin_or_join(self: &Arc<Self>, meta: &ObjectMeta) -> Result<Join, NoRoom> {
        let id = self.store.version_id(&meta.version);
        if let Some(object) = self.get(&meta.version).await {
            return Ok(Join::Follow(object));
        }
        if self.is_handed_over() {
            return Err(NoRoom("another daemon has the cache now".into()));
        }
        let evicted = self.reserve(id, meta.size)?;
        let (store, size) = (self.store.clone(), meta.size);
        let (id_, victims) = (id, evicted.clone());
        let part = tokio::task::spawn_blocking(move || {
            victims.iter().for_each(|victim| store.remove(victim));
            store.create(&id_, size)
        });
        let part = part.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let registered = {
            let mut index = self.index();
            evicted.iter().for_each(|victim| {
                index.removing.remove(victim);
            });
            part.map_err(|error| {
                index.lru.release(size);
                NoRoom(format!("no file of {size} bytes: {error}"))
            })
            .map(|part| index.register(self, id, meta, part))?
        };
        match registered {
            Some(fill) => Ok(Join::Lead(fill)),
            // Another has come first; its bytes are as good.
            None => match self.get(&meta.version).await {
                Some(object) => Ok(Join::Follow(object)),
                None => Err(NoRoom("it came and went meanwhile".into())),
            },
        }
    }

    /// Sets bytes aside; which versions must go for them, their files still to be removed.
    fn reserve(&self, id: VersionId, size: u64) -> Result<Vec<VersionId>, NoRoom> {
        let mut index = self.index();
        if index.removing.contains(&id) {
            return Err(NoRoom("it is just being evicted".into()));
        }
        if index.filling.len() >= self.plan.fills {
            return Err(NoRoom("as many fills as may be are under way".into()));
        }
        let evicted = index.lru.reserve(size).ok_or_else(|| {
            NoRoom(format!("{size} bytes do not fit into a cache of {} bytes", index.lru.capacity()))
        })?;
        for (version, name) in &evicted {
            index.forget(version, *name);
            index.removing.insert(*version);
        }
        Ok(evicted.into_iter().map(|(version, _)| version).collect())
    }

    /// Hints that the gateway no longer has an object: what is here of it need not stay.
    pub fn forget(self: &Arc<Self>, name: &ObjectName) {
        let newest = self.index().newest.get(&self.store.name_id(name)).copied();
        if let Some(id) = newest {
            self.drop_object(id);
        }
    }

    /// Leaves the folder to another daemon, or takes it back. What is left is read while it lasts, and fills under
    /// way reach their readers, but nothing in the folder is changed any more.
    pub fn set_handed_over(&self, handed_over: bool) {
        self.handed_over.store(handed_over, Ordering::Release);
    }

    fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }

    /// What says that this process is the one that writes in the folder, to hand over.
    ///
    /// # Errors
    /// If there are no descriptors left, or it was let go of.
    pub fn lock(&self) -> io::Result<File> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.as_ref().map_or(Err(io::ErrorKind::NotFound.into()), File::try_clone)
    }

    /// Lets go of the folder, for the daemon that has it now and those after it.
    pub fn release_lock(&self) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What the cache holds now.
    pub fn usage(&self) -> Usage {
        let index = self.index();
        Usage { objects: index.lru.len(), bytes: index.lru.bytes(), fills: index.filling.len() }
    }

    /// Drops a complete object. A reader that has it open reads on: the file goes with its last descriptor.
    fn drop_object(self: &Arc<Self>, id: VersionId) {
        {
            let mut index = self.index();
            let Some(name) = index.lru.remove(&id) else { return };
            index.forget(&id, name);
            index.removing.insert(id);
        }
        let cache = self.clone();
        tokio::task::spawn_blocking(move || {
            if !cache.is_handed_over() {
                cache.store.remove(&id);
            }
            cache.index().removing.remove(&id);
        });
    }

    /// A fill has ended well: its record is on disk.
    fn fill_committed(&self, id: VersionId, name: NameId, object: &Arc<Object>) {
        let mut index = self.index();
        index.filling.remove(&id);
        index.lru.commit(id, name, object.meta().size);
        caches::Cache::put(&mut index.open, id, object.clone());
    }

    /// A fill has ended otherwise.
    fn fill_abandoned(&self, id: VersionId, name: NameId, size: u64) {
        let mut index = self.index();
        index.filling.remove(&id);
        index.lru.release(size);
        index.forget(&id, name);
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.cache.leaders.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

impl Index {
    /// Makes `part` the fill of a version, unless it has one or is complete.
    fn register(&mut self, cache: &Arc<Cache>, id: VersionId, meta: &ObjectMeta, part: Part) -> Option<Fill> {
        if self.filling.contains_key(&id) || self.lru.contains(&id) {
            self.lru.release(meta.size);
            return None;
        }
        let name = cache.store.name_id(&meta.version.name);
        let progress = Arc::new(Progress::new(meta.size));
        let object = Arc::new(Object::filling(meta.clone(), part.file(), progress.clone()));
        self.filling.insert(id, object.clone());
        self.newest.insert(name, id);
        Some(Fill::new(cache.clone(), id, name, object, progress, part))
    }

    /// Forgets all that points at a version that is no longer among the entries.
    fn forget(&mut self, version: &VersionId, name: NameId) {
        caches::Cache::remove(&mut self.open, version);
        if self.newest.get(&name) == Some(version) {
            self.newest.remove(&name);
        }
    }
}

#[cfg(test)]
#[path = "cache/tests.rs"]
mod tests;
