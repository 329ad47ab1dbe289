//! Most requested objects and busiest pods of about the last minute, counted in bounded memory.
//!
//! Training reads millions of objects, most of them once. Each window keeps the [`MIN_ENTRIES`] most frequent (Misra-Gries
//! algorithm): no count is too high, and none is too low by more than one [`MIN_ENTRIES`]th of all requests.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use lota_s3::ObjectName;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::process::workers;

/// Number of entries that each window keeps at least; it holds up to twice as many.
const MIN_ENTRIES: usize = 1024;
/// Length of a window; the weight of the previous one decreases linearly.
const WINDOW: Duration = Duration::from_secs(60);
/// Number of parts of the counter, each with its own lock. Threads are distributed over them. A thread that finds its
/// lock taken does not count the request; this concerns about one request in some thousands.
const SHARDS: usize = 4;

/// Counts the requests of a node.
#[derive(Debug)]
pub struct HeavyHitterCounter(Box<[Mutex<Shard>]>);

#[derive(Debug)]
struct Shard {
    objects: Recent<Box<str>>,
    pods: Recent<IpAddr>,
}

/// One of the most frequent entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranked {
    /// `bucket/key` of an object, or the address of a pod.
    pub name: String,
    /// Requests of about the last minute.
    pub requests: u64,
    /// Bytes of the responses to them.
    pub bytes: u64,
}

impl Default for HeavyHitterCounter {
    fn default() -> Self {
        let now = Instant::now();
        let shard = |_| Mutex::new(Shard { objects: Recent::new(now), pods: Recent::new(now) });
        Self((0..SHARDS.min(workers::count())).map(shard).collect())
    }
}

impl HeavyHitterCounter {
    /// Counts an answered request from a pod, and its object if the response was one.
    pub fn count(&self, pod: IpAddr, object: Option<&ObjectName>, bytes: u64) {
        let Some(mut shard) = self.0[workers::current() % self.0.len()].try_lock() else { return };
        let now = Instant::now();
        let key = match pod {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        };
        shard.pods.count(now, key, bytes, || pod);
        if let Some(ObjectName { bucket, key, .. }) = object {
            let (bucket, key) = (bucket.as_str(), key.as_str());
            // Bucket names contain no slash.
            let name = || format!("{bucket}/{key}").into_boxed_str();
            let hash = xxh3_128(bucket.as_bytes()) ^ xxh3_128(key.as_bytes()).rotate_left(1);
            shard.objects.count(now, hash, bytes, name);
        }
    }

    /// Returns the most requested objects, highest count first.
    #[must_use]
    pub fn objects(&self, limit: usize) -> Vec<Ranked> {
        self.rank(limit, |shard| &mut shard.objects)
    }

    /// Returns the busiest pods, highest count first.
    #[must_use]
    pub fn pods(&self, limit: usize) -> Vec<Ranked> {
        self.rank(limit, |shard| &mut shard.pods)
    }

    fn rank<N: ToString>(&self, limit: usize, of: fn(&mut Shard) -> &mut Recent<N>) -> Vec<Ranked> {
        let (now, mut all) = (Instant::now(), HashMap::<String, (u64, u64)>::new());
        for shard in &self.0 {
            let mut shard = shard.lock();
            for (name, requests, bytes) in of(&mut shard).read(now) {
                let sum = all.entry(name).or_default();
                *sum = (sum.0 + requests, sum.1 + bytes);
            }
        }
        let ranked = all.into_iter().map(|(name, (requests, bytes))| Ranked { name, requests, bytes });
        let mut ranked: Vec<_> = ranked.filter(|ranked| ranked.requests > 0).collect();
        ranked.sort_by(|a, b| (b.requests, b.bytes, &a.name).cmp(&(a.requests, a.bytes, &b.name)));
        ranked.truncate(limit);
        ranked
    }
}

/// The current window and the previous one.
#[derive(Debug)]
struct Recent<N> {
    began: Instant,
    now: Sketch<N>,
    before: Sketch<N>,
}

impl<N> Recent<N> {
    fn new(now: Instant) -> Self {
        Self { began: now, now: Sketch::default(), before: Sketch::default() }
    }

    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        if age >= WINDOW {
            let last = std::mem::take(&mut self.now);
            self.before = if age < 2 * WINDOW { last } else { Sketch::default() };
            self.began = if age < 2 * WINDOW { self.began + WINDOW } else { now };
        }
    }

    fn count(&mut self, now: Instant, key: u128, bytes: u64, name: impl FnOnce() -> N) {
        self.turn(now);
        self.now.count(key, bytes, name);
    }

    /// Returns names with requests and bytes. A name may occur twice.
    fn read(&mut self, now: Instant) -> impl Iterator<Item = (String, u64, u64)>
    where
        N: ToString,
    {
        self.turn(now);
        let passed = now.saturating_duration_since(self.began).as_millis();
        let left = WINDOW.as_millis().saturating_sub(passed);
        let part = move |whole: u64| {
            u64::try_from(u128::from(whole) * left / WINDOW.as_millis()).unwrap_or(u64::MAX)
        };
        let before = self.before.entries.values();
        let before =
            before.map(move |entry| (entry.name.to_string(), part(entry.requests), part(entry.bytes)));
        let now = self.now.entries.values();
        before.chain(now.map(|entry| (entry.name.to_string(), entry.requests, entry.bytes)))
    }
}

/// Misra-Gries sketch of the most frequent entries.
#[derive(Debug)]
struct Sketch<N> {
    entries: HashMap<u128, SketchEntry<N>>,
    /// Maximum by which a count may be too low.
    missed: u64,
}

#[derive(Debug)]
struct SketchEntry<N> {
    name: N,
    requests: u64,
    bytes: u64,
}

impl<N> Default for Sketch<N> {
    fn default() -> Self {
        Self { entries: HashMap::new(), missed: 0 }
    }
}

impl<N> Sketch<N> {
    fn count(&mut self, key: u128, bytes: u64, name: impl FnOnce() -> N) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.requests += 1;
            entry.bytes += bytes;
            return;
        }
        if self.entries.len() >= 2 * MIN_ENTRIES {
            self.make_room();
        }
        self.entries.insert(key, SketchEntry { name: name(), requests: 1, bytes });
    }

    /// Decrements every counter by the ([`MIN_ENTRIES`] + 1)th largest count (Misra-Gries), which removes at least half of
    /// them. The amortized cost per new entry is small.
    fn make_room(&mut self) {
        let mut counts: Vec<u64> = self.entries.values().map(|entry| entry.requests).collect();
        let (_, least, _) = counts.select_nth_unstable_by(MIN_ENTRIES, |a, b| b.cmp(a));
        let least = *least;
        self.missed += least;
        self.entries.retain(|_, entry| {
            let left = entry.requests.saturating_sub(least);
            // The bytes decrease in proportion to the requests.
            let bytes = u128::from(entry.bytes) * u128::from(left) / u128::from(entry.requests.max(1));
            (entry.requests, entry.bytes) = (left, u64::try_from(bytes).unwrap_or(u64::MAX));
            left > 0
        });
    }
}

#[cfg(test)]
mod tests;
