//! LRU order bounded by bytes and entries. The crate `caches` keeps the order, but bounds only the entries.

use std::hash::{BuildHasher, Hash, RandomState};

use caches::{Cache as _, DefaultEvictCallback, RawLRU, ResizableCache as _};

/// Initial capacity of the order, in entries; it doubles as needed.
const FIRST_ENTRIES: usize = 1024;

/// Keys in LRU order, each with a size in bytes; the sum of the sizes is bounded.
#[derive(Debug)]
pub(super) struct ByteLru<K: Hash + Eq, V, S: BuildHasher = RandomState> {
    order: RawLRU<K, (V, u64), DefaultEvictCallback, S>,
    room: usize,
    /// Bytes of entries.
    held: u64,
    /// Bytes of reservations.
    reserved: u64,
    capacity: u64,
    /// Number of reservations.
    coming: usize,
    /// Maximum number of entries and reservations.
    most: usize,
}

impl<K: Hash + Eq + Copy, V, S: BuildHasher + Default> ByteLru<K, V, S> {
    /// Creates an empty LRU for up to `capacity` bytes in up to `most` entries. `entries` is its expected initial size.
    pub(super) fn new(capacity: u64, most: usize, entries: usize) -> Self {
        let room = entries.max(FIRST_ENTRIES);
        let order = RawLRU::with_hasher(room, S::default()).unwrap_or_else(|_| unreachable!("not zero"));
        Self { order, room, held: 0, reserved: 0, capacity, coming: 0, most }
    }

    /// Returns the maximum number of bytes.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Returns the bytes of entries.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Returns the bytes of entries and reservations.
    pub(super) fn bytes(&self) -> u64 {
        self.held + self.reserved
    }

