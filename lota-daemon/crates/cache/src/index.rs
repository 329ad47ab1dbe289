//! Index of the objects on one disk, in LRU order.

mod partial;
mod pins;

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
};

use caches::lfu::TinyLFU;
use lota_s3::ObjectName;

use super::{
    Admission, CachePlan, NoRoom, Object, Usage,
    ids::{IdHash, NameId, VersionId},
    lru::ByteLru,
    partial_objects::{PartialObject, PartialObjects},
    pin_table::PinTable,
    plan::percent,
    room::Short,
    store::StoreEntry,
};

/// Maximum number of complete objects that are kept open, with one file descriptor each.
const OPEN_OBJECTS: usize = 1024;
/// Number of counted reads after which every count is halved.
const COUNTED_READS: usize = 1 << 20;

/// A version is in at most one of `lru` (complete or partial), `filling` and `removing`.
pub(super) struct Index {
    /// Complete and partial objects with their sizes, weighted by the disk space that they use.
    lru: ByteLru<VersionId, (NameId, u64), IdHash>,
    /// The version of each object that the gateway named last; complete, partial or being filled.
    newest: HashMap<NameId, VersionId, IdHash>,
    /// Objects that are being filled.
    filling: HashMap<VersionId, Arc<Object>>,
    /// Partial objects; each is in `lru`, too.
    partial: PartialObjects,
    /// Evicted objects whose files still exist; they cannot be filled until these are removed.
    removing: HashSet<VersionId>,
    /// Complete and partial objects that are open.
    open: caches::RawLRU<VersionId, Arc<Object>>,
    /// Complete objects that must be verified against their checksums before they are served.
    unverified: HashSet<VersionId, IdHash>,
    /// Complete objects that are stripes.
    stripes: HashSet<VersionId, IdHash>,
    /// Recent read frequency of objects, for admission by frequency.
    reads: Option<TinyLFU<NameId>>,
    /// Low watermark in bytes, to which evictions go down.
    low: u64,
    /// Pins, whose objects are evicted last.
    pins: PinTable,
}

/// Location of a cached version.
pub(super) enum CachedLocation {
    /// Open, or being filled.
    AtHand(Arc<Object>),
    /// On disk; the caller opens it.
    OnDisk {
        entry: StoreEntry,
        /// Whether it must be verified against its checksums.
        unverified: bool,
    },
    /// On disk, and partial; the caller opens it.
    Partial(PartialObject),
}

/// An object that was taken out of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evicted {
    /// A complete object. The caller removes its file, and then calls [`Index::removed`].
    Complete(StoreEntry),
    /// A partial object. Its file is removed once the last reference to it is dropped.
    Partial {
        /// Number of stored bytes.
        stored: u64,
    },
}

