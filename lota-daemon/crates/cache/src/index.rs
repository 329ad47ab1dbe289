//! Index of the objects on one disk, in LRU order.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
};

use caches::lfu::TinyLFU;
use lota_s3::{ByteRange, ObjectMeta};

use super::{
    Admission, CachePlan, NoRoom, Object, Usage,
    ids::{IdHash, NameId, VersionId},
    lru::ByteLru,
    ranges::{ArrivalId, Ranges},
    room::Short,
    store::{KeptFile, StoreEntry},
};

/// Maximum number of complete objects that are kept open, with one file descriptor each.
const OPEN_OBJECTS: usize = 1024;
/// Number of counted reads after which every count is halved.
const COUNTED_READS: usize = 1 << 20;

/// Maximum number of partial objects on a disk. Each takes about two kilobytes of memory.
const PARTIAL_OBJECTS: usize = 16 << 10;
/// Maximum number of separate ranges of all partial objects on a disk. Each takes about 32 bytes of memory.
const FRAGMENTS: usize = 256 << 10;

/// A version is in at most one of `lru` (complete or partial), `filling` and `removing`.
pub(super) struct Index {
    /// Complete and partial objects with their sizes, weighted by the disk space that they use.
    lru: ByteLru<VersionId, (NameId, u64), IdHash>,
    /// The version of each object that the gateway named last; complete or being filled.
    newest: HashMap<NameId, VersionId, IdHash>,
    /// Objects that are being filled.
    filling: HashMap<VersionId, Arc<Object>>,
    /// Partial objects; each is in `lru`, too.
    partial: caches::RawLRU<VersionId, PartialObject>,
    /// Number of separate ranges of all partial objects.
    fragments: usize,
    /// Evicted objects whose files still exist; they cannot be filled until these are removed.
    removing: HashSet<VersionId>,
    /// Complete and partial objects that are open.
    open: caches::RawLRU<VersionId, Arc<Object>>,
    /// Complete objects that must be verified against their checksums before they are served.
    suspects: HashSet<VersionId, IdHash>,
    /// Recent read frequency of objects, for admission by frequency.
    reads: Option<TinyLFU<NameId>>,
    /// Low watermark in bytes, to which evictions go down.
    low: u64,
}

/// What is known of a partial object without its file.
#[derive(Clone, Debug)]
pub(super) struct PartialObject {
    /// The description that the gateway gave last.
    pub(super) meta: Arc<ObjectMeta>,
    pub(super) ranges: Arc<Ranges>,
    pub(super) file: Arc<KeptFile>,
    /// Number of separate ranges that the index has counted.
    fragments: usize,
}

impl PartialObject {
    pub(super) fn new(meta: Arc<ObjectMeta>, ranges: Arc<Ranges>, file: KeptFile) -> Self {
        Self { meta, ranges, file: Arc::new(file), fragments: 0 }
    }
}

/// Location of a cached version.
pub(super) enum CachedLocation {
    /// Open, or being filled.
    AtHand(Arc<Object>),
    /// On disk; the caller opens it.
    OnDisk {
        entry: StoreEntry,
        /// Whether it must be verified against its checksums.
        suspect: bool,
    },
    /// On disk, and partial; the caller opens it.
    Partial(PartialObject),
}

