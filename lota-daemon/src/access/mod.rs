//! Access of pods: the entries of each source, and the access table that results from them.

mod config;
pub mod identities;
pub mod pods;
pub mod rules;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lota_common::Source;
use serde::{Deserialize, Serialize};

pub use config::{AccessConfig, ConfiguredPod, DefaultAccess, IdentityConfig};

use self::{
    identities::Identities,
    pods::{Pods, Uid},
};
use lota_datapath::{
    AccessEntry, AccessTable, IdentityStatus, IdentityTable, Interfaces, LOOPBACK_INDEX, PodLink, Subject,
};

/// The access entries of every source.
#[derive(Clone, Debug)]
pub struct Access {
    config: AccessConfig,
    /// This node's VIPs, which host-networked clients send from.
    vips: Vec<IpAddr>,
    /// Entries of `lota access`.
    command: BTreeMap<Subject, CommandEntry>,
    /// Pods that the API server reported.
    pub kubernetes: Pods,
    /// Their cgroups.
    pub identities: Identities,
}

/// Operator's entry that applies at any interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct OperatorEntry {
    /// Subject that the entry applies to.
    pub subject: Subject,
    /// Whether the subject has access.
    pub allow: bool,
}

/// Entry of `lota access`.
#[derive(Clone, Copy, Debug)]
struct CommandEntry {
    allow: bool,
    /// Interface that an allowed address is bound to; `None` allows any interface.
    link: Option<PodLink>,
}

