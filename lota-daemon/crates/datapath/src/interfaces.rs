//! Plans how packets from pods are redirected, from the node's interfaces and the configuration. Performs no I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::{DatapathConfig, RedirectionMode, SkipReason, rules::NamedInterface};

/// A network interface of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name of the interface.
    pub name: String,
    /// Kind of the interface, as `ip -d link` shows it: `veth`, `bridge`, `netkit`, …; empty for hardware.
    pub kind: String,
    /// Index of the interface that this one is a port of.
    pub controller: Option<u32>,
    /// Other end of a veth or netkit pair, if it is in another network namespace.
    pub peer: Option<PeerInterface>,
}

/// Interface in another network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerInterface {
    /// Index of the interface in that namespace.
    pub index: u32,
    /// The node's ID of that namespace (`IFLA_LINK_NETNSID`).
    pub namespace: i32,
}

/// Interface that a pod is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Index of the interface.
    pub port: u32,
    /// Index of the interface at which the programs process the pod's packets.
    pub ifindex: u32,
    /// The pod's end. It distinguishes an interface from a later one with the same index.
    pub peer: Option<PeerInterface>,
}

impl PodLink {
    /// Returns the index of the port, if the pod is behind a bridge, otherwise 0.
    #[must_use]
    pub fn bridge_port(&self) -> u32 {
        if self.port == self.ifindex { 0 } else { self.port }
    }

    /// Returns whether one of these indices is its own.
    #[must_use]
    pub fn is_among(&self, indices: &BTreeSet<u32>) -> bool {
        indices.contains(&self.port) || indices.contains(&self.ifindex)
    }
}

/// The node's interfaces, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces(pub BTreeMap<u32, Interface>);

/// Method of redirecting packets from an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirection {
    /// A TC program on the interface checks access; `lota-ebpf/src/redirect.rs` describes how it selects the listener.
    Tc,
    /// The socket lookup program redirects.
    Lookup,
}

/// Interfaces to redirect, and interfaces to skip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedirectionPlan {
    /// Interfaces to redirect, by index.
    pub redirected: BTreeMap<u32, Redirection>,
    /// Other interfaces that the configuration matches or that a known pod is behind, with the reason.
    pub skipped: BTreeMap<u32, SkipReason>,
    /// Ports of bridges at which senders are checked.
    pub ports: BTreeSet<u32>,
    /// Whether processes in the node's own network namespace are checked at `lo`.
    pub local: bool,
}

impl RedirectionPlan {
    /// Adds checks of senders at the ports of redirected bridges, where only these programs see them. With `at_all_ports`,
    /// this includes ports that no known pod is behind and that no pattern matches.
    #[must_use]
    pub fn checking_senders(
        mut self,
        interfaces: &Interfaces,
        uplink: Option<&str>,
        at_all_ports: bool,
    ) -> Self {
        let is_checked = |port: &u32| {
            let bridge = interfaces.bridge_of(*port);
            bridge.is_some_and(|bridge| self.redirected.get(&bridge) == Some(&Redirection::Tc))
                && interfaces.name(*port) != uplink
                && (at_all_ports || self.skipped.contains_key(port))
        };
        self.ports = interfaces.0.keys().copied().filter(is_checked).collect();
        for port in &self.ports {
            let bridge = interfaces.bridge_of(*port).and_then(|bridge| interfaces.name(bridge));
            let reason = SkipReason::BridgePort { bridge: bridge.unwrap_or_default().to_owned() };
            self.skipped.entry(*port).or_insert(reason);
        }
        self
    }

    /// Adds checks of the cgroups of processes in the node's own network namespace, if any of them may have access.
    #[must_use]
    pub fn checking_processes(mut self) -> Self {
        if let Some(redirection) = self.redirected.get_mut(&LOOPBACK_INDEX) {
            // Unlike socket lookup, a TC program sees each packet once.
            *redirection = Redirection::Tc;
            self.local = true;
        }
        self
    }
}

