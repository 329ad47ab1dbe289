//! The maps with access entries. They change in two steps: the first only removes access, the second only grants it.

use std::{hash::Hash, net::IpAddr};

use anyhow::Result;
use aya::maps::{HashMap, LpmTrie, Map, MapData};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lota_common::{Address4, Address6, RawAccess, RawAddressAccess, Source, map};

use super::{
    AccessEntry, AccessTable, PodCgroup,
    entries::{Changes, Entries, by_family},
};

pub(super) struct AccessMaps {
    access4: HashMap<MapData, Address4, RawAddressAccess>,
    access6: HashMap<MapData, Address6, RawAddressAccess>,
    rules4: LpmTrie<MapData, Address4, RawAccess>,
    rules6: LpmTrie<MapData, Address6, RawAccess>,
}

/// Changes of each map.
pub(super) struct AccessChanges {
    access4: Changes<Address4, RawAddressAccess>,
    access6: Changes<Address6, RawAddressAccess>,
    rules4: Changes<(u32, Address4), RawAccess>,
    rules6: Changes<(u32, Address6), RawAccess>,
}

/// The value of an entry.
trait Allows: Copy + PartialEq {
    fn allows(&self) -> bool;
}

impl Allows for RawAccess {
    fn allows(&self) -> bool {
        self.allow == 1
    }
}

impl Allows for RawAddressAccess {
    fn allows(&self) -> bool {
        self.allow == 1
    }
}

/// Removes access in the maps of one family. Rules come first: an address without an entry falls under them.
fn narrow<
    A: Entries<Value: Allows, Key: Copy + Eq + Hash>,
    R: Entries<Value: Allows, Key: Copy + Eq + Hash>,
>(
    (access, of_access): (&mut A, &Changes<A::Key, A::Value>),
    (rules, of_rules): (&mut R, &Changes<R::Key, R::Value>),
) -> Result<()> {
    let rules = of_rules.make(rules, Allows::allows, |value| !value.allows());
    rules.and(of_access.make(access, Allows::allows, |value| !value.allows()))
}

/// Grants access in the maps of one family. Entries come first: rules are valid at any interface.
fn widen<
    A: Entries<Value: Allows, Key: Copy + Eq + Hash>,
    R: Entries<Value: Allows, Key: Copy + Eq + Hash>,
>(
    (access, of_access): (&mut A, &Changes<A::Key, A::Value>),
    (rules, of_rules): (&mut R, &Changes<R::Key, R::Value>),
) -> Result<()> {
    let access = of_access.make(access, |value| !value.allows(), Allows::allows);
    access.and(of_rules.make(rules, |value| !value.allows(), Allows::allows))
}

impl AccessMaps {
    pub(super) fn from_maps(take: &mut impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            access4: take(map::ACCESS4)?.try_into()?,
            access6: take(map::ACCESS6)?.try_into()?,
            rules4: take(map::RULES4)?.try_into()?,
            rules6: take(map::RULES6)?.try_into()?,
        })
    }

    pub(super) fn read(&self) -> Result<AccessTable> {
        let mut table = AccessTable::default();
        for (key, access) in self.access4.held()? {
            table.addresses.insert(key.address.into(), of_address(access));
        }
        for (key, access) in self.access6.held()? {
            table.addresses.insert(key.address.into(), of_address(access));
        }
        for ((length, data), access) in self.rules4.held()? {
            let prefix = Ipv4Net::new(data.address.into(), u8::try_from(length)?)?;
            table.prefixes.insert(prefix.into(), from_kernel(access));
        }
        for ((length, data), access) in self.rules6.held()? {
            let prefix = Ipv6Net::new(data.address.into(), u8::try_from(length)?)?;
            table.prefixes.insert(prefix.into(), from_kernel(access));
        }
        Ok(table)
    }

    /// Returns the changes that make the maps equal to a table. `holder` returns the cgroup of the pod that has an address;
    /// `None` if there is no such pod.
    pub(super) fn changes(
        &self,
        table: &AccessTable,
        holder: impl Fn(IpAddr) -> Option<Option<PodCgroup>>,
    ) -> Result<AccessChanges> {
        let (mut access4, mut access6) = by_family(&table.addresses, to_address);
        access4.iter_mut().for_each(|(key, access)| add_holder(access, holder(key.address.into())));
        access6.iter_mut().for_each(|(key, access)| add_holder(access, holder(key.address.into())));
        let (mut rules4, mut rules6) = (Vec::new(), Vec::new());
        for (prefix, entry) in &table.prefixes {
            let length = u32::from(prefix.prefix_len());
            match prefix {
                IpNet::V4(prefix) => {
                    rules4
                        .push(((length, Address4 { address: prefix.network().octets() }), to_kernel(entry)));
                }
                IpNet::V6(prefix) => {
                    rules6
                        .push(((length, Address6 { address: prefix.network().octets() }), to_kernel(entry)));
                }
            }
        }
        Ok(AccessChanges {
            access4: Changes::of(&self.access4, &access4)?,
            access6: Changes::of(&self.access6, &access6)?,
            rules4: Changes::of(&self.rules4, &rules4)?,
            rules6: Changes::of(&self.rules6, &rules6)?,
        })
    }

    /// Removes entries that allow, and writes those that deny.
    pub(super) fn narrow(&mut self, changes: &AccessChanges) -> Result<()> {
        let v4 = narrow((&mut self.access4, &changes.access4), (&mut self.rules4, &changes.rules4));
        v4.and(narrow((&mut self.access6, &changes.access6), (&mut self.rules6, &changes.rules6)))
    }

    /// Removes entries that deny, and writes those that allow.
    pub(super) fn widen(&mut self, changes: &AccessChanges) -> Result<()> {
        let v4 = widen((&mut self.access4, &changes.access4), (&mut self.rules4, &changes.rules4));
        v4.and(widen((&mut self.access6, &changes.access6), (&mut self.rules6, &changes.rules6)))
    }
}

fn from_kernel(RawAccess { allow, ifindex, source }: RawAccess) -> AccessEntry {
    AccessEntry { allow: allow == 1, ifindex, port: 0, source: Source::of(source).unwrap_or(Source::Config) }
}

fn to_kernel(entry: &AccessEntry) -> RawAccess {
    RawAccess { allow: u32::from(entry.allow), ifindex: entry.ifindex, source: entry.source as u32 }
}

fn of_address(RawAddressAccess { allow, ifindex, source, port, .. }: RawAddressAccess) -> AccessEntry {
    AccessEntry { port, ..from_kernel(RawAccess { allow, ifindex, source }) }
}

fn to_address(entry: &AccessEntry) -> RawAddressAccess {
    let RawAccess { allow, ifindex, source } = to_kernel(entry);
    RawAddressAccess { allow, ifindex, source, port: entry.port, ..RawAddressAccess::default() }
}

/// Adds the pod that has the address.
fn add_holder(access: &mut RawAddressAccess, holder: Option<Option<PodCgroup>>) {
    if let Some(cgroup) = holder {
        let PodCgroup { id, level } = cgroup.unwrap_or(PodCgroup::NONE);
        // Levels are limited by the length of a path.
        let level = u16::try_from(level).unwrap_or(u16::MAX);
        *access = RawAddressAccess { level, held: 1, cgroup: id, ..*access };
    }
}

#[cfg(test)]
#[path = "access_maps_tests.rs"]
mod tests;
