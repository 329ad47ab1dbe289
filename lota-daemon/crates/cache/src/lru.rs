//! LRU order bounded by bytes and entries, with pins: entries of a pin are evicted last, up to a limit for each pin.

mod order;

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
};

use self::order::Order;

/// Initial capacity of the order, in entries; it doubles as needed.
const FIRST_ENTRIES: usize = 1024;
/// Initial capacity of the order of a pin, in entries.
const FIRST_PINNED: usize = 16;

/// Number of a pin in a [`ByteLru`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PinId(pub(super) u16);

/// Keys in LRU order, each with a size in bytes; the sum of the sizes is bounded.
///
/// Entries that belong to a pin are in an order of their own. If that has more bytes than the pin's limit, its oldest entries
/// become ordinary ones, as the most recently used; they return when they are used. Ordinary entries are evicted first.
#[derive(Debug)]
pub(super) struct ByteLru<K: Hash + Eq, V, S: BuildHasher = RandomState> {
    ordinary: Order<K, V, S>,
    pins: Vec<PinOrder<K, V, S>>,
    /// Entries that belong to a pin.
    members: HashMap<K, Member, S>,
    /// Number of entries.
    entries: usize,
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

#[derive(Debug)]
struct PinOrder<K: Hash + Eq, V, S: BuildHasher> {
    order: Order<K, V, S>,
    /// Maximum number of bytes in the order.
    limit: u64,
    /// Number of entries that belong to the pin, in its order or the ordinary one.
    members: usize,
}

/// Pin that an entry belongs to.
#[derive(Clone, Copy, Debug)]
struct Member {
    pin: PinId,
    /// Whether it is in the pin's order; otherwise, it is in the ordinary one.
    inside: bool,
}

impl<K: Hash + Eq + Copy, V, S: BuildHasher + Default> ByteLru<K, V, S> {
    /// Creates an empty LRU for up to `capacity` bytes in up to `most` entries. `entries` is its expected initial size.
    pub(super) fn new(capacity: u64, most: usize, entries: usize) -> Self {
        Self {
            ordinary: Order::new(entries.max(FIRST_ENTRIES)),
            pins: Vec::new(),
            members: HashMap::default(),
            entries: 0,
            held: 0,
            reserved: 0,
            capacity,
            coming: 0,
            most,
        }
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
        self.entries
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.order(key).contains(key)
    }

    /// Returns an entry and makes it the most recently used.
    pub(super) fn touch(&mut self, key: &K) -> Option<(&V, u64)> {
        self.enter(key, false);
        self.order_mut(key).touch(key)
    }

    /// Returns an entry without a change of the order.
    pub(super) fn peek(&self, key: &K) -> Option<(&V, u64)> {
        self.order(key).peek(key)
    }

    /// Returns the value of the entry that is evicted next.
    pub(super) fn oldest(&self) -> Option<&V> {
        let pinned = || self.pins.iter().map(|pin| &pin.order).max_by_key(|order| order.bytes())?.oldest();
        self.ordinary.oldest().or_else(pinned).map(|(_, value)| value)
    }

    /// Returns every key: ordinary ones before those of pins, each least recently used first.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.ordinary.keys().chain(self.pins.iter().flat_map(|pin| pin.order.keys()))
    }

    /// Returns the number of ordinary entries.
    pub(super) fn ordinary_len(&self) -> usize {
        self.ordinary.len()
    }

    /// Removes and returns the least recently used ordinary entry, with its bytes; if there is none, that of the pin with the
    /// most bytes.
    pub(super) fn evict(&mut self) -> Option<(K, V, u64)> {
        self.evict_other_than(None)
    }

