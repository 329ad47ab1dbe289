//! The partial objects of a disk, bounded in number and in the number of their ranges.

use std::{io, sync::Arc};

use caches::{Cache as _, RawLRU};
use lota_s3::ObjectMeta;

use super::{ids::VersionId, new_file::KeptFile, ranges::Ranges};

/// Maximum number of partial objects on a disk. Each takes about two kilobytes of memory.
const PARTIAL_OBJECTS: usize = if cfg!(test) { 1200 } else { 16 << 10 };
/// Maximum number of separate ranges of all partial objects on a disk. Each takes about 32 bytes of memory.
const FRAGMENTS: usize = 256 << 10;

/// A partial object, without its open file.
#[derive(Clone, Debug)]
pub(super) struct PartialObject {
    /// The description that the gateway gave last.
    pub(super) meta: Arc<ObjectMeta>,
    pub(super) ranges: Arc<Ranges>,
    pub(super) file: Arc<KeptFile>,
    /// Number of separate ranges, as counted last.
    fragments: usize,
}

/// The partial objects of a disk, in LRU order.
#[derive(Debug)]
pub(super) struct PartialObjects {
    objects: RawLRU<VersionId, PartialObject>,
    /// Number of separate ranges of all of them.
    fragments: usize,
}

impl PartialObject {
    pub(super) fn new(meta: Arc<ObjectMeta>, ranges: Arc<Ranges>, file: KeptFile) -> Self {
        Self { meta, ranges, file: Arc::new(file), fragments: 0 }
    }
}

impl PartialObjects {
    pub(super) fn new() -> io::Result<Self> {
        // The limit is enforced after an insertion.
        let objects =
            RawLRU::new(PARTIAL_OBJECTS + 1).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self { objects, fragments: 0 })
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn contains(&self, version: &VersionId) -> bool {
        self.objects.contains(version)
    }

    /// Returns whether this version is here with these ranges: it may have been evicted and created again.
    pub(super) fn holds(&self, version: &VersionId, ranges: &Arc<Ranges>) -> bool {
        self.objects.peek(version).is_some_and(|held| Arc::ptr_eq(&held.ranges, ranges))
    }

    pub(super) fn insert(&mut self, version: VersionId, partial: PartialObject) {
        self.objects.put(version, partial);
        self.recount(&version);
    }

    /// Returns a partial object and makes it the most recently used.
    pub(super) fn touch(&mut self, version: &VersionId) -> Option<&PartialObject> {
        self.objects.get(version)
    }

    pub(super) fn remove(&mut self, version: &VersionId) -> Option<PartialObject> {
        let partial = self.objects.remove(version)?;
        self.fragments -= partial.fragments;
        Some(partial)
    }

    /// Returns the description of a partial object.
    pub(super) fn meta(&self, version: &VersionId) -> Option<Arc<ObjectMeta>> {
        self.objects.peek(version).map(|partial| partial.meta.clone())
    }

    /// Replaces the description of a partial object.
    pub(super) fn set_meta(&mut self, version: &VersionId, meta: &Arc<ObjectMeta>) {
        if let Some(partial) = self.objects.peek_mut(version) {
            partial.meta = meta.clone();
        }
    }

    /// Counts the separate ranges of a partial object again.
    pub(super) fn recount(&mut self, version: &VersionId) {
        if let Some(partial) = self.objects.peek_mut(version) {
            let now = partial.ranges.fragments();
            self.fragments = self.fragments + now - partial.fragments;
            partial.fragments = now;
        }
    }

    /// Returns the least recently used partial object if there are too many, or too many ranges.
    pub(super) fn superfluous(&self) -> Option<VersionId> {
        let is_full = self.objects.len() > PARTIAL_OBJECTS || self.fragments > FRAGMENTS;
        self.objects.peek_lru().filter(|_| is_full).map(|(version, _)| *version)
    }

    pub(super) fn versions(&self) -> Vec<VersionId> {
        self.objects.keys_lru().copied().collect()
    }
}
