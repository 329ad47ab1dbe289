//! Rejects replayed messages: those with a stale time, and those with a nonce that was seen before.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::wire::RejectedMessage;

/// Maximum difference between two nodes' clocks.
const MAX_SKEW: Duration = Duration::from_secs(30);

/// Nonces of the messages admitted within the last minute.
#[derive(Debug)]
pub(super) struct Window {
    /// Messages sent earlier are rejected, since their nonces are not known.
    started: SystemTime,
    /// Whether another process admits messages now.
    is_sealed: bool,
    seen: HashSet<String>,
    order: VecDeque<(SystemTime, String)>,
}

impl Window {
    pub(super) fn starting(now: SystemTime) -> Self {
        Self { started: now, is_sealed: false, seen: HashSet::new(), order: VecDeque::new() }
    }

    /// Admits a message sent at `sent`, once.
    pub(super) fn admit(
        &mut self,
        now: SystemTime,
        sent: SystemTime,
        nonce: &str,
    ) -> Result<(), RejectedMessage> {
        if self.is_sealed {
            return Err(RejectedMessage::HandedOver);
        }
        // Times on the wire are whole seconds: the second in which the process began counts as after.
        let from = (now - MAX_SKEW).max(self.started - Duration::from_secs(1));
        if sent < from || sent > now + MAX_SKEW {
            return Err(RejectedMessage::Stale);
        }
        while self.order.front().is_some_and(|(sent, _)| *sent < now - MAX_SKEW) {
            if let Some((_, old)) = self.order.pop_front() {
                self.seen.remove(&old);
            }
        }
        if !self.seen.insert(nonce.to_owned()) {
            return Err(RejectedMessage::Replay);
        }
        self.order.push_back((sent, nonce.to_owned()));
        Ok(())
    }

    /// Rejects every message from now on, and returns the state for the next process.
    pub(super) fn seal(&mut self) -> SeenMessages {
        self.is_sealed = true;
        SeenMessages { started: self.started, seen: self.order.iter().cloned().collect() }
    }

    /// Admits messages again after a handover has failed.
    pub(super) fn unseal(&mut self) {
        self.is_sealed = false;
    }

    /// Adds the state of the previous process.
    pub(super) fn adopt(&mut self, before: SeenMessages) {
        self.started = self.started.min(before.started);
        for (sent, nonce) in before.seen {
            if self.seen.insert(nonce.clone()) {
                self.order.push_back((sent, nonce));
            }
        }
    }
}

/// Messages that a process has recently admitted, for the process that takes over from it.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct SeenMessages {
    started: SystemTime,
    seen: Vec<(SystemTime, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nonce_once_and_only_while_fresh() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut window = Window::starting(start);
        assert_eq!(window.admit(at(0), start - Duration::from_secs(2), "a"), Err(RejectedMessage::Stale));
        assert_eq!(window.admit(at(5), at(5), "a"), Ok(()));
        assert_eq!(window.admit(at(6), at(5), "a"), Err(RejectedMessage::Replay));
        assert_eq!(window.admit(at(6), at(30), "future"), Ok(()));
        assert_eq!(window.admit(at(6), at(37), "far future"), Err(RejectedMessage::Stale));
        assert_eq!(window.admit(at(36), at(5), "b"), Err(RejectedMessage::Stale));
        assert_eq!(window.admit(at(36), at(30), "future"), Err(RejectedMessage::Replay));
        assert_eq!(window.admit(at(61), at(60), "c"), Ok(()));
        assert_eq!((window.seen.len(), window.order.len()), (1, 1), "what is stale need not be remembered");
    }
}
