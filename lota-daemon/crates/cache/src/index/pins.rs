//! Pins of a disk, and the objects that belong to them. The index holds no names: objects that are stored while a pin exists
//! are matched by the name that their request has, all others by their records on disk ([`Disk::set_pins`]).
//!
//! [`Disk::set_pins`]: crate::disk::Disk::set_pins

use lota_s3::ObjectName;

use super::Index;
use crate::{ids::VersionId, lru::PinId, pin::DiskPin, store::StoreEntry};

/// Number of objects that become ordinary ones at once when the limit of a pin is lowered.
const STEP: usize = 1024;

impl Index {
    /// Replaces the pins; returns whether objects must be sorted.
    pub(crate) fn set_pins(&mut self, pins: Vec<DiskPin>) -> bool {
        let known: Vec<_> = self.pins.each().map(|(id, pin)| (id, pin.clone())).collect();
        for (id, _) in known.iter().filter(|(_, old)| pins.iter().all(|new| new.prefix != old.prefix)) {
            self.pins.set(*id, None);
            self.pins.pending = true;
        }
        for pin in pins {
            let known = known.iter().find(|(_, known)| known.prefix == pin.prefix);
            self.pins.pending |= known.is_none_or(|(_, known)| known.limit != pin.limit);
            let id = match known {
                Some((id, _)) => *id,
                None => {
                    let Some(id) = self.new_pin() else { continue };
                    self.lru.set_limit(id, pin.limit, 0);
                    self.pins.unsorted = true;
                    id
                }
            };
            self.pins.set(id, Some(pin));
        }
        self.pins.pending
    }

    fn new_pin(&mut self) -> Option<PinId> {
        let unused = self.pins.removed().find(|id| self.lru.is_unused(*id));
        unused.or_else(|| self.lru.add_pin())
    }

    /// Begins a run that sorts objects. Any other run ends.
    pub(crate) fn begin_sorting(&mut self) -> u64 {
        self.pins.run += 1;
        self.pins.run
    }

    /// Returns whether a run that sorts objects continues.
    pub(crate) fn is_sorting(&self, run: u64) -> bool {
        self.pins.run == run
    }

    /// Applies changed limits, some objects at once. Those of removed pins become ordinary ones first. Returns whether all limits
    /// are reached.
    pub(crate) fn apply_limits(&mut self) -> bool {
        let removed = self.pins.removed().map(|id| (id, 0));
        let limits: Vec<_> = removed.chain(self.pins.each().map(|(id, pin)| (id, pin.limit))).collect();
        limits.into_iter().all(|(id, limit)| self.lru.set_limit(id, limit, STEP))
    }

    /// Returns an object whose name must be compared with the pins: it may belong to a new one, or belongs to one that was
    /// removed. Any other one enters its pin's order if that has room.
    pub(crate) fn unsorted(&mut self, version: VersionId) -> Option<StoreEntry> {
        if self.pins.unsorted || self.lru.pin(&version).is_some_and(|pin| self.pins.is_removed(pin)) {
            return self.entry(version);
        }
        self.lru.enter_if_room(&version);
        None
    }

    /// Sets the pin of an object by its name. Without one, since its record could not be read, the object stays as it is.
    pub(crate) fn sort(&mut self, version: VersionId, name: Option<&ObjectName>) {
        if let Some(name) = name {
            self.lru.assign(&version, self.pins.find(name));
        }
    }

    /// Records that a run has sorted all objects.
    pub(crate) fn end_sorting(&mut self, run: u64) {
        if self.is_sorting(run) {
            (self.pins.unsorted, self.pins.pending) = (false, false);
        }
    }

    #[cfg(test)]
    pub(crate) fn add_pin_for_tests(&mut self) -> u16 {
        self.new_pin().map_or(u16::MAX, |id| id.0)
    }

    /// Returns each pin with the bytes that are evicted last because of it.
    pub(crate) fn pinned(&self) -> Vec<(DiskPin, u64)> {
        self.pins.each().map(|(id, pin)| (pin.clone(), self.lru.pinned_bytes(id))).collect()
    }
}
