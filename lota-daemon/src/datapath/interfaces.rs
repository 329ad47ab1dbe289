//! Where packets from pods come in, and what to do there. Pure: what there is goes in, a plan comes out.

use std::collections::BTreeMap;

use crate::config;

/// A network interface of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// What drives it, as `ip -d link` shows it: `veth`, `bridge`, `netkit`, …; empty for hardware.
    pub kind: String,
    /// The index of the interface it is a port of.
    pub controller: Option<u32>,
}

/// The node's interfaces, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces(pub BTreeMap<u32, Interface>);

/// How packets from an interface are steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// A TC program on it decides who may; where the listener is found, `lota-ebpf/src/steer.rs` says.
    Tc,
    /// At socket lookup.
    Lookup,
}

/// What to do where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The interfaces to steer, by index.
    pub steered: BTreeMap<u32, Steering>,
    /// Those that were asked for and are not steered, with the reason.
    pub skipped: BTreeMap<u32, String>,
}

/// Why a bridge's port is not steered: what it sends is seen at the bridge.
pub const INSTEAD: &str = "which is steered instead";
/// The interface of the node's own processes.
const LOOPBACK: &str = "lo";

impl Interfaces {
    /// The index of the interface of this name.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<u32> {
        self.0.iter().find(|(_, interface)| interface.name == name).map(|(index, _)| *index)
    }

    /// The name of the interface of this index.
    #[must_use]
    pub fn name(&self, index: u32) -> Option<&str> {
        self.0.get(&index).map(|interface| interface.name.as_str())
    }

    /// The interface whose packets the programs see when something comes in at `name`: a bridge for its port,
    /// else that interface itself.
    #[must_use]
    pub fn seen_as(&self, name: &str) -> Option<u32> {
        let index = self.index(name)?;
        Some(self.bridge_of(index).unwrap_or(index))
    }

    fn bridge_of(&self, index: u32) -> Option<u32> {
        let controller = self.0.get(&index)?.controller?;
        (self.0.get(&controller)?.kind == "bridge").then_some(controller)
    }

    /// What to do at each interface that `config` asks for.
    #[must_use]
    pub fn plan(&self, config: &config::Datapath, host_network: bool) -> Plan {
        let mut plan = Plan::default();
        for (index, interface) in &self.0 {
            if interface.name == LOOPBACK {
                if host_network {
                    plan.steered.insert(*index, steering(config.mode, "").unwrap_or(Steering::Tc));
                }
                continue;
            }
            if !matches(&config.pod_interfaces, &interface.name) {
                continue;
            }
            if config.uplink.as_ref() == Some(&interface.name) {
                plan.skipped.insert(*index, "the uplink is not a pod's".to_owned());
                continue;
            }
            let target = match (interface.controller, self.bridge_of(*index)) {
                // A socket assigned at a bridge's port is lost in the bridge.
                (Some(_), Some(bridge)) => {
                    let name = self.name(bridge).unwrap_or_default();
                    plan.skipped.insert(*index, format!("a port of {name}, {INSTEAD}"));
                    bridge
                }
                (Some(controller), None) => {
                    let (name, kind) = self
                        .0
                        .get(&controller)
                        .map_or(("?", "?"), |controller| (&controller.name, &controller.kind));
                    plan.skipped.insert(*index, format!("a port of {name} ({kind}), which is not a bridge"));
                    continue;
                }
                (None, _) => *index,
            };
            if config.uplink.as_deref().is_some_and(|uplink| self.name(target) == Some(uplink)) {
                plan.skipped.insert(*index, "a port of the uplink, which is not a pod's".to_owned());
                continue;
            }
            let kind = self.0.get(&target).map_or("", |interface| &interface.kind);
            match steering(config.mode, kind) {
                Ok(steering) => {
                    plan.steered.insert(target, steering);
                }
                Err(reason) => {
                    plan.skipped.insert(target, reason);
                }
            }
        }
        plan
    }
}

/// How to steer an interface of this kind.
fn steering(mode: config::Mode, kind: &str) -> Result<Steering, String> {
    match (mode, kind) {
        (config::Mode::Lookup, _) => Ok(Steering::Lookup),
        // A socket assigned there does not survive the hop into the node (cilium/cilium#44068).
        (config::Mode::Auto, "netkit") => Ok(Steering::Lookup),
        (config::Mode::Tc, "netkit") => {
            Err("netkit loses assigned sockets: use datapath.mode \"auto\" or \"sk_lookup\"".to_owned())
        }
        (config::Mode::Auto | config::Mode::Tc, _) => Ok(Steering::Tc),
    }
}

/// Does one of the patterns name this interface? A trailing `*` matches any rest.
fn matches(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    })
}

#[cfg(test)]
#[path = "interfaces_tests.rs"]
mod tests;
