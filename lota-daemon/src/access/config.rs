//! `[access]` of the configuration.

use std::{net::IpAddr, path::PathBuf};

use lota_datapath::Subject;
use serde::Deserialize;

use super::rules::Rule;

/// Pods and addresses that may connect to LOTA. By default none may.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessConfig {
    /// Access of addresses that no rule matches.
    pub default: DefaultAccess,
    /// Allowed pods by address, each only through its own interface.
    pub pods: Vec<ConfiguredPod>,
    /// Allowed pods of this node, each only through its own interface, and allowed address blocks, through any
    /// interface. The schema is that of `from` in a NetworkPolicy. Rules with pod or namespace selectors need
    /// `[kubernetes]`.
    pub from: Vec<Rule>,
    /// Allowed addresses and prefixes, through any interface.
    pub allow: Vec<Subject>,
    /// Denied addresses and prefixes.
    pub deny: Vec<Subject>,
    /// Whether processes in the node's own network namespace have access. Where cgroups identify pods, this applies to
    /// processes outside of pods; the rules decide about pods with `hostNetwork: true`. Otherwise these processes cannot
    /// be distinguished from each other.
    pub host_network: bool,
    /// Evidence by which pods are identified.
    pub identity: IdentityConfig,
    /// Folder of the cgroup v2 hierarchy in which kubelet makes its `kubepods`: the mount or, below it, the folder that
    /// kubelet has as `--cgroup-root`.
    pub cgroup_path: PathBuf,
    /// Pods that may send packets with addresses of other pods, such as proxies that send for them. The schema is that of
    /// `from`, without `ipBlock`.
    pub forwarders: Vec<Rule>,
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self {
            default: DefaultAccess::Deny,
            pods: Vec::new(),
            from: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            host_network: false,
            identity: IdentityConfig::Auto,
            cgroup_path: PathBuf::from("/sys/fs/cgroup"),
            forwarders: Vec::new(),
        }
    }
}

/// Evidence by which pods are identified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityConfig {
    /// `"cgroup+address"` where `cgroup_path` is such a hierarchy, otherwise `"address"`; packets without a socket are
    /// identified by their address only.
    #[default]
    Auto,
    /// By the source address and the interface of each packet.
    Address,
    /// Also by the cgroup of the socket that sent it; needs `[kubernetes]`. Without the hierarchy, the daemon does not
    /// start, and a packet without a socket opens no connection for a pod whose cgroup is known.
    #[serde(rename = "cgroup+address")]
    CgroupAndAddress,
}

/// Access of addresses that no rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultAccess {
    /// No access.
    #[default]
    Deny,
    /// Access, for clusters that use LOTA without access control.
    Allow,
}

/// Pod that may connect to LOTA.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfiguredPod {
    /// Address of the pod.
    pub address: IpAddr,
    /// Interface of the node that the pod is behind. Packets with the pod's address have access only from it.
    pub interface: String,
}
