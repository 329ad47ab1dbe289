//! Contents of the kernel's maps, and changes of them.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::IpAddr,
};

use anyhow::Result;
use aya::{
    Pod,
    maps::{self, LpmTrie, MapData, lpm_trie::Key},
};
use lota_common::{Address4, Address6};

/// A map whose entries can be listed and changed.
pub(super) trait Entries {
    type Key;
    type Value;

    fn held(&self) -> Result<HashMap<Self::Key, Self::Value>>;
    fn write(&mut self, key: &Self::Key, value: &Self::Value) -> Result<()>;
    fn remove(&mut self, key: &Self::Key) -> Result<()>;
}

impl<K: Pod + Eq + Hash, V: Pod> Entries for maps::HashMap<MapData, K, V> {
    type Key = K;
    type Value = V;

    fn held(&self) -> Result<HashMap<K, V>> {
        Ok(self.iter().collect::<Result<_, _>>()?)
    }

    fn write(&mut self, key: &K, value: &V) -> Result<()> {
        Ok(self.insert(key, value, 0)?)
    }

    fn remove(&mut self, key: &K) -> Result<()> {
        Ok(Self::remove(self, key)?)
    }
}

/// A prefix: its length, and its data. aya's `Key` implements neither `Eq` nor `Hash`.
impl<K: Pod + Eq + Hash, V: Pod> Entries for LpmTrie<MapData, K, V> {
    type Key = (u32, K);
    type Value = V;

    fn held(&self) -> Result<HashMap<(u32, K), V>> {
        let entries =
            self.iter().map(|entry| entry.map(|(key, value)| ((key.prefix_len(), key.data()), value)));
        Ok(entries.collect::<Result<_, _>>()?)
    }

    fn write(&mut self, (length, data): &(u32, K), value: &V) -> Result<()> {
        Ok(self.insert(&Key::new(*length, *data), value, 0)?)
    }

    fn remove(&mut self, (length, data): &(u32, K)) -> Result<()> {
        Ok(Self::remove(self, &Key::new(*length, *data))?)
    }
}

/// Difference between the entries of a map and the desired ones.
pub(super) struct Changes<K, V> {
    /// Entries to remove, as they are.
    removed: Vec<(K, V)>,
    /// Missing entries, and new values of others.
    written: Vec<(K, V)>,
}

impl<K: Copy + Eq + Hash, V: Copy + PartialEq> Changes<K, V> {
    /// Returns the changes that make a map equal to `desired`.
    pub(super) fn of(map: &impl Entries<Key = K, Value = V>, desired: &[(K, V)]) -> Result<Self> {
        let mut held = map.held()?;
        let is_changed = |(key, value): &&(K, V)| held.remove(key).as_ref() != Some(value);
        let written = desired.iter().filter(is_changed).copied().collect();
        Ok(Self { removed: held.into_iter().collect(), written })
    }

    /// Makes the changes that these functions select by value: removals first. Goes on after a failure, so that what a full
    /// map does not take cannot prevent others, and returns the first error.
    pub(super) fn make(
        &self,
        map: &mut impl Entries<Key = K, Value = V>,
        removes: impl Fn(&V) -> bool,
        writes: impl Fn(&V) -> bool,
    ) -> Result<()> {
        let mut made = Ok(());
        for (key, _) in self.removed.iter().filter(|(_, value)| removes(value)) {
            made = made.and(map.remove(key));
        }
        for (key, value) in self.written.iter().filter(|(_, value)| writes(value)) {
            made = made.and(map.write(key, value));
        }
        made
    }
}

/// Makes a map equal to `desired`.
pub(super) fn replace<M: Entries>(map: &mut M, desired: &[(M::Key, M::Value)]) -> Result<()>
where
    M::Key: Copy + Eq + Hash,
    M::Value: Copy + PartialEq,
{
    Changes::of(map, desired)?.make(map, |_| true, |_| true)
}

/// Entries of a pair of maps: one for IPv4, one for IPv6.
pub(super) type ByFamily<V> = (Vec<(Address4, V)>, Vec<(Address6, V)>);

/// Returns the entries of the maps for IPv4 and IPv6.
pub(super) fn by_family<T, V>(entries: &BTreeMap<IpAddr, T>, value: impl Fn(&T) -> V) -> ByFamily<V> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (address, entry) in entries {
        match address {
            IpAddr::V4(address) => v4.push((Address4 { address: address.octets() }, value(entry))),
            IpAddr::V6(address) => v6.push((Address6 { address: address.octets() }, value(entry))),
        }
    }
    (v4, v6)
}
