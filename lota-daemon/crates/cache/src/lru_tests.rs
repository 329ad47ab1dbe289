use proptest::prelude::*;

use super::*;

const CAPACITY: u64 = 100;
const ENTRIES: usize = 8;
const PINS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    key: u8,
    bytes: u64,
    pin: Option<usize>,
}

/// A simple reference implementation: the ordinary order and one for each pin, most recently used last.
struct Reference {
    orders: [Vec<Entry>; 1 + PINS],
    limits: [u64; PINS],
}

fn sum(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| entry.bytes).sum()
}

impl Reference {
    fn find(&self, key: u8) -> Option<(usize, usize)> {
        let places = self.orders.iter().enumerate();
        places
            .into_iter()
            .find_map(|(order, entries)| Some((order, entries.iter().position(|entry| entry.key == key)?)))
    }

    fn take(&mut self, key: u8) -> Option<Entry> {
        let (order, place) = self.find(key)?;
        Some(self.orders[order].remove(place))
    }

    /// Adds an entry as the most recently used one of its pin, unless it is larger than that.
    fn put(&mut self, entry: Entry) {
        match entry.pin.filter(|pin| entry.bytes <= self.limits[*pin]) {
            Some(pin) => self.orders[1 + pin].push(entry),
            None => self.orders[0].push(entry),
        }
        self.settle();
    }

    fn settle(&mut self) {
        for pin in 0..PINS {
            while sum(&self.orders[1 + pin]) > self.limits[pin] {
                let oldest = self.orders[1 + pin].remove(0);
                self.orders[0].push(oldest);
            }
        }
    }

    fn evict(&mut self, kept: Option<u8>) -> Option<u8> {
        let mut orders: Vec<&mut Vec<Entry>> = self.orders.iter_mut().collect();
        orders[1..].sort_by_key(|order| sum(order));
        orders[1..].reverse();
        // Of pins with the same bytes, the last one.
        let (first, last) = (sum(orders[1]), sum(orders[2]));
        if first == last {
            orders = self.orders.iter_mut().collect();
            orders[1..].reverse();
        }
        let order = orders.into_iter().find(|order| order.iter().any(|entry| Some(entry.key) != kept))?;
        Some(order.remove(0).key)
    }

    fn bytes(&self) -> u64 {
        self.orders.iter().map(|order| sum(order)).sum()
    }

    fn len(&self) -> usize {
        self.orders.iter().map(Vec::len).sum()
    }

    fn insert(&mut self, entry: Entry) -> Vec<u8> {
        if entry.bytes > CAPACITY {
            return vec![entry.key];
        }
        let mut evicted = Vec::new();
        while self.bytes() + entry.bytes > CAPACITY || self.len() == ENTRIES {
            evicted.extend(self.evict(None));
        }
        self.take(entry.key);
        self.put(entry);
        evicted
    }

    fn grow(&mut self, key: u8, bytes: u64) -> Option<Vec<u8>> {
        if bytes > CAPACITY {
            return None;
        }
        let entry = self.take(key)?;
        self.put(entry);
        let entry = self.take(key)?;
        self.put(Entry { bytes: bytes.max(entry.bytes), ..entry });
        let mut evicted = Vec::new();
        while self.bytes() > CAPACITY {
            evicted.extend(self.evict(Some(key)));
        }
        Some(evicted)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, u64, Option<usize>),
    Touch(u8),
    Remove(u8),
    Grow(u8, u64),
    Shrink(u8, u64),
    Assign(u8, Option<usize>),
    Enter(u8),
    Limit(usize, u64),
    Evict,
}

