//! Notices pods whose connections do not arrive: the datapath left their SYNs to the network stack, and the daemon
//! accepted none. Performs no I/O.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use lota_datapath::Attempts;
use parking_lot::Mutex;

/// Number of attempts without an accepted connection from which on a pod counts as hanging. TCP repeats a SYN after one
/// and after three seconds.
const MIN_ATTEMPTS: u64 = 3;
/// Age of the last attempt up to which a pod counts as hanging.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Pods that the daemon has accepted connections of, since the last look.
#[derive(Debug, Default)]
pub struct Arrivals(Mutex<HashSet<IpAddr>>);

impl Arrivals {
    /// Notes an accepted connection.
    pub fn note(&self, pod: IpAddr) {
        self.0.lock().insert(pod);
    }

    pub(super) fn take(&self) -> HashSet<IpAddr> {
        std::mem::take(&mut self.0.lock())
    }
}

/// Attempts of each pod, and which of them are not answered.
#[derive(Debug, Default)]
pub(super) struct AttemptWatch {
    /// Number of attempts of each pod when a connection of it was last seen to arrive. `None` before the first look:
    /// earlier attempts were those of the previous daemon.
    answered: Option<BTreeMap<IpAddr, u64>>,
}

impl AttemptWatch {
    /// Returns the pods that hang, with the attempts that were not answered. `arrived` must have been taken before
    /// `attempts` were read: a connection that arrives in between is seen the next time.
    pub(super) fn look(
        &mut self,
        attempts: &BTreeMap<IpAddr, Attempts>,
        arrived: &HashSet<IpAddr>,
    ) -> BTreeMap<IpAddr, Attempts> {
        let is_first = self.answered.is_none();
        let answered = self.answered.get_or_insert_default();
        answered.retain(|pod, _| attempts.contains_key(pod));
        let mut hanging = BTreeMap::new();
        for (pod, seen) in attempts {
            let before = answered.entry(*pod).or_default();
            if is_first || arrived.contains(pod) {
                *before = seen.count;
            } else if *before > seen.count {
                // The kernel evicted the entry and counts from the beginning.
                *before = 0;
            }
            let count = seen.count - *before;
            if count >= MIN_ATTEMPTS && seen.age <= MAX_AGE {
                hanging.insert(*pod, Attempts { count, ..*seen });
            }
        }
        hanging
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_hangs_if_nothing_arrives() {
        let (pod, other) = (IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3]));
        let seen = |count, seconds| Attempts { count, age: Duration::from_secs(seconds), ifindex: 7 };
        let mut watch = AttemptWatch::default();
        let mut look = |attempts: &[(IpAddr, Attempts)], arrived: &[IpAddr]| -> Vec<(IpAddr, u64)> {
            let hanging = watch.look(&attempts.iter().copied().collect(), &arrived.iter().copied().collect());
            hanging.into_iter().map(|(pod, attempts)| (pod, attempts.count)).collect()
        };
        assert_eq!(look(&[(pod, seen(9, 0))], &[]), [], "attempts before the daemon started");
        assert_eq!(look(&[(pod, seen(11, 0))], &[]), []);
        assert_eq!(look(&[(pod, seen(12, 0)), (other, seen(50, 0))], &[other]), [(pod, 3)]);
        assert_eq!(look(&[(pod, seen(12, 61))], &[]), [], "it has given up");
        assert_eq!(look(&[(pod, seen(14, 0))], &[pod]), [], "one arrived");
        assert_eq!(look(&[(pod, seen(16, 0))], &[]), []);
        assert_eq!(look(&[(pod, seen(3, 0))], &[]), [(pod, 3)], "counted anew");
        assert_eq!(look(&[(pod, seen(3, 0)), (other, seen(3, 0))], &[]), [(pod, 3), (other, 3)]);
    }
}
