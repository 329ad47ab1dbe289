//! The access table: which addresses have access, as in the kernel's maps.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use lota_common::Source;
use serde::{Deserialize, Deserializer, Serialize, de};

/// Subject of an access entry: an address or a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// One address.
    Address(IpAddr),
    /// All addresses of a prefix that have no entry of their own.
    Prefix(IpNet),
}

/// Access entry of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessEntry {
    /// Whether the subject has access.
    pub allow: bool,
    /// Index of the only interface that the address may send from; 0 means any.
    pub ifindex: u32,
    /// Index of the only port of that interface, a bridge, that the address may send from; 0 means any.
    pub port: u32,
    /// Source of the entry.
    pub source: Source,
}

/// Place that an address may send from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressPlace {
    /// Index of the interface; 0 means any.
    pub ifindex: u32,
    /// Index of the port of that interface, a bridge; 0 means any.
    pub port: u32,
}

/// Contents of the kernel's access maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessTable {
    /// Entries of single addresses.
    pub addresses: BTreeMap<IpAddr, AccessEntry>,
    /// Rules for prefixes; the longest match decides.
    pub prefixes: BTreeMap<IpNet, AccessEntry>,
    /// Whether addresses without an entry have access.
    pub default_allow: bool,
}

impl AccessTable {
    /// Adds an entry, and replaces an existing one of the subject.
    pub fn insert(&mut self, subject: Subject, entry: AccessEntry) {
        match subject {
            Subject::Address(address) => {
                self.addresses.insert(address, entry);
            }
            Subject::Prefix(prefix) => {
                self.prefixes.insert(prefix, entry);
            }
        }
    }

    /// Returns the place that an address may send from, or `None` if it has no access.
    #[must_use]
    pub fn binding(&self, address: IpAddr) -> Option<AddressPlace> {
        match self.addresses.get(&address).or_else(|| self.rule(address)) {
            Some(AccessEntry { allow, ifindex, port, .. }) => {
                allow.then_some(AddressPlace { ifindex: *ifindex, port: *port })
            }
            None => self.default_allow.then(AddressPlace::default),
        }
    }

    /// Returns whether a connection may stay open that this address opened while it was bound to `then`.
    #[must_use]
    pub fn keeps(&self, address: IpAddr, then: AddressPlace) -> bool {
        // An address at another place belongs to another pod.
        let may_be_same = |now: u32, then: u32| now == then || now == 0 || then == 0;
        self.binding(address)
            .is_some_and(|now| may_be_same(now.ifindex, then.ifindex) && may_be_same(now.port, then.port))
    }

    /// Returns the part of this table that allows nothing which the kernel's maps do not allow, too: `held` is what they
    /// contain.
    #[must_use]
    pub fn as_far_as_in(mut self, held: &Self) -> Self {
        self.addresses.retain(|address, entry| !entry.allow || held.addresses.get(address) == Some(entry));
        self.prefixes.retain(|prefix, entry| !entry.allow || held.prefixes.get(prefix) == Some(entry));
        self.default_allow &= held.default_allow;
        self
    }

    fn rule(&self, address: IpAddr) -> Option<&AccessEntry> {
        let covering = self.prefixes.iter().filter(|(prefix, _)| prefix.contains(&address));
        covering.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, entry)| entry)
    }
}

impl FromStr for Subject {
    type Err = String;

    /// Parses an address, or a prefix in CIDR form. A prefix of a single address is that address.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let prefix: IpNet = text.parse().map_err(|_| {
            format!("`{text}` is neither an address such as `10.1.0.2` nor a prefix such as `10.1.0.0/16`")
        })?;
        if prefix.trunc() != prefix {
            return Err(format!("`{text}` has bits beyond its prefix: use `{}`", prefix.trunc()));
        }
        let whole = prefix.prefix_len() == prefix.max_prefix_len();
        Ok(if whole { Self::Address(prefix.addr()) } else { Self::Prefix(prefix) })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl Serialize for Subject {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
