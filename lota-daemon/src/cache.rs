//! Whole objects on this node's disk, found by object version.
//!
//! An overwritten object is simply another file, so nothing here is ever invalidated: what the gateway no
//! longer names is no longer read, and ages out.

mod fill;
mod lru;
mod object;
mod reader;
mod record;
mod store;

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

pub use fill::{Fill, FillError};
pub use object::Object;
pub use reader::{Broken, Reader};
pub use store::{Listed, list};

use self::{
    lru::ByteLru,
    store::{NameId, Store, VersionId},
};
use crate::s3::{ObjectMeta, ObjectName, ObjectVersion};

/// Objects whose file and record are kept at hand.
const OPEN_OBJECTS: usize = 1024;

/// This node's cache.
#[derive(Debug)]
pub struct Cache {
    store: Store,
    index: Mutex<Index>,
    /// One probe of the gateway at a time for an object this node knows nothing of.
    leaders: Mutex<HashMap<NameId, Weak<tokio::sync::Mutex<()>>>>,
}

#[derive(Debug)]
struct Index {
    /// Complete objects, by bytes.
    lru: ByteLru<VersionId, NameId>,
    /// The version of each object that the gateway named last.
    newest: HashMap<NameId, VersionId>,
    /// Objects on their way in.
    filling: HashMap<VersionId, Arc<Object>>,
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

/// Held by the one request that asks the gateway about an object this node knows nothing of.
#[derive(Debug)]
pub struct Lead(#[expect(dead_code, reason = "held, not read")] tokio::sync::OwnedMutexGuard<()>);

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
    /// If the folder cannot be used, or another daemon uses it.
    pub fn open(folder: &Path, gateway: &str, capacity: u64, min_free: u64) -> io::Result<Self> {
        let store = Store::open(folder, gateway, min_free)?;
        let mut lru = ByteLru::new(capacity);
        let mut newest = HashMap::new();
        for found in store.recover()? {
            newest.insert(found.name, found.version);
            for (evicted, _) in lru.insert(found.version, found.name, found.bytes) {
                store.remove(&evicted);
            }
        }
        newest.retain(|_, version| lru.contains(version));
        let open = caches::RawLRU::new(OPEN_OBJECTS).map_err(|error| io::Error::other(error.to_string()))?;
        let index = Mutex::new(Index { lru, newest, filling: HashMap::new(), open });
        Ok(Self { store, index, leaders: Mutex::default() })
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
                // Gone or unreadable: a miss, and one file fewer.
                tracing::warn!(file = %id, %error, "dropping a cached object that cannot be read");
                self.drop_object(&id);
                None
            }
        }
    }

    /// Waits to be the one that asks the gateway about an object nobody here knows. Others wait for the
    /// answer, and then ask with the validator it named.
    pub async fn lead(&self, name: &ObjectName) -> Lead {
        let turn = {
            let mut leaders = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
            leaders.retain(|_, turn| turn.strong_count() > 0);
            let slot = leaders.entry(self.store.name_id(name)).or_default();
            slot.upgrade().unwrap_or_else(|| {
                let turn = Arc::new(tokio::sync::Mutex::new(()));
                *slot = Arc::downgrade(&turn);
                turn
            })
        };
        Lead(turn.lock_owned().await)
    }

    /// Begins a fill, or joins the one that brings this version already. Makes room first.
    ///
    /// # Errors
    /// [`NoRoom`]: the object must pass through uncached.
    pub async fn begin_fill(self: &Arc<Self>, meta: &ObjectMeta) -> Result<Join, NoRoom> {
        if let Some(object) = self.get(&meta.version).await {
            return Ok(Join::Follow(object));
        }
        let cache = self.clone();
        let meta = meta.clone();
        tokio::task::spawn_blocking(move || cache.begin_fill_blocking(meta))
            .await
            .map_err(|error| NoRoom(error.to_string()))?
    }

    fn begin_fill_blocking(self: &Arc<Self>, meta: ObjectMeta) -> Result<Join, NoRoom> {
        let id = self.store.version_id(&meta.version);
        let name = self.store.name_id(&meta.version.name);
        let size = meta.size;
        let mut index = self.index();
        if let Some(object) = index.filling.get(&id) {
            return Ok(Join::Follow(object.clone()));
        }
        let evicted = index.lru.reserve(size).ok_or_else(|| {
            NoRoom(format!("{size} bytes do not fit into a cache of {} bytes", index.lru.capacity()))
        })?;
        for (version, name) in evicted {
            index.forget(&version, name);
            self.store.remove(&version);
        }
        let created = self.store.create(&id, size).and_then(|file| Object::filling(meta, file));
        let (object, progress) = match created {
            Ok(created) => created,
            Err(error) => {
                index.lru.release(size);
                self.store.remove(&id);
                return Err(NoRoom(format!("no file of {size} bytes: {error}")));
            }
        };
        let object = Arc::new(object);
        index.filling.insert(id, object.clone());
        index.newest.insert(name, id);
        drop(index);
        Ok(Join::Lead(Fill::new(self.clone(), id, name, object, progress)))
    }

    /// Hints that the gateway no longer has an object: what is here of it need not stay.
    pub fn forget(&self, name: &ObjectName) {
        let index = self.index();
        let Some(id) = index.newest.get(&self.store.name_id(name)).copied() else { return };
        if !index.filling.contains_key(&id) {
            drop(index);
            self.drop_object(&id);
        }
    }

    /// What the cache holds now.
    pub fn usage(&self) -> Usage {
        let index = self.index();
        Usage { objects: index.lru.len(), bytes: index.lru.bytes(), fills: index.filling.len() }
    }

    fn drop_object(&self, id: &VersionId) {
        let mut index = self.index();
        if let Some(name) = index.lru.remove(id) {
            index.forget(id, name);
        }
        drop(index);
        // A reader that has it open reads on: the file goes with its last descriptor.
        self.store.remove(id);
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
        drop(index);
        self.store.remove(&id);
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
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
