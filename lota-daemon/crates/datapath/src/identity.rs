//! The identity table: which cgroup is which pod's, and which pod has which address, as in the kernel's maps.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData},
};
use lota_common::{Address4, Address6, RawHolder, RawIdentity, RawPod, Source, map, text};
use serde::{Deserialize, Serialize};

use crate::{
    cgroups::PodCgroup,
    entries::{by_family, replace},
};

/// A pod with a known cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifiedPod {
    /// `namespace/name`.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Whether the access rules select the pod.
    pub allowed: bool,
    /// Whether the pod may send packets with addresses of other pods.
    pub forwards: bool,
}

/// The pod that has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressHolder {
    /// `namespace/name`.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Cgroup of the pod, if it is known.
    pub cgroup: Option<PodCgroup>,
}

/// Rule by which processes in the node's own network namespace get access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalAccess {
    /// By the address that they send from.
    #[default]
    ByAddress,
    /// By the rules for their pods; other processes have none.
    Pods,
    /// By the rules for their pods; other processes by the address that they send from.
    Processes,
}

/// Contents of the kernel's maps of identities. Empty if only addresses identify pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityTable {
    /// Pods by the ID of their cgroup.
    pub pods: BTreeMap<u64, IdentifiedPod>,
    /// Pods by address.
    pub holders: BTreeMap<IpAddr, AddressHolder>,
    /// IDs of the cgroups with all pods; 0 for none.
    pub kubepods: [u64; 2],
    /// Levels of the hierarchy at which pods can be; 0 for none.
    pub levels: [u32; 2],
    /// Access of processes in the node's own network namespace.
    pub local: LocalAccess,
    /// Whether a connection must be opened by a packet with a socket, if the cgroup of the pod with its address is known.
    pub is_strict: bool,
    /// Whether `pods` and `holders` are not known, so that those in the kernel's maps remain.
    pub keeps_pods: bool,
}

/// Evidence by which pods are identified.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityStatus {
    /// Whether cgroups identify pods beside addresses.
    pub by_cgroup: bool,
    /// Reason why cgroups do not, if that is not configured.
    pub problem: Option<String>,
    /// Whether another configuration can change that.
    #[serde(default)]
    pub can_be_configured: bool,
    /// Number of pods with a known cgroup.
    pub identified: usize,
    /// Pods (`namespace/name`) without one, which only their addresses identify.
    pub unidentified: Vec<String>,
}

impl fmt::Display for IdentityStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.by_cgroup, &self.problem) {
            (false, None) => f.write_str("by address only"),
            (false, Some(problem)) => write!(f, "by address only: {problem}"),
            (true, _) => {
                write!(f, "by address and cgroup, {} pods", self.identified)?;
                match self.unidentified.as_slice() {
                    [] => Ok(()),
                    [pod, rest @ ..] => {
                        let more =
                            if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
                        write!(f, "; by address only: {pod}{more}")
                    }
                }
            }
        }
    }
}

/// The maps of identities.
pub(crate) struct IdentityMaps {
    cgroups: HashMap<MapData, u64, RawPod>,
    holders4: HashMap<MapData, Address4, RawHolder>,
    holders6: HashMap<MapData, Address6, RawHolder>,
    settings: Array<MapData, RawIdentity>,
    /// Contents of the maps, if they are known.
    written: Option<IdentityTable>,
}

