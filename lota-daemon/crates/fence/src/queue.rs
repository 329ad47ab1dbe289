//! The node's queue of requests that wait for fences.

use std::collections::{BTreeSet, VecDeque};

use crate::{Basis, CellName};

/// Identity of a fence. An answer counts for the fence that it is to, and for no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FenceId(u64);

/// A question to the gateway for the numbers of cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Its identity.
    pub id: FenceId,
    /// The cells; at most [`FenceQueue::MAX_CELLS`].
    pub cells: BTreeSet<CellName>,
}

/// Requests that wait for fences, each as a `W` of the caller.
///
/// A request joins a fence that has not been sent yet, never one that is on its way: the gateway may have read the numbers before
/// the request arrived, and a change in between would be missed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FenceQueue<W> {
    queued: VecDeque<FenceBatch<W>>,
    in_flight: Vec<(FenceId, Vec<W>)>,
    next: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FenceBatch<W> {
    cells: BTreeSet<CellName>,
    waiting: Vec<W>,
}

impl<W> FenceQueue<W> {
    /// Maximum number of fences on their way. With two, a request waits for one round trip and a half on average, not two.
    pub const MAX_IN_FLIGHT: usize = 2;
    /// Maximum number of cells of a fence.
    pub const MAX_CELLS: usize = 1024;

    /// Returns an empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self { queued: VecDeque::new(), in_flight: Vec::new(), next: 0 }
    }

    /// Makes a request wait for the next fence that is sent and that asks for the cells of `basis`.
    pub fn join(&mut self, basis: &Basis, request: W) {
        let has_room = |batch: &&mut FenceBatch<W>| batch.cells.len() + Basis::MAX_CELLS <= Self::MAX_CELLS;
        match self.queued.back_mut().filter(has_room) {
            Some(batch) => {
                batch.cells.extend(basis.cells().cloned());
                batch.waiting.push(request);
            }
            None => {
                let cells = basis.cells().cloned().collect();
                self.queued.push_back(FenceBatch { cells, waiting: vec![request] });
            }
        }
    }

    /// Returns the fence to send now: `None` if no request waits, or too many fences are on their way. From now on, no request
    /// joins it.
    pub fn send(&mut self) -> Option<Fence> {
        if self.in_flight.len() >= Self::MAX_IN_FLIGHT {
            return None;
        }
        let FenceBatch { cells, waiting } = self.queued.pop_front()?;
        let id = FenceId(self.next);
        self.next += 1;
        self.in_flight.push((id, waiting));
        Some(Fence { id, cells })
    }

    /// Ends a fence, with an answer or without. Returns the requests that have waited for it; none if it has ended before.
    pub fn end(&mut self, fence: FenceId) -> Vec<W> {
        let place = self.in_flight.iter().position(|(id, _)| *id == fence);
        place.map_or_else(Vec::new, |place| self.in_flight.swap_remove(place).1)
    }
}

impl<W> Default for FenceQueue<W> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{ChangeNumber, InstanceId};

    fn basis(cells: impl IntoIterator<Item = usize>) -> Basis {
        let number = |cell: usize| (CellName::parse(&format!("c{cell}")).unwrap(), ChangeNumber(0));
        let numbers: BTreeMap<_, _> = cells.into_iter().map(number).collect();
        Basis::new(InstanceId::parse("i").unwrap(), numbers).unwrap()
    }

    #[test]
    fn a_fence_serves_those_that_were_there_before_it_was_sent() {
        let mut queue = FenceQueue::new();
        assert_eq!(queue.send(), None);
        queue.join(&basis([1, 2]), "a");
        queue.join(&basis([2, 3]), "b");
        let first = queue.send().unwrap();
        assert_eq!(first.cells.len(), 3);
        queue.join(&basis([1]), "late");
        let second = queue.send().unwrap();
        queue.join(&basis([1]), "later");
        assert_eq!(queue.send(), None, "two are on their way");
        assert_eq!(queue.end(second.id), ["late"], "answers come in any order");
        assert_eq!(queue.end(second.id), [""; 0], "an answer counts once");
        assert_eq!(queue.end(first.id), ["a", "b"]);
        let third = queue.send().unwrap();
        assert_eq!(queue.end(third.id), ["later"]);
        assert_eq!(queue.send(), None);
    }

    #[test]
    fn fences_have_a_bounded_number_of_cells() {
        let mut queue = FenceQueue::new();
        for request in 0..200 {
            queue.join(&basis(request * 16..request * 16 + 16), request);
        }
        let (mut sent, mut served) = (0, 0);
        while let Some(fence) = queue.send() {
            assert!(fence.cells.len() <= FenceQueue::<usize>::MAX_CELLS);
            sent += 1;
            served += queue.end(fence.id).len();
        }
        assert_eq!((sent, served), (4, 200));
    }
}
