//! Pins: prefixes of keys whose objects are evicted last, and how much of each a disk may hold.

use std::{fmt, str::FromStr};

use lota_s3::ObjectName;
use serde::{Deserialize, Serialize};

use super::plan::percent;

/// Percentage of the cache, up to its low watermark, that may be pinned: the rest is left to all other objects.
const PINNABLE_PERCENT: u8 = 80;
/// Maximum length of a bucket's name in bytes.
const MAX_BUCKET: usize = 255;
/// Maximum length of a prefix in bytes: that of a key.
const MAX_PREFIX: usize = 1024;

/// The objects of a bucket whose keys begin with a prefix, with or without a version id, at any gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PinnedPrefix {
    /// Name of the bucket.
    pub bucket: String,
    /// Prefix of the keys; empty for the whole bucket.
    pub prefix: String,
}

/// Use of this node's cache for a pin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinUsage {
    /// Disk space in bytes of the cached objects that are evicted last because of it.
    pub cached: u64,
    /// Maximum of that.
    pub limit: u64,
}

/// A pin on one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskPin {
    pub(super) prefix: PinnedPrefix,
    /// Maximum bytes of its objects on this disk that are evicted last.
    pub(super) limit: u64,
}

impl PinnedPrefix {
    /// Returns whether the names are as long as those of objects can be.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let Self { bucket, prefix } = self;
        (1..=MAX_BUCKET).contains(&bucket.len()) && !bucket.contains('/') && prefix.len() <= MAX_PREFIX
    }

    pub(super) fn matches(&self, name: &ObjectName) -> bool {
        name.bucket.as_str() == self.bucket && name.key.as_str().starts_with(&self.prefix)
    }
}

impl FromStr for PinnedPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not of the form `s3://bucket/prefix`");
        let rest = text.strip_prefix("s3://").ok_or_else(wrong)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if prefix.ends_with('*') {
            return Err(format!("`{text}`: write a prefix without `*`"));
        }
        let parsed = Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        if parsed.is_valid() { Ok(parsed) } else { Err(wrong()) }
    }
}

impl fmt::Display for PinnedPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

/// Returns how many bytes may be pinned of a cache of `capacity` bytes whose low watermark is `low` percent.
#[must_use]
pub fn pinnable(capacity: u64, low: u8) -> u64 {
    percent(percent(capacity, low), PINNABLE_PERCENT)
}

/// Returns the limits of pins of these bytes on a disk of `capacity` bytes in a cluster whose caches hold `all`. Each gets its
/// share; beyond it, up to twice the share of what the others leave, because objects are not spread exactly evenly.
pub(super) fn limits(pins: &[u64], capacity: u64, all: u64, low: u8) -> Vec<u64> {
    let part = |whole: u64, of: u128, all: u128| {
        u64::try_from(u128::from(whole) * of.min(all) / all.max(1)).unwrap_or(whole)
    };
    let room = pinnable(capacity, low);
    let share = |bytes: &u64| part(*bytes, capacity.into(), all.into());
    let sum = |all: &[u64]| all.iter().map(|bytes| u128::from(*bytes)).sum::<u128>();
    let shares: Vec<u64> = pins.iter().map(share).collect();
    let wanted = sum(&shares);
    if wanted >= u128::from(room) {
        return shares.iter().map(|share| part(*share, room.into(), wanted)).collect();
    }
    let more: Vec<u64> =
        pins.iter().zip(&shares).map(|(bytes, share)| (*bytes - share).min(*share)).collect();
    let (left, wanted) = (u128::from(room) - wanted, sum(&more));
    shares.iter().zip(&more).map(|(share, more)| share + part(*more, left, wanted)).collect()
}

#[cfg(test)]
#[path = "pin_tests.rs"]
mod tests;
