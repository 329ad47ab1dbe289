//! Rollouts of the DaemonSet under load.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lota_tests::lab::kubernetes::network::PodNetwork;
use serde_json::{Value, json};

use crate::{
    install::{HOME, Install},
    kubectl::{PodInfo, wait},
    reads::{Kind, Read, ReadLog, uptime},
    setup::Cluster,
    workload::{self, READERS, Readers, wait_pods},
};

/// Rounds of reads after a rollout.
const ROUNDS: usize = 2;

/// The reads of a selected pod since a rollout began.
struct PodReads {
    pod: PodInfo,
    /// The kinds that LOTA answers.
    kinds: &'static [Kind],
    reads: Vec<Read>,
}

/// Verifies that no read fails while hardened pods take over from privileged ones, in the way of a DaemonSet with the
/// chart's `maxSurge: 1` and `maxUnavailable: 0`. Kubernetes has that since 1.22; here, the test is the controller.
pub(crate) fn with_surge(cluster: &mut Cluster) -> Result<()> {
    cluster.install(Install::Privileged)?;
    workload::apply(cluster)?;
    let set = cluster.daemon_set(Install::Hardened)?;
    let pause = set["spec"]["minReadySeconds"].as_u64().context("no minReadySeconds")?;
    settle(cluster)?;
    let begun = uptime()?;
    cluster.kubectl.run(&["-n", HOME, "delete", "daemonset", "lota", "--cascade=orphan"])?;
    cluster.installed = None;
    for (node, old) in cluster.lota_pods()? {
        let new = format!("lota-surge-n{node}");
        cluster.kubectl.apply(&pod_of(&set, &new, node).to_string())?;
        wait(&format!("{new} to be ready"), || {
            let pod = cluster.kubectl.json(&["-n", HOME, "get", "pod", &new])?;
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            Ok(conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
        })?;
        thread::sleep(Duration::from_secs(pause));
        cluster.kubectl.run(&["-n", HOME, "delete", "pod", &old])?;
    }
    for PodReads { pod, kinds, reads } in since(cluster, begun)? {
        let lost = reads.iter().find(|read| kinds.contains(&read.kind) && !read.is_of_lota(&cluster.digest));
        ensure!(lost.is_none(), "{} on n{}: {lost:?}", pod.name, pod.node);
        eprintln!("  n{}: all {} reads of {} succeeded", pod.node, reads.len(), pod.name);
    }
    cluster.installed = Some(Install::Hardened);
    Ok(())
}

/// Verifies that a rollout without surge, as Kubernetes 1.20 does it, interrupts the reads of a node's pods once, with
/// refusals only, and those at the gateway's address not at all. Pods without a DaemonSet are adopted and replaced.
pub(crate) fn without_surge(cluster: &mut Cluster) -> Result<()> {
    cluster.install(Install::Any)?;
    workload::apply(cluster)?;
    let before = cluster.lota_pods()?;
    settle(cluster)?;
    let begun = uptime()?;
    cluster.apply(Install::Hardened)?;
    cluster.kubectl.run(&["-n", HOME, "rollout", "restart", "daemonset/lota"])?;
    cluster.wait_installed()?;
    for (node, pod) in cluster.lota_pods()? {
        ensure!(before.get(&node) != Some(&pod), "{pod} on n{node} was not replaced");
    }
    for PodReads { pod, kinds, reads } in since(cluster, begun)? {
        let (at_gateway, at_vip): (Vec<Read>, Vec<Read>) = reads
            .into_iter()
            .filter(|read| kinds.contains(&read.kind))
            .partition(|read| read.kind == Kind::Gateway);
        let is_answered =
            |read: &&Read| read.is_of_lota(&cluster.digest) || read.is_of_gateway(&cluster.digest);
        let lost = at_gateway.iter().find(|read| !is_answered(read));
        ensure!(lost.is_none(), "{} on n{}, at the gateway's address: {lost:?}", pod.name, pod.node);
        let passed = at_gateway.iter().filter(|read| read.is_of_gateway(&cluster.digest)).count();
        let (refused, gap) = verify_gap(&at_vip, &cluster.digest)
            .with_context(|| format!("{} on {:?}", pod.name, PodNetwork::of(pod.node)))?;
        eprintln!(
            "  n{}: {refused} of {} reads of {} refused, for {gap:.1} s; {passed} of {} by the gateway",
            pod.node,
            at_vip.len(),
            pod.name,
            at_gateway.len()
        );
    }
    Ok(())
}

/// Waits until every selected pod has access.
fn settle(cluster: &Cluster) -> Result<()> {
    for readers in selected() {
        for pod in wait_pods(&cluster.kubectl, readers.namespace, readers.name)? {
            let kinds = cluster.kinds(readers, pod.node);
            ReadLog::wait_hits(&cluster.kubectl, (readers.namespace, &pod.name), kinds)?;
        }
    }
    Ok(())
}

fn selected() -> impl Iterator<Item = &'static Readers> {
    READERS.iter().filter(|readers| readers.is_selected())
}

/// Returns the reads of each selected pod since a rollout began, once some are later than its end.
fn since(cluster: &Cluster, begun: f64) -> Result<Vec<PodReads>> {
    let ended = uptime()?;
    let mut all = Vec::new();
    for readers in selected() {
        for pod in wait_pods(&cluster.kubectl, readers.namespace, readers.name)? {
            let (read, kinds) = ((readers.namespace, &*pod.name), cluster.kinds(readers, pod.node));
            let log = ReadLog::wait(&cluster.kubectl, read, "reads after the rollout", |log| {
                let is_after = |kind: Kind| move |read: &&Read| read.kind == kind && read.at > ended;
                kinds.iter().all(|kind| log.reads.iter().filter(is_after(*kind)).count() >= ROUNDS)
            })?;
            let mut reads = log.reads;
            reads.retain(|read| read.at > begun);
            all.push(PodReads { pod, kinds, reads });
        }
    }
    Ok(all)
}

/// Verifies that all failures are refusals, without a success between them. Returns their number and how long they
/// lasted in seconds.
fn verify_gap(reads: &[Read], digest: &str) -> Result<(usize, f64)> {
    let failures: Vec<usize> = (0..reads.len()).filter(|at| !reads[*at].is_of_lota(digest)).collect();
    for failure in failures.iter().map(|at| &reads[*at]) {
        ensure!(failure.is_unconnected(), "not a refusal: {failure:?}");
    }
    let (Some(first), Some(last)) = (failures.first(), failures.last()) else { return Ok((0, 0.0)) };
    let shown = || reads[*first..=*last].iter().map(|read| format!("{read:?}\n")).collect::<String>();
    ensure!(last - first + 1 == failures.len(), "refused more than once:\n{}", shown());
    Ok((failures.len(), reads[*last].at - reads[*first].at))
}

/// Returns the pod that the DaemonSet's controller would make for a node.
fn pod_of(set: &Value, name: &str, node: u8) -> Value {
    let template = &set["spec"]["template"];
    let mut metadata = template["metadata"].clone();
    metadata["namespace"] = HOME.into();
    metadata["name"] = name.into();
    let mut spec = template["spec"].clone();
    let is_node = json!({ "key": "metadata.name", "operator": "In", "values": [format!("n{node}")] });
    spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!({ "nodeSelectorTerms": [{ "matchFields": [is_node] }] });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
}
