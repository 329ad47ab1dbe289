//! Additional owners for hot objects, so that one node alone need not send an object that many pods read.
//!
//! An object's first owner measures its request rate and reports the resulting owner count with its responses. Entry nodes
//! then spread their requests over that many nodes of the object's placement, of which each fills from the first. When the
//! rate falls, so does the count.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use lota_s3::ObjectName;
use parking_lot::{Mutex, MutexGuard};

/// Minimum time over which a rate is measured.
const WINDOW: Duration = Duration::from_secs(1);
/// Time for which a reported owner count is valid.
const OWNER_COUNT_TTL: Duration = Duration::from_secs(10);
/// Maximum number of objects whose rates are measured, and of those whose owner counts are kept.
const MAX_OBJECTS: usize = 4096;
/// Difference between owner count and needed owners at which the count falls; more than one, so that it does not
/// oscillate.
const HYSTERESIS: f64 = 1.25;

/// Request rates of objects, and the owner counts derived from them.
#[derive(Debug)]
pub struct HotObjects {
    /// Requests per second that one owner serves alone.
    rate_per_owner: u32,
    /// Maximum number of owners of one object.
    max_owners: usize,
    /// Rates of the objects whose first owner is this node.
    rates: Mutex<HashMap<ObjectName, RequestRate>>,
    /// Owner counts that first owners have reported, each with the time of the report.
    owner_counts: Mutex<HashMap<ObjectName, (usize, Instant)>>,
}

/// Request rate of one object at its first owner.
#[derive(Clone, Copy, Debug)]
struct RequestRate {
    /// Start of the current window.
    since: Instant,
    /// Requests in the current window.
    requests: u32,
    owners: usize,
    /// Whether the owner count has just changed, so that not every node knows it yet.
    is_settling: bool,
}

impl RequestRate {
    /// Adapts the owner count to the rate in a window of length `passed`, by one at most.
    fn adapt(&mut self, passed: Duration, rate_per_owner: u32, max_owners: usize) {
        let before = self.owners;
        // Requests are spread over all owners, so the others have as many.
        let rate = f64::from(self.requests) * before as f64 / passed.as_secs_f64();
        let needed = rate / f64::from(rate_per_owner);
        match self.is_settling {
            false if needed > before as f64 => self.owners = (before + 1).min(max_owners),
            false if needed < before as f64 - HYSTERESIS => self.owners -= 1,
            _ => {}
        }
        self.is_settling = self.owners != before;
    }
}

impl HotObjects {
    /// Gives an object one owner for each `rate_per_owner` requests per second, up to `max_owners`.
    #[must_use]
    pub fn new(rate_per_owner: u32, max_owners: usize) -> Self {
        Self {
            rate_per_owner: rate_per_owner.max(1),
            max_owners: max_owners.max(1),
            rates: Mutex::default(),
            owner_counts: Mutex::default(),
        }
    }

    /// Returns the maximum number of owners of one object.
    #[must_use]
    pub fn max_owners(&self) -> usize {
        self.max_owners
    }

    /// Counts a request at the object's first owner, and returns how many owners the object should have.
    pub fn count_request(&self, object: &ObjectName) -> usize {
        self.count_request_at(object, Instant::now())
    }

    fn count_request_at(&self, object: &ObjectName, now: Instant) -> usize {
        let mut rates = lock(&self.rates);
        if let Some(rate) = rates.get_mut(object) {
            rate.requests = rate.requests.saturating_add(1);
            let passed = now.saturating_duration_since(rate.since);
            if passed >= WINDOW {
                rate.adapt(passed, self.rate_per_owner, self.max_owners);
                (rate.since, rate.requests) = (now, 0);
            }
            return rate.owners;
        }
        if rates.len() >= MAX_OBJECTS {
            rates.retain(|_, rate| now.saturating_duration_since(rate.since) < 2 * WINDOW);
        }
        if rates.len() >= MAX_OBJECTS {
            evict_least_requested(&mut rates);
        }
        rates.insert(object.clone(), RequestRate { since: now, requests: 1, owners: 1, is_settling: false });
        1
    }

