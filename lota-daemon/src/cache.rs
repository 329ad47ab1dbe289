//! Whole objects on this node's disks, found by object version.
//!
//! An overwritten object is simply another file, so nothing here is ever invalidated: what the gateway no
//! longer names is no longer read, and ages out.

mod compare;
mod disk;
mod evict;
mod fill;
mod fscrypt;
mod ids;
mod index;
mod lru;
mod object;
mod pending;
mod progress;
mod reader;
mod record;
mod store;
mod upkeep;
mod verify;

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

pub use compare::{Corrupt, compare, free, usage};
pub use evict::{Gone, Which};
pub use fill::{Fill, FillError, How, Source, SourceError};
pub use fscrypt::{Encryption, can_encrypt};
pub use object::Object;
pub use reader::{Broken, Piece, Reader};
pub use store::{Listed, list};

use self::{
    disk::Disk,
    ids::{Ids, NameId},
    progress::Progress,
    store::Entry,
};
use crate::{
    placement::{NodeName, Placement},
    s3::{ObjectMeta, ObjectName, ObjectVersion},
};

/// This node's cache: one disk or several, each with its share of the objects.
#[derive(Debug)]
pub struct Cache {
    ids: Ids,
    disks: Vec<Arc<Disk>>,
    /// Those that did not work from the start.
    failed: Vec<DiskPlan>,
    /// Which disk an object is on, by the same rule that places objects over nodes.
    shares: Placement,
    /// Who is asking the gateway about an object that this node knows nothing of; closed when it has asked.
    leaders: Mutex<HashMap<NameId, watch::Receiver<()>>>,
}

/// A folder, and what it may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// The folder; one daemon at a time.
    pub folder: PathBuf,
    /// Most bytes of objects.
    pub capacity: u64,
}

/// How much the cache takes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes of each disk to leave to others.
    pub min_free: u64,
    /// Hundredths of the capacity beyond which room is made ahead,
    pub high: u8,
    /// and those that are left then.
    pub low: u8,
    /// Who may come in.
    pub admission: Admission,
    /// Must it be encrypted?
    pub encryption: Encryption,
    /// Bytes per second, on each disk, that are compared with their checksums behind the requests; 0: none.
    pub scrub: u64,
    /// Objects that come in at once.
    pub fills: usize,
    /// Ranged requests for one of them at once.
    pub requests: usize,
    /// Bytes that each asks for.
    pub part: u64,
    /// Largest object that is compared with its ETag, where that is an MD5.
    pub md5_up_to: u64,
}

impl Plan {
    /// What holds where nothing is said.
    pub const DEFAULT: Self = Self {
        min_free: 1 << 30,
        high: 98,
        low: 95,
        admission: Admission::All,
        encryption: Encryption::Auto,
        scrub: 16 << 20,
        fills: 128,
        requests: 4,
        part: 8 << 20,
        md5_up_to: 64 << 20,
    };
}

/// Which objects may come in when something must go for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// All: what was used least recently goes.
    #[default]
    All,
    /// Those that are read more often than what would go: one read of everything does not sweep the cache.
    Frequent,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Complete objects.
    pub objects: usize,
    /// Their bytes, and those reserved by fills.
    pub bytes: u64,
    /// Fills under way.
    pub fills: usize,
}

/// How a disk of the cache is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its folder.
    pub folder: PathBuf,
    /// Most bytes of objects.
    pub capacity: u64,
    /// What it holds.
    pub usage: Usage,
    /// Is what it holds encrypted?
    pub encrypted: bool,
    /// Does it work?
    pub works: bool,
    /// Objects that went for others, since the daemon began.
    pub evictions: u64,
    /// Objects whose bytes were found to be others, likewise.
    pub corrupt: u64,
    /// Bytes that were compared with their checksums, likewise.
    pub verified: u64,
}

impl Cache {
    /// Opens the cache on these disks, sweeps what a crash left half-written, and finds what is complete.
    /// `gateway` scopes the names in it; `locks` are those of the daemon before, if it has handed over.
    ///
    /// # Errors
    /// If a folder cannot be used, or another daemon uses it that has not handed over its lock.
    pub fn open(disks: &[DiskPlan], gateway: &str, plan: &Plan, locks: &[File]) -> io::Result<Self> {
        let ids = Ids::new(gateway);
        let lanes = Arc::new(Semaphore::new(plan.fills));
        // Each has its own; together they are as many.
        let plan = Plan { fills: plan.fills.div_ceil(disks.len().max(1)), ..*plan };
        let (mut opened, mut failed) = (Vec::new(), Vec::new());
        for disk in disks {
            match Disk::open(disk, &ids, &plan, &lanes, locks) {
                Ok(disk) => opened.push(Arc::new(disk)),
                // As one that fails later: the others do, if there is any.
                Err(error) if disk::is_broken(&error) && failed.len() + 1 < disks.len() => {
                    tracing::error!(folder = %disk.folder.display(), %error, "this disk does not work: going on without it");
                    failed.push(disk.clone());
                }
                Err(error) => {
                    let what = format!("the cache in {}: {error}", disk.folder.display());
                    return Err(io::Error::new(error.kind(), what));
                }
            }
        }
        let shares =
            disks.iter().map(|disk| (NodeName(disk.folder.to_string_lossy().into_owned()), disk.capacity));
        Ok(Self { shares: Placement::new("", shares), disks: opened, failed, ids, leaders: Mutex::default() })
    }

