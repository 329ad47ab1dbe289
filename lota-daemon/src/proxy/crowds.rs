//! Objects that many want at once: one node alone should not have to answer for them.
//!
//! An object's owner counts how often it is asked for, and tells who asks how many nodes should answer; they then spread
//! their requests over so many of the object's first choices, of which each fills from the first. When the crowd has
//! gone, so are they.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::s3::ObjectName;

/// Rates are measured over this.
const WINDOW: Duration = Duration::from_secs(1);
/// How long an owner's word holds.
const WORD: Duration = Duration::from_secs(10);
/// Objects that are kept count of.
const MOST: usize = 4096;

/// Who is asked for, how often.
#[derive(Debug)]
pub struct Crowds {
    /// Requests a second that one owner answers alone.
    each: u32,
    /// Most owners of one object.
    most: usize,
    heats: Mutex<HashMap<ObjectName, Heat>>,
    told: Mutex<HashMap<ObjectName, (usize, Instant)>>,
}

#[derive(Clone, Copy, Debug)]
struct Heat {
    since: Instant,
    requests: u32,
    owners: usize,
    /// Have they just become more or fewer? Not all have heard of it then.
    settles: bool,
}

impl Crowds {
    /// One owner alone for objects that are asked for up to `each` times a second, up to `most` for those that are
    /// asked for more often.
    #[must_use]
    pub fn new(each: u32, most: usize) -> Self {
        Self { each: each.max(1), most: most.max(1), heats: Mutex::default(), told: Mutex::default() }
    }

    /// Most owners of one object.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most
    }

    /// The object's first owner was asked for it once more; how many owners it should have.
    pub fn count(&self, object: &ObjectName) -> usize {
        self.count_at(object, Instant::now())
    }

    fn count_at(&self, object: &ObjectName, now: Instant) -> usize {
        let mut heats = lock(&self.heats);
        if let Some(heat) = heats.get_mut(object) {
            heat.requests = heat.requests.saturating_add(1);
            let passed = now.saturating_duration_since(heat.since);
            if passed >= WINDOW {
                // The others are asked as often, since requests are spread over all.
                let rate = f64::from(heat.requests) * heat.owners as f64 / passed.as_secs_f64();
                let (share, before) = (rate / f64::from(self.each), heat.owners);
                match heat.settles {
                    false if share > before as f64 => heat.owners = (before + 1).min(self.most),
                    false if share < before as f64 - 1.25 => heat.owners -= 1,
                    _ => {}
                }
                heat.settles = heat.owners != before;
                (heat.since, heat.requests) = (now, 0);
            }
            return heat.owners;
        }
        if heats.len() >= MOST {
            heats.retain(|_, heat| now.saturating_duration_since(heat.since) < 2 * WINDOW);
        }
        if heats.len() < MOST {
            heats.insert(object.clone(), Heat { since: now, requests: 1, owners: 1, settles: false });
        }
        1
    }

    /// An object's first owner says how many there should be.
    pub fn hear(&self, object: &ObjectName, owners: usize) {
        let (mut told, now) = (lock(&self.told), Instant::now());
        if owners <= 1 {
            told.remove(object);
            return;
        }
        if told.len() >= MOST {
            told.retain(|_, (_, since)| now.saturating_duration_since(*since) < WORD);
        }
        if told.len() < MOST || told.contains_key(object) {
            told.insert(object.clone(), (owners.min(self.most), now));
        }
    }

    /// How many owners an object has.
    #[must_use]
    pub fn owners(&self, object: &ObjectName) -> usize {
        match lock(&self.told).get(object) {
            Some((owners, since)) if since.elapsed() < WORD => *owners,
            _ => 1,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(key: &str) -> ObjectName {
        ObjectName::from_parts("b", key, None).unwrap()
    }

    #[test]
    fn a_crowd_gets_more_owners_and_they_go_with_it() {
        let (crowds, mut now) = (Crowds::new(100, 3), Instant::now());
        let mut owners = 1;
        // So many requests a second for ten seconds, spread over the owners there are.
        let mut ask = |crowds: &Crowds, rate: u32| {
            for _ in 0..10 {
                for _ in 0..(rate as usize / owners).max(1) {
                    owners = crowds.count_at(&name("k"), now);
                }
                now += WINDOW;
            }
            owners
        };
        assert_eq!(ask(&crowds, 90), 1);
        assert_eq!(ask(&crowds, 150), 2);
        assert_eq!(ask(&crowds, 160), 2, "and stays");
        assert_eq!(ask(&crowds, 1000), 3, "no more than may be");
        assert_eq!(ask(&crowds, 10), 1);
    }

    #[test]
    fn an_owners_word_is_kept_within_bounds() {
        let crowds = Crowds::new(100, 3);
        assert_eq!(crowds.owners(&name("k")), 1);
        crowds.hear(&name("k"), 9);
        assert_eq!(crowds.owners(&name("k")), 3);
        crowds.hear(&name("k"), 1);
        assert_eq!(crowds.owners(&name("k")), 1);
        for key in 0..2 * MOST {
            crowds.hear(&name(&key.to_string()), 2);
            crowds.count(&name(&key.to_string()));
        }
        assert!(lock(&crowds.told).len() <= MOST && lock(&crowds.heats).len() <= MOST);
    }
}
