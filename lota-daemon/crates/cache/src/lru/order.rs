//! Entries in LRU order, with the sum of their bytes. The crate `caches` keeps the order.

use std::hash::{BuildHasher, Hash};

use caches::{Cache as _, DefaultEvictCallback, RawLRU, ResizableCache as _};

/// Entries in LRU order; it grows as needed.
#[derive(Debug)]
pub(super) struct Order<K: Hash + Eq, V, S: BuildHasher> {
    entries: RawLRU<K, (V, u64), DefaultEvictCallback, S>,
    room: usize,
    bytes: u64,
}

impl<K: Hash + Eq + Copy, V, S: BuildHasher + Default> Order<K, V, S> {
    /// Creates an empty order with room for `room` entries at first.
    pub(super) fn new(room: usize) -> Self {
        let room = room.max(1);
        let entries = RawLRU::with_hasher(room, S::default()).unwrap_or_else(|_| unreachable!("not zero"));
        Self { entries, room, bytes: 0 }
    }

    /// Returns the bytes of all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.entries.contains(key)
    }

    /// Returns an entry and makes it the most recently used.
    pub(super) fn touch(&mut self, key: &K) -> Option<(&V, u64)> {
        self.entries.get(key).map(|(value, bytes)| (value, *bytes))
    }

    /// Returns an entry without a change of the order.
    pub(super) fn peek(&self, key: &K) -> Option<(&V, u64)> {
        self.entries.peek(key).map(|(value, bytes)| (value, *bytes))
    }

    /// Returns the least recently used entry.
    pub(super) fn oldest(&self) -> Option<(&K, &V)> {
        self.entries.peek_lru().map(|(key, (value, _))| (key, value))
    }

    /// Returns every key, least recently used first.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.keys_lru()
    }

    /// Adds an entry that is not there, as the most recently used.
    pub(super) fn push(&mut self, key: K, value: V, bytes: u64) {
        if self.entries.len() == self.room {
            self.room *= 2;
            self.entries.resize(self.room);
        }
        self.bytes += bytes;
        self.entries.put(key, (value, bytes));
    }

    /// Removes and returns the least recently used entry.
    pub(super) fn pop(&mut self) -> Option<(K, V, u64)> {
        let (key, (value, bytes)) = self.entries.remove_lru()?;
        self.bytes -= bytes;
        Some((key, value, bytes))
    }

    /// Removes and returns an entry.
    pub(super) fn take(&mut self, key: &K) -> Option<(V, u64)> {
        let (value, bytes) = self.entries.remove(key)?;
        self.bytes -= bytes;
        Some((value, bytes))
    }

    /// Sets the bytes of an entry, without a change of the order.
    pub(super) fn set_bytes(&mut self, key: &K, bytes: u64) {
        if let Some((_, held)) = self.entries.peek_mut(key) {
            self.bytes = self.bytes - *held + bytes;
            *held = bytes;
        }
    }
}