    /// The disk that an object is on, or would be.
    fn disk(&self, name: &ObjectName) -> Option<&Arc<Disk>> {
        if let [only] = &*self.disks {
            return Some(only).filter(|disk| !disk.has_failed());
        }
        let in_order = self.shares.first(name, usize::MAX).into_iter();
        in_order
            .filter_map(|folder| self.disks.iter().find(|disk| disk.path() == Path::new(&folder.0)))
            .find(|disk| !disk.has_failed())
    }

    /// The version of an object that the gateway named last, if it is here or on its way.
    pub async fn find(&self, name: &ObjectName) -> Option<Arc<Object>> {
        self.disk(name)?.find(self.ids.name(name)).await
    }

    /// This version of an object, if it is here or on its way. The gateway has just named it.
    pub async fn get(&self, version: &ObjectVersion) -> Option<Arc<Object>> {
        let (disk, id) = (self.disk(&version.name)?, self.ids.version(version));
        let object = disk.get(id).await?;
        disk.named(self.ids.name(&version.name), id);
        Some(object)
    }

    /// Counts a read of an object, for those who may come in only if they are read often.
    pub fn count_read(&self, name: &ObjectName) {
        if let Some(disk) = self.disk(name)
            && disk.plan.admission == Admission::Frequent
        {
            disk.index().count_read(self.ids.name(name));
        }
    }

    /// Makes the caller the one that asks the gateway about an object nobody here knows; or waits until the
    /// one that is asking already has been told, and returns `None`.
    pub async fn lead(self: &Arc<Self>, name: &ObjectName) -> Option<Lead> {
        let name = self.ids.name(name);
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

    /// Begins a fill, or joins the one that brings this version already. Makes room for it.
    ///
    /// # Errors
    /// [`NoRoom`]: the object must pass through uncached.
    pub async fn begin_fill(&self, meta: &ObjectMeta) -> Result<Join, NoRoom> {
        let version = &meta.version;
        let disk = self.disk(&version.name).cloned().ok_or_else(|| NoRoom("no disk works".into()))?;
        let (name, size) = (self.ids.name(&version.name), meta.size);
        let (entry, meta) = (Entry { version: self.ids.version(version), name, size }, meta.clone());
        // A task of its own: what it has set aside must be given back even if the client is gone meanwhile.
        let begun = tokio::spawn(async move { disk.begin_or_join(entry, meta).await });
        begun.await.unwrap_or_else(|error| Err(NoRoom(error.to_string())))
    }

    /// Hints that the gateway no longer has an object: what is here of it need not stay.
    pub fn forget(&self, name: &ObjectName) {
        if let Some(disk) = self.disk(name) {
            disk.forget(self.ids.name(name));
        }
    }

    /// Looks after the disks for as long as it is polled: makes room ahead, and compares what is stored with its
    /// checksums.
    pub async fn keep(&self) {
        join_all(self.disks.iter().map(|disk| upkeep::keep(disk.clone()))).await;
    }

    /// Leaves the folders to another daemon, or takes them back. What is left is read while it lasts, and fills under
    /// way reach their readers, but nothing in the folders is changed any more.
    pub fn set_handed_over(&self, handed_over: bool) {
        self.disks.iter().for_each(|disk| disk.set_handed_over(handed_over));
    }

    /// Comes to an orderly end, after which the next daemon trusts what it finds.
    pub fn close(&self) {
        self.disks.iter().for_each(|disk| disk.close());
    }

    /// What says that this process is the one that writes in the folders, to hand over.
    ///
    /// # Errors
    /// If there are no descriptors left, or they were let go of.
    pub fn locks(&self) -> io::Result<Vec<File>> {
        self.disks.iter().map(|disk| disk.lock()).collect()
    }

    /// Lets go of the folders, for the daemon that has them now and those after it.
    pub fn release_locks(&self) {
        self.disks.iter().for_each(|disk| disk.release_lock());
    }

    /// What the cache holds now.
    pub fn usage(&self) -> Usage {
        self.disks.iter().filter(|disk| !disk.has_failed()).fold(Usage::default(), |all, disk| {
            let Usage { objects, bytes, fills } = disk.usage();
            Usage { objects: all.objects + objects, bytes: all.bytes + bytes, fills: all.fills + fills }
        })
    }

    /// How each disk is.
    pub fn disks(&self) -> impl Iterator<Item = DiskStatus> {
        let failed = self.failed.iter().map(|disk| DiskStatus {
            folder: disk.folder.clone(),
            capacity: disk.capacity,
            usage: Usage::default(),
            encrypted: false,
            works: false,
            evictions: 0,
            corrupt: 0,
            verified: 0,
        });
        failed.chain(self.disks.iter().map(|disk| DiskStatus {
            folder: disk.folder.clone(),
            capacity: disk.capacity,
            usage: disk.usage(),
            encrypted: disk.encrypted,
            works: !disk.has_failed(),
            evictions: disk.evictions.load(Ordering::Relaxed),
            corrupt: disk.corrupt.load(Ordering::Relaxed),
            verified: disk.verified.load(Ordering::Relaxed),
        }))
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.cache.leaders.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

#[cfg(test)]
#[path = "cache/tests.rs"]
mod tests;

#[cfg(test)]
#[path = "cache/storage_tests.rs"]
mod storage_tests;
