//! Contents of the cache and state of its disks, as reported to operators.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Contents of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Complete objects that are cached as a whole.
    pub objects: usize,
    /// Complete stripes of larger objects.
    #[serde(default)]
    pub stripes: usize,
    /// Partial objects.
    #[serde(default)]
    pub partial: usize,
    /// Disk space that all of them use or that fills have reserved, in bytes.
    pub bytes: u64,
    /// Fills in progress.
    pub fills: usize,
    /// Disk space in bytes of objects that are evicted last because of pins.
    #[serde(default)]
    pub pinned: u64,
}

/// Status of a cache disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Cache folder.
    pub folder: PathBuf,
    /// Maximum disk space for objects, in bytes.
    pub capacity: u64,
    /// Contents of the disk.
    pub usage: Usage,
    /// Whether its objects are encrypted.
    pub encrypted: bool,
    /// Whether the disk works.
    pub works: bool,
    /// Objects evicted since the daemon started.
    pub evictions: u64,
    /// Objects that failed checksum verification since then.
    pub corrupt: u64,
    /// Bytes verified against checksums since then.
    pub verified: u64,
}
