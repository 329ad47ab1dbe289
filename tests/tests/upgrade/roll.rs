//! Nodes are upgraded one by one, and rolled back.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{DENIED, NODES, Node, Pod, Program, Style},
    tool,
    tour::{Tour, wait_until, wait_within},
};

use super::{
    load::under_load,
    nodes::{one_object_per_node, operators_entries, set_all, version_folders, wire_versions},
};

/// Pod that the configuration allows and an operator denies.
const DENIED_BY_OPERATOR: Pod = Pod(2, 2);
/// Prefix that an operator allows on every node.
const ALLOWED_BY_OPERATOR: &str = "10.99.0.0/16";
/// Pod that an operator allows at its interface, beside the configuration.
const ALLOWED_AT_INTERFACE: Pod = Pod(1, 2);

/// Timeout for a hit from another node. Half of the machine computes for the clients.
const SERVING_TIMEOUT: Duration = Duration::from_secs(10);

/// A build and the versions of its formats that differ.
struct Build {
    program: Program,
    wire: u64,
    cache: &'static str,
    has_status: bool,
}

/// State that must be the same after each step.
struct Before {
    /// For each node, an object that it owns.
    objects: Vec<String>,
    /// For each node, what operators have entered.
    entries: Vec<BTreeSet<String>>,
}

/// Both builds have the same formats: nothing is lost.
pub(crate) fn released(tour: &mut Tour) -> Result<()> {
    let Ok(program) = tool("LOTA_BIN_RELEASED") else {
        println!("    NOT TESTED: the build of the release point is unavailable");
        return Ok(());
    };
    let released = Build { program: Program(program), wire: 1, cache: "v4", has_status: false };
    let today = today_of(tour);
    forward_and_back(tour, &released, &today)
}

/// Wire, maps and cache have a newer version in one of the builds.
pub(crate) fn next_formats(tour: &mut Tour) -> Result<()> {
    let next = Build { program: Program(tool("LOTA_BIN_NEXT")?), wire: 2, cache: "v5", has_status: true };
    let today = today_of(tour);
    forward_and_back(tour, &today, &next)
}

fn today_of(tour: &Tour) -> Build {
    Build { program: tour.program.clone(), wire: 1, cache: "v4", has_status: true }
}

fn forward_and_back(tour: &mut Tour, old: &Build, new: &Build) -> Result<()> {
    let began = Instant::now();
    set_all(tour, &old.program)?;
    let before = prepare(tour)?;
    let load = under_load(tour, &[DENIED, DENIED_BY_OPERATOR], |tour| {
        let mut builds = vec![old; NODES.into()];
        for build in [new, old] {
            for index in 0..builds.len() {
                builds[index] = build;
                let what = || format!("n{} runs {}", index + 1, build.program.0.display());
                step(tour, &builds, index, &before).with_context(what)?;
            }
        }
        Ok(())
    })?;
    println!("    {load}; {:.1} s", began.elapsed().as_secs_f64());
    for node in &tour.nodes {
        for entry in operators_entries(node)? {
            node.lota(&["access", "forget", subject(&entry)])?;
        }
    }
    Ok(())
}

fn subject(entry: &str) -> &str {
    entry.split(' ').next().unwrap_or_default()
}

fn prepare(tour: &Tour) -> Result<Before> {
    for node in &tour.nodes {
        node.lota(&["access", "allow", ALLOWED_BY_OPERATOR])?;
    }
    for (verb, pod) in [("deny", DENIED_BY_OPERATOR), ("allow", ALLOWED_AT_INTERFACE)] {
        let node = &tour.nodes[usize::from(pod.0) - 1];
        node.lota(&["access", verb, &pod.address().to_string()])?;
    }
    let entries = tour.nodes.iter().map(operators_entries).collect::<Result<Vec<_>>>()?;
    ensure!(entries.iter().map(BTreeSet::len).eq([2, 2, 1]), "{entries:?}");
    Ok(Before { objects: one_object_per_node(tour)?, entries })
}

/// Has a node run its new build, and verifies what both builds keep.
fn step(tour: &mut Tour, builds: &[&Build], index: usize, before: &Before) -> Result<()> {
    let node = &mut tour.nodes[index];
    let has_same_formats = formats(node)? == [builds[index].cache];
    node.set_program(&builds[index].program);
    node.start()?;
    node.lota(&["datapath", "status"])?;
    // What is bound to an interface is lost with the maps, for good.
    let expected: BTreeSet<String> = match has_same_formats {
        true => before.entries[index].clone(),
        false => {
            let bound = ALLOWED_AT_INTERFACE.address().to_string();
            before.entries[index].iter().filter(|entry| subject(entry) != bound).cloned().collect()
        }
    };
    let entries = operators_entries(node)?;
    ensure!(entries == expected, "the entries of operators are {entries:?}, not {expected:?}");
    if has_same_formats {
        let (cached, key) = (node.cached()?, tour.client.name(&before.objects[index]));
        ensure!(cached.contains_key(&key), "the cache is lost");
    }
    serve_each_other(tour, index, before)?;
    let node = &tour.nodes[index];
    wait_until("the other formats to be removed", || {
        let pins = version_folders(&tour.lab.pins(u8::try_from(index + 1)?))?;
        Ok(formats(node)? == [builds[index].cache] && pins.len() == 1)
    })?;
    for (at, build) in builds.iter().enumerate().filter(|(_, build)| build.has_status) {
        wait_until("the nodes to know each other's versions", || {
            let expected = builds.iter().enumerate().filter(|(of, _)| *of != at);
            let expected = expected.map(|(of, peer)| (format!("n{}", of + 1), peer.wire.min(build.wire)));
            Ok(wire_versions(&tour.nodes[at])? == expected.collect())
        })?;
    }
    Ok(())
}

fn formats(node: &Node) -> Result<Vec<String>> {
    version_folders(&node.cache_folder().join("lota-cache"))
}

/// Reads an object of the changed node through each other, and one of each other through it, until the owner answers with a hit: it may have to verify the gateway first, or
/// to cache the object again.
fn serve_each_other(tour: &Tour, changed: usize, before: &Before) -> Result<()> {
    let changed = tour.nodes[changed].name();
    for (owner, key) in tour.nodes.iter().zip(&before.objects) {
        let answered = || owner.metric("lota_peer_requests_total{role=\"served\"}");
        let others = tour.one_pod_per_node().map(|(number, pod)| (format!("n{number}"), pod));
        let is_asked =
            |reader: &str| reader != owner.name() && (owner.name() == changed || reader == changed);
        for (_, pod) in others.filter(|(reader, _)| is_asked(reader)) {
            let (already, what) = (answered()?, format!("{} to serve {}", owner.name(), pod.name()));
            wait_within(SERVING_TIMEOUT, &what, || {
                let got = tour.client.get(&pod, key, Style::Path)?;
                ensure!(got.status == 200, "{what}: {} {}", got.status, got.code);
                Ok(got.cache() == "hit" && got.node() == owner.name())
            })?;
            ensure!(answered()? > already, "{} counts no request of a peer", owner.name());
        }
    }
    Ok(())
}
