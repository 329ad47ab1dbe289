//! How many connections there may be: in all, and of one pod, so that none takes them all.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The seats of a node.
#[derive(Clone, Debug)]
pub struct Seats(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    most_of_one: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_pod: HashMap<IpAddr, usize>,
}

/// A connection's; given back when it is dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    pod: IpAddr,
}

impl Seats {
    /// So many seats, and so many of them for each pod.
    #[must_use]
    pub fn new(most: usize, most_of_one: usize) -> Self {
        Self(Arc::new(Inner { most, most_of_one, taken: Mutex::default() }))
    }

    /// A seat for a pod's connection, if there is one.
    #[must_use]
    pub fn take(&self, pod: IpAddr) -> Option<Seat> {
        let mut taken = self.taken();
        let of_pod = taken.by_pod.get(&pod).copied().unwrap_or_default();
        if taken.all >= self.0.most || of_pod >= self.0.most_of_one {
            return None;
        }
        taken.all += 1;
        taken.by_pod.insert(pod, of_pod + 1);
        Some(Seat { seats: self.clone(), pod })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
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
        let (seats, one, other) = (Seats::new(3, 2), [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let first = seats.take(one).unwrap();
        let _second = seats.take(one).unwrap();
        assert!(seats.take(one).is_none(), "a third of one pod");
        let _third = seats.take(other).unwrap();
        assert!(seats.take(other).is_none(), "a fourth of three");
        drop(first);
        assert!(seats.take(one).is_some());
        assert_eq!(seats.taken().all, 2);
    }
}
