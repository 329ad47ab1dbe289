//! `[cache]` and `[fill]` of the configuration.

use std::path::PathBuf;

use lota_common::ByteSize;
use serde::Deserialize;

use crate::{Admission, CachePlan, DiskPlan, Encryption};

/// Object cache on local disks.
#[derive(Debug, Deserialize)]
#[serde(try_from = "CacheSection")]
pub struct CacheConfig {
    /// Folders, one per disk, and their capacities. The sum of the capacities is this node's weight in placement.
    pub disks: Vec<DiskPlan>,
    /// Free space to keep on each disk.
    pub min_free: ByteSize,
    /// High watermark, in percent of the capacity: above it, eviction starts.
    pub high_percent: u8,
    /// Low watermark, in percent of the capacity: eviction stops there.
    pub low_percent: u8,
    /// Admission policy of a full cache.
    pub admission: Admission,
    /// Encryption of cached objects.
    pub encryption: Encryption,
    /// Rate of background verification against checksums, in bytes per second and disk. 0 turns it off.
    pub scrub_rate: ByteSize,
    /// Whether ranges are kept of objects that cannot be fetched as a whole.
    pub partial: bool,
    /// Action after a client has written an object.
    pub after_write: AfterWrite,
    /// Maximum number of objects on all disks. Default: as many as fit into a sixteenth of the memory.
    pub max_objects: Option<usize>,
}

/// Action after a client has written an object through LOTA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AfterWrite {
    /// None: the first read fetches the object.
    #[default]
    Off,
    /// The owner fetches the object into its cache, in the background.
    Fetch,
    /// The owner keeps the bytes of a `PutObject` as they pass, and fetches what it cannot keep.
    Keep,
}

impl CacheConfig {
    /// Returns the total capacity of all disks, in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.disks.iter().map(|disk| disk.capacity).sum()
    }
}

/// Fetching of objects into the cache.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FillConfig {
    /// Maximum number of concurrent range requests per object. LOTA sends fewer while the backend rejects some.
    pub concurrency: usize,
    /// Size of each range request.
    pub part_size: ByteSize,
    /// Largest object that is verified against its ETag, where the ETag is an MD5 hash. Costs about two seconds of
    /// CPU time per GiB. Checksums sent by S3 are verified for objects of any size.
    pub md5_max_size: ByteSize,
}

impl Default for FillConfig {
    fn default() -> Self {
        let CachePlan { requests, part, md5_max_size, .. } = CachePlan::DEFAULT;
        Self { concurrency: requests, part_size: ByteSize(part), md5_max_size: ByteSize(md5_max_size) }
    }
}

/// `[cache]` as written in the file: one folder, or several disks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CacheSection {
    /// Cache folder, on a dedicated disk if possible. Either `folder` and `capacity` or `disks` is required.
    folder: Option<PathBuf>,
    /// Maximum disk space for objects in `folder`; also the node's weight in placement.
    capacity: Option<ByteSize>,
    /// Several disks, instead of `folder` and `capacity`.
    #[serde(default)]
    disks: Vec<DiskSection>,
    /// Free space to keep on each disk. LOTA evicts objects when other programs need the space.
    #[serde(default = "default_min_free")]
    min_free: ByteSize,
    /// High watermark, in percent of the capacity. Above it, LOTA evicts the least recently used objects down to
    /// `low_percent`.
    #[serde(default = "default_high")]
    high_percent: u8,
    /// Low watermark, in percent of the capacity.
    #[serde(default = "default_low")]
    low_percent: u8,
    /// Admission policy: the objects that a full cache accepts.
    #[serde(default)]
    admission: Admission,
    /// Encryption of cached objects by the file system (fscrypt).
    #[serde(default)]
    encryption: Encryption,
    /// Rate of background verification against checksums, in bytes per second and disk. 0 turns it off.
    #[serde(default = "default_scrub")]
    scrub_rate: ByteSize,
    /// Whether to keep the ranges that clients read of an object that LOTA cannot fetch as a whole, because they sign
    /// `Range` and there is neither `[backend]` nor a direct path.
    #[serde(default = "default_partial")]
    partial: bool,
    /// Action after a client has written an object through LOTA, so that the first read is a hit. `"fetch"` and `"keep"` need
    /// `[backend]`, which serves each written object once more, or with `"keep"` only describes it.
    #[serde(default)]
    after_write: AfterWrite,
    /// Maximum number of objects on all disks. Each object needs memory and a file, whatever its size. Default: as
    /// many as fit into a sixteenth of the memory of the machine (or of the daemon's cgroup), at 256 bytes each.
    max_objects: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskSection {
    /// Cache folder on this disk.
    folder: PathBuf,
    /// Maximum disk space for objects in it.
    capacity: ByteSize,
}

fn default_min_free() -> ByteSize {
    ByteSize(CachePlan::DEFAULT.min_free)
}

fn default_high() -> u8 {
    CachePlan::DEFAULT.high
}

fn default_low() -> u8 {
    CachePlan::DEFAULT.low
}

fn default_scrub() -> ByteSize {
    ByteSize(CachePlan::DEFAULT.scrub)
}

fn default_partial() -> bool {
    CachePlan::DEFAULT.partial
}

impl TryFrom<CacheSection> for CacheConfig {
    type Error = &'static str;

    fn try_from(cache: CacheSection) -> Result<Self, Self::Error> {
        let disk = |DiskSection { folder, capacity }| DiskPlan { folder, capacity: capacity.0 };
        let disks: Vec<DiskPlan> = match (cache.folder, cache.capacity) {
            (Some(folder), Some(capacity)) if cache.disks.is_empty() => {
                vec![disk(DiskSection { folder, capacity })]
            }
            (None, None) if !cache.disks.is_empty() => cache.disks.into_iter().map(disk).collect(),
            _ => {
                return Err(
                    "cache: set either `folder` and `capacity`, or `disks` with both keys for each disk",
                );
            }
        };
        Ok(Self {
            disks,
            min_free: cache.min_free,
            high_percent: cache.high_percent,
            low_percent: cache.low_percent,
            admission: cache.admission,
            encryption: cache.encryption,
            scrub_rate: cache.scrub_rate,
            partial: cache.partial,
            after_write: cache.after_write,
            max_objects: cache.max_objects,
        })
    }
}