/// Interface that connections of the node's own processes arrive at.
pub(crate) const LOOPBACK: &str = "lo";
/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX`, `include/net/flow.h`).
pub const LOOPBACK_INDEX: u32 = 1;

impl Interfaces {
    /// Returns the index of the interface with this name.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<u32> {
        self.0.iter().find(|(_, interface)| interface.name == name).map(|(index, _)| *index)
    }

    /// Returns the name of the interface with this index.
    #[must_use]
    pub fn name(&self, index: u32) -> Option<&str> {
        self.0.get(&index).map(|interface| interface.name.as_str())
    }

    /// Returns the interface with this index, as rules match it.
    #[must_use]
    pub fn named(&self, index: u32) -> Option<NamedInterface> {
        Some(NamedInterface { name: self.name(index)?.to_owned(), index })
    }

    /// Returns the interface with this index, as one that a pod is behind. The programs process packets that arrive at a
    /// bridge's port at the bridge.
    #[must_use]
    pub fn pod_link(&self, port: u32) -> Option<PodLink> {
        let peer = self.0.get(&port)?.peer;
        Some(PodLink { port, ifindex: self.bridge_of(port).unwrap_or(port), peer })
    }

    /// Returns whether this interface still exists.
    #[must_use]
    pub fn has(&self, link: PodLink) -> bool {
        self.pod_link(link.port) == Some(link)
    }

    fn bridge_of(&self, index: u32) -> Option<u32> {
        self.0.get(&index)?.controller.filter(|controller| self.is_bridge(*controller))
    }

    pub(crate) fn is_bridge(&self, index: u32) -> bool {
        self.0.get(&index).is_some_and(|interface| interface.kind == "bridge")
    }

    /// Plans the redirection for each interface that `config` matches or that a known pod is behind: `pods` are their
    /// indices.
    #[must_use]
    pub fn plan(&self, config: &DatapathConfig, host_network: bool, pods: &BTreeSet<u32>) -> RedirectionPlan {
        let mut plan = RedirectionPlan::default();
        for (index, interface) in &self.0 {
            if interface.name == LOOPBACK {
                if host_network {
                    plan.redirected.insert(*index, redirection(config.mode, "").unwrap_or(Redirection::Tc));
                }
                continue;
            }
            let has_pod = pods.contains(index);
            if !has_pod && !matches(&config.pod_interfaces, &interface.name) {
                continue;
            }
            if !has_pod && interface.kind == "vlan" && !config.pod_interfaces.contains(&interface.name) {
                plan.skipped.insert(*index, SkipReason::Vlan);
                continue;
            }
            if config.uplink.as_ref() == Some(&interface.name) {
                plan.skipped.insert(*index, SkipReason::Uplink);
                continue;
            }
            let target = match (interface.controller, self.bridge_of(*index)) {
                // A socket assigned at a bridge's port is lost in the bridge.
                (Some(_), Some(bridge)) => {
                    let name = self.name(bridge).unwrap_or_default().to_owned();
                    plan.skipped.insert(*index, SkipReason::BridgePort { bridge: name });
                    bridge
                }
                (Some(controller), None) => {
                    let found = self.0.get(&controller);
                    let (controller, kind) = found.map_or(("?", "?"), |found| (&found.name, &found.kind));
                    let (controller, kind) = (controller.to_owned(), kind.to_owned());
                    plan.skipped.insert(*index, SkipReason::OtherPort { controller, kind });
                    continue;
                }
                (None, _) => *index,
            };
            if config.uplink.as_deref().is_some_and(|uplink| self.name(target) == Some(uplink)) {
                plan.skipped.insert(*index, SkipReason::Uplink);
                continue;
            }
            let kind = self.0.get(&target).map_or("", |interface| &interface.kind);
            match redirection(config.mode, kind) {
                Ok(redirection) => {
                    plan.redirected.insert(target, redirection);
                }
                Err(reason) => {
                    plan.skipped.insert(target, reason);
                }
            }
        }
        plan
    }
}

/// Returns the method for an interface of this kind.
fn redirection(mode: RedirectionMode, kind: &str) -> Result<Redirection, SkipReason> {
    match (mode, kind) {
        (RedirectionMode::Lookup, _) => Ok(Redirection::Lookup),
        // A socket assigned there is lost on the way into the node's namespace (cilium/cilium#44068).
        (RedirectionMode::Auto, "netkit") => Ok(Redirection::Lookup),
        (RedirectionMode::Tc, "netkit") => Err(SkipReason::Netkit),
        (RedirectionMode::Auto | RedirectionMode::Tc, _) => Ok(Redirection::Tc),
    }
}

/// Returns whether a pattern matches this interface. A trailing `*` matches any suffix.
fn matches(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    })
}

#[cfg(test)]
#[path = "interfaces_tests.rs"]
mod tests;
