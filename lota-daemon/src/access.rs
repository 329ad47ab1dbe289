//! Which pods may talk to LOTA: what each source says, and what follows from all of it together.

pub mod pods;
pub mod rules;

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use lota_common::Source;
use serde::{Deserialize, Deserializer, Serialize, de};

use self::pods::Pods;
use crate::{
    config::{self, Pod},
    datapath::Interfaces,
};

/// Whom an entry is about: one address, or all of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// One address.
    Address(IpAddr),
    /// Every address of a prefix that has no entry of its own.
    Prefix(IpNet),
}

/// What is said about a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Access, or none?
    pub allow: bool,
    /// The index of the only interface it may send from; 0 is any.
    pub ifindex: u32,
    /// Who says so.
    pub source: Source,
}

/// What the kernel's maps hold, exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Entries of single addresses.
    pub addresses: BTreeMap<IpAddr, Entry>,
    /// Rules for prefixes; the longest that an address is in decides.
    pub prefixes: BTreeMap<IpNet, Entry>,
    /// Have addresses that nothing is said about access?
    pub default_allow: bool,
}

/// What every source says.
#[derive(Clone, Debug)]
pub struct Access {
    config: config::Access,
    /// This node's virtual addresses, which host-networked clients send from.
    vips: Vec<IpAddr>,
    /// By `lota access`.
    command: BTreeMap<Subject, Entry>,
    /// Pods that Kubernetes told of.
    pub kubernetes: Pods,
}

impl Access {
    /// What the configuration says.
    #[must_use]
    pub fn new(config: config::Access, vips: Vec<IpAddr>) -> Self {
        Self { config, vips, command: BTreeMap::new(), kubernetes: Pods::default() }
    }

    /// What the configuration says.
    #[must_use]
    pub fn config(&self) -> &config::Access {
        &self.config
    }

    /// What the configuration says from now on.
    pub fn set_config(&mut self, config: config::Access) {
        self.config = config;
    }

    /// Takes over what an earlier daemon's operators had said, and whom Kubernetes had allowed. `interfaces` are those
    /// that there are, so many seconds past the epoch.
    pub fn adopt(&mut self, table: &Table, interfaces: &Interfaces, at: i64) {
        let of_kubernetes =
            table.addresses.iter().filter(|(_, entry)| entry.source == Source::Kubernetes && entry.allow);
        let let_in = of_kubernetes.map(|(address, entry)| (*address, entry.ifindex));
        self.kubernetes.find(let_in, interfaces, at);
        let addresses = table.addresses.iter().map(|(address, entry)| (Subject::Address(*address), *entry));
        let prefixes = table.prefixes.iter().map(|(prefix, entry)| (Subject::Prefix(*prefix), *entry));
        self.command.extend(addresses.chain(prefixes).filter(|(_, entry)| entry.source == Source::Command));
    }

    /// An operator allows a subject. An address is bound to the interface of this index, and loses its entry with
    /// it; 0 is any.
    pub fn allow(&mut self, subject: Subject, ifindex: u32) {
        self.command.insert(subject, Entry { allow: true, ifindex, source: Source::Command });
    }

    /// An operator denies a subject, whatever other sources say.
    pub fn deny(&mut self, subject: Subject) {
        self.command.insert(subject, Entry { allow: false, ifindex: 0, source: Source::Command });
    }

    /// An operator takes back what was said about a subject; false if nothing was.
    pub fn forget(&mut self, subject: Subject) -> bool {
        self.command.remove(&subject).is_some()
    }

    /// What follows from all of it, for the interfaces there are. An entry whose interface does not exist is
    /// none: it comes and goes with it. What an operator said about an address at an interface that is gone is
    /// forgotten for good, since the next to have the address may be someone else.
    pub fn table(&mut self, interfaces: &Interfaces) -> Table {
        self.command.retain(|_, entry| entry.ifindex == 0 || interfaces.0.contains_key(&entry.ifindex));
        let mut table =
            Table { default_allow: self.config.default == config::DefaultAccess::Allow, ..Table::default() };
        // A later source overrides those before it.
        let bound = |address, ifindex, source| (address, Entry { allow: true, ifindex, source });
        let of_kubernetes = self.kubernetes.entries(interfaces).into_iter();
        table.addresses.extend(of_kubernetes.map(|(pod, index)| bound(pod, index, Source::Kubernetes)));
        let configured = self.config.pods.iter().filter_map(|Pod { address, interface }| {
            Some(bound(*address, interfaces.seen_as(interface)?, Source::Config))
        });
        table.addresses.extend(configured);
        // Not as addresses, even where a prefix is a single one: a pod that a selector allows has its access, whatever a
        // block leaves out.
        let block = |allow| Entry { allow, ifindex: 0, source: Source::Config };
        let blocks = rules::prefixes(&self.config.from).into_iter();
        table.prefixes.extend(blocks.map(|(prefix, allow)| (prefix, block(allow))));
        if self.config.host_network {
            let entry = Entry { allow: true, ifindex: LOOPBACK, source: Source::Config };
            table.addresses.extend(self.vips.iter().map(|vip| (*vip, entry)));
        }
        for (subjects, allow) in [(&self.config.allow, true), (&self.config.deny, false)] {
            let entry = Entry { allow, ifindex: 0, source: Source::Config };
            subjects.iter().for_each(|subject| table.insert(*subject, entry));
        }
        self.command.iter().for_each(|(subject, entry)| table.insert(*subject, *entry));
        table
    }
}

/// `lo`, everywhere.
const LOOPBACK: u32 = 1;

impl Table {
    fn insert(&mut self, subject: Subject, entry: Entry) {
        match subject {
            Subject::Address(address) => {
                self.addresses.insert(address, entry);
            }
            Subject::Prefix(prefix) => {
                self.prefixes.insert(prefix, entry);
            }
        }
    }

    /// The interface that an address may send from (0 is any); `None`: it has no access.
    #[must_use]
    pub fn binding(&self, address: IpAddr) -> Option<u32> {
        match self.addresses.get(&address).or_else(|| self.rule(address)) {
            Some(entry) => entry.allow.then_some(entry.ifindex),
            None => self.default_allow.then_some(0),
        }
    }

    /// May a connection stay open that this address opened when it was bound to `then`?
    #[must_use]
    pub fn keeps(&self, address: IpAddr, then: u32) -> bool {
        // At another interface now, it is another pod.
        self.binding(address).is_some_and(|now| now == then || now == 0 || then == 0)
    }

    fn rule(&self, address: IpAddr) -> Option<&Entry> {
        let covering = self.prefixes.iter().filter(|(prefix, _)| prefix.contains(&address));
        covering.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, entry)| entry)
    }
}

impl FromStr for Subject {
    type Err = String;

    /// An address, or a prefix in CIDR form. One that holds a single address is that address.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let prefix: IpNet = text.parse().map_err(|_| {
            format!("`{text}` is neither an address such as `10.1.0.2` nor a prefix such as `10.1.0.0/16`")
        })?;
        if prefix.trunc() != prefix {
            return Err(format!("`{text}` has bits beyond its prefix: `{}` is meant?", prefix.trunc()));
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

#[cfg(test)]
#[path = "access/tests.rs"]
mod tests;
