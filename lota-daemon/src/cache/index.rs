//! What is on one disk, and in which order it goes.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
};

use caches::lfu::TinyLFU;

use super::{
    Admission, NoRoom, Object, Plan, Usage,
    ids::{IdHash, NameId, VersionId},
    lru::ByteLru,
    store::Entry,
};

/// Objects whose file and record are kept at hand: one descriptor each.
const OPEN_OBJECTS: usize = 1024;
/// Reads that are counted before every count is halved.
const COUNTED_READS: usize = 1 << 20;

/// A version is in at most one of `lru` (complete), `filling` and `removing`.
pub(super) struct Index {
    /// Complete objects, by bytes.
    lru: ByteLru<VersionId, NameId, IdHash>,
    /// The version of each object that the gateway named last; complete or filling.
    newest: HashMap<NameId, VersionId, IdHash>,
    /// Objects on their way in.
    filling: HashMap<VersionId, Arc<Object>>,
    /// Objects on their way out: their files are not gone yet, so they cannot come in again.
    removing: HashSet<VersionId>,
    /// Complete objects, opened.
    open: caches::RawLRU<VersionId, Arc<Object>>,
    /// Complete objects whose bytes must be compared with their checksums first.
    suspects: HashSet<VersionId, IdHash>,
    /// How often objects were read of late, if that decides who may come in.
    reads: Option<TinyLFU<NameId>>,
    /// Bytes that are kept when the evictions are done.
    low: u64,
    fills: usize,
    /// Fills that have room, and no file yet.
    beginning: usize,
}

/// Where a version is.
pub(super) enum Place {
    /// Open, or on its way in.
    AtHand(Arc<Object>),
    /// On disk; to be opened.
    OnDisk {
        entry: Entry,
        /// Must its bytes be checked?
        suspect: bool,
    },
}

impl Index {
    /// An index of what was found, least recently used first; and what there is no room for.
    pub(super) fn new(
        plan: &Plan,
        capacity: u64,
        found: Vec<Entry>,
        trusted: bool,
    ) -> io::Result<(Self, Vec<Entry>)> {
        let wrong = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
        let reads = match plan.admission {
            Admission::All => None,
            Admission::Frequent => {
                let tracked = found.len().max(100_000);
                Some(TinyLFU::new(tracked, COUNTED_READS, 0.01).map_err(|error| wrong(&error))?)
            }
        };
        let mut index = Self {
            lru: ByteLru::new(capacity, found.len()),
            newest: HashMap::with_capacity_and_hasher(found.len(), IdHash::default()),
            filling: HashMap::new(),
            removing: HashSet::new(),
            open: caches::RawLRU::new(OPEN_OBJECTS).map_err(|error| wrong(&error))?,
            suspects: HashSet::default(),
            reads,
            low: percent(capacity, plan.low),
            fills: plan.fills,
            beginning: 0,
        };
        let mut superfluous = Vec::new();
        for Entry { version, name, size } in found {
            index.newest.insert(name, version);
            if !trusted {
                index.suspects.insert(version);
            }
            for (version, name, size) in index.lru.insert(version, name, size) {
                index.forget(&version, name);
                superfluous.push(Entry { version, name, size });
            }
        }
        Ok((index, superfluous))
    }

    /// The version of an object that the gateway named last.
    pub(super) fn newest(&self, name: NameId) -> Option<VersionId> {
        self.newest.get(&name).copied()
    }

    /// The gateway has named this version of an object, which is here or on its way.
    pub(super) fn named(&mut self, name: NameId, version: VersionId) {
        if self.filling.contains_key(&version) || self.lru.contains(&version) {
            self.newest.insert(name, version);
        }
    }

    /// Where a version is, if it is here; it becomes the most recently used.
    pub(super) fn look_up(&mut self, version: VersionId) -> Option<Place> {
        if let Some(object) = self.filling.get(&version) {
            return Some(Place::AtHand(object.clone()));
        }
        let (name, size) = self.lru.touch(&version)?;
        let entry = Entry { version, name: *name, size };
        if let Some(object) = caches::Cache::get(&mut self.open, &version) {
            return Some(Place::AtHand(object.clone()));
        }
        Some(Place::OnDisk { entry, suspect: self.suspects.contains(&version) })
    }

    /// A complete object, which does not become more recent by this.
    pub(super) fn entry(&self, version: VersionId) -> Option<Entry> {
        let (name, size) = self.lru.peek(&version)?;
        Some(Entry { version, name: *name, size })
    }

    /// Counts a read of an object, if that decides who may come in.
    pub(super) fn count_read(&mut self, name: NameId) {
        if let Some(reads) = &mut self.reads {
            reads.increment(&name);
        }
    }

    /// Keeps an object at hand that was opened; if another has been meanwhile, that one.
    pub(super) fn opened(&mut self, version: VersionId, object: Arc<Object>) -> Arc<Object> {
        if let Some(open) = caches::Cache::get(&mut self.open, &version) {
            return open.clone();
        }
        if self.lru.contains(&version) {
            caches::Cache::put(&mut self.open, version, object.clone());
        }
        object
    }

