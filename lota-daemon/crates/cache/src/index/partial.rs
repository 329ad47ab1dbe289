//! Changes to the partial objects in the index.

use std::sync::Arc;

use lota_s3::ObjectMeta;

use super::{Evicted, Index};
use crate::{
    NoRoom, Object, ids::VersionId, partial_objects::PartialObject, ranges::Ranges, store::StoreEntry,
};

/// Maximum number of partial objects that are spared in one search for one that is not pinned.
const SPARED: usize = 1024;

impl Index {
    /// Registers a partial object, whose disk space is reserved. Returns the partial objects evicted because there are too
    /// many, or `None` if the version is in the index already; the reservation is then released.
    pub(crate) fn register_partial(
        &mut self,
        entry: &StoreEntry,
        partial: PartialObject,
        object: &Arc<Object>,
    ) -> Option<Vec<Evicted>> {
        if self.filling.contains_key(&entry.version) || self.lru.contains(&entry.version) {
            self.lru.release(entry.disk);
            return None;
        }
        let pin = self.pins.find(&object.meta().version.name);
        self.lru.commit(entry.version, (entry.name, entry.size), entry.disk, entry.disk, pin);
        self.newest.insert(entry.name, entry.version);
        caches::Cache::put(&mut self.open, entry.version, object.clone());
        self.partial.insert(entry.version, partial);
        Some(self.evict_partial(entry.version))
    }

    /// Reserves disk space for a range that was announced to a partial object, if this is in the index with these ranges.
    /// Returns the objects evicted for it.
    pub(crate) fn grow_partial(
        &mut self,
        entry: &StoreEntry,
        ranges: &Arc<Ranges>,
    ) -> Result<Vec<Evicted>, NoRoom> {
        if !self.partial.holds(&entry.version, ranges) {
            return Err(NoRoom::new("the partial object was evicted"));
        }
        let held = self.lru.peek(&entry.version).map_or(0, |(_, held)| held);
        let disk = ranges.disk();
        let more = disk.saturating_sub(held);
        let entering = if self.lru.is_pinned(&entry.version) { more } else { disk };
        if !self.lru.pin(&entry.version).is_some_and(|pin| self.lru.has_room(pin, entering)) {
            self.admit(entry.name, more)?;
        }
        let no_space = || NoRoom::new(format!("{more} more bytes do not fit into the cache"));
        let evicted = self.lru.grow(&entry.version, disk).ok_or_else(no_space)?;
        let mut evicted: Vec<_> = evicted.into_iter().map(|evicted| self.evicted(evicted)).collect();
        self.partial.recount(&entry.version);
        evicted.extend(self.evict_partial(entry.version));
        Ok(evicted)
    }

    /// Releases the disk space of bytes of a partial object that did not arrive.
    pub(crate) fn shrink_partial(&mut self, version: VersionId, ranges: &Arc<Ranges>) {
        if self.partial.holds(&version, ranges) {
            self.lru.shrink(&version, ranges.disk());
            self.partial.recount(&version);
        }
    }

    /// Makes a partial object the most recently used, because bytes of it arrive.
    pub(crate) fn touch_partial(&mut self, version: VersionId, ranges: &Arc<Ranges>) {
        if self.partial.holds(&version, ranges) {
            self.lru.touch(&version);
            self.partial.touch(&version);
        }
    }

    /// Replaces the description of a partial object.
    pub(crate) fn keep_partial_meta(&mut self, version: VersionId, meta: &Arc<ObjectMeta>) {
        self.partial.set_meta(&version, meta);
    }

    /// Returns the description of a partial object.
    pub(crate) fn partial_meta(&self, version: VersionId) -> Option<Arc<ObjectMeta>> {
        self.partial.meta(&version)
    }

    /// Keeps an opened partial object, if it is in the index with these ranges. Returns it, or the one that another request
    /// has opened meanwhile.
    pub(crate) fn opened_partial(
        &mut self,
        version: VersionId,
        ranges: &Arc<Ranges>,
        object: Arc<Object>,
    ) -> Arc<Object> {
        if self.partial.holds(&version, ranges) { self.opened(version, object) } else { object }
    }

    /// Removes a partial object that has these ranges.
    pub(crate) fn discard_partial_of(&mut self, version: VersionId, ranges: &Arc<Ranges>) {
        if self.partial.holds(&version, ranges) {
            self.discard_partial(version);
        }
    }

    /// Removes all partial objects, because another daemon owns the folder.
    pub(crate) fn discard_all_partial(&mut self) {
        for version in self.partial.versions() {
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
    ) -> Option<(PartialObject, Vec<Evicted>)> {
        if !self.partial.holds(&entry.version, ranges) || !self.lru.fits(entry.disk) {
            return None;
        }
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

    /// Evicts the least recently used partial objects while there are too many of them or of their ranges, except `kept`, and
    /// those of pins last.
    fn evict_partial(&mut self, kept: VersionId) -> Vec<Evicted> {
        let (mut evicted, mut spared) = (Vec::new(), 0);
        while let Some(oldest) = self.partial.superfluous().filter(|_| self.partial.len() > 1) {
            if oldest == kept || spared < SPARED && self.lru.is_pinned(&oldest) {
                spared += 1;
                self.partial.touch(&oldest);
            } else {
                evicted.extend(self.take(oldest));
            }
        }
        evicted
    }
}