impl Index {
    /// Creates an index of the objects in `found`, which are sorted from least to most recently used. Returns the
    /// objects that exceed the limits, too.
    pub(super) fn new(
        plan: &CachePlan,
        capacity: u64,
        most: usize,
        found: Vec<StoreEntry>,
        trusted: bool,
    ) -> io::Result<(Self, Vec<StoreEntry>)> {
        let wrong = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
        let reads = match plan.admission {
            Admission::All => None,
            Admission::Frequent => {
                let tracked = found.len().max(100_000);
                Some(TinyLFU::new(tracked, COUNTED_READS, 0.01).map_err(|error| wrong(&error))?)
            }
        };
        let mut index = Self {
            lru: ByteLru::new(capacity, most, found.len()),
            newest: HashMap::with_capacity_and_hasher(found.len(), IdHash::default()),
            filling: HashMap::new(),
            partial: caches::RawLRU::new(PARTIAL_OBJECTS + 1).map_err(|error| wrong(&error))?,
            fragments: 0,
            removing: HashSet::new(),
            open: caches::RawLRU::new(OPEN_OBJECTS).map_err(|error| wrong(&error))?,
            suspects: HashSet::default(),
            reads,
            low: percent(capacity, plan.low),
        };
        let mut superfluous = Vec::new();
        for StoreEntry { version, name, size, disk } in found {
            index.newest.insert(name, version);
            if !trusted {
                index.suspects.insert(version);
            }
            for (version, (name, size), disk) in index.lru.insert(version, (name, size), disk) {
                index.forget(&version, name);
                superfluous.push(StoreEntry { version, name, size, disk });
            }
        }
        Ok((index, superfluous))
    }

    /// Returns the version of an object that the gateway named last.
    pub(super) fn newest(&self, name: NameId) -> Option<VersionId> {
        self.newest.get(&name).copied()
    }

    /// Records the version that the gateway named last, if it is complete or being filled.
    pub(super) fn named(&mut self, name: NameId, version: VersionId) {
        if self.filling.contains_key(&version) || self.lru.contains(&version) {
            self.newest.insert(name, version);
        }
    }

    /// Returns the location of a version and makes it the most recently used.
    pub(super) fn look_up(&mut self, version: VersionId) -> Option<CachedLocation> {
        if let Some(object) = self.filling.get(&version) {
            return Some(CachedLocation::AtHand(object.clone()));
        }
        let (&(name, size), disk) = self.lru.touch(&version)?;
        let entry = StoreEntry { version, name, size, disk };
        let partial = caches::Cache::get(&mut self.partial, &version).cloned();
        if let Some(object) = caches::Cache::get(&mut self.open, &version) {
            return Some(CachedLocation::AtHand(object.clone()));
        }
        if let Some(partial) = partial {
            return Some(CachedLocation::Partial(partial));
        }
        Some(CachedLocation::OnDisk { entry, suspect: self.suspects.contains(&version) })
    }

    /// Returns a complete object without a change of the LRU order.
    pub(super) fn entry(&self, version: VersionId) -> Option<StoreEntry> {
        let (&(name, size), disk) = self.lru.peek(&version)?;
        Some(StoreEntry { version, name, size, disk })
    }

    /// Counts a read of an object for admission by frequency.
    pub(super) fn count_read(&mut self, name: NameId) {
        if let Some(reads) = &mut self.reads {
            reads.increment(&name);
        }
    }

    /// Keeps an opened object. Returns it, or the one that another request has opened meanwhile.
    pub(super) fn opened(&mut self, version: VersionId, object: Arc<Object>) -> Arc<Object> {
        if let Some(open) = caches::Cache::get(&mut self.open, &version) {
            return open.clone();
        }
        if self.lru.contains(&version) {
            caches::Cache::put(&mut self.open, version, object.clone());
        }
        object
    }

    /// Marks an object as verified.
    pub(super) fn trust(&mut self, version: &VersionId) {
        if self.suspects.remove(version) && self.suspects.is_empty() {
            self.suspects.shrink_to_fit();
        }
    }

    /// Returns whether there are unverified objects.
    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Reserves disk space for a new object. Returns the objects evicted for it; the caller removes their files.
    pub(super) fn reserve(&mut self, entry: &StoreEntry) -> Result<Vec<StoreEntry>, NoRoom> {
        if self.removing.contains(&entry.version) {
            return Err(NoRoom::new("the object is being evicted"));
        }
        self.admit(entry.name, entry.disk)?;
        let evicted = self.lru.reserve(entry.disk).ok_or_else(|| {
            let (size, capacity) = (entry.disk, self.lru.capacity());
            NoRoom::new(format!("{size} bytes do not fit into a cache of {capacity} bytes"))
        })?;
        Ok(evicted.into_iter().map(|evicted| self.evicted(evicted)).collect())
    }

