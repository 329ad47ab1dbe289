//! Decides when the interfaces of pods are looked for again. Performs no I/O.

use std::time::{Duration, Instant};

use super::AWAITED;

/// Duration for which interfaces are looked for repeatedly after a hint that one may be about to be there: the kernel does not
/// report in the node's network namespace when an address is added in a pod's.
const HINT_VALIDITY: Duration = Duration::from_secs(2);

/// Until when the interfaces of pods are looked for repeatedly.
#[derive(Debug, Default)]
pub(super) struct PodSearch {
    until: Option<Instant>,
}

impl PodSearch {
    /// Notes that the API server reported pods.
    pub(super) fn reported(&mut self, at: Instant) {
        self.extend(at + AWAITED);
    }

    /// Notes a change of interfaces or cgroups.
    pub(super) fn hinted(&mut self, at: Instant) {
        self.extend(at + HINT_VALIDITY);
    }

    fn extend(&mut self, until: Instant) {
        self.until = self.until.max(Some(until));
    }

    pub(super) fn is_on(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_start_a_search_again() {
        let (mut search, start) = (PodSearch::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!search.is_on(start), "nothing was reported");
        search.reported(start);
        search.hinted(at(1));
        assert!(search.is_on(at(9)), "a hint does not shorten a search");
        assert!(!search.is_on(at(10)), "it ends");
        search.hinted(at(30));
        assert!(search.is_on(at(31)) && !search.is_on(at(32)));
    }
}
