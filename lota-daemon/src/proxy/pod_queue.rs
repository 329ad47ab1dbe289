//! A queue from which pods take turns.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

/// Items of pods. Each pod's items leave in order; pods take turns (round robin), so that a pod with many items delays no other.
#[derive(Debug)]
pub(super) struct PodQueue<T> {
    by_pod: HashMap<IpAddr, VecDeque<T>>,
    /// Pods with items; the first one is next.
    turns: VecDeque<IpAddr>,
}

impl<T> Default for PodQueue<T> {
    fn default() -> Self {
        Self { by_pod: HashMap::new(), turns: VecDeque::new() }
    }
}

impl<T> PodQueue<T> {
    /// Adds an item of a pod.
    pub(super) fn push(&mut self, pod: IpAddr, item: T) {
        let items = self.by_pod.entry(pod).or_default();
        if items.is_empty() {
            self.turns.push_back(pod);
        }
        items.push_back(item);
    }

    /// Removes and returns the first item of the first pod that gets a permit, with that permit.
    pub(super) fn pop<P>(&mut self, permit: impl FnMut(IpAddr) -> Option<P>) -> Option<(IpAddr, T, P)> {
        let permits = self.turns.iter().copied().map(permit).enumerate();
        let (place, permit) = permits.into_iter().find_map(|(place, permit)| Some((place, permit?)))?;
        let pod = self.turns.remove(place)?;
        let items = self.by_pod.get_mut(&pod)?;
        let item = items.pop_front()?;
        match items.is_empty() {
            true => drop(self.by_pod.remove(&pod)),
            false => self.turns.push_back(pod),
        }
        Some((pod, item, permit))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    #[test]
    fn a_pod_with_many_items_delays_no_other() {
        let mut queue = PodQueue::default();
        (0..1000).for_each(|item| queue.push(pod(1), item));
        queue.push(pod(2), 2000);
        queue.push(pod(3), 3000);
        queue.push(pod(2), 2001);
        let next: Vec<i32> = (0..6).map(|_| queue.pop(|_| Some(())).unwrap().1).collect();
        assert_eq!(next, [0, 2000, 3000, 1, 2001, 2]);
    }

    #[test]
    fn a_pod_without_permit_keeps_its_turn() {
        let mut queue = PodQueue::default();
        [1, 1, 2, 3].into_iter().for_each(|number| queue.push(pod(number), number));
        assert_eq!(queue.pop(|of| (of != pod(1)).then_some('p')), Some((pod(2), 2, 'p')));
        assert_eq!(queue.pop(|_| None::<()>), None);
        let next: Vec<u8> = (0..3).map(|_| queue.pop(|_| Some(())).unwrap().1).collect();
        assert_eq!(next, [1, 3, 1]);
        assert!(queue.by_pod.is_empty() && queue.turns.is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_each_pod_keeps_its_order(steps in prop::collection::vec((0..4u8, any::<bool>()), 0..200)) {
            let (mut queue, mut pushed, mut popped) = (PodQueue::default(), Vec::new(), Vec::new());
            for (item, (number, pushes)) in steps.into_iter().enumerate() {
                if pushes {
                    queue.push(pod(number), item);
                    pushed.push((pod(number), item));
                } else {
                    popped.extend(queue.pop(|of| (of != pod(number)).then_some(())).map(|(of, item, ())| (of, item)));
                }
            }
            popped.extend(std::iter::from_fn(|| queue.pop(|_| Some(())).map(|(of, item, ())| (of, item))));
            // A stable sort: each pod's items in their order.
            pushed.sort_by_key(|(of, _)| *of);
            popped.sort_by_key(|(of, _)| *of);
            prop_assert_eq!(popped, pushed);
        }
    }
}