    /// Returns an error if the admission policy does not let an object replace others for `bytes` more bytes.
    fn admit(&self, name: NameId, bytes: u64) -> Result<(), NoRoom> {
        if let (Some(reads), Some((oldest, _))) = (&self.reads, self.lru.oldest())
            && *oldest != name
            && self.lru.bytes().saturating_add(bytes) > self.low
            && reads.estimate(&name) <= reads.estimate(oldest)
        {
            return Err(NoRoom::new("the object is not read more often than the one it would replace"));
        }
        Ok(())
    }

    /// Releases a reservation of `bytes`.
    pub(super) fn release(&mut self, bytes: u64) {
        self.lru.release(bytes);
    }

    /// Evicts the least recently used objects until `short` is free; the caller removes their files.
    pub(super) fn evict(&mut self, short: Short) -> Vec<StoreEntry> {
        let (mut evicted, mut freed) = (Vec::new(), 0);
        while freed < short.bytes || (evicted.len() as u64) < short.files {
            let Some(oldest) = self.lru.evict() else { break };
            freed += oldest.2;
            evicted.push(self.evicted(oldest));
        }
        evicted
    }

    /// Evicts like [`Index::evict`], but nothing if all objects together would not suffice.
    pub(super) fn evict_if_enough(&mut self, short: Short) -> Vec<StoreEntry> {
        let is_enough = self.lru.held() >= short.bytes && self.lru.len() as u64 >= short.files;
        if is_enough { self.evict(short) } else { Vec::new() }
    }

    /// Returns the bytes to evict down to the low watermark; zero unless more than `high` bytes are used.
    pub(super) fn over(&self, high: u64) -> Short {
        let bytes = self.lru.bytes();
        Short { bytes: if bytes > high { bytes - self.low } else { 0 }, files: 0 }
    }

    /// Evicts one complete object; the caller removes its file.
    pub(super) fn take(&mut self, version: VersionId) -> Option<StoreEntry> {
        let (held, disk) = self.lru.remove(&version)?;
        Some(self.evicted((version, held, disk)))
    }

    fn evicted(&mut self, (version, (name, size), disk): (VersionId, (NameId, u64), u64)) -> StoreEntry {
        match self.forget(&version, name) {
            // Its file has another name, and is removed when the last reference is dropped.
            Some(partial) => StoreEntry { version, name, size: partial.ranges.stored_bytes(), disk: 0 },
            None => {
                self.removing.insert(version);
                StoreEntry { version, name, size, disk }
            }
        }
    }

    /// Records that the files of evicted objects were removed.
    pub(super) fn removed(&mut self, entries: &[StoreEntry]) {
        for entry in entries.iter().filter(|entry| !entry.was_partial()) {
            self.removing.remove(&entry.version);
        }
    }

    /// Registers a partial object, whose disk space is reserved. Returns the partial objects evicted because there are too
    /// many, or `None` if the version is in the index already; the reservation is then released.
    pub(super) fn register_partial(
        &mut self,
        entry: &StoreEntry,
        partial: PartialObject,
        object: &Arc<Object>,
    ) -> Option<Vec<StoreEntry>> {
        if self.filling.contains_key(&entry.version) || self.lru.contains(&entry.version) {
            self.lru.release(entry.disk);
            return None;
        }
        self.lru.commit(entry.version, (entry.name, entry.size), entry.disk, entry.disk);
        self.newest.insert(entry.name, entry.version);
        caches::Cache::put(&mut self.open, entry.version, object.clone());
        caches::Cache::put(&mut self.partial, entry.version, partial);
        self.count_fragments(entry.version);
        Some(self.evict_partial(entry.version))
    }

