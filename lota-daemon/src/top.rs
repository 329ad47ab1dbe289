//! What is asked for most, and by whom: counted over the last minute or so, in bounded memory.
//!
//! Training reads millions of objects, most of them once. Each window keeps the most frequent [`KEPT`] (by the algorithm
//! of Misra and Gries): no count is too high, and none is too low by more than that fraction of all.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::{s3::ObjectName, workers};

/// What is certainly kept; twice as many for a while.
const KEPT: usize = 1024;
/// How long a window lasts; the one before it counts for less and less.
const WINDOW: Duration = Duration::from_secs(60);
/// Threads share so many counts. Whoever finds one taken does not wait: a request in thousands is not counted then.
const SHARDS: usize = 4;

/// The counts of a node.
#[derive(Debug)]
pub struct Top(Box<[Mutex<Shard>]>);

#[derive(Debug)]
struct Shard {
    objects: Recent<Box<str>>,
    pods: Recent<IpAddr>,
}

/// One of the most frequent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranked {
    /// `bucket/key` of an object, or the address of a pod.
    pub name: String,
    /// Requests of the last minute or so.
    pub requests: u64,
    /// Bytes of the answers to them.
    pub bytes: u64,
}

impl Default for Top {
    fn default() -> Self {
        let now = Instant::now();
        let shard = |_| Mutex::new(Shard { objects: Recent::new(now), pods: Recent::new(now) });
        Self((0..SHARDS.min(workers::count())).map(shard).collect())
    }
}

impl Top {
    /// A pod's request was answered with so many bytes; of an object, if it was answered with one.
    pub fn count(&self, pod: IpAddr, object: Option<&ObjectName>, bytes: u64) {
        let Ok(mut shard) = self.0[workers::current() % self.0.len()].try_lock() else { return };
        let now = Instant::now();
        let key = match pod {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        };
        shard.pods.count(now, key, bytes, || pod);
        if let Some(ObjectName { bucket, key, .. }) = object {
            let (bucket, key) = (bucket.as_str(), key.as_str());
            // No bucket's name has a slash.
            let name = || format!("{bucket}/{key}").into_boxed_str();
            let hash = xxh3_128(bucket.as_bytes()) ^ xxh3_128(key.as_bytes()).rotate_left(1);
            shard.objects.count(now, hash, bytes, name);
        }
    }

    /// The objects that were asked for most often, the very first first.
    #[must_use]
    pub fn objects(&self, most: usize) -> Vec<Ranked> {
        self.rank(most, |shard| &mut shard.objects)
    }

    /// The pods that asked most often, likewise.
    #[must_use]
    pub fn pods(&self, most: usize) -> Vec<Ranked> {
        self.rank(most, |shard| &mut shard.pods)
    }

    fn rank<N: ToString>(&self, most: usize, of: fn(&mut Shard) -> &mut Recent<N>) -> Vec<Ranked> {
        let (now, mut all) = (Instant::now(), HashMap::<String, (u64, u64)>::new());
        for shard in &self.0 {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, requests, bytes) in of(&mut shard).read(now) {
                let sum = all.entry(name).or_default();
                *sum = (sum.0 + requests, sum.1 + bytes);
            }
        }
        let ranked = all.into_iter().map(|(name, (requests, bytes))| Ranked { name, requests, bytes });
        let mut ranked: Vec<_> = ranked.filter(|ranked| ranked.requests > 0).collect();
        ranked.sort_by(|a, b| (b.requests, b.bytes, &a.name).cmp(&(a.requests, a.bytes, &b.name)));
        ranked.truncate(most);
        ranked
    }
}

/// The window that runs, and the one before.
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

    /// Names with requests and bytes; a name may come twice.
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

/// The most frequent of any number of things.
#[derive(Debug)]
struct Sketch<N> {
    entries: HashMap<u128, Entry<N>>,
    /// By how much a count may be too low.
    missed: u64,
}

#[derive(Debug)]
struct Entry<N> {
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
        if self.entries.len() >= 2 * KEPT {
            self.make_room();
        }
        self.entries.insert(key, Entry { name: name(), requests: 1, bytes });
    }

    /// Takes from each what the first that is one too many has: at least half of them go, so that this costs each new
    /// one next to nothing.
    fn make_room(&mut self) {
        let mut counts: Vec<u64> = self.entries.values().map(|entry| entry.requests).collect();
        let (_, least, _) = counts.select_nth_unstable_by(KEPT, |a, b| b.cmp(a));
        let least = *least;
        self.missed += least;
        self.entries.retain(|_, entry| {
            let left = entry.requests.saturating_sub(least);
            // What is taken from the requests is taken from their bytes.
            let bytes = u128::from(entry.bytes) * u128::from(left) / u128::from(entry.requests.max(1));
            (entry.requests, entry.bytes) = (left, u64::try_from(bytes).unwrap_or(u64::MAX));
            left > 0
        });
    }
}

#[cfg(test)]
#[path = "top/tests.rs"]
mod tests;
