//! Networks of pods: plugins of the package `containernetworking-plugins`, and rules as kube-proxy writes them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::lab::{GATEWAY, Lab, Namespace, run, run_with_input};

const CILIUM_ROUTES: &str = include_str!("node/cilium-routes");
const KUBE_PROXY_IPTABLES: &str = include_str!("node/kube-proxy.iptables");
const KUBE_PROXY_NFT: &str = include_str!("node/kube-proxy.nft");

/// Number of addresses that a node has for its pods. They are used again soon.
pub const POD_ADDRESSES: usize = 5;

/// Method by which a node routes to its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodRoutes {
    /// A route to each pod's interface, as Calico and the clouds make them: the plugin `ptp`.
    Each,
    /// A bridge, as flannel and k3s make it: the plugin `bridge`.
    Bridge,
    /// One route for all pods, as Cilium makes it: `ptp`, and the plugin `cilium-routes` after it.
    Covering,
}

/// Mode in which kube-proxy translates the addresses of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceRules {
    /// Mode `iptables`, with the kernel's older interface.
    IptablesLegacy,
    /// Mode `iptables`, by nftables.
    IptablesNft,
    /// Mode `nftables`.
    Nftables,
}

/// The network of a node's pods.
#[derive(Clone, Copy, Debug)]
pub struct PodNetwork {
    /// Number of the node.
    pub node: u8,
    /// Its routes to its pods.
    pub routes: PodRoutes,
    /// Its rules for services.
    pub rules: ServiceRules,
}

impl PodNetwork {
    /// Returns the network of a node of the lab: each node has another kind.
    #[must_use]
    pub fn of(node: u8) -> Self {
        let (routes, rules) = match node % 3 {
            1 => (PodRoutes::Each, ServiceRules::IptablesLegacy),
            2 => (PodRoutes::Bridge, ServiceRules::IptablesNft),
            _ => (PodRoutes::Covering, ServiceRules::Nftables),
        };
        Self { node, routes, rules }
    }

    /// Returns the prefix of the pods' addresses, and the number of the first pod in the prefix of the node.
    fn prefix(self) -> (String, u8) {
        (format!("10.77.{}", 10 + self.node), 130)
    }

    /// Prepares the node, and the folders `cni` and `bin` in a kubelet's folder.
    pub(super) fn prepare(self, lab: &Lab, folder: &Path, plugins: &Path) -> Result<()> {
        let (node, (prefix, _)) = (lab.node(self.node), self.prefix());
        lab.route_to_pods(self.node)?;
        node.ip(&format!("route replace default via {GATEWAY}"))?;
        if self.routes == PodRoutes::Covering {
            node.ip("link add cilium_host type veth peer name cilium_net")?;
            node.ip("link set cilium_net up")?;
            node.ip("link set cilium_host up")?;
            node.ip(&format!("route add {prefix}.128/25 dev cilium_host"))?;
            run(node.command("tc").args(["qdisc", "add", "dev", "cilium_host", "clsact"]))?;
        }
        let cni = folder.join("cni");
        fs::create_dir_all(cni.join("networks"))?;
        fs::create_dir_all(folder.join("bin"))?;
        for plugin in fs::read_dir(plugins).with_context(|| plugins.display().to_string())? {
            let plugin = plugin?;
            symlink(plugin.path(), cni.join(plugin.file_name()))?;
        }
        let script = cni.join("cilium-routes");
        fs::write(&script, CILIUM_ROUTES)?;
        run(std::process::Command::new("chmod").arg("+x").arg(&script))?;
        fs::write(cni.join("networks/10-pods.conflist"), self.plugins(&cni).to_string())?;
        let iptables = if self.rules == ServiceRules::IptablesLegacy { "legacy" } else { "nft" };
        let program = run(std::process::Command::new("which").arg(format!("iptables-{iptables}")))?;
        symlink(program.trim(), folder.join("bin/iptables"))?;
        self.apply_rules(&node)
    }

    /// Returns the folder in which the plugin `host-local` has a file for each used address.
    #[must_use]
    pub fn used_addresses(self, lab: &Lab) -> PathBuf {
        super::kubelet::folder(lab, self.node).join("cni/addresses/pods")
    }

    fn plugins(self, cni: &Path) -> Value {
        let (prefix, first) = self.prefix();
        let last = usize::from(first) + POD_ADDRESSES - 1;
        let range = json!({
            "subnet": format!("{prefix}.128/25"),
            "rangeStart": format!("{prefix}.{first}"),
            "rangeEnd": format!("{prefix}.{last}"),
            "gateway": format!("{prefix}.129"),
        });
        let addresses = json!({
            "type": "host-local",
            "ranges": [[range]],
            "routes": [{ "dst": "0.0.0.0/0" }],
            "dataDir": cni.join("addresses"),
        });
        let first = match self.routes {
            PodRoutes::Bridge => json!({
                "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": addresses,
            }),
            PodRoutes::Each | PodRoutes::Covering => json!({ "type": "ptp", "ipam": addresses }),
        };
        let mut plugins = vec![first];
        if self.routes == PodRoutes::Covering {
            plugins.push(json!({ "type": "cilium-routes" }));
        }
        plugins.push(json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } }));
        json!({ "cniVersion": "0.4.0", "name": "pods", "plugins": plugins })
    }

    fn apply_rules(self, node: &Namespace) -> Result<()> {
        let (program, arguments, rules): (_, &[&str], _) = match self.rules {
            ServiceRules::IptablesLegacy => ("iptables-legacy-restore", &["--noflush"], KUBE_PROXY_IPTABLES),
            ServiceRules::IptablesNft => ("iptables-nft-restore", &["--noflush"], KUBE_PROXY_IPTABLES),
            ServiceRules::Nftables => ("nft", &["-f", "-"], KUBE_PROXY_NFT),
        };
        run_with_input(node.command(program).args(arguments), rules).map(drop)
    }
}
