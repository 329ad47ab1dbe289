//! Connection slots for unauthenticated clients: a full port closes idle connections to admit new ones.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// The connection slots of one port.
///
/// If all slots of an address are in use, its oldest idle connection is closed for a new one. If all slots of the port
/// are in use, the oldest one of the address with the most idle connections is closed. Idle connections therefore delay
/// no other client, and an address with many connections does not displace one with few.
#[derive(Clone, Debug)]
pub struct Slots(Arc<SlotsState>);

#[derive(Debug)]
struct SlotsState {
    max: usize,
    max_per_address: usize,
    table: Mutex<SlotTable>,
}

#[derive(Debug, Default)]
struct SlotTable {
    next: u64,
    by_number: BTreeMap<u64, Arc<SlotState>>,
    by_source: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct SlotState {
    source: IpAddr,
    /// Requests that are being answered.
    requests: AtomicUsize,
    close: Notify,
}

/// Slot of one connection, released on drop.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    number: u64,
    state: Arc<SlotState>,
}

/// Keeps a connection from being closed as idle until it is dropped.
#[derive(Debug)]
pub struct BusySlot(Arc<SlotState>);

impl Slots {
    /// Returns `max` slots, of which each address gets at most `max_per_address`.
    #[must_use]
    pub fn new(max: usize, max_per_address: usize) -> Self {
        Self(Arc::new(SlotsState { max, max_per_address, table: Mutex::default() }))
    }

    /// Takes a slot for a connection from `source`. Returns `None` if there is none and no idle connection to close.
    #[must_use]
    pub fn take(&self, source: IpAddr) -> Option<Slot> {
        let mut table = self.table();
        if table.by_source.get(&source).is_some_and(|count| *count >= self.0.max_per_address) {
            let victim = table.oldest_idle_of(source)?;
            table.close(victim);
        } else if table.by_number.len() >= self.0.max {
            let victim = table.oldest_idle_of(table.most_idle_source()?)?;
            table.close(victim);
        }
        let state = Arc::new(SlotState { source, requests: AtomicUsize::new(0), close: Notify::new() });
        let number = table.next;
        table.next += 1;
        table.by_number.insert(number, state.clone());
        *table.by_source.entry(source).or_default() += 1;
        Some(Slot { slots: self.clone(), number, state })
    }

    fn table(&self) -> MutexGuard<'_, SlotTable> {
        self.0.table.lock()
    }
}

impl SlotTable {
    fn idle(&self) -> impl Iterator<Item = (u64, IpAddr)> {
        let is_idle = |state: &&Arc<SlotState>| state.requests.load(Ordering::Relaxed) == 0;
        self.by_number
            .iter()
            .filter(move |(_, state)| is_idle(state))
            .map(|(number, state)| (*number, state.source))
    }

    fn oldest_idle_of(&self, source: IpAddr) -> Option<u64> {
        self.idle().find(|(_, other)| *other == source).map(|(number, _)| number)
    }

    fn most_idle_source(&self) -> Option<IpAddr> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for (_, source) in self.idle() {
            *counts.entry(source).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(source, count)| (*count, *source)).map(|(source, _)| source)
    }

    fn close(&mut self, number: u64) {
        if let Some(state) = self.remove(number) {
            state.close.notify_one();
        }
    }

    fn remove(&mut self, number: u64) -> Option<Arc<SlotState>> {
        let state = self.by_number.remove(&number)?;
        if let Some(count) = self.by_source.get_mut(&state.source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&state.source);
            }
        }
        Some(state)
    }
}

impl Slot {
    /// Returns a future that waits until the connection has to make room for another one.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let state = self.state.clone();
        async move { state.close.notified().await }
    }

    /// Returns a handle that marks the connection as busy with a request.
    #[must_use]
    pub fn marker(&self) -> SlotMarker {
        SlotMarker(self.state.clone())
    }
}

/// Marks a connection as busy while its requests are answered.
#[derive(Clone, Debug)]
pub struct SlotMarker(Arc<SlotState>);

impl SlotMarker {
    /// Marks the connection as busy for as long as the returned value lives.
    #[must_use]
    pub fn busy(&self) -> BusySlot {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        BusySlot(self.0.clone())
    }
}

impl Drop for BusySlot {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.table().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn is_closed(slot: &Slot) -> bool {
        slot.closed().now_or_never().is_some()
    }

    #[test]
    fn the_oldest_idle_connection_of_the_address_with_most_makes_room() {
        let (slots, many, few) = (Slots::new(4, 3), [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let quiet = slots.take(few).unwrap();
        let of_many: Vec<Slot> = (0..3).map(|_| slots.take(many).unwrap()).collect();
        let busy = of_many[0].marker().busy();
        let fourth = slots.take(many).unwrap();
        assert!(!is_closed(&of_many[0]), "busy");
        assert!(is_closed(&of_many[1]), "the oldest idle one of an address with all of its slots");
        let third_address = slots.take([10, 0, 0, 3].into()).unwrap();
        assert!(is_closed(&of_many[2]) && !is_closed(&quiet), "of the address with most");
        drop((of_many, busy, fourth, third_address, quiet));
        assert!(slots.table().by_number.is_empty() && slots.table().by_source.is_empty());
    }

    #[test]
    fn busy_connections_are_not_closed() {
        let (slots, source) = (Slots::new(1, 1), [10, 0, 0, 1].into());
        let slot = slots.take(source).unwrap();
        let busy = slot.marker().busy();
        assert!(slots.take(source).is_none() && slots.take([10, 0, 0, 2].into()).is_none());
        drop(busy);
        let _next = slots.take(source).unwrap();
        assert!(is_closed(&slot));
    }
}
