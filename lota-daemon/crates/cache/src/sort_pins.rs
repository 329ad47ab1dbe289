//! Matches the objects of a disk with the pins, in the background: the index holds no names, so the records of objects on disk
//! are read.

use std::sync::Arc;

use super::{disk::Disk, pin::DiskPin};

impl Disk {
    /// Replaces the pins of the disk. Objects that are stored from now on are matched at once, and all others in the background.
    pub(super) fn set_pins(self: &Arc<Self>, pins: Vec<DiskPin>) {
        let changed = self.index().set_pins(pins);
        if changed {
            self.sort_pins();
        }
    }

    /// Matches all objects with the pins in the background.
    pub(super) fn sort_pins(self: &Arc<Self>) {
        let (disk, run) = (self.clone(), self.index().begin_sorting());
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
