//! `[datapath]` of the configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// eBPF programs: interfaces, redirection mode and pinning.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatapathConfig {
    /// Names of the interfaces that pods are behind. A trailing `*` matches any suffix.
    pub pod_interfaces: Vec<String>,
    /// Interface toward the other nodes. The guard program is attached to it. Default: no guard.
    pub uplink: Option<String>,
    /// Method of redirecting pods' connections to LOTA.
    pub mode: RedirectionMode,
    /// Method of attaching TC programs.
    pub attach: AttachConfig,
    /// Whether the datapath answers pods' DNS queries for the zone, whichever resolver they are sent to.
    pub answer_dns: bool,
    /// Folder on a bpffs in which maps and links are pinned.
    pub bpffs_path: PathBuf,
}

impl Default for DatapathConfig {
    fn default() -> Self {
        Self {
            pod_interfaces: ["veth*", "cali*", "lxc*", "eni*", "azv*", "vlan*"].map(str::to_owned).to_vec(),
            uplink: None,
            mode: RedirectionMode::Auto,
            attach: AttachConfig::Auto,
            answer_dns: true,
            bpffs_path: PathBuf::from("/sys/fs/bpf/lota"),
        }
    }
}

/// Answer to DNS queries of pods with access for a name of the endpoint while the daemon is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenDown {
    /// The VIP, where connections are refused, so that no client reaches another server under this name.
    #[default]
    Refuse,
    /// The answer of the cluster's DNS, for example the gateway's address. The zone's records then have a TTL of 1 s.
    ClusterDns,
}

/// Method of redirecting pods' connections to LOTA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedirectionMode {
    /// TC where it works, otherwise socket lookup.
    Auto,
    /// TC programs on the pods' interfaces.
    Tc,
    /// Socket lookup (kernel 5.17 or later), with no program on the pods' interfaces and therefore no DNS answers.
    #[serde(rename = "sk_lookup")]
    Lookup,
}

/// Method of attaching TC programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachConfig {
    /// tcx where the kernel supports it (6.6 or later), otherwise clsact.
    Auto,
    /// tcx, first in the chain.
    Tcx,
    /// clsact qdisc, for older kernels.
    Clsact,
}
