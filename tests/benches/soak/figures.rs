//! Resources that a node uses, and how much of them is allowed.

use anyhow::{Result, ensure};
use lota_common::map;
use lota_tests::{
    bench::quarters,
    lab::{Node, dump_map},
    load::{Footprint, folder_use},
};
use serde::Serialize;

/// Capacity of each node's cache, in MiB.
pub(crate) const CAPACITY: u32 = 96;
/// Maps with entries for pods. The others have a fixed number of entries, or forget the oldest ones.
const MAPS: [&str; 5] = [map::ACCESS4, map::ACCESS6, map::INTERFACES, map::HOLDERS4, map::CGROUPS];
const MIB: f64 = 1024.0 * 1024.0;

/// Resources that a node uses at one time.
#[derive(Debug, Serialize)]
pub(crate) struct NodeUse {
    name: String,
    /// In MiB.
    memory: f64,
    descriptors: f64,
    threads: f64,
    /// Entries of [`MAPS`].
    entries: f64,
    /// Disk space of the cache folder, in MiB.
    disk: f64,
    /// Files in the cache folder.
    files: f64,
}

/// A figure of a node, with its bounds.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) of: fn(&NodeUse) -> f64,
    /// Bound at any time.
    pub(crate) limit: f64,
    /// Growth that counts as the same level, as a share of the level, and an amount.
    share: f64,
    slack: f64,
}

pub(crate) const FIGURES: [Figure; 6] = [
    Figure {
        name: "resident memory",
        unit: "MiB",
        of: |node| node.memory,
        limit: 1024.0,
        share: 0.1,
        slack: 16.0,
    },
    Figure {
        name: "descriptors",
        unit: "",
        of: |node| node.descriptors,
        limit: 2048.0,
        share: 0.1,
        slack: 32.0,
    },
    Figure { name: "threads", unit: "", of: |node| node.threads, limit: 256.0, share: 0.1, slack: 8.0 },
    Figure { name: "map entries", unit: "", of: |node| node.entries, limit: 64.0, share: 0.0, slack: 4.0 },
    Figure {
        name: "disk space",
        unit: "MiB",
        of: |node| node.disk,
        // Files in progress and evicted ones that are still read, beyond the capacity.
        limit: CAPACITY as f64 * 1.5,
        share: 0.1,
        slack: 8.0,
    },
    Figure {
        name: "files in the cache",
        unit: "",
        of: |node| node.files,
        limit: 8192.0,
        share: 0.1,
        slack: 100.0,
    },
];

/// Growth of a figure.
pub(crate) struct Growth {
    pub(crate) found: f64,
    pub(crate) allowed: f64,
}

impl Growth {
    pub(crate) fn excess(&self) -> f64 {
        self.found - self.allowed
    }
}

impl Figure {
    /// Compares the second quarter with the last; `None` for a run that was too short.
    pub(crate) fn growth(&self, over_time: &[f64]) -> Option<Growth> {
        let (before, after) = quarters(over_time)?;
        Some(Growth { found: after - before, allowed: (before * self.share + self.slack).round() })
    }
}

impl NodeUse {
    pub(crate) fn of(node: &Node) -> Result<Self> {
        let Footprint { descriptors, threads, memory, .. } = Footprint::of(node)?;
        let mut entries = 0;
        for map in MAPS.map(|name| node.map(name)).iter().filter(|map| map.exists()) {
            entries += dump_map(map)?.len();
        }
        let (bytes, files) = folder_use(&node.cache_folder());
        Ok(Self {
            name: node.name(),
            memory: memory as f64 / 1024.0,
            descriptors: descriptors as f64,
            threads: threads as f64,
            entries: entries as f64,
            disk: bytes as f64 / MIB,
            files: files as f64,
        })
    }

    /// Returns an error if a limit is exceeded.
    pub(crate) fn check(&self) -> Result<()> {
        for Figure { name, unit, of, limit, .. } in &FIGURES {
            let value = of(self);
            ensure!(value <= *limit, "{name} of {}: {value:.0}, more than {limit:.0} {unit}", self.name);
        }
        Ok(())
    }
}
