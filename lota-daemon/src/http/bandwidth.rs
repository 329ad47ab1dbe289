//! Shares the node's sending among pods, and limits the bytes per second that one pod receives.
//!
//! The connections of a worker write in turns. While several pods receive large responses, a turn of a connection is as
//! many bytes as its pod's share divided by the pod's connections, so that a pod with many connections gets no more than
//! one with a few. A pod that receives alone is not limited by this.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    task::yield_now,
    time::{Instant, Sleep, sleep_until},
};

use super::SentBytes;

/// Bytes of one turn of a pod that shares the node with others.
const SHARE: usize = 2 << 20;
/// Minimum number of bytes of a turn, and of a grant.
const MIN_TURN: usize = 16 << 10;
/// Duration of a period in which pods and connections are counted that write. Longer than the pauses of a client that reads
/// as fast as it can.
const PERIOD: Duration = Duration::from_millis(100);
/// Minimum size of a write that counts as a part of a large response, in bytes. Smaller responses are not delayed.
const LARGE: usize = 64 << 10;
/// Duration for which a pod that has received nothing may save its bandwidth. It bounds the excess in any second to 2 %.
const SAVED: Duration = Duration::from_millis(20);
/// Minimum number of grants per second, at the limit: another connection of the pod waits for one.
const GRANTS_PER_SECOND: u64 = 100;

/// Bandwidth of the pods of a node.
#[derive(Clone, Debug)]
pub struct PodBandwidth(Arc<NodeSending>);

#[derive(Debug)]
struct NodeSending {
    /// Maximum number of bytes per second for each pod.
    limit: Option<u64>,
    /// Start of the first period.
    start: Instant,
    /// The pods that receive large responses.
    pods: Mutex<Active>,
    all: Mutex<HashMap<IpAddr, Arc<PodSending>>>,
}

#[derive(Debug)]
struct PodSending {
    /// The connections that send large responses.
    connections: Mutex<Active>,
    /// Time at which everything that was granted may have been sent.
    granted_until: Mutex<Instant>,
}

/// Number of those that have written in the current period, and in the previous one.
#[derive(Debug, Default)]
struct Active {
    period: u64,
    current: usize,
    previous: usize,
}

/// A connection's part in the bandwidth of its pod.
#[derive(Debug)]
pub struct ConnectionPace {
    node: Arc<NodeSending>,
    pod: Arc<PodSending>,
    /// Last period in which the connection wrote a part of a large response.
    period: u64,
    /// Bytes that were written in this turn.
    written: usize,
    /// A grant in bytes that is not due yet.
    next: Option<(Pin<Box<Sleep>>, usize)>,
}

/// Accounting of the bytes that a connection sends.
#[derive(Debug, Default)]
pub struct Sending {
    /// Bytes sent without copying, of all connections.
    pub sent: SentBytes,
    /// Bandwidth of the connection; `None` without a limit and without sharing.
    pub pace: Option<ConnectionPace>,
}

impl From<SentBytes> for Sending {
    fn from(sent: SentBytes) -> Self {
        Self { sent, pace: None }
    }
}

impl Active {
    /// Counts one in `period`. Returns whether it is the first.
    fn count(&mut self, period: u64) -> bool {
        let is_first = self.period != period;
        if is_first {
            let is_next = self.period + 1 == period;
            *self = Self { period, current: 0, previous: if is_next { self.current } else { 0 } };
        }
        self.current += 1;
        is_first
    }

    /// Returns how many there are, as far as known in the current period.
    fn number(&self) -> usize {
        self.current.max(self.previous)
    }
}

impl PodBandwidth {
    /// Returns the bandwidth of pods that receive at most `limit` bytes per second each.
    #[must_use]
    pub fn new(limit: Option<u64>) -> Self {
        let (start, pods, all) = (Instant::now(), Mutex::default(), Mutex::default());
        Self(Arc::new(NodeSending { limit, start, pods, all }))
    }