    /// Stores the owner count that an object's first owner has reported.
    pub fn set_owners(&self, object: &ObjectName, owners: usize) {
        let (mut counts, now) = (lock(&self.owner_counts), Instant::now());
        if owners <= 1 {
            counts.remove(object);
            return;
        }
        if counts.len() >= MAX_OBJECTS {
            counts.retain(|_, (_, since)| now.saturating_duration_since(*since) < OWNER_COUNT_TTL);
        }
        if counts.len() < MAX_OBJECTS || counts.contains_key(object) {
            counts.insert(object.clone(), (owners.min(self.max_owners), now));
        }
    }

    /// Returns how many owners an object has; 1 if no valid report says otherwise.
    #[must_use]
    pub fn owners(&self, object: &ObjectName) -> usize {
        match lock(&self.owner_counts).get(object) {
            Some((owners, since)) if since.elapsed() < OWNER_COUNT_TTL => *owners,
            _ => 1,
        }
    }
}

/// Removes the half of the objects with the fewest requests. Many names with one request each must not displace a hot
/// object.
fn evict_least_requested(rates: &mut HashMap<ObjectName, RequestRate>) {
    let rank = |rate: &RequestRate| (rate.owners, rate.requests);
    let mut all: Vec<_> = rates.values().map(rank).collect();
    let (_, median, _) = all.select_nth_unstable(MAX_OBJECTS / 2);
    let median = *median;
    let mut left = (MAX_OBJECTS / 2).saturating_sub(all.iter().filter(|rate| **rate > median).count());
    rates.retain(|_, rate| {
        let is_median = rank(rate) == median;
        let stays = rank(rate) > median || (is_median && left > 0);
        left -= usize::from(stays && is_median);
        stays
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(key: &str) -> ObjectName {
        ObjectName::from_parts("http://gateway", "b", key, None).unwrap()
    }

    #[test]
    fn the_owner_count_follows_the_request_rate() {
        let (hot_objects, mut now) = (HotObjects::new(100, 3), Instant::now());
        let mut owners = 1;
        // `rate` requests per second for ten seconds, spread over the owners.
        let mut ask = |hot_objects: &HotObjects, rate: u32| {
            for _ in 0..10 {
                for _ in 0..(rate as usize / owners).max(1) {
                    owners = hot_objects.count_request_at(&name("k"), now);
                }
                now += WINDOW;
            }
            owners
        };
        assert_eq!(ask(&hot_objects, 90), 1);
        assert_eq!(ask(&hot_objects, 150), 2);
        assert_eq!(ask(&hot_objects, 160), 2, "and stays");
        assert_eq!(ask(&hot_objects, 1000), 3, "the configured limit");
        assert_eq!(ask(&hot_objects, 10), 1);
    }

    #[test]
    fn a_flood_of_names_does_not_hide_a_hot_object() {
        let (hot_objects, mut now) = (HotObjects::new(100, 3), Instant::now());
        let mut flood = 0;
        let mut owners = 1;
        for _ in 0..4 {
            for _ in 0..200 {
                for _ in 0..2 * MAX_OBJECTS / 100 {
                    flood += 1;
                    hot_objects.count_request_at(&name(&format!("flood-{flood}")), now);
                }
                owners = hot_objects.count_request_at(&name("hot"), now);
            }
            now += WINDOW;
        }
        assert!(owners > 1, "200 requests per second are twice what one owner serves");
        assert!(lock(&hot_objects.rates).len() <= MAX_OBJECTS);
    }

    #[test]
    fn reported_owner_counts_are_bounded() {
        let hot_objects = HotObjects::new(100, 3);
        assert_eq!(hot_objects.owners(&name("k")), 1);
        hot_objects.set_owners(&name("k"), 9);
        assert_eq!(hot_objects.owners(&name("k")), 3);
        hot_objects.set_owners(&name("k"), 1);
        assert_eq!(hot_objects.owners(&name("k")), 1);
        for key in 0..2 * MAX_OBJECTS {
            hot_objects.set_owners(&name(&key.to_string()), 2);
            hot_objects.count_request(&name(&key.to_string()));
        }
        assert!(
            lock(&hot_objects.owner_counts).len() <= MAX_OBJECTS
                && lock(&hot_objects.rates).len() <= MAX_OBJECTS
        );
    }
}