impl IdentityMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut take = |name: &str| -> Result<Map> {
            ebpf.take_map(name).ok_or_else(|| anyhow!("the eBPF object has no map {name}"))
        };
        Ok(Self {
            cgroups: take(map::CGROUPS)?.try_into()?,
            holders4: take(map::HOLDERS4)?.try_into()?,
            holders6: take(map::HOLDERS6)?.try_into()?,
            settings: take(map::IDENTITY)?.try_into()?,
            written: None,
        })
    }

    /// Forgets what the maps contain, since another daemon may have written them.
    pub(crate) fn forget(&mut self) {
        self.written = None;
    }

    /// Returns the cgroup of the pod that has an address in this table, or in the kernel's maps; `None` if there is no such
    /// pod.
    pub(crate) fn holder(&self, table: Option<&IdentityTable>, address: IpAddr) -> Option<Option<PodCgroup>> {
        if let Some(table) = table.filter(|table| !table.keeps_pods) {
            return table.holders.get(&address).map(|holder| holder.cgroup);
        }
        let holder = match address {
            IpAddr::V4(address) => self.holders4.get(&Address4 { address: address.octets() }, 0),
            IpAddr::V6(address) => self.holders6.get(&Address6 { address: address.octets() }, 0),
        };
        let RawHolder { cgroup, level, .. } = holder.ok()?;
        Some(Some(PodCgroup { id: cgroup, level }).filter(|cgroup| *cgroup != PodCgroup::NONE))
    }

    /// Returns whether the maps contain this table.
    pub(crate) fn has(&self, table: &IdentityTable) -> bool {
        self.written.as_ref() == Some(table)
    }

    /// Notes that the maps contain this table.
    pub(crate) fn set_written(&mut self, table: &IdentityTable) {
        self.written = Some(table.clone());
    }

    /// Replaces the pods by address, and writes the settings if processes in the node's own network namespace need more than
    /// an address.
    pub(crate) fn write_holders(&mut self, table: &IdentityTable) -> Result<()> {
        self.forget();
        let settings = match table.local {
            LocalAccess::ByAddress => Ok(()),
            LocalAccess::Pods | LocalAccess::Processes => self.write_settings(table),
        };
        if table.keeps_pods {
            return settings;
        }
        let (holders4, holders6) = by_family(&table.holders, raw_holder);
        let holders4 = replace(&mut self.holders4, &holders4);
        let holders6 = replace(&mut self.holders6, &holders6);
        holders4.and(holders6).context("cannot write the pods of addresses").and(settings)
    }

    /// Replaces the pods by cgroup, and writes the settings if processes in the node's own network namespace need no more
    /// than an address. `may_be_by_address`: no entry remains that would give all of them access then.
    pub(crate) fn write_cgroups(&mut self, table: &IdentityTable, may_be_by_address: bool) -> Result<()> {
        let cgroups: Vec<_> = table.pods.iter().map(|(id, pod)| (*id, raw_pod(pod))).collect();
        let cgroups = if table.keeps_pods { Ok(()) } else { replace(&mut self.cgroups, &cgroups) };
        let settings = match table.local {
            LocalAccess::ByAddress if may_be_by_address => self.write_settings(table),
            // `write_holders` has written them.
            _ => Ok(()),
        };
        cgroups.context("cannot write the cgroups of pods").and(settings)
    }

    fn write_settings(&mut self, table: &IdentityTable) -> Result<()> {
        self.settings.set(0, raw_settings(table), 0).context("cannot write the settings of identities")
    }
}

fn raw_pod(pod: &IdentifiedPod) -> RawPod {
    RawPod {
        allow: u32::from(pod.allowed),
        source: Source::Kubernetes as u32,
        forwards: u32::from(pod.forwards),
        pod: text(&pod.name),
        uid: text(&pod.uid),
    }
}

fn raw_holder(holder: &AddressHolder) -> RawHolder {
    let cgroup = holder.cgroup.unwrap_or(PodCgroup::NONE);
    RawHolder {
        cgroup: cgroup.id,
        level: cgroup.level,
        source: Source::Kubernetes as u32,
        pod: text(&holder.name),
        uid: text(&holder.uid),
    }
}

fn raw_settings(table: &IdentityTable) -> RawIdentity {
    let local = match table.local {
        LocalAccess::ByAddress => RawIdentity::BY_ADDRESS,
        LocalAccess::Pods => RawIdentity::PODS,
        LocalAccess::Processes => RawIdentity::PROCESSES,
    };
    RawIdentity { kubepods: table.kubepods, levels: table.levels, local, strict: u32::from(table.is_strict) }
}