    /// Returns the part of a new connection of `pod`.
    #[must_use]
    pub fn pace(&self, pod: IpAddr) -> ConnectionPace {
        let now = Instant::now();
        let mut all = self.0.all.lock();
        let pod = match all.get(&pod) {
            Some(known) => known.clone(),
            None => {
                all.retain(|_, pod| Arc::strong_count(pod) > 1 || *pod.granted_until.lock() > now);
                let new =
                    Arc::new(PodSending { connections: Mutex::default(), granted_until: Mutex::new(now) });
                all.insert(pod, new.clone());
                new
            }
        };
        drop(all);
        ConnectionPace { node: self.0.clone(), pod, period: 0, written: 0, next: None }
    }
}

impl ConnectionPace {
    /// Returns how many of `length` bytes the connection may write now. [`ConnectionPace::written`] must follow.
    pub(super) fn poll_turn(&mut self, cx: &mut Context<'_>, length: usize) -> Poll<usize> {
        if let Some((sleep, granted)) = &mut self.next {
            ready!(sleep.as_mut().poll(cx));
            let granted = *granted;
            self.next = None;
            self.give_back(granted.saturating_sub(length));
            return Poll::Ready(granted.min(length));
        }
        let share = if length >= LARGE { self.share() } else { None };
        let left = share.map_or(length, |share| share.saturating_sub(self.written));
        if left == 0 {
            self.written = 0;
            // Wakes the task when the worker has looked for new events: another connection may have become writable.
            let _ = pin!(yield_now()).poll(cx);
            return Poll::Pending;
        }
        let length = length.min(left);
        let Some(limit) = self.node.limit else { return Poll::Ready(length) };
        let (granted, at) = self.grant(limit, length, Instant::now());
        if at <= Instant::now() {
            return Poll::Ready(granted);
        }
        self.next = Some((Box::pin(sleep_until(at)), granted));
        self.poll_turn(cx, granted)
    }

    /// Records that `written` bytes of `turn` were written. The turn ends if the socket takes no more.
    pub(super) fn written(&mut self, turn: usize, written: usize) {
        self.give_back(turn - written);
        self.written = if written == 0 { 0 } else { self.written + written };
    }

    /// Counts the connection, and returns the bytes of a turn, or `None` if no other pod receives large responses.
    fn share(&mut self) -> Option<usize> {
        // The first period is 2, so that it does not follow the value of those that have not written.
        let elapsed = self.node.start.elapsed().as_millis() / PERIOD.as_millis();
        let period = u64::try_from(elapsed).unwrap_or(u64::MAX).saturating_add(2);
        if std::mem::replace(&mut self.period, period) != period && self.pod.connections.lock().count(period)
        {
            self.node.pods.lock().count(period);
        }
        let is_shared = self.node.pods.lock().number() > 1;
        is_shared.then(|| (SHARE / self.connections()).max(MIN_TURN))
    }

    fn connections(&self) -> usize {
        self.pod.connections.lock().number().max(1)
    }

    /// Grants some of `length` bytes at the time at which the pod may receive them.
    fn grant(&self, limit: u64, length: usize, now: Instant) -> (usize, Instant) {
        let most = usize::try_from(limit / GRANTS_PER_SECOND).unwrap_or(usize::MAX) / self.connections();
        let granted = length.min(most.max(MIN_TURN));
        let mut until = self.pod.granted_until.lock();
        let start = (*until).max(now.checked_sub(SAVED).unwrap_or(now));
        *until = start + duration(granted, limit);
        (granted, *until)
    }

    /// Takes back what was granted and not written.
    fn give_back(&self, bytes: usize) {
        if let (Some(limit), 1..) = (self.node.limit, bytes) {
            let mut until = self.pod.granted_until.lock();
            *until = until.checked_sub(duration(bytes, limit)).unwrap_or(*until);
        }
    }
}

/// Returns the time that `bytes` take at `limit` bytes per second.
fn duration(bytes: usize, limit: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / limit as f64)
}

impl Drop for ConnectionPace {
    fn drop(&mut self) {
        let granted = self.next.take().map_or(0, |(_, granted)| granted);
        self.give_back(granted);
    }
}

#[cfg(test)]
#[path = "bandwidth_tests.rs"]
mod tests;