fn step() -> impl Strategy<Value = Step> {
    let pin = || prop_oneof![Just(None), (0..PINS).prop_map(Some)];
    prop_oneof![
        4 => (0..12u8, 0..40u64, pin()).prop_map(|(key, bytes, pin)| Step::Insert(key, bytes, pin)),
        2 => (0..12u8).prop_map(Step::Touch),
        1 => (0..12u8).prop_map(Step::Remove),
        1 => (0..12u8, 0..120u64).prop_map(|(key, bytes)| Step::Grow(key, bytes)),
        1 => (0..12u8, 0..40u64).prop_map(|(key, bytes)| Step::Shrink(key, bytes)),
        1 => (0..12u8, pin()).prop_map(|(key, pin)| Step::Assign(key, pin)),
        1 => (0..12u8).prop_map(Step::Enter),
        1 => (0..PINS, 0..100u64).prop_map(|(pin, limit)| Step::Limit(pin, limit)),
        1 => Just(Step::Evict),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn behaves_as_the_reference(steps in prop::collection::vec(step(), 0..200)) {
        let mut lru: ByteLru<_, _> = ByteLru::new(CAPACITY, ENTRIES, 0);
        let pins: Vec<PinId> = (0..PINS).filter_map(|_| lru.add_pin()).collect();
        let mut reference = Reference { orders: Default::default(), limits: [0; PINS] };
        let keys = |evicted: Vec<(u8, (), u64)>| evicted.into_iter().map(|(key, (), _)| key).collect::<Vec<_>>();
        for step in steps {
            match step {
                Step::Insert(key, bytes, pin) => {
                    let evicted = match pin {
                        None => keys(lru.insert(key, (), bytes)),
                        Some(pin) => {
                            let evicted = lru.reserve(bytes).unwrap();
                            lru.commit(key, (), bytes, bytes, Some(pins[pin]));
                            keys(evicted)
                        }
                    };
                    prop_assert_eq!(evicted, reference.insert(Entry { key, bytes, pin }));
                }
                Step::Touch(key) => {
                    prop_assert_eq!(lru.touch(&key).is_some(), reference.find(key).is_some());
                    if let Some(entry) = reference.take(key) {
                        reference.put(entry);
                    }
                }
                Step::Remove(key) => {
                    lru.remove(&key);
                    reference.take(key);
                }
                Step::Grow(key, bytes) => {
                    prop_assert_eq!(lru.grow(&key, bytes).map(keys), reference.grow(key, bytes));
                }
                Step::Shrink(key, bytes) => {
                    lru.shrink(&key, bytes);
                    if let Some((order, place)) = reference.find(key) {
                        let entry = &mut reference.orders[order][place];
                        entry.bytes = bytes.min(entry.bytes);
                    }
                }
                Step::Assign(key, pin) => {
                    lru.assign(&key, pin.map(|pin| pins[pin]));
                    let changes = |(order, place): (usize, usize)| reference.orders[order][place].pin != pin;
                    if reference.find(key).is_some_and(changes) && let Some(entry) = reference.take(key) {
                        reference.put(Entry { pin, ..entry });
                    }
                }
                Step::Enter(key) => {
                    lru.enter_if_room(&key);
                    let fits = |(order, place): (usize, usize)| {
                        let Entry { pin, bytes, .. } = reference.orders[order][place];
                        order == 0
                            && pin.is_some_and(|pin| sum(&reference.orders[1 + pin]) + bytes <= reference.limits[pin])
                    };
                    if reference.find(key).is_some_and(fits) && let Some(entry) = reference.take(key) {
                        reference.put(entry);
                    }
                }
                Step::Limit(pin, limit) => {
                    while !lru.set_limit(pins[pin], limit, 1) {}
                    reference.limits[pin] = limit;
                    reference.settle();
                }
                Step::Evict => {
                    let next = lru.keys().next().copied();
                    let ordinary = !reference.orders[0].is_empty();
                    let evicted = lru.evict().map(|(key, (), _)| key);
                    prop_assert_eq!(evicted, reference.evict(None));
                    prop_assert!(!ordinary || evicted == next, "ordinary ones first");
                }
            }
            prop_assert_eq!(lru.bytes(), reference.bytes());
            prop_assert_eq!(lru.len(), reference.len());
            prop_assert!(lru.bytes() <= lru.capacity());
            let expected: Vec<u8> = reference.orders.iter().flatten().map(|entry| entry.key).collect();
            prop_assert_eq!(lru.keys().copied().collect::<Vec<_>>(), expected);
            for (pin, id) in pins.iter().enumerate() {
                prop_assert_eq!(lru.pinned_bytes(*id), sum(&reference.orders[1 + pin]));
                prop_assert!(lru.pinned_bytes(*id) <= reference.limits[pin]);
                let members = reference.orders.iter().flatten().filter(|entry| entry.pin == Some(pin)).count();
                prop_assert_eq!(lru.is_unused(*id), members == 0);
            }
        }
    }
}

#[test]
fn an_entry_that_is_larger_than_its_pin_displaces_nothing_in_it() {
    let mut lru: ByteLru<_, _> = ByteLru::new(100, 8, 0);
    let pin = lru.add_pin().unwrap();
    assert!(lru.set_limit(pin, 20, 0));
    for (key, bytes) in [('a', 10), ('b', 10), ('c', 30)] {
        assert_eq!(lru.reserve(bytes), Some(vec![]));
        lru.commit(key, (), bytes, bytes, Some(pin));
    }
    lru.touch(&'c');
    assert!(lru.is_pinned(&'a') && lru.is_pinned(&'b') && !lru.is_pinned(&'c'));
    assert_eq!(lru.grow(&'b', 21), Some(vec![]));
    assert!(lru.is_pinned(&'a') && !lru.is_pinned(&'b'));
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
    lru.commit('b', (), 40, 44, None);
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