    /// Announces a response that brings a range of a partial object, and reserves disk space for it. Returns the objects
    /// evicted for it, too.
    pub(super) fn grow_partial(
        &mut self,
        entry: &StoreEntry,
        ranges: &Arc<Ranges>,
        range: ByteRange,
    ) -> Result<(ArrivalId, Vec<StoreEntry>), NoRoom> {
        let evicted = || NoRoom::new("the partial object was evicted");
        self.held_partial(entry.version, ranges).ok_or_else(evicted)?;
        let held = self.lru.peek(&entry.version).map_or(0, |(_, held)| held);
        let id = ranges.begin(range).ok_or_else(NoRoom::fragments)?;
        let disk = ranges.disk();
        let grown = self.admit(entry.name, disk.saturating_sub(held)).and_then(|()| {
            let no_space = || NoRoom::new(format!("{} more bytes do not fit into the cache", range.length()));
            self.lru.grow(&entry.version, disk).ok_or_else(no_space)
        });
        let grown = grown.inspect_err(|_| ranges.end(id))?;
        let mut evicted: Vec<_> = grown.into_iter().map(|evicted| self.evicted(evicted)).collect();
        self.count_fragments(entry.version);
        evicted.extend(self.evict_partial(entry.version));
        Ok((id, evicted))
    }

    /// Releases the disk space of bytes of a partial object that did not arrive.
    pub(super) fn shrink_partial(&mut self, version: VersionId, ranges: &Arc<Ranges>) {
        if self.held_partial(version, ranges).is_some() {
            self.lru.shrink(&version, ranges.disk());
            self.count_fragments(version);
        }
    }

    /// Makes a partial object the most recently used, because bytes of it arrive.
    pub(super) fn touch_partial(&mut self, version: VersionId, ranges: &Arc<Ranges>) {
        if self.held_partial(version, ranges).is_some() {
            self.lru.touch(&version);
            caches::Cache::get(&mut self.partial, &version);
        }
    }

    /// Replaces the description of a partial object.
    pub(super) fn keep_partial_meta(&mut self, version: VersionId, meta: &Arc<ObjectMeta>) {
        if let Some(partial) = caches::Cache::peek_mut(&mut self.partial, &version) {
            partial.meta = meta.clone();
        }
    }

    /// Returns the description of a partial object.
    pub(super) fn partial_meta(&self, version: VersionId) -> Option<Arc<ObjectMeta>> {
        caches::Cache::peek(&self.partial, &version).map(|partial| partial.meta.clone())
    }

    /// Keeps an opened partial object, if it is in the index with these ranges. Returns it, or the one that another request
    /// has opened meanwhile.
    pub(super) fn opened_partial(
        &mut self,
        version: VersionId,
        ranges: &Arc<Ranges>,
        object: Arc<Object>,
    ) -> Arc<Object> {
        if self.held_partial(version, ranges).is_some() { self.opened(version, object) } else { object }
    }

    /// Removes a partial object that has these ranges.
    pub(super) fn discard_partial_of(&mut self, version: VersionId, ranges: &Arc<Ranges>) {
        if self.held_partial(version, ranges).is_some() {
            self.discard_partial(version);
        }
    }

    /// Removes a partial object.
    pub(super) fn discard_partial(&mut self, version: VersionId) -> Option<PartialObject> {
        caches::Cache::contains(&self.partial, &version).then_some(())?;
        let ((name, _), _) = self.lru.remove(&version)?;
        self.forget(&version, name)
    }

    /// Removes all partial objects, because another daemon owns the folder.
    pub(super) fn discard_all_partial(&mut self) {
        let versions: Vec<_> = self.partial.keys_lru().copied().collect();
        for version in versions {
            self.discard_partial(version);
        }
    }

    /// Turns a partial object of which all bytes are stored into a fill that must only be committed, with a reservation of
    /// `entry.disk` bytes. Returns the objects evicted for it, too; `None` if it is not in the index, or does not fit.
    pub(super) fn promote(
        &mut self,
        entry: &StoreEntry,
        ranges: &Arc<Ranges>,
        object: &Arc<Object>,
    ) -> Option<(PartialObject, Vec<StoreEntry>)> {
        self.held_partial(entry.version, ranges).filter(|_| self.lru.fits(entry.disk))?;
        let is_newest = self.newest(entry.name) == Some(entry.version);
        let partial = self.discard_partial(entry.version)?;
        let evicted = self.lru.reserve(entry.disk)?;
        let evicted = evicted.into_iter().map(|evicted| self.evicted(evicted)).collect();
        self.filling.insert(entry.version, object.clone());
        if is_newest {
            self.newest.insert(entry.name, entry.version);
        }
        Some((partial, evicted))
    }

