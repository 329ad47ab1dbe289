//! Refuses what was sent before: stale times, and nonces seen already.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, SystemTime},
};

use super::wire::Refused;

/// How far two nodes' clocks may differ.
const SKEW: Duration = Duration::from_secs(30);

/// The nonces of the last minute.
#[derive(Debug)]
pub(super) struct Window {
    /// Nothing sent before this process began is accepted: its nonces are not remembered.
    started: SystemTime,
    seen: HashSet<String>,
    order: VecDeque<(SystemTime, String)>,
}

impl Window {
    pub(super) fn starting(now: SystemTime) -> Self {
        Self { started: now, seen: HashSet::new(), order: VecDeque::new() }
    }

    /// Admits a message sent at `sent`, once.
    pub(super) fn admit(&mut self, now: SystemTime, sent: SystemTime, nonce: &str) -> Result<(), Refused> {
        // Times on the wire are whole seconds: the second in which the process began counts as after.
        let from = (now - SKEW).max(self.started - Duration::from_secs(1));
        if sent < from || sent > now + SKEW {
            return Err(Refused::Stale);
        }
        while self.order.front().is_some_and(|(sent, _)| *sent < now - SKEW) {
            if let Some((_, old)) = self.order.pop_front() {
                self.seen.remove(&old);
            }
        }
        if !self.seen.insert(nonce.to_owned()) {
            return Err(Refused::Replay);
        }
        self.order.push_back((sent, nonce.to_owned()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nonce_once_and_only_while_fresh() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut window = Window::starting(start);
        assert_eq!(window.admit(at(0), start - Duration::from_secs(2), "a"), Err(Refused::Stale));
        assert_eq!(window.admit(at(5), at(5), "a"), Ok(()));
        assert_eq!(window.admit(at(6), at(5), "a"), Err(Refused::Replay));
        assert_eq!(window.admit(at(6), at(30), "future"), Ok(()));
        assert_eq!(window.admit(at(6), at(37), "far future"), Err(Refused::Stale));
        assert_eq!(window.admit(at(36), at(5), "b"), Err(Refused::Stale));
        assert_eq!(window.admit(at(36), at(30), "future"), Err(Refused::Replay));
        assert_eq!(window.admit(at(61), at(60), "c"), Ok(()));
        assert_eq!((window.seen.len(), window.order.len()), (1, 1), "what is stale need not be remembered");
    }
}
