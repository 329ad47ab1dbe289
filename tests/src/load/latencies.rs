//! A histogram of latencies.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Buckets per power of two, as a power of two, so that a percentile is at most an eighth too high.
const BITS: u32 = 3;
/// Number of buckets, for any number of microseconds.
const BUCKETS: usize = 64 << BITS;

/// Numbers of requests by latency, to which threads can add at once.
#[derive(Debug)]
pub struct Latencies([AtomicU64; BUCKETS]);

impl Default for Latencies {
    fn default() -> Self {
        Self(array::from_fn(|_| AtomicU64::default()))
    }
}

/// Numbers of requests per bucket.
#[derive(Clone, Debug)]
pub struct LatencyCounts([u64; BUCKETS]);

impl Latencies {
    pub(crate) fn add(&self, latency: Duration) {
        self.0[bucket(latency)].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the numbers so far.
    #[must_use]
    pub fn counts(&self) -> LatencyCounts {
        LatencyCounts(array::from_fn(|place| self.0[place].load(Ordering::Relaxed)))
    }
}

impl LatencyCounts {
    /// Returns the numbers since earlier ones.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self(array::from_fn(|place| self.0[place] - before.0[place]))
    }

    /// Returns the number of requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Returns a latency in seconds that this share of the requests does not exceed; 0 without requests.
    #[must_use]
    pub fn percentile(&self, share: f64) -> f64 {
        let wanted = self.total() as f64 * share;
        let mut seen = 0;
        for (place, count) in self.0.iter().enumerate() {
            seen += count;
            if seen > 0 && seen as f64 >= wanted {
                return upper_bound(place);
            }
        }
        0.0
    }
}

/// Returns the place of the bucket for a latency.
fn bucket(latency: Duration) -> usize {
    let microseconds = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1 << BITS);
    let power = microseconds.ilog2();
    let part = (microseconds >> (power - BITS)) & ((1 << BITS) - 1);
    (power as usize) << BITS | usize::try_from(part).unwrap_or_default()
}

/// Returns the upper bound of a bucket, in seconds.
fn upper_bound(place: usize) -> f64 {
    let (power, part) = (place >> BITS, place & ((1 << BITS) - 1));
    let parts = f64::from(1 << BITS);
    2_f64.powi(i32::try_from(power).unwrap_or(i32::MAX)) * (parts + part as f64 + 1.0) / parts / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_requests_since_the_earlier_counts() {
        let latencies = Latencies::default();
        (0..1000).for_each(|_| latencies.add(Duration::from_secs(9)));
        let before = latencies.counts();
        for milliseconds in 1..=100 {
            latencies.add(Duration::from_millis(milliseconds));
        }
        let counts = latencies.counts().since(&before);
        assert_eq!(counts.total(), 100);
        for (share, expected) in [(0.5, 0.050), (0.99, 0.099), (1.0, 0.100)] {
            let found = counts.percentile(share);
            assert!((expected..expected * 1.13).contains(&found), "{share}: {found}");
        }
        assert_eq!(before.since(&before).percentile(0.5), 0.0);
    }
}
