//! The pins of a disk.

use lota_s3::ObjectName;

use super::{lru::PinId, pin::DiskPin};

/// The pins of a disk, and how far its objects are matched with them.
#[derive(Debug, Default)]
pub(super) struct PinTable {
    /// Pins by their number in the LRU; `None` if the pin was removed.
    slots: Vec<Option<DiskPin>>,
    /// Whether there may be objects that belong to a pin and are not known to.
    pub(super) unsorted: bool,
    /// Whether objects must be looked at since the last change of the pins.
    pub(super) pending: bool,
    /// Increases with each run that sorts objects, so that it ends the previous run.
    pub(super) run: u64,
}

impl PinTable {
    /// Returns each pin.
    pub(super) fn each(&self) -> impl Iterator<Item = (PinId, &DiskPin)> {
        (0..).map(PinId).zip(&self.slots).filter_map(|(id, pin)| Some((id, pin.as_ref()?)))
    }

    /// Returns the pin of an object: that with the longest prefix.
    pub(super) fn find(&self, name: &ObjectName) -> Option<PinId> {
        let pins = self.each().filter(|(_, pin)| pin.prefix.matches(name));
        pins.max_by_key(|(_, pin)| pin.prefix.prefix.len()).map(|(id, _)| id)
    }

    /// Returns the numbers of removed pins.
    pub(super) fn removed(&self) -> impl Iterator<Item = PinId> {
        (0..).map(PinId).zip(&self.slots).filter_map(|(id, pin)| pin.is_none().then_some(id))
    }

    pub(super) fn is_removed(&self, PinId(pin): PinId) -> bool {
        self.slots.get(usize::from(pin)).is_none_or(Option::is_none)
    }

    pub(super) fn set(&mut self, PinId(pin): PinId, to: Option<DiskPin>) {
        let pin = usize::from(pin);
        if self.slots.len() <= pin {
            self.slots.resize(pin + 1, None);
        }
        self.slots[pin] = to;
    }
}
