//! Limits connections per node and per pod.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::{Mutex, MutexGuard};

/// Connection permits of a node.
#[derive(Clone, Debug)]
pub struct ConnectionLimiter(Arc<LimiterState>);

#[derive(Debug)]
struct LimiterState {
    max: usize,
    max_per_pod: usize,
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
        Self(Arc::new(LimiterState { max, max_per_pod, taken: Mutex::default() }))
    }

    /// Takes a permit for a connection of `pod`. Returns `None` if the node or the pod has too many connections.
    #[must_use]
    pub fn take(&self, pod: IpAddr) -> Option<ConnectionPermit> {
        let mut taken = self.taken();
        let of_pod = taken.by_pod.get(&pod).copied().unwrap_or_default();
        if taken.all >= self.0.max || of_pod >= self.0.max_per_pod {
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

    #[test]
    fn no_pod_takes_them_all() {
        let (limiter, one, other) =
            (ConnectionLimiter::new(3, 2), [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let first = limiter.take(one).unwrap();
        let _second = limiter.take(one).unwrap();
        assert!(limiter.take(one).is_none(), "a third of one pod");
        let _third = limiter.take(other).unwrap();
        assert!(limiter.take(other).is_none(), "a fourth of three");
        drop(first);
        assert!(limiter.take(one).is_some());
        assert_eq!(limiter.taken().all, 2);
    }
}
