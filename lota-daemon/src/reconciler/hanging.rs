//! Notices pods whose connections do not arrive: the datapath left their SYNs to the network stack, and the daemon
//! accepted none. Performs no I/O.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
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

/// Attempts of a pod that were not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnansweredAttempts {
    /// Number of SYNs.
    pub(super) count: u64,
    /// Time since the last one was seen.
    pub(super) age: Duration,
    /// Index of the interface that it came from.
    pub(super) ifindex: u32,
}

/// Attempts of each pod, and which of them are not answered.
#[derive(Debug, Default)]
pub(super) struct AttemptWatch {
    /// `None` before the first look: earlier attempts were those of the previous daemon.
    pods: Option<BTreeMap<IpAddr, SeenAttempts>>,
}

#[derive(Debug)]
struct SeenAttempts {
    /// Number of attempts when a connection of the pod was last seen to arrive.
    answered: u64,
    /// Number of attempts at the last look.
    count: u64,
    /// When the number was last seen to change. The datapath reads no clock, which takes a third of the time of a packet.
    changed: Instant,
}

impl AttemptWatch {
    /// Returns the pods that hang, with the attempts that were not answered. `arrived` must have been taken before
    /// `attempts` were read: a connection that arrives in between is seen the next time.
    pub(super) fn look(
        &mut self,
        attempts: &BTreeMap<IpAddr, Attempts>,
        arrived: &HashSet<IpAddr>,
        now: Instant,
    ) -> BTreeMap<IpAddr, UnansweredAttempts> {
        let is_first = self.pods.is_none();
        let pods = self.pods.get_or_insert_default();
        pods.retain(|pod, _| attempts.contains_key(pod));
        let mut hanging = BTreeMap::new();
        for (pod, Attempts { count, ifindex }) in attempts {
            let seen = pods.entry(*pod).or_insert(SeenAttempts { answered: 0, count: 0, changed: now });
            if seen.count != *count {
                (seen.count, seen.changed) = (*count, now);
            }
            if is_first || arrived.contains(pod) {
                seen.answered = *count;
            } else if seen.answered > *count {
                // The kernel evicted the entry and counts from the beginning.
                seen.answered = 0;
            }
            let (count, age) = (count - seen.answered, now.duration_since(seen.changed));
            if count >= MIN_ATTEMPTS && age <= MAX_AGE {
                hanging.insert(*pod, UnansweredAttempts { count, age, ifindex: *ifindex });
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
        let (mut watch, start) = (AttemptWatch::default(), Instant::now());
        let mut look = |seconds, attempts: &[(IpAddr, u64)], arrived: &[IpAddr]| -> Vec<(IpAddr, u64, u64)> {
            let attempts = attempts.iter().map(|(pod, count)| (*pod, Attempts { count: *count, ifindex: 7 }));
            let now = start + Duration::from_secs(seconds);
            let hanging = watch.look(&attempts.collect(), &arrived.iter().copied().collect(), now);
            hanging.into_iter().map(|(pod, found)| (pod, found.count, found.age.as_secs())).collect()
        };
        assert_eq!(look(0, &[(pod, 9)], &[]), [], "attempts before the daemon started");
        assert_eq!(look(2, &[(pod, 11)], &[]), []);
        assert_eq!(look(4, &[(pod, 12), (other, 50)], &[other]), [(pod, 3, 0)]);
        assert_eq!(look(64, &[(pod, 12)], &[]), [(pod, 3, 60)]);
        assert_eq!(look(65, &[(pod, 12)], &[]), [], "it has given up");
        assert_eq!(look(66, &[(pod, 13)], &[]), [(pod, 4, 0)], "it tries again");
        assert_eq!(look(67, &[(pod, 14)], &[pod]), [], "one arrived");
        assert_eq!(look(68, &[(pod, 16)], &[]), []);
        assert_eq!(look(70, &[(pod, 3)], &[]), [(pod, 3, 0)], "counted anew");
        assert_eq!(look(71, &[(pod, 3), (other, 3)], &[]), [(pod, 3, 1), (other, 3, 0)]);
    }
}