    /// Evicts an entry, but not `kept`, which must be the most recently used of its order.
    fn evict_other_than(&mut self, kept: Option<K>) -> Option<(K, V, u64)> {
        let evictable = |order: &Order<K, V, S>| order.oldest().is_some_and(|(key, _)| Some(*key) != kept);
        let order = match evictable(&self.ordinary) {
            true => &mut self.ordinary,
            false => {
                let pinned = self.pins.iter_mut().map(|pin| &mut pin.order).filter(|order| evictable(order));
                pinned.max_by_key(|order| order.bytes())?
            }
        };
        let (key, value, bytes) = order.pop()?;
        self.forget(&key, bytes);
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
        while self.held.saturating_add(self.reserved) > self.capacity || self.len() + self.coming > self.most
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
            && self.len() + self.coming < self.most;
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

    /// Turns a reservation of `reserved` bytes into an entry of `bytes`, which may belong to a pin.
    pub(super) fn commit(&mut self, key: K, value: V, reserved: u64, bytes: u64, pin: Option<PinId>) {
        self.reserved -= reserved;
        self.coming -= 1;
        self.remove(&key);
        self.add(key, value, bytes, pin);
    }

    /// Adds an ordinary entry. Returns the entries evicted for it, which may include the entry itself.
    pub(super) fn insert(&mut self, key: K, value: V, bytes: u64) -> Vec<(K, V, u64)> {
        match self.reserve(bytes) {
            Some(evicted) => {
                self.commit(key, value, bytes, bytes, None);
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
        let (_, held) = self.touch(key)?;
        let bytes = bytes.max(held);
        self.order_mut(key).set_bytes(key, bytes);
        self.held += bytes - held;
        if let Some(Member { pin, inside: true }) = self.members.get(key).copied() {
            // An entry that is larger than the pin must not displace all others.
            if bytes > self.pins[usize::from(pin.0)].limit {
                self.leave(key, pin);
            }
            self.settle(pin, usize::MAX);
        }
        let mut evicted = Vec::new();
        // The entry itself fits.
        while self.held.saturating_add(self.reserved) > self.capacity {
            let Some(oldest) = self.evict_other_than(Some(*key)) else { break };
            evicted.push(oldest);
        }
        Some(evicted)
    }

    /// Sets the bytes of an entry to fewer than they are, without a change of the order.
    pub(super) fn shrink(&mut self, key: &K, bytes: u64) {
        if let Some((_, held)) = self.peek(key) {
            let bytes = bytes.min(held);
            self.order_mut(key).set_bytes(key, bytes);
            self.held -= held - bytes;
        }
    }

    /// Takes out an entry, and its bytes.
    pub(super) fn remove(&mut self, key: &K) -> Option<(V, u64)> {
        let (value, bytes) = self.order_mut(key).take(key)?;
        self.forget(key, bytes);
        Some((value, bytes))
    }

    /// Adds a pin without entries, whose limit is zero. Returns `None` if there are too many.
    pub(super) fn add_pin(&mut self) -> Option<PinId> {
        let id = u16::try_from(self.pins.len()).ok().map(PinId)?;
        self.pins.push(PinOrder { order: Order::new(FIRST_PINNED), limit: 0, members: 0 });
        Some(id)
    }

    /// Returns the pin that an entry belongs to.
    pub(super) fn pin(&self, key: &K) -> Option<PinId> {
        self.members.get(key).map(|member| member.pin)
    }

    /// Returns whether an entry is evicted after all ordinary ones.
    pub(super) fn is_pinned(&self, key: &K) -> bool {
        self.members.get(key).is_some_and(|member| member.inside)
    }

    /// Returns whether no entry belongs to a pin.
    pub(super) fn is_unused(&self, PinId(pin): PinId) -> bool {
        self.pins[usize::from(pin)].members == 0
    }

    /// Returns the bytes in the order of a pin.
    pub(super) fn pinned_bytes(&self, PinId(pin): PinId) -> u64 {
        self.pins[usize::from(pin)].order.bytes()
    }

    /// Returns whether the limit of a pin leaves room for more bytes in its order.
    pub(super) fn has_room(&self, PinId(pin): PinId, bytes: u64) -> bool {
        let PinOrder { order, limit, .. } = &self.pins[usize::from(pin)];
        order.bytes().saturating_add(bytes) <= *limit
    }

    /// Returns the bytes in the orders of all pins.
    pub(super) fn all_pinned_bytes(&self) -> u64 {
        self.pins.iter().map(|pin| pin.order.bytes()).sum()
    }

    /// Sets the pin that an entry belongs to. If that is another one than before, the entry becomes the most recently used.
    pub(super) fn assign(&mut self, key: &K, pin: Option<PinId>) {
        if self.pin(key) != pin
            && let Some((value, bytes)) = self.remove(key)
        {
            self.add(*key, value, bytes, pin);
        }
    }

    /// Moves an entry from the ordinary order to that of its pin, if no other one has to leave it.
    pub(super) fn enter_if_room(&mut self, key: &K) {
        self.enter(key, true);
    }

    /// Sets the limit of a pin. If that is lower, at most `most` entries become ordinary ones at once; returns whether the limit
    /// is reached.
    pub(super) fn set_limit(&mut self, id: PinId, limit: u64, most: usize) -> bool {
        self.pins[usize::from(id.0)].limit = limit;
        self.settle(id, most);
        let pin = &mut self.pins[usize::from(id.0)];
        pin.limit = limit.max(pin.order.bytes());
        pin.limit == limit
    }

    fn order(&self, key: &K) -> &Order<K, V, S> {
        match self.members.get(key) {
            Some(Member { pin, inside: true }) => &self.pins[usize::from(pin.0)].order,
            _ => &self.ordinary,
        }
    }

    fn order_mut(&mut self, key: &K) -> &mut Order<K, V, S> {
        match self.members.get(key) {
            Some(Member { pin, inside: true }) => &mut self.pins[usize::from(pin.0)].order,
            _ => &mut self.ordinary,
        }
    }

    /// Adds an entry that is not there.
    fn add(&mut self, key: K, value: V, bytes: u64, pin: Option<PinId>) {
        self.held += bytes;
        self.entries += 1;
        self.ordinary.push(key, value, bytes);
        if let Some(pin) = pin {
            self.members.insert(key, Member { pin, inside: false });
            self.pins[usize::from(pin.0)].members += 1;
            self.enter(&key, false);
        }
    }

    /// Removes what is known of an entry that was taken out of its order.
    fn forget(&mut self, key: &K, bytes: u64) {
        self.held -= bytes;
        self.entries -= 1;
        if let Some(member) = self.members.remove(key) {
            self.pins[usize::from(member.pin.0)].members -= 1;
        }
    }

    /// Moves an entry from the ordinary order to that of its pin, if it has one and is not larger than it.
    fn enter(&mut self, key: &K, only_if_room: bool) {
        let Some(member) = self.members.get_mut(key).filter(|member| !member.inside) else { return };
        let pin = &mut self.pins[usize::from(member.pin.0)];
        let taken = if only_if_room { pin.order.bytes() } else { 0 };
        let fits = |(_, bytes): &(&V, u64)| taken.saturating_add(*bytes) <= pin.limit;
        if self.ordinary.peek(key).filter(fits).is_none() {
            return;
        }
        if let Some((value, bytes)) = self.ordinary.take(key) {
            member.inside = true;
            pin.order.push(*key, value, bytes);
            let id = member.pin;
            self.settle(id, usize::MAX);
        }
    }

    /// Moves an entry from the order of its pin to the ordinary one.
    fn leave(&mut self, key: &K, PinId(pin): PinId) {
        if let Some((value, bytes)) = self.pins[usize::from(pin)].order.take(key) {
            self.become_ordinary(*key, value, bytes);
        }
    }

    /// Makes the oldest entries of a pin ordinary ones while it is over its limit, at most `most`.
    fn settle(&mut self, PinId(pin): PinId, most: usize) {
        for _ in 0..most {
            let pin = &mut self.pins[usize::from(pin)];
            if pin.order.bytes() <= pin.limit {
                return;
            }
            let Some((key, value, bytes)) = pin.order.pop() else { return };
            self.become_ordinary(key, value, bytes);
        }
    }

    fn become_ordinary(&mut self, key: K, value: V, bytes: u64) {
        if let Some(member) = self.members.get_mut(&key) {
            member.inside = false;
        }
        self.ordinary.push(key, value, bytes);
    }
}

#[cfg(test)]
#[path = "lru_tests.rs"]
mod tests;
