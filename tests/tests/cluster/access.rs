//! Access by rules, on each kind of CNI, and what else translates addresses on a node.

use anyhow::{Context as _, Result, ensure};
use lota_tests::lab::{GATEWAY, NODES, kubernetes::network::PodNetwork, node_address, run};
use serde_json::Value;

use crate::{
    install::{HOME, Install},
    kubectl::PodInfo,
    reads::{Kind, ReadLog},
    setup::Cluster,
    workload::{self, OTHER, READERS, Readers, TRAIN, TRAINING, wait_pods},
};

const HITS: &str = "lota_requests_total{cache=\"hit\",status=\"200\"}";
/// Rounds of refusals of a pod that count as permanent.
const REFUSALS: usize = 3;
/// Kinds of reads that are refused without access.
const REFUSED: [Kind; 2] = [Kind::Name, Kind::Address];

/// Verifies that the selected pods get hits on each node, and that others are refused.
pub(crate) fn by_rules(cluster: &mut Cluster) -> Result<()> {
    cluster.install(Install::Privileged)?;
    cluster.set_filtered(true)?;
    workload::apply(cluster)?;
    // Kubelet knows static pods by another UID than the API server.
    for pod in wait_pods(&cluster.kubectl, TRAINING, "static")? {
        allowed(cluster, &[Kind::Address], &pod)?;
    }
    of_all(cluster)
}

/// Verifies the same for pods that start beside daemons of hardened pods, and without netfilter at the bridge.
pub(crate) fn of_new_pods(cluster: &mut Cluster) -> Result<()> {
    cluster.install(Install::Hardened)?;
    cluster.set_filtered(false)?;
    workload::apply(cluster)?;
    let set = cluster.kubectl.json(&["-n", HOME, "get", "daemonset", "lota"])?;
    let context = &set["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    ensure!(context["privileged"] == false, "{context}");
    for steps in [&["restart"][..], &["status", "--timeout=120s"]] {
        for Readers { namespace, name, .. } in READERS {
            let resource = format!("deployment/{name}");
            let rollout = [&["-n", namespace, "rollout"], steps, &[&resource]].concat();
            cluster.kubectl.run(&rollout)?;
        }
    }
    of_all(cluster)
}

fn of_all(cluster: &Cluster) -> Result<()> {
    for readers in &READERS {
        for pod in wait_pods(&cluster.kubectl, readers.namespace, readers.name)? {
            if readers.is_selected() {
                allowed(cluster, cluster.kinds(readers, pod.node), &pod)?;
            } else {
                refused(cluster, readers.namespace, &pod)?;
            }
        }
    }
    for node in 1..=NODES {
        let hits = cluster.metric(node, HITS)?;
        ensure!(hits > 0.0, "n{node} has counted no hit");
        let identity = &cluster.lota_json(node, &["datapath", "status", "--json"])?["identity"];
        ensure!(
            identity["by_cgroup"] == true && identity["unidentified"] == Value::Array(Vec::new()),
            "n{node} identifies pods by {identity}"
        );
    }
    Ok(())
}

/// Verifies that a pod of [`TRAINING`] gets hits.
fn allowed(cluster: &Cluster, kinds: &[Kind], pod: &PodInfo) -> Result<()> {
    let network = PodNetwork::of(pod.node);
    let log = ReadLog::wait_hits(&cluster.kubectl, (TRAINING, &pod.name), kinds)
        .with_context(|| format!("on {network:?}"));
    let log = log.with_context(|| status(cluster, pod.node))?;
    let reached = log.verify_selected(&cluster.digest, kinds);
    let seconds = reached.with_context(|| format!("{} on {network:?}", pod.name))? - log.started();
    eprintln!("  n{} {:?}: {} reads after {seconds:.2} s", pod.node, network.routes, pod.name);
    Ok(())
}

/// Verifies that LOTA answers no read of a pod.
fn refused(cluster: &Cluster, namespace: &str, pod: &PodInfo) -> Result<()> {
    let log = ReadLog::wait(&cluster.kubectl, (namespace, &pod.name), "reads", |log| {
        log.rounds(&REFUSED) >= REFUSALS
    })?;
    log.verify_others(&cluster.digest).with_context(|| format!("{} on n{}", pod.name, pod.node))
}

/// Verifies that pods reach services and host ports by translation, beside LOTA.
pub(crate) fn services(cluster: &mut Cluster) -> Result<()> {
    cluster.install(Install::Any)?;
    workload::apply(cluster)?;
    let switch = cluster.lab.switch();
    for pod in wait_pods(&cluster.kubectl, TRAINING, OTHER.name)? {
        let rules = PodNetwork::of(pod.node).rules;
        // The address of the API server's service.
        let get = ["curl", "-sSk", "--max-time", "10", "https://10.96.0.1/version"];
        let exec = [&["-n", TRAINING, "exec", &pod.name, "--"], &get[..]].concat();
        let version = cluster.kubectl.run(&exec).with_context(|| format!("by {rules:?}"))?;
        ensure!(version.contains("v1.20"), "the API server's service: {version}");
        // The same port as LOTA's, at the node's address.
        let address = node_address(pod.node);
        let mut curl = switch.command("curl");
        let hosts = run(curl.args(["-sSf", "--max-time", "10", &format!("http://{address}/hosts")]))
            .with_context(|| format!("host port 80 of n{}, seen from {GATEWAY}", pod.node))?;
        ensure!(hosts.contains("ingress"), "host port 80 of n{}: {hosts}", pod.node);
    }
    for pod in wait_pods(&cluster.kubectl, TRAINING, TRAIN.name)? {
        let kinds = cluster.kinds(&TRAIN, pod.node);
        let read = (TRAINING, &*pod.name);
        let before = ReadLog::of(&cluster.kubectl, TRAINING, &pod.name)?.map_or(0, |log| log.rounds(kinds));
        ReadLog::wait(&cluster.kubectl, read, "further reads", |log| log.rounds(kinds) >= before + 2)?;
        ReadLog::wait_hits(&cluster.kubectl, read, kinds)?.verify_selected(&cluster.digest, kinds)?;
    }
    for node in 1..=NODES {
        let report = cluster.lota_json(node, &["status", "--json"])?;
        let findings = report["findings"].as_array().context("no findings")?;
        let failures: Vec<_> = findings.iter().filter(|finding| finding["level"] == "fail").collect();
        ensure!(failures.is_empty(), "n{node}: {failures:?}");
    }
    eprintln!("{}", cluster.lota(1, &["status"])?);
    Ok(())
}

/// Returns what a node shows about its pods, for an error.
fn status(cluster: &Cluster, node: u8) -> String {
    let commands: [&[&str]; 3] = [&["datapath", "status"], &["access", "list"], &["status"]];
    let pods =
        commands.map(|command| cluster.lota(node, command).unwrap_or_else(|error| format!("{error:#}")));
    pods.join("\n")
}