    /// Returns the number of entries.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.order.contains(key)
    }

    /// Returns an entry and makes it the most recently used.
    pub(super) fn touch(&mut self, key: &K) -> Option<(&V, u64)> {
        self.order.get(key).map(|(value, bytes)| (value, *bytes))
    }

    /// Returns an entry without a change of the order.
    pub(super) fn peek(&self, key: &K) -> Option<(&V, u64)> {
        self.order.peek(key).map(|(value, bytes)| (value, *bytes))
    }

    /// Returns the value of the least recently used entry.
    pub(super) fn oldest(&self) -> Option<&V> {
        self.order.peek_lru().map(|(_, (value, _))| value)
    }

    /// Returns every key, least recently used first.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.order.keys_lru()
    }

    /// Removes and returns the least recently used entry, with its bytes.
    pub(super) fn evict(&mut self) -> Option<(K, V, u64)> {
        let (key, (value, bytes)) = self.order.remove_lru()?;
        self.held -= bytes;
        Some((key, value, bytes))
    }

    /// Reserves bytes for a new entry. Returns the entries evicted for it, or `None` if no eviction makes enough room.
    pub(super) fn reserve(&mut self, bytes: u64) -> Option<Vec<(K, V, u64)>> {
        if !self.fits(bytes) {
            return None;
        }
        self.reserved += bytes;
        self.coming += 1;
        let mut evicted = Vec::new();
        while self.held.saturating_add(self.reserved) > self.capacity
            || self.order.len() + self.coming > self.most
        {
            let Some(oldest) = self.evict() else { break };
            evicted.push(oldest);
        }
        Some(evicted)
    }

    /// Returns whether a reservation of `bytes` is possible, if necessary by evictions.
    pub(super) fn fits(&self, bytes: u64) -> bool {
        self.reserved.checked_add(bytes).is_some_and(|all| all <= self.capacity) && self.coming < self.most
    }

    /// Reserves bytes for a new entry without an eviction; returns whether they fit into `limit` bytes.
    pub(super) fn reserve_free(&mut self, bytes: u64, limit: u64) -> bool {
        let is_free = self.bytes().checked_add(bytes).is_some_and(|all| all <= limit.min(self.capacity))
            && self.order.len() + self.coming < self.most;
        if is_free {
            self.reserved += bytes;
            self.coming += 1;
        }
        is_free
    }

    /// Releases a reservation of `bytes`.
    pub(super) fn release(&mut self, bytes: u64) {
        self.reserved -= bytes;
        self.coming -= 1;
    }

    /// Turns a reservation of `reserved` bytes into an entry of `bytes`.
    pub(super) fn commit(&mut self, key: K, value: V, reserved: u64, bytes: u64) {
        if self.order.len() == self.room {
            self.room *= 2;
            self.order.resize(self.room);
        }
        self.reserved -= reserved;
        self.coming -= 1;
        self.held += bytes;
        if let caches::PutResult::Update((_, replaced)) = self.order.put(key, (value, bytes)) {
            self.held -= replaced;
        }
    }

    /// Adds an entry. Returns the entries evicted for it, which may include the entry itself.
    pub(super) fn insert(&mut self, key: K, value: V, bytes: u64) -> Vec<(K, V, u64)> {
        match self.reserve(bytes) {
            Some(evicted) => {
                self.commit(key, value, bytes, bytes);
                evicted
            }
            None => vec![(key, value, bytes)],
        }
    }

    /// Sets the bytes of an entry to more than they are, and makes it the most recently used. Returns the entries evicted for
    /// it, or `None` if there is no such entry or no eviction makes enough room.
    pub(super) fn grow(&mut self, key: &K, bytes: u64) -> Option<Vec<(K, V, u64)>> {
        if self.reserved.checked_add(bytes)? > self.capacity {
            return None;
        }
        let (_, held) = self.order.get_mut(key)?;
        self.held += bytes.saturating_sub(*held);
        *held = bytes.max(*held);
        let mut evicted = Vec::new();
        // The entry itself fits, and would be the last one to be evicted.
        while self.held.saturating_add(self.reserved) > self.capacity && self.order.len() > 1 {
            let Some(oldest) = self.evict() else { break };
            evicted.push(oldest);
        }
        Some(evicted)
    }

    /// Sets the bytes of an entry to fewer than they are, without a change of the order.
    pub(super) fn shrink(&mut self, key: &K, bytes: u64) {
        if let Some((_, held)) = self.order.peek_mut(key) {
            let less = held.saturating_sub(bytes);
            *held -= less;
            self.held -= less;
        }
    }

    /// Takes out an entry, and its bytes.
    pub(super) fn remove(&mut self, key: &K) -> Option<(V, u64)> {
        let (value, bytes) = self.order.remove(key)?;
        self.held -= bytes;
        Some((value, bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A simple reference implementation: most recently used last.
    #[derive(Default)]
    struct Reference(Vec<(u8, u64)>);

    impl Reference {
        fn insert(&mut self, key: u8, bytes: u64, capacity: u64) -> Vec<u8> {
            if bytes > capacity {
                return vec![key];
            }
            let mut evicted = Vec::new();
            while self.0.iter().map(|(_, bytes)| bytes).sum::<u64>() + bytes > capacity || self.0.len() == 8 {
                evicted.push(self.0.remove(0).0);
            }
            self.0.retain(|(held, _)| *held != key);
            self.0.push((key, bytes));
            evicted
        }

        fn grow(&mut self, key: u8, bytes: u64, capacity: u64) -> Option<Vec<u8>> {
            let place = self.0.iter().position(|(held, _)| *held == key)?;
            if bytes > capacity {
                return None;
            }
            let (_, held) = self.0.remove(place);
            Some(self.insert(key, bytes.max(held), capacity))
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8, u64),
        Touch(u8),
        Remove(u8),
        Grow(u8, u64),
        Shrink(u8, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..12u8, 0..40u64).prop_map(|(key, bytes)| Step::Insert(key, bytes)),
            (0..12u8).prop_map(Step::Touch),
            (0..12u8).prop_map(Step::Remove),
            (0..12u8, 0..120u64).prop_map(|(key, bytes)| Step::Grow(key, bytes)),
            (0..12u8, 0..40u64).prop_map(|(key, bytes)| Step::Shrink(key, bytes)),
        ]
    }

    proptest! {
        #[test]
        fn behaves_as_the_reference(steps in prop::collection::vec(step(), 0..200)) {
            let mut lru: ByteLru<_, _> = ByteLru::new(100, 8, 0);
            let mut reference = Reference::default();
            for step in steps {
                match step {
                    Step::Insert(key, bytes) => {
                        let evicted: Vec<u8> = lru.insert(key, (), bytes).into_iter().map(|(key, (), _)| key).collect();
                        prop_assert_eq!(evicted, reference.insert(key, bytes, 100));
                    }
                    Step::Touch(key) => {
                        let held = reference.0.iter().position(|(held, _)| *held == key);
                        prop_assert_eq!(lru.touch(&key).is_some(), held.is_some());
                        if let Some(index) = held {
                            let entry = reference.0.remove(index);
                            reference.0.push(entry);
                        }
                    }
                    Step::Remove(key) => {
                        lru.remove(&key);
                        reference.0.retain(|(held, _)| *held != key);
                    }
                    Step::Grow(key, bytes) => {
                        let evicted = lru.grow(&key, bytes);
                        let evicted: Option<Vec<u8>> =
                            evicted.map(|evicted| evicted.into_iter().map(|(key, (), _)| key).collect());
                        prop_assert_eq!(evicted, reference.grow(key, bytes, 100));
                    }
                    Step::Shrink(key, bytes) => {
                        lru.shrink(&key, bytes);
                        if let Some((_, held)) = reference.0.iter_mut().find(|(held, _)| *held == key) {
                            *held = bytes.min(*held);
                        }
                    }
                }
                prop_assert_eq!(lru.bytes(), reference.0.iter().map(|(_, bytes)| bytes).sum::<u64>());
                prop_assert_eq!(lru.len(), reference.0.len());
                prop_assert!(lru.bytes() <= lru.capacity());
            }
        }
    }

    #[test]
    fn reservations_count_and_cannot_be_evicted() {
        let mut lru: ByteLru<_, _> = ByteLru::new(100, 8, 0);
        assert!(lru.insert('a', (), 40).is_empty());
        assert!(lru.reserve(60).is_some());
        assert_eq!(lru.reserve(50), None, "only a's 40 bytes could go");
        assert_eq!(lru.reserve(40).map(|evicted| evicted.len()), Some(1));
        assert_eq!(lru.bytes(), 100);
        lru.release(60);
        lru.commit('b', (), 40, 44);
        assert_eq!((lru.bytes(), lru.len()), (44, 1), "counts its actual size");
    }

    #[test]
    fn entries_are_bounded_with_those_to_come() {
        let mut lru: ByteLru<_, _> = ByteLru::new(100, 2, 0);
        assert!(lru.insert('a', (), 0).is_empty() && lru.insert('b', (), 0).is_empty());
        assert_eq!(lru.reserve(0), Some(vec![('a', (), 0)]));
        assert_eq!(lru.reserve(0), Some(vec![('b', (), 0)]));
        assert_eq!(lru.reserve(0), None, "all entries are reserved");
        lru.release(0);
        assert!(lru.reserve(0).is_some());
    }

    #[test]
    fn grows_past_its_initial_capacity() {
        let mut lru: ByteLru<_, _> = ByteLru::new(u64::MAX, usize::MAX, 0);
        for key in 0..5000 {
            assert!(lru.insert(key, (), 1).is_empty());
        }
        assert_eq!(lru.len(), 5000);
    }
}
