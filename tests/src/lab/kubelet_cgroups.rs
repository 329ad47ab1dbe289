//! Cgroups of nodes that run pods, in each hierarchy of the machine.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{NODES, cgroup};

/// Timeout for killed processes to leave their cgroups.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the name of a node's cgroup.
pub(super) fn of_node(lab: &str, node: u8) -> String {
    format!("{lab}-n{node}")
}

/// Returns another name of each node's own cgroup, in the node's mount namespace.
pub(super) fn of_all_nodes(lab: &str) -> String {
    format!("{lab}-node")
}

/// Returns the folder below `/sys/fs/cgroup` in which every node sees its own cgroup of version 2.
pub(super) fn node_root(lab: &str) -> String {
    let beside_v1 = Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists();
    format!("{}/{}", if beside_v1 { "/unified" } else { "" }, of_all_nodes(lab))
}

/// Returns where a cgroup of this name may be: in the only hierarchy, or in each of several.
fn places(name: &str) -> impl Iterator<Item = PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    hierarchies.chain([root.to_owned()]).map(move |hierarchy| hierarchy.join(name))
}

/// Returns where cgroups of a lab's nodes may be.
pub(super) fn paths(lab: &str) -> Vec<PathBuf> {
    let names = (1..=NODES).map(|node| of_node(lab, node)).chain([of_all_nodes(lab)]);
    names.flat_map(|name| places(&name).collect::<Vec<_>>()).collect()
}

/// Removes the cgroups of a lab's nodes, whose processes have been killed.
///
/// # Errors
/// If processes stay in one.
pub(super) fn remove(lab: &str) -> Result<()> {
    let deadline = Instant::now() + LEAVE_TIMEOUT;
    for path in paths(lab) {
        while path.exists() {
            cgroup::remove(&path);
            ensure!(Instant::now() < deadline, "{} still has processes", path.display());
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}
