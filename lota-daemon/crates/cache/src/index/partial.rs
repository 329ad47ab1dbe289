//! The partial objects in the index.

use std::sync::Arc;

use lota_s3::{ByteRange, ObjectMeta};

use super::Index;
use crate::{
    NoRoom, Object,
    ids::VersionId,
    new_file::KeptFile,
    ranges::{ArrivalId, Ranges},
    store::StoreEntry,
};

/// Maximum number of partial objects on a disk. Each takes about two kilobytes of memory.
pub(super) const PARTIAL_OBJECTS: usize = 16 << 10;
/// Maximum number of separate ranges of all partial objects on a disk. Each takes about 32 bytes of memory.
const FRAGMENTS: usize = 256 << 10;

/// A partial object, without its open file.
#[derive(Clone, Debug)]
pub(crate) struct PartialObject {
    /// The description that the gateway gave last.
    pub(crate) meta: Arc<ObjectMeta>,
    pub(crate) ranges: Arc<Ranges>,
    pub(crate) file: Arc<KeptFile>,
    /// Number of separate ranges that the index has counted.
    pub(super) fragments: usize,
}

impl PartialObject {
    pub(crate) fn new(meta: Arc<ObjectMeta>, ranges: Arc<Ranges>, file: KeptFile) -> Self {
        Self { meta, ranges, file: Arc::new(file), fragments: 0 }
    }
}

impl Index {
    /// Registers a partial object, whose disk space is reserved. Returns the partial objects evicted because there are too
    /// many, or `None` if the version is in the index already; the reservation is then released.
    pub(crate) fn register_partial(
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
    pub(crate) fn grow_partial(
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
    pub(crate) fn shrink_partial(&mut self, version: VersionId, ranges: &Arc<Ranges>) {
        if self.held_partial(version, ranges).is_some() {
            self.lru.shrink(&version, ranges.disk());
            self.count_fragments(version);
        }
    }

    /// Makes a partial object the most recently used, because bytes of it arrive.
    pub(crate) fn touch_partial(&mut self, version: VersionId, ranges: &Arc<Ranges>) {
        if self.held_partial(version, ranges).is_some() {
            self.lru.touch(&version);
            caches::Cache::get(&mut self.partial, &version);
        }
    }

    /// Replaces the description of a partial object.
    pub(crate) fn keep_partial_meta(&mut self, version: VersionId, meta: &Arc<ObjectMeta>) {
        if let Some(partial) = caches::Cache::peek_mut(&mut self.partial, &version) {
            partial.meta = meta.clone();
        }
    }

    /// Returns the description of a partial object.
    pub(crate) fn partial_meta(&self, version: VersionId) -> Option<Arc<ObjectMeta>> {
        caches::Cache::peek(&self.partial, &version).map(|partial| partial.meta.clone())
    }

    /// Keeps an opened partial object, if it is in the index with these ranges. Returns it, or the one that another request
    /// has opened meanwhile.
    pub(crate) fn opened_partial(
        &mut self,
        version: VersionId,
        ranges: &Arc<Ranges>,
        object: Arc<Object>,
    ) -> Arc<Object> {
        if self.held_partial(version, ranges).is_some() { self.opened(version, object) } else { object }
    }

    /// Removes a partial object that has these ranges.
    pub(crate) fn discard_partial_of(&mut self, version: VersionId, ranges: &Arc<Ranges>) {
        if self.held_partial(version, ranges).is_some() {
            self.discard_partial(version);
        }
    }

    /// Removes a partial object.
    pub(crate) fn discard_partial(&mut self, version: VersionId) -> Option<PartialObject> {
        caches::Cache::contains(&self.partial, &version).then_some(())?;
        let ((name, _), _) = self.lru.remove(&version)?;
        self.forget(&version, name)
    }

    /// Removes all partial objects, because another daemon owns the folder.
    pub(crate) fn discard_all_partial(&mut self) {
        let versions: Vec<_> = self.partial.keys_lru().copied().collect();
        for version in versions {
            self.discard_partial(version);
        }
    }

    /// Turns a partial object of which all bytes are stored into a fill that must only be committed, with a reservation of
    /// `entry.disk` bytes. Returns the objects evicted for it, too; `None` if it is not in the index, or does not fit.
    pub(crate) fn promote(
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
}
