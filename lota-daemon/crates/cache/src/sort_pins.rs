//! Matches the objects of a disk with the pins, in the background: the index holds no names, so the records of objects on disk
//! are read.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Cache,
    disk::Disk,
    pin::{DiskPin, PinUsage, PinnedPrefix, limits},
};

impl Cache {
    /// Replaces the pins of a cluster whose caches hold `all` bytes. Cached objects are matched with them in the background.
    pub fn set_pins(&self, pins: &[(PinnedPrefix, u64)], all: u64) {
        let bytes: Vec<u64> = pins.iter().map(|(_, bytes)| *bytes).collect();
        for disk in &self.disks {
            let limits = limits(&bytes, disk.capacity, all, disk.plan.low);
            let pins = pins.iter().zip(limits);
            disk.set_pins(
                pins.map(|((prefix, _), limit)| DiskPin { prefix: prefix.clone(), limit }).collect(),
            );
        }
    }

    /// Returns what each pin has on this node.
    #[must_use]
    pub fn pinned(&self) -> BTreeMap<PinnedPrefix, PinUsage> {
        let mut pins: BTreeMap<PinnedPrefix, PinUsage> = BTreeMap::new();
        for disk in self.disks.iter().filter(|disk| !disk.has_failed()) {
            for (DiskPin { prefix, limit }, cached) in disk.index().pinned() {
                let pin = pins.entry(prefix).or_default();
                *pin = PinUsage { cached: pin.cached + cached, limit: pin.limit + limit };
            }
        }
        pins
    }
}

impl Disk {
    /// Replaces the pins of the disk. Objects that are stored from now on are matched at once, and all others in the background.
    fn set_pins(self: &Arc<Self>, pins: Vec<DiskPin>) {
        let run = {
            let mut index = self.index();
            if !index.set_pins(pins) {
                return;
            }
            index.begin_sorting()
        };
        let disk = self.clone();
        tokio::task::spawn_blocking(move || disk.sort(run));
    }

    fn sort(&self, run: u64) {
        while self.is_sorting(run) {
            let reached = self.index().apply_limits();
            if reached {
                break;
            }
        }
        // The next objects to be evicted come first.
        let order = self.index().order();
        for version in order {
            if !self.is_sorting(run) {
                return;
            }
            let unsorted = self.index().unsorted(version);
            if let Some(entry) = unsorted {
                let name = self.name_of(&entry);
                self.index().sort(version, name.as_ref());
            }
        }
        self.index().end_sorting(run);
        if !self.is_handed_over() {
            // A daemon that is killed must not forget which objects are evicted last.
            self.save_order();
        }
    }

    fn is_sorting(&self, run: u64) -> bool {
        !self.is_handed_over() && !self.has_failed() && self.index().is_sorting(run)
    }
}

#[cfg(test)]
#[path = "sort_pins_tests.rs"]
mod tests;
