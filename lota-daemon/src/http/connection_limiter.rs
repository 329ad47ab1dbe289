//! Limits connections per node and per pod.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::{Mutex, MutexGuard};

/// Reciprocal of the share that is kept for pods without a connection.
const KEPT: usize = 16;

/// Connection permits of a node.
///
/// Beyond its first connection, a pod may hold no more than remains free afterwards (like
/// [`Shares`](lota_cache::shares::Shares)), not counting a sixteenth that is kept for pods without a connection. So the pods that
/// have connections never take all.
#[derive(Clone, Debug)]
pub struct ConnectionLimiter(Arc<LimiterState>);

#[derive(Debug)]
struct LimiterState {
    max: usize,
    max_per_pod: usize,
    /// Number of connections that are kept for pods without one; `None` without the rule of shares.
    kept: Option<usize>,
    taken: Mutex<TakenPermits>,
}

#[derive(Debug, Default)]
struct TakenPermits {
    all: usize,
    by_pod: HashMap<IpAddr, usize>,
}

/// Permit for one connection, released on drop.
#[derive(Debug)]
pub struct ConnectionPermit {
    limiter: ConnectionLimiter,
    pod: IpAddr,
}

impl ConnectionLimiter {
    /// Limits connections to `max` in total and `max_per_pod` for each pod.
    #[must_use]
    pub fn new(max: usize, max_per_pod: usize) -> Self {
        let kept = Some(max / KEPT);
        Self(Arc::new(LimiterState { max, max_per_pod, kept, taken: Mutex::default() }))
    }

    /// Limits connections to `max` in total and `max_per_node` for each node, which may all be taken.
    #[must_use]
    pub fn of_nodes(max: usize, max_per_node: usize) -> Self {
        let taken = Mutex::default();
        Self(Arc::new(LimiterState { max, max_per_pod: max_per_node, kept: None, taken }))
    }

    /// Takes a permit for a connection of `pod`. Returns `None` if the node has too many connections, or the pod beside those of
    /// others.
    #[must_use]
    pub fn take(&self, pod: IpAddr) -> Option<ConnectionPermit> {
        let mut taken = self.taken();
        let of_pod = taken.by_pod.get(&pod).copied().unwrap_or_default();
        let free = self.0.max - taken.all;
        let is_beyond_share = |kept| of_pod > 0 && of_pod + 1 > free.saturating_sub(kept);
        if free == 0 || of_pod >= self.0.max_per_pod || self.0.kept.is_some_and(is_beyond_share) {
            return None;
        }
        taken.all += 1;
        taken.by_pod.insert(pod, of_pod + 1);
        Some(ConnectionPermit { limiter: self.clone(), pod })
    }

    fn taken(&self) -> MutexGuard<'_, TakenPermits> {
        self.0.taken.lock()
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut taken = self.limiter.taken();
        taken.all -= 1;
        if let Some(of_pod) = taken.by_pod.get_mut(&self.pod) {
            *of_pod -= 1;
            if *of_pod == 0 {
                taken.by_pod.remove(&self.pod);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: u16) -> IpAddr {
        let [high, low] = number.to_be_bytes();
        [10, 0, high, low].into()
    }

    #[test]
    fn no_pod_takes_them_all() {
        let (limiter, one, other) = (ConnectionLimiter::new(4, 2), pod(1), pod(2));
        let first = limiter.take(one).unwrap();
        let _second = limiter.take(one).unwrap();
        assert!(limiter.take(one).is_none(), "a third of one pod");
        let _third = limiter.take(other).unwrap();
        assert!(limiter.take(other).is_none(), "none would be left for others");
        let _fourth = limiter.take(pod(3)).unwrap();
        assert!(limiter.take(pod(4)).is_none(), "a fifth of four");
        drop(first);
        assert!(limiter.take(pod(4)).is_some());
        assert_eq!(limiter.taken().all, 3);
    }

    #[test]
    fn nodes_may_take_all() {
        let (limiter, one, other) = (ConnectionLimiter::of_nodes(4, 2), pod(1), pod(2));
        let held = [one, one, other, other].map(|node| limiter.take(node).unwrap());
        assert!(limiter.take(pod(3)).is_none());
        drop(held);
        assert!(limiter.take(one).is_some());
    }

    #[test]
    fn many_pods_together_do_not_take_them_all() {
        let limiter = ConnectionLimiter::new(1000, 250);
        let all_of = |number| std::iter::from_fn(|| limiter.take(pod(number))).collect::<Vec<_>>();
        let mut held: Vec<_> = (0..30).map(all_of).collect();
        assert!(held[0].len() == 250 && held[1].len() == 250 && held[2].len() < 250, "a quarter each");
        assert!(held.iter().all(|of_pod| !of_pod.is_empty()), "each pod has at least one");
        assert!(limiter.take(pod(0)).is_none() && limiter.take(pod(29)).is_none());
        held.extend((30..60).map(all_of));
        assert!(held[30..].iter().all(|of_pod| of_pod.len() == 1), "one for each pod that had none");
    }
}
