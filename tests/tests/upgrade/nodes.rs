//! State of a node, read by commands of its own build.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{Node, Program},
    tour::Tour,
};
use serde_json::Value;

/// Has every node run this build. They take over from those that run.
pub(crate) fn set_all(tour: &mut Tour, program: &Program) -> Result<()> {
    for node in &mut tour.nodes {
        node.set_program(program);
        node.start()?;
    }
    tour.revive()
}

/// Returns the access entries of operators on a node.
pub(crate) fn operators_entries(node: &Node) -> Result<BTreeSet<String>> {
    let listed = node.lota(&["access", "list", "--json"])?;
    let entries = listed.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let of_operators = entries.iter().filter(|entry| entry["source"] == "command");
    Ok(of_operators
        .map(|entry| format!("{} {}", entry["subject"].as_str().unwrap_or_default(), entry["allow"]))
        .collect())
}

/// Returns the wire version in which a node sends to each other.
pub(crate) fn wire_versions(node: &Node) -> Result<BTreeMap<String, u64>> {
    // It exits with an error if it has a warning, for example about a peer that has just been restarted.
    let status = node.command().args(["status", "--json", "--config"]).arg(node.config()).output()?;
    let status: Value = serde_json::from_slice(&status.stdout).context("no status")?;
    let peers = status["peers"].as_array().context("no peers in the status")?;
    let version = |peer: &Value| {
        let version = peer["wire_version"].as_u64().context("no wire version in the status")?;
        Ok((peer["name"].as_str().unwrap_or_default().to_owned(), version))
    };
    peers.iter().map(version).collect()
}

/// Writes objects. Returns one for each node that only this node has in its cache.
pub(crate) fn one_object_per_node(tour: &Tour) -> Result<Vec<String>> {
    const OBJECTS: u64 = 24;
    tour.client.put_and_hit(&tour.pod(1, 1), "kept/object", OBJECTS)?;
    let caches = tour.nodes.iter().map(Node::cached).collect::<Result<Vec<_>>>()?;
    let keys: Vec<String> = (0..OBJECTS).map(|number| format!("kept/object-{number}")).collect();
    let of = |index: usize| {
        let has = |at: usize, key: &str| caches[at].contains_key(&tour.client.name(key));
        let is_own = |key: &&String| (0..caches.len()).all(|at| has(at, key) == (at == index));
        keys.iter().find(is_own).cloned().with_context(|| format!("node {} owns none", index + 1))
    };
    (0..caches.len()).map(of).collect()
}

/// Returns the version folders in a folder.
pub(crate) fn version_folders(folder: &Path) -> Result<Vec<String>> {
    let found = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let names = found.flatten().map(|found| found.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with('v')).collect();
    names.sort();
    ensure!(!names.is_empty(), "{} has no format", folder.display());
    Ok(names)
}