    /// Returns the partial object if it is in the index with these ranges.
    fn held_partial(&self, version: VersionId, ranges: &Arc<Ranges>) -> Option<&PartialObject> {
        let held = caches::Cache::peek(&self.partial, &version)?;
        Arc::ptr_eq(&held.ranges, ranges).then_some(held)
    }

    /// Updates the number of separate ranges.
    fn count_fragments(&mut self, version: VersionId) {
        if let Some(partial) = caches::Cache::peek_mut(&mut self.partial, &version) {
            let now = partial.ranges.fragments();
            self.fragments = self.fragments + now - partial.fragments;
            partial.fragments = now;
        }
    }

    /// Evicts the least recently used partial objects while there are too many of them or of their ranges, except `kept`.
    fn evict_partial(&mut self, kept: VersionId) -> Vec<StoreEntry> {
        let mut evicted = Vec::new();
        while caches::Cache::len(&self.partial) > PARTIAL_OBJECTS || self.fragments > FRAGMENTS {
            let oldest = self.partial.peek_lru().map(|(version, _)| *version);
            let Some(oldest) = oldest.filter(|oldest| *oldest != kept) else { break };
            evicted.extend(self.take(oldest));
        }
        evicted
    }

    /// Registers a fill, whose disk space is reserved, in place of a partial object of this version. Releases the reservation
    /// and returns false if the version is complete or already being filled.
    pub(super) fn register(&mut self, entry: &StoreEntry, object: &Arc<Object>) -> bool {
        self.discard_partial(entry.version);
        if self.filling.contains_key(&entry.version) || self.lru.contains(&entry.version) {
            self.lru.release(entry.disk);
            return false;
        }
        self.filling.insert(entry.version, object.clone());
        self.newest.insert(entry.name, entry.version);
        true
    }

    /// Records a successful fill and turns its reservation of `reserved` bytes into an entry.
    pub(super) fn committed(&mut self, reserved: u64, entry: &StoreEntry, object: &Arc<Object>) {
        self.filling.remove(&entry.version);
        self.lru.commit(entry.version, (entry.name, entry.size), reserved, entry.disk);
        caches::Cache::put(&mut self.open, entry.version, object.clone());
    }

    /// Records a failed fill and releases its reservation.
    pub(super) fn abandoned(&mut self, entry: &StoreEntry) {
        self.filling.remove(&entry.version);
        self.lru.release(entry.disk);
        self.forget(&entry.version, entry.name);
    }

    /// Removes all references to a version that is no longer in the index. Returns it if it was partial.
    fn forget(&mut self, version: &VersionId, name: NameId) -> Option<PartialObject> {
        caches::Cache::remove(&mut self.open, version);
        self.suspects.remove(version);
        if self.newest.get(&name) == Some(version) {
            self.newest.remove(&name);
        }
        let partial = caches::Cache::remove(&mut self.partial, version)?;
        self.fragments -= partial.fragments;
        Some(partial)
    }

    /// Returns every complete and partial object, least recently used first.
    pub(super) fn order(&self) -> Vec<VersionId> {
        self.lru.keys().copied().collect()
    }

    /// Returns the current usage.
    pub(super) fn usage(&self) -> Usage {
        let partial = caches::Cache::len(&self.partial);
        Usage {
            objects: self.lru.len() - partial,
            partial,
            bytes: self.lru.bytes(),
            fills: self.filling.len(),
        }
    }

    #[cfg(test)]
    pub(super) fn is_removing(&self) -> bool {
        !self.removing.is_empty()
    }
}

/// Returns a percentage of a number of bytes.
pub(super) fn percent(bytes: u64, percent: u8) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(percent) / 100).unwrap_or(bytes)
}
