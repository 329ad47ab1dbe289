//! Limits and policies of the cache.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::Encryption;

/// Folder on a disk, and its capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// Folder, used by one daemon at a time.
    pub folder: PathBuf,
    /// Maximum disk space for objects, in bytes.
    pub capacity: u64,
}

/// Limits and policies of the cache.
#[derive(Clone, Copy, Debug)]
pub struct CachePlan {
    /// Free space to keep on each disk, in bytes.
    pub min_free: u64,
    /// High watermark, in percent of the capacity: above it, eviction starts.
    pub high: u8,
    /// Low watermark, in percent of the capacity: eviction stops there.
    pub low: u8,
    /// Admission policy of a full cache.
    pub admission: Admission,
    /// Encryption of cached objects.
    pub encryption: Encryption,
    /// Rate of background verification against checksums, in bytes per second and disk. 0 turns it off.
    pub scrub: u64,
    /// Whether ranges are kept of objects that cannot be fetched as a whole.
    pub partial: bool,
    /// Maximum number of objects and fills. Each needs memory and a file, whatever its size.
    pub objects: usize,
    /// Maximum number of concurrent fills.
    pub fills: usize,
    /// Maximum number of concurrent range requests per fill.
    pub requests: usize,
    /// Size of each range request, in bytes.
    pub part: u64,
    /// Largest object that is verified against its ETag, where the ETag is an MD5 hash, in bytes.
    pub md5_max_size: u64,
    /// Timeout for a source that stops in the middle of a body.
    pub silence: Duration,
}

impl CachePlan {
    /// Default values.
    pub const DEFAULT: Self = Self {
        min_free: 1 << 30,
        high: 98,
        low: 95,
        admission: Admission::All,
        encryption: Encryption::Auto,
        scrub: 16 << 20,
        partial: true,
        objects: usize::MAX,
        fills: 128,
        requests: 4,
        part: 8 << 20,
        md5_max_size: 64 << 20,
        silence: Duration::from_secs(300),
    };
}

/// Admission policy: the objects that a full cache accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// Every object; the least recently used objects are evicted.
    #[default]
    All,
    /// Objects that are read more often than those they would replace, so that one scan does not flush the cache.
    Frequent,
}

/// Returns a percentage of a number of bytes.
pub(super) fn percent(bytes: u64, percent: u8) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(percent) / 100).unwrap_or(bytes)
}
