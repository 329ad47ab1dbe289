//! Nodes without pods, and without LOTA.

use anyhow::{Result, ensure};
use lota_common::map;
use lota_tests::lab::{NODES, VIP, run};
use serde_json::{Value, json};

use crate::{
    identity::dump,
    install::{HOME, Install},
    kubectl::wait,
    setup::Cluster,
    workload,
};

const NODE_NAMES: [&str; NODES as usize] = ["n1", "n2", "n3"];

/// Verifies that neither interfaces nor entries are left after nodes are drained.
pub(crate) fn all(cluster: &mut Cluster) -> Result<()> {
    cluster.install(Install::Any)?;
    workload::apply(cluster)?;
    for node in 1..=NODES {
        ensure!(
            !pod_interfaces(cluster, node)?.is_empty() && entries(cluster, node)? > 0,
            "n{node} has no pods"
        );
    }
    let flags = ["--ignore-daemonsets", "--force", "--disable-eviction", "--timeout=90s"];
    cluster.kubectl.run(&[&["drain"], &NODE_NAMES[..], &flags].concat())?;
    for node in 1..=NODES {
        wait("the interfaces of pods to be removed", || Ok(pod_interfaces(cluster, node)?.is_empty()))?;
        wait("access entries to be removed", || Ok(entries(cluster, node)? == 0))?;
        // Static pods and those of DaemonSets stay.
        wait("cgroups and addresses of pods to be removed from the maps", || {
            let pods = dump(cluster, node, map::CGROUPS)?.to_string();
            let holders = dump(cluster, node, map::HOLDERS4)?;
            Ok(pods.contains("training/static-") && !pods.contains("training/train-") && holders == json!([]))
        })?;
        let shown = cluster.lota(node, &["datapath", "status"])?;
        ensure!(!shown.contains("veth"), "n{node} still shows an interface:\n{shown}");
    }
    cluster.kubectl.run(&[&["uncordon"], &NODE_NAMES[..]].concat()).map(|_| ())
}

/// Verifies that the documented patch removes LOTA from the nodes.
pub(crate) fn uninstall(cluster: &mut Cluster) -> Result<()> {
    cluster.install(Install::Any)?;
    cluster.installed = None;
    let patch = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/uninstall.json");
    let set = ["-n", HOME, "patch", "daemonset", "lota", "--type", "json", "--patch-file", patch];
    cluster.kubectl.run(&set)?;
    cluster.wait_installed()?;
    for node in 1..=NODES {
        let place = cluster.lab.node(node);
        let addresses = run(place.command("ip").args(["-o", "addr", "show", "dev", "lo"]))?;
        ensure!(!addresses.contains(&VIP.to_string()), "n{node} still has the VIP: {addresses}");
        let tables = run(place.command("nft").args(["list", "tables"]))?;
        ensure!(!tables.contains("inet lota"), "n{node} still has a table: {tables}");
    }
    cluster.kubectl.run(&["-n", HOME, "delete", "daemonset", "lota", "--timeout=90s"]).map(|_| ())
}

/// Returns the interfaces of pods on a node.
fn pod_interfaces(cluster: &Cluster, node: u8) -> Result<Vec<String>> {
    let links = run(cluster.lab.node(node).command("ip").args(["-j", "link", "show"]))?;
    let links: Vec<Value> = serde_json::from_str(&links)?;
    let names = links.iter().filter_map(|link| link["ifname"].as_str());
    Ok(names.filter(|name| name.starts_with("veth")).map(str::to_owned).collect())
}

/// Returns the number of entries for pods.
fn entries(cluster: &Cluster, node: u8) -> Result<usize> {
    let list = cluster.lota(node, &["access", "list", "--json"])?;
    Ok(list.lines().filter(|line| line.contains("10.77.")).count())
}
