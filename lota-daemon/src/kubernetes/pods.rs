//! This node's pods: which there are, and which of them the rules select.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1;
use kube::{Api, Client, ResourceExt as _, runtime::watcher};

use super::{Kubernetes, store::Store};
use crate::access::{
    pods::{Pod, Uid},
    rules::{Labels, Rule},
};

/// All pods of this node with addresses of their own.
#[derive(Clone, Debug)]
pub struct Told {
    /// By their identities.
    pub pods: BTreeMap<Uid, Pod>,
    /// When it was told.
    pub at: Instant,
}

/// What is wanted of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    namespace: String,
    labels: Labels,
    addresses: BTreeSet<IpAddr>,
    started: i64,
}

/// A namespace's name and labels.
type Namespace = (String, Labels);

pub(super) async fn follow(kubernetes: &Kubernetes, client: Client) {
    let here = watcher::Config::default().fields(&format!("spec.nodeName={}", kubernetes.node.name));
    let mut pods = Box::pin(kubernetes.watch(Api::<v1::Pod>::all(client.clone()), here, "this node's pods"));
    let all = Api::<v1::Namespace>::all(client);
    let mut namespaces = Box::pin(kubernetes.watch(all, watcher::Config::default(), "namespaces"));
    let mut rules = kubernetes.rules.subscribe();
    let (mut of_pods, mut of_namespaces) = (Store::<Facts>::default(), Store::<Namespace>::default());
    loop {
        let changed = tokio::select! {
            Some(event) = pods.next() => of_pods.take(event, facts),
            Some(event) = namespaces.next() => {
                of_namespaces.take(event, |namespace| Some((namespace.name_any(), namespace.labels().clone())))
            }
            changed = rules.changed() => changed.is_ok(),
        };
        let at = Instant::now();
        if changed && let (Some(pods), Some(namespaces)) = (of_pods.all(), of_namespaces.all()) {
            let pods = select(&rules.borrow_and_update(), &kubernetes.config.namespace, pods, namespaces);
            kubernetes.pods.send_replace(Some(Told { pods, at }));
        }
    }
}

/// What counts of a pod; nothing, if it has no address of its own (any more).
fn facts(pod: &v1::Pod) -> Option<Facts> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    // Processes of the node's own network namespace cannot be told apart: `access.host_network` is about them.
    if has_ended || spec.host_network == Some(true) {
        return None;
    }
    let several = status.pod_ips.iter().flatten().map(|address| &address.ip);
    let addresses: BTreeSet<IpAddr> =
        several.chain(&status.pod_ip).filter_map(|address| address.parse().ok()).collect();
    let namespace = pod.namespace().unwrap_or_default();
    (!addresses.is_empty()).then(|| Facts {
        namespace,
        labels: pod.labels().clone(),
        addresses,
        started: started(pod, status),
    })
}

/// When the last of its containers started; before the first did, when the node took it on. Containers start after
/// their pod's network is made: where kubelet makes that anew, they start anew.
fn started(pod: &v1::Pod, status: &v1::PodStatus) -> i64 {
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let running =
        containers.filter_map(|container| container.state.as_ref()?.running.as_ref()?.started_at.as_ref());
    let taken_on = status.start_time.as_ref().or(pod.metadata.creation_timestamp.as_ref());
    running.chain(taken_on).map(|time| time.0.as_second()).max().unwrap_or_default()
}

fn select(
    rules: &[Rule],
    home: &str,
    pods: &BTreeMap<String, Facts>,
    namespaces: &BTreeMap<String, Namespace>,
) -> BTreeMap<Uid, Pod> {
    let namespaces: BTreeMap<&str, &Labels> =
        namespaces.values().map(|(name, labels)| (name.as_str(), labels)).collect();
    let pod = |facts: &Facts| {
        let of_namespace = namespaces.get(facts.namespace.as_str()).copied();
        let selects = |rule: &Rule| rule.selects(&facts.labels, &facts.namespace, of_namespace, home);
        let allowed = rules.iter().any(selects);
        Pod { addresses: facts.addresses.clone(), allowed, started: facts.started }
    };
    pods.iter().map(|(uid, facts)| (uid.clone(), pod(facts))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: &Value, status: &Value) -> v1::Pod {
        let metadata = json!({
            "name": "p", "namespace": "team", "uid": "u", "labels": {"app": "train"},
            "creationTimestamp": "2026-01-01T00:00:10Z",
        });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec, "status": status })).unwrap()
    }

    #[test]
    fn only_pods_with_addresses_of_their_own_count() {
        let spec = json!({ "containers": [] });
        let both = json!({ "phase": "Running", "podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}, {"ip": "fd00::2"}] });
        let known = facts(&pod(&spec, &both)).unwrap();
        assert_eq!(known.addresses, ["10.1.0.2", "fd00::2"].map(|ip| ip.parse().unwrap()).into());
        assert_eq!((known.namespace.as_str(), known.started), ("team", 1_767_225_610));
        for (spec, status) in [
            (json!({ "containers": [], "hostNetwork": true }), both.clone()),
            (spec.clone(), json!({ "phase": "Pending" })),
            (spec.clone(), json!({ "phase": "Succeeded", "podIP": "10.1.0.2" })),
            (spec.clone(), json!({ "phase": "Failed", "podIP": "10.1.0.2" })),
            (spec.clone(), json!({ "phase": "Running", "podIP": "not an address" })),
        ] {
            assert_eq!(facts(&pod(&spec, &status)), None, "{status}");
        }
        assert!(facts(&pod(&spec, &json!({ "podIP": "10.1.0.2" }))).is_some(), "an older server's");
    }

    #[test]
    fn a_pod_starts_with_the_last_of_its_containers() {
        let state = |at: &str| {
            json!({ "name": "c", "ready": true, "restartCount": 0, "image": "", "imageID": "",
            "state": { "running": { "startedAt": at } } })
        };
        let waits = json!({ "name": "c", "ready": false, "restartCount": 1, "image": "", "imageID": "",
            "state": { "waiting": { "reason": "CrashLoopBackOff" } } });
        let second = |status: Value| {
            let mut status = status;
            status["podIP"] = "10.1.0.2".into();
            facts(&pod(&json!({ "containers": [] }), &status)).unwrap().started - 1_767_225_600
        };
        assert_eq!(second(json!({})), 10, "when it was made");
        assert_eq!(second(json!({ "startTime": "2026-01-01T00:00:12Z", "containerStatuses": [waits] })), 12);
        let both = [state("2026-01-01T00:00:20Z"), state("2026-01-01T00:00:30Z")];
        assert_eq!(second(json!({ "startTime": "2026-01-01T00:00:12Z", "containerStatuses": both })), 30);
    }

    #[test]
    fn a_pod_of_a_namespace_that_is_not_known_is_selected_by_no_namespace() {
        let rules: Vec<Rule> = vec![serde_json::from_value(json!({ "namespaceSelector": {} })).unwrap()];
        let status = json!({ "phase": "Running", "podIP": "10.1.0.2" });
        let known = facts(&pod(&json!({ "containers": [] }), &status)).unwrap();
        let pods = BTreeMap::from([("u".to_owned(), known)]);
        let allowed = |namespaces| select(&rules, "home", &pods, &namespaces)["u"].allowed;
        assert!(!allowed(BTreeMap::new()));
        assert!(allowed(BTreeMap::from([("n".to_owned(), ("team".to_owned(), Labels::new()))])));
    }
}