impl Evicted {
    /// Returns the number of the object's bytes that were cached.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Complete(entry) => entry.size,
            Self::Partial { stored } => *stored,
        }
    }

    /// Returns the complete object, whose file must be removed.
    pub(super) fn complete(&self) -> Option<&StoreEntry> {
        match self {
            Self::Complete(entry) => Some(entry),
            Self::Partial { .. } => None,
        }
    }
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
            partial: PartialObjects::new()?,
            removing: HashSet::new(),
            open: caches::RawLRU::new(OPEN_OBJECTS).map_err(|error| wrong(&error))?,
            unverified: HashSet::default(),
            stripes: HashSet::default(),
            reads,
            low: percent(capacity, plan.low),
            pins: PinTable::default(),
        };
        let mut superfluous = Vec::new();
        for StoreEntry { version, name, is_stripe, size, disk } in found {
            index.newest.insert(name, version);
            if is_stripe {
                index.stripes.insert(version);
            }
            if !trusted {
                index.unverified.insert(version);
            }
            for (version, (name, size), disk) in index.lru.insert(version, (name, size), disk) {
                let is_stripe = index.stripes.contains(&version);
                index.forget(&version, name);
                superfluous.push(StoreEntry { version, name, is_stripe, size, disk });
            }
        }
        Ok((index, superfluous))
    }

    /// Returns the version of an object that the gateway named last.
    pub(super) fn newest(&self, name: NameId) -> Option<VersionId> {
        self.newest.get(&name).copied()
    }

    /// Records the version that the gateway named last, if it is in the index.
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
        let is_stripe = self.stripes.contains(&version);
        let entry = StoreEntry { version, name, is_stripe, size, disk };
        let partial = self.partial.touch(&version).cloned();
        if let Some(object) = caches::Cache::get(&mut self.open, &version) {
            return Some(CachedLocation::AtHand(object.clone()));
        }
        if let Some(partial) = partial {
            return Some(CachedLocation::Partial(partial));
        }
        Some(CachedLocation::OnDisk { entry, unverified: self.unverified.contains(&version) })
    }

    /// Returns a complete or partial object without a change of the LRU order.
    pub(super) fn entry(&self, version: VersionId) -> Option<StoreEntry> {
        let (&(name, size), disk) = self.lru.peek(&version)?;
        let is_stripe = self.stripes.contains(&version);
        Some(StoreEntry { version, name, is_stripe, size, disk })
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
        if self.unverified.remove(version) && self.unverified.is_empty() {
            self.unverified.shrink_to_fit();
        }
    }

    /// Returns whether there are unverified objects.
    pub(super) fn has_unverified(&self) -> bool {
        !self.unverified.is_empty()
    }

    /// Reserves disk space for a new object of this name. Returns the objects evicted for it; the caller removes their files.
    pub(super) fn reserve(&mut self, entry: &StoreEntry, name: &ObjectName) -> Result<Vec<Evicted>, NoRoom> {
        if self.removing.contains(&entry.version) {
            return Err(NoRoom::new("the object is being evicted"));
        }
        // A pin does not let more objects in than are evicted last because of it.
        if !self.pins.find(name).is_some_and(|pin| self.lru.has_room(pin, entry.disk)) {
            self.admit(entry.name, entry.disk)?;
        }
        let evicted = self.lru.reserve(entry.disk).ok_or_else(|| {
            let (size, capacity) = (entry.disk, self.lru.capacity());
            NoRoom::new(format!("{size} bytes do not fit into a cache of {capacity} bytes"))
        })?;
        Ok(evicted.into_iter().map(|evicted| self.evicted(evicted)).collect())
    }

    /// Reserves disk space for an upload, whose version is not known yet, without evicting any object. At most `high` percent of
    /// the capacity are in use then, so that upkeep evicts nothing for it either.
    pub(super) fn reserve_free(&mut self, name: &ObjectName, bytes: u64, high: u8) -> Result<(), NoRoom> {
        if self.pins.find(name).is_none() {
            self.admit(NameId::of(name, None), bytes)?;
        }
        let limit = percent(self.lru.capacity(), high);
        match self.lru.reserve_free(bytes, limit) {
            true => Ok(()),
            false => Err(NoRoom::new(format!("{bytes} bytes are not free below the high watermark"))),
        }
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
    pub(super) fn evict(&mut self, short: Short) -> Vec<Evicted> {
        let (mut evicted, mut freed) = (Vec::new(), 0);
        while freed < short.bytes || (evicted.len() as u64) < short.files {
            let Some(oldest) = self.lru.evict() else { break };
            freed += oldest.2;
            evicted.push(self.evicted(oldest));
        }
        evicted
    }

    /// Evicts like [`Index::evict`], but nothing if all objects together would not suffice.
    pub(super) fn evict_if_enough(&mut self, short: Short) -> Vec<Evicted> {
        let is_enough = self.lru.held() >= short.bytes && self.lru.len() as u64 >= short.files;
        if is_enough { self.evict(short) } else { Vec::new() }
    }

    /// Returns the bytes to evict down to the low watermark; zero unless more than `high` bytes are used.
    pub(super) fn over(&self, high: u64) -> Short {
        let bytes = self.lru.bytes();
        Short { bytes: if bytes > high { bytes - self.low } else { 0 }, files: 0 }
    }

    /// Evicts one complete or partial object; the caller removes its file.
    pub(super) fn take(&mut self, version: VersionId) -> Option<Evicted> {
        let (held, disk) = self.lru.remove(&version)?;
        Some(self.evicted((version, held, disk)))
    }

    fn evicted(&mut self, (version, (name, size), disk): (VersionId, (NameId, u64), u64)) -> Evicted {
        let is_stripe = self.stripes.contains(&version);
        match self.forget(&version, name) {
            Some(partial) => Evicted::Partial { stored: partial.ranges.stored_bytes() },
            None => {
                self.removing.insert(version);
                Evicted::Complete(StoreEntry { version, name, is_stripe, size, disk })
            }
        }
    }

    /// Records that the files of evicted objects were removed.
    pub(super) fn removed(&mut self, evicted: &[Evicted]) {
        for entry in evicted.iter().filter_map(Evicted::complete) {
            self.removing.remove(&entry.version);
        }
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

    /// Registers an upload like a fill ([`Index::register`]), also unless the file of an evicted object of this version still
    /// exists.
    pub(super) fn register_upload(&mut self, entry: &StoreEntry, object: &Arc<Object>) -> bool {
        if self.removing.contains(&entry.version) {
            self.lru.release(entry.disk);
            return false;
        }
        self.register(entry, object)
    }

    /// Records a successful fill and turns its reservation of `reserved` bytes into an entry.
    pub(super) fn committed(&mut self, reserved: u64, entry: &StoreEntry, object: &Arc<Object>) {
        self.filling.remove(&entry.version);
        let pin = self.pins.find(&object.meta().version.name);
        self.lru.commit(entry.version, (entry.name, entry.size), reserved, entry.disk, pin);
        if entry.is_stripe {
            self.stripes.insert(entry.version);
        }
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
        self.unverified.remove(version);
        self.stripes.remove(version);
        if self.newest.get(&name) == Some(version) {
            self.newest.remove(&name);
        }
        self.partial.remove(version)
    }

    /// Removes a partial object.
    pub(super) fn discard_partial(&mut self, version: VersionId) -> Option<PartialObject> {
        self.partial.contains(&version).then_some(())?;
        let ((name, _), _) = self.lru.remove(&version)?;
        self.forget(&version, name)
    }

    /// Returns every complete and partial object, in the order of eviction.
    pub(super) fn order(&self) -> Vec<VersionId> {
        self.lru.keys().copied().collect()
    }

    /// Returns the order for the next daemon, in which [`VersionId::PINNED`] precedes the pinned objects.
    pub(super) fn order_to_save(&self) -> Vec<VersionId> {
        let mut order = self.order();
        order.insert(self.lru.ordinary_len(), VersionId::PINNED);
        order
    }

    /// Returns the current usage.
    pub(super) fn usage(&self) -> Usage {
        let (partial, stripes) = (self.partial.len(), self.stripes.len());
        Usage {
            objects: self.lru.len() - partial - stripes,
            stripes,
            partial,
            bytes: self.lru.bytes(),
            fills: self.filling.len(),
            pinned: self.lru.all_pinned_bytes(),
        }
    }

    #[cfg(test)]
    pub(super) fn is_removing(&self) -> bool {
        !self.removing.is_empty()
    }
}
