//! Pods in the kernel's maps.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use lota_common::{LAYOUT, map};
use lota_tests::lab::{NODES, dump_map};
use serde_json::Value;

use crate::{
    install::Install,
    kubectl::wait,
    setup::Cluster,
    workload::{self, READERS, Readers},
};

/// A pod as both the API server and a map show it.
#[derive(Clone, Debug, PartialEq)]
struct ShownPod {
    /// `namespace/name`.
    name: String,
    uid: String,
    allowed: bool,
}

/// Verifies that each map shows exactly the node's pods, by names and UIDs.
pub(crate) fn shown(cluster: &mut Cluster) -> Result<()> {
    cluster.install(Install::Any)?;
    workload::apply(cluster)?;
    for node in 1..=NODES {
        let (mut by_cgroup, mut by_address, mut maps) = (Vec::new(), BTreeMap::new(), String::new());
        let waited = wait("the maps to show the pods of the API server", || {
            (by_cgroup, by_address) = reported(cluster, node)?;
            let (cgroups, holders) =
                (dump(cluster, node, map::CGROUPS)?, dump(cluster, node, map::HOLDERS4)?);
            maps = format!("{cgroups}\n{holders}");
            Ok(pods(&cgroups)? == by_cgroup && addresses(&holders)? == by_address)
        });
        waited.with_context(|| format!("n{node}: {by_cgroup:?}\n{by_address:?}\nbut\n{maps}"))?;
        eprintln!("  n{node}: {} pods by cgroup, {} by address", by_cgroup.len(), by_address.len());
    }
    Ok(())
}

/// Returns the running pods of a node, sorted by their names, and the UIDs of those that have addresses of their own.
fn reported(cluster: &Cluster, node: u8) -> Result<(Vec<ShownPod>, BTreeMap<String, String>)> {
    let selector = format!("--field-selector=spec.nodeName=n{node},status.phase=Running");
    let list = cluster.kubectl.json(&["get", "pods", "--all-namespaces", &selector])?;
    let (mut pods, mut addresses) = (Vec::new(), BTreeMap::new());
    for pod in list["items"].as_array().context("no list")? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (metadata, uid) = (&pod["metadata"], text(&pod["metadata"]["uid"]));
        let namespace = text(&metadata["namespace"]);
        let by_deployment = |name: &Value| READERS.iter().find(|readers| *name == readers.name);
        let deployment = &metadata["labels"]["deployment"];
        let allowed = *deployment == "static" || by_deployment(deployment).is_some_and(Readers::is_selected);
        if pod["spec"]["hostNetwork"] != true {
            addresses.insert(text(&pod["status"]["podIP"]), uid.clone());
        }
        pods.push(ShownPod { name: format!("{namespace}/{}", text(&metadata["name"])), uid, allowed });
    }
    pods.sort_by(|one, other| one.name.cmp(&other.name));
    Ok((pods, addresses))
}

/// Returns the pods in a dump of [`map::CGROUPS`], sorted by their names.
fn pods(dump: &Value) -> Result<Vec<ShownPod>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let values = dump.as_array().context("not a list")?.iter().map(|entry| &entry["value"]);
    let mut pods: Vec<ShownPod> = values
        .map(|pod| ShownPod { name: text(&pod["pod"]), uid: text(&pod["uid"]), allowed: pod["allow"] == 1 })
        .collect();
    pods.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(pods)
}

/// Returns the UIDs in a dump of [`map::HOLDERS4`], by address.
fn addresses(dump: &Value) -> Result<BTreeMap<String, String>> {
    let entries = dump.as_array().context("not a list")?.iter();
    let one = |entry: &Value| -> Option<(String, String)> {
        let bytes = entry["key"]["address"].as_array()?.iter();
        let bytes: Vec<String> = bytes.map(ToString::to_string).collect();
        Some((bytes.join("."), entry["value"]["uid"].as_str()?.to_owned()))
    };
    entries.map(|entry| one(entry).with_context(|| format!("unexpected entry: {entry}"))).collect()
}

/// Returns the entries of a node's map as `bpftool` shows them.
pub(crate) fn dump(cluster: &Cluster, node: u8, map: &str) -> Result<Value> {
    let path = cluster.root(node).join(format!("sys/fs/bpf/lota/v{LAYOUT}/{map}"));
    dump_map(&path).map(Value::Array)
}