    /// An object's bytes are what they were.
    pub(super) fn trust(&mut self, version: &VersionId) {
        if self.suspects.remove(version) && self.suspects.is_empty() {
            self.suspects.shrink_to_fit();
        }
    }

    /// Are there objects to be checked?
    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Sets bytes aside for an object to come; what must go for it, whose files are still to be removed.
    pub(super) fn reserve(&mut self, entry: &Entry) -> Result<Vec<Entry>, NoRoom> {
        if self.removing.contains(&entry.version) {
            return Err(NoRoom("it is just being evicted".into()));
        }
        if self.filling.len() + self.beginning >= self.fills {
            return Err(NoRoom("as many fills as may be are under way".into()));
        }
        if let (Some(reads), Some(oldest)) = (&self.reads, self.lru.oldest())
            && self.lru.bytes().saturating_add(entry.size) > self.low
            && reads.estimate(&entry.name) <= reads.estimate(oldest)
        {
            return Err(NoRoom("it is read no more often than what would go for it".into()));
        }
        let evicted = self.lru.reserve(entry.size).ok_or_else(|| {
            let (size, capacity) = (entry.size, self.lru.capacity());
            NoRoom(format!("{size} bytes do not fit into a cache of {capacity} bytes"))
        })?;
        self.beginning += 1;
        Ok(evicted.into_iter().map(|(version, name, size)| self.evicted(version, name, size)).collect())
    }

    /// Gives bytes back that were set aside.
    pub(super) fn release(&mut self, bytes: u64) {
        self.beginning -= 1;
        self.lru.release(bytes);
    }

    /// Takes out what was used least recently, until so many bytes are free; their files are still to be removed.
    pub(super) fn evict(&mut self, bytes: u64) -> Vec<Entry> {
        let (mut evicted, mut freed) = (Vec::new(), 0);
        while freed < bytes {
            let Some((version, name, size)) = self.lru.evict() else { break };
            freed += size;
            evicted.push(self.evicted(version, name, size));
        }
        evicted
    }

    /// The same, unless all there is would not free so much.
    pub(super) fn evict_if_enough(&mut self, bytes: u64) -> Vec<Entry> {
        if self.lru.held() >= bytes { self.evict(bytes) } else { Vec::new() }
    }

    /// Bytes to evict, since more than `high` are taken: until it is the low watermark.
    pub(super) fn over(&self, high: u64) -> u64 {
        let bytes = self.lru.bytes();
        if bytes > high { bytes - self.low } else { 0 }
    }

    /// Takes out one complete object, whose file is still to be removed.
    pub(super) fn take(&mut self, version: VersionId) -> Option<Entry> {
        let (name, size) = self.lru.remove(&version)?;
        Some(self.evicted(version, name, size))
    }

    fn evicted(&mut self, version: VersionId, name: NameId, size: u64) -> Entry {
        self.forget(&version, name);
        self.removing.insert(version);
        Entry { version, name, size }
    }

    /// Their files are gone.
    pub(super) fn removed(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.removing.remove(&entry.version);
        }
    }

    /// Makes `object` the one that a fill brings, with bytes that were set aside; false if the version has a fill, or
    /// is complete.
    pub(super) fn register(&mut self, entry: &Entry, object: &Arc<Object>) -> bool {
        self.beginning -= 1;
        if self.filling.contains_key(&entry.version) || self.lru.contains(&entry.version) {
            self.lru.release(entry.size);
            return false;
        }
        self.filling.insert(entry.version, object.clone());
        self.newest.insert(entry.name, entry.version);
        true
    }

    /// A fill has ended well: its object is on disk.
    pub(super) fn committed(&mut self, entry: &Entry, object: &Arc<Object>) {
        self.filling.remove(&entry.version);
        self.lru.commit(entry.version, entry.name, entry.size);
        caches::Cache::put(&mut self.open, entry.version, object.clone());
    }

    /// A fill has ended otherwise.
    pub(super) fn abandoned(&mut self, entry: &Entry) {
        self.filling.remove(&entry.version);
        self.lru.release(entry.size);
        self.forget(&entry.version, entry.name);
    }

    /// Forgets all that points at a version that is no longer among the entries.
    fn forget(&mut self, version: &VersionId, name: NameId) {
        caches::Cache::remove(&mut self.open, version);
        self.suspects.remove(version);
        if self.newest.get(&name) == Some(version) {
            self.newest.remove(&name);
        }
    }

    /// Every complete object, least recently used first.
    pub(super) fn order(&self) -> Vec<VersionId> {
        self.lru.keys().copied().collect()
    }

    /// What is here now.
    pub(super) fn usage(&self) -> Usage {
        Usage { objects: self.lru.len(), bytes: self.lru.bytes(), fills: self.filling.len() }
    }

    #[cfg(test)]
    pub(super) fn is_removing(&self) -> bool {
        !self.removing.is_empty()
    }
}

/// So many hundredths of a number of bytes.
pub(super) fn percent(bytes: u64, hundredths: u8) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(hundredths) / 100).unwrap_or(bytes)
}