impl Access {
    /// Returns the access entries of a configuration.
    #[must_use]
    pub fn new(config: AccessConfig, vips: Vec<IpAddr>) -> Self {
        Self {
            config,
            vips,
            command: BTreeMap::new(),
            kubernetes: Pods::default(),
            identities: Identities::default(),
        }
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &AccessConfig {
        &self.config
    }

    /// Replaces the configuration.
    pub fn set_config(&mut self, config: AccessConfig) {
        self.config = config;
    }

    /// Takes over the entries of operators and Kubernetes from the previous daemon's table. `interfaces` are those of
    /// `at`, in seconds since the Unix epoch. Entries keep their interfaces and ports, whatever pods claim; the caller
    /// forgets those that were replaced.
    pub fn adopt(&mut self, table: &AccessTable, interfaces: &Interfaces, at: i64) {
        let link_of = |entry: &AccessEntry| {
            let port = if entry.port == 0 { entry.ifindex } else { entry.port };
            interfaces.pod_link(port).filter(|link| link.ifindex == entry.ifindex)
        };
        let of_kubernetes =
            table.addresses.iter().filter(|(_, entry)| entry.source == Source::Kubernetes && entry.allow);
        let let_in = of_kubernetes.filter_map(|(address, entry)| Some((*address, link_of(entry)?)));
        self.kubernetes.find(let_in, interfaces, at);
        let is_command = |entry: &AccessEntry| entry.source == Source::Command;
        for (address, entry) in table.addresses.iter().filter(|(_, entry)| is_command(entry)) {
            let link = match entry.ifindex {
                0 => None,
                _ => {
                    let Some(link) = link_of(entry) else { continue };
                    Some(link)
                }
            };
            self.command.insert(Subject::Address(*address), CommandEntry { allow: entry.allow, link });
        }
        for (prefix, entry) in table.prefixes.iter().filter(|(_, entry)| is_command(entry)) {
            let entry = CommandEntry { allow: entry.allow, link: None };
            self.command.insert(Subject::Prefix(*prefix), entry);
        }
    }

    /// Takes over what [`Access::unbound_entries`] returns in the previous daemon, whose maps may have another layout.
    pub fn adopt_unbound(&mut self, entries: &[OperatorEntry]) {
        let entry = |entry: &OperatorEntry| (entry.subject, CommandEntry { allow: entry.allow, link: None });
        self.command.extend(entries.iter().map(entry));
    }

    /// Returns the entries of operators that are not bound to an interface: all that deny, and prefixes. Another interface may have the
    /// index of one that is gone, which only the maps and links of one layout tell.
    #[must_use]
    pub fn unbound_entries(&self) -> Vec<OperatorEntry> {
        let unbound = self.command.iter().filter(|(_, entry)| entry.link.is_none());
        unbound.map(|(subject, entry)| OperatorEntry { subject: *subject, allow: entry.allow }).collect()
    }

    /// Allows a subject on behalf of an operator. An address is bound to an interface and loses its entry with it;
    /// `None` means any interface.
    pub fn allow(&mut self, subject: Subject, link: Option<PodLink>) {
        self.command.insert(subject, CommandEntry { allow: true, link });
    }

    /// Denies a subject on behalf of an operator, overriding all other sources.
    pub fn deny(&mut self, subject: Subject) {
        self.command.insert(subject, CommandEntry { allow: false, link: None });
    }

    /// Removes the operator's entry of a subject. Returns false if there was none.
    pub fn forget(&mut self, subject: Subject) -> bool {
        self.command.remove(&subject).is_some()
    }

    /// Returns the indices of the interfaces that entries are bound to, or that pods are behind.
    #[must_use]
    pub fn ports(&self) -> BTreeSet<u32> {
        let of_command = self.command.values().filter_map(|entry| entry.link).map(|link| link.port);
        of_command.chain(self.kubernetes.ports()).collect()
    }

    /// Removes the entries of interfaces that were removed, by index, since others may have their indices now.
    pub fn forget_interfaces(&mut self, removed: &BTreeSet<u32>) {
        self.command.retain(|_, entry| entry.link.is_none_or(|link| !link.is_among(removed)));
        self.kubernetes.forget_interfaces(removed);
    }

    /// Returns the access table for the current interfaces. An entry of the configuration applies only while its
    /// interface exists. An operator's entry is removed for good with its interface, since another pod may reuse the
    /// address.
    pub fn table(&mut self, interfaces: &Interfaces) -> AccessTable {
        self.command.retain(|_, entry| entry.link.is_none_or(|link| interfaces.has(link)));
        let mut table = AccessTable {
            default_allow: self.config.default == DefaultAccess::Allow,
            ..AccessTable::default()
        };
        // Later sources override earlier ones.
        let at = |link: PodLink, source| AccessEntry {
            allow: true,
            ifindex: link.ifindex,
            port: link.bridge_port(),
            source,
        };
        let anywhere = |allow, source| AccessEntry { allow, ifindex: 0, port: 0, source };
        let at_lo = |source| AccessEntry { ifindex: LOOPBACK_INDEX, ..anywhere(true, source) };
        let of_kubernetes = self.kubernetes.entries(interfaces).into_iter();
        let of_kubernetes = of_kubernetes.map(|(pod, link)| (pod, at(link, Source::Kubernetes)));
        // Pods on the host network send from a VIP. Without cgroups, its entry would admit all processes of the node.
        let may_be_local = self.identities.cgroups().is_some();
        table
            .addresses
            .extend(of_kubernetes.filter(|(address, _)| may_be_local || !self.vips.contains(address)));
        if self.identities.allow_local_pods(table.default_allow) {
            table.addresses.extend(self.vips.iter().map(|vip| (*vip, at_lo(Source::Kubernetes))));
        }
        let configured = self.config.pods.iter().filter_map(|ConfiguredPod { address, interface }| {
            let link = interfaces.index(interface).and_then(|port| interfaces.pod_link(port))?;
            Some((*address, at(link, Source::Config)))
        });
        table.addresses.extend(configured);
        // Blocks stay prefixes even if they cover one address, so that a pod which a selector allows keeps access to
        // it.
        let blocks = rules::prefixes(&self.config.from).into_iter();
        table.prefixes.extend(blocks.map(|(prefix, allow)| (prefix, anywhere(allow, Source::Config))));
        if self.config.host_network {
            table.addresses.extend(self.vips.iter().map(|vip| (*vip, at_lo(Source::Config))));
        }
        for (subjects, allow) in [(&self.config.allow, true), (&self.config.deny, false)] {
            subjects.iter().for_each(|subject| table.insert(*subject, anywhere(allow, Source::Config)));
        }
        for (subject, CommandEntry { allow, link }) in &self.command {
            let entry = match link {
                Some(link) => AccessEntry { allow: *allow, ..at(*link, Source::Command) },
                None => anywhere(*allow, Source::Command),
            };
            table.insert(*subject, entry);
        }
        table
    }

    /// Returns the identities of pods for the kernel.
    #[must_use]
    pub fn identity_table(&self) -> IdentityTable {
        let AccessConfig { host_network, identity, .. } = self.config;
        let is_strict = identity == IdentityConfig::CgroupAndAddress;
        self.identities.table(&self.kubernetes.holders(), host_network, is_strict)
    }

    /// Returns whether processes in the node's own network namespace have access according to this table.
    #[must_use]
    pub fn admits_local(&self, table: &AccessTable) -> bool {
        let entries = self.vips.iter().filter_map(|vip| table.addresses.get(vip));
        self.config.host_network || entries.into_iter().any(|entry| entry.allow)
    }

    /// Returns how pods are identified, without a reason why cgroups do not identify them. `is_late` returns whether a pod
    /// should have a cgroup by now.
    #[must_use]
    pub fn identity_status(&self, is_late: impl Fn(&Uid) -> bool) -> IdentityStatus {
        let with_addresses: BTreeSet<&Uid> = self.kubernetes.holders().into_values().collect();
        self.identities.status(|uid, pod| is_late(uid) && (pod.host_network || with_addresses.contains(uid)))
    }
}

#[cfg(test)]
mod tests;
