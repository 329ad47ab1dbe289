//! This node's pods, and which of them the rules select.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1;
use kube::{Api, Client, ResourceExt as _, runtime::watcher};

use super::{Kubernetes, store::ObjectStore};
use crate::access::{
    identities::ReportedPod,
    pods::{Pod, Uid},
    rules::{Labels, Rule},
};

/// Annotations of the pod at the API server that represents a static pod: both have the UID that kubelet uses
/// (<https://kubernetes.io/docs/reference/labels-annotations-taints/#kubernetes-io-config-mirror>).
const STATIC_UID: [&str; 2] = ["kubernetes.io/config.hash", "kubernetes.io/config.mirror"];

/// Rules that select pods.
#[derive(Clone, Debug, Default)]
pub struct PodRules {
    /// Pods with access.
    pub allowed: Vec<Rule>,
    /// Pods that may send packets with addresses of other pods.
    pub forwarders: Vec<Rule>,
}

/// All pods of this node.
#[derive(Clone, Debug)]
pub struct PodUpdate {
    /// Pods with their own addresses, by UID.
    pub pods: BTreeMap<Uid, Pod>,
    /// All pods that have not ended, by UID.
    pub reported: BTreeMap<Uid, ReportedPod>,
    /// When the update was received.
    pub at: Instant,
}

/// The relevant properties of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    name: String,
    namespace: String,
    labels: Labels,
    /// Its own addresses.
    addresses: BTreeSet<IpAddr>,
    started: i64,
    host_network: bool,
    static_uid: Option<Uid>,
}

/// Name and labels of a namespace.
type Namespace = (String, Labels);

pub(super) async fn follow(kubernetes: &Kubernetes, client: Client) {
    let here = watcher::Config::default().fields(&format!("spec.nodeName={}", kubernetes.node.name));
    let mut pods = Box::pin(kubernetes.watch(Api::<v1::Pod>::all(client.clone()), here, "this node's pods"));
    let all = Api::<v1::Namespace>::all(client);
    let mut namespaces = Box::pin(kubernetes.watch(all, watcher::Config::default(), "namespaces"));
    let mut rules = kubernetes.rules.subscribe();
    let (mut of_pods, mut of_namespaces) =
        (ObjectStore::<Facts>::default(), ObjectStore::<Namespace>::default());
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
            let update =
                select(&rules.borrow_and_update(), &kubernetes.config.namespace, pods, namespaces, at);
            kubernetes.pods.send_replace(Some(update));
        }
    }
}

/// Returns the relevant properties of a pod, or `None` if it has ended.
fn facts(pod: &v1::Pod) -> Option<Facts> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if has_ended {
        return None;
    }
    let host_network = spec.host_network == Some(true);
    let several = status.pod_ips.iter().flatten().map(|address| &address.ip);
    let addresses = several.chain(&status.pod_ip).filter_map(|address| address.parse().ok());
    let [hash, mirror] = STATIC_UID.map(|annotation| pod.annotations().get(annotation));
    Some(Facts {
        name: pod.name_any(),
        namespace: pod.namespace().unwrap_or_default(),
        labels: pod.labels().clone(),
        // Those of a pod on the host network are the node's.
        addresses: if host_network { BTreeSet::new() } else { addresses.collect() },
        started: started(pod, status),
        host_network,
        static_uid: hash.filter(|hash| mirror == Some(*hash)).cloned(),
    })
}

/// Returns when the last of the pod's containers started, or when the node accepted the pod if none has. Containers
/// start after the pod's network is made, and restart when kubelet makes it again.
fn started(pod: &v1::Pod, status: &v1::PodStatus) -> i64 {
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let running =
        containers.filter_map(|container| container.state.as_ref()?.running.as_ref()?.started_at.as_ref());
    let taken_on = status.start_time.as_ref().or(pod.metadata.creation_timestamp.as_ref());
    running.chain(taken_on).map(|time| time.0.as_second()).max().unwrap_or_default()
}

fn select(
    rules: &PodRules,
    home: &str,
    pods: &BTreeMap<String, Facts>,
    namespaces: &BTreeMap<String, Namespace>,
    at: Instant,
) -> PodUpdate {
    let namespaces: BTreeMap<&str, &Labels> =
        namespaces.values().map(|(name, labels)| (name.as_str(), labels)).collect();
    let is_selected = |facts: &Facts, rules: &[Rule]| {
        let of_namespace = namespaces.get(facts.namespace.as_str()).copied();
        rules.iter().any(|rule| rule.selects(&facts.labels, &facts.namespace, of_namespace, home))
    };
    let mut update = PodUpdate { pods: BTreeMap::new(), reported: BTreeMap::new(), at };
    for (uid, facts) in pods {
        let reported = ReportedPod {
            name: format!("{}/{}", facts.namespace, facts.name),
            allowed: is_selected(facts, &rules.allowed),
            forwards: is_selected(facts, &rules.forwarders),
            host_network: facts.host_network,
            static_uid: facts.static_uid.clone(),
        };
        if !facts.addresses.is_empty() {
            let (addresses, started) = (facts.addresses.clone(), facts.started);
            update.pods.insert(uid.clone(), Pod { addresses, allowed: reported.allowed, started });
        }
        update.reported.insert(uid.clone(), reported);
    }
    update
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
    fn addresses_are_a_pods_own() {
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
            let addresses = facts(&pod(&spec, &status)).map_or(BTreeSet::new(), |facts| facts.addresses);
            assert_eq!(addresses, BTreeSet::new(), "{status}");
        }
        let old = facts(&pod(&spec, &json!({ "podIP": "10.1.0.2" }))).unwrap();
        assert_eq!(old.addresses.len(), 1, "`podIP` of an older server");
    }

    #[test]
    fn a_pod_starts_with_its_last_container() {
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
        assert_eq!(second(json!({})), 10, "when it was created");
        assert_eq!(second(json!({ "startTime": "2026-01-01T00:00:12Z", "containerStatuses": [waits] })), 12);
        let both = [state("2026-01-01T00:00:20Z"), state("2026-01-01T00:00:30Z")];
        assert_eq!(second(json!({ "startTime": "2026-01-01T00:00:12Z", "containerStatuses": both })), 30);
    }

    #[test]
    fn a_pod_of_an_unknown_namespace_is_not_selected_by_namespace() {
        let rule: Rule = serde_json::from_value(json!({ "namespaceSelector": {} })).unwrap();
        let rules = PodRules { allowed: vec![rule.clone()], forwarders: vec![rule] };
        let status = json!({ "phase": "Running", "podIP": "10.1.0.2" });
        let known = facts(&pod(&json!({ "containers": [] }), &status)).unwrap();
        let pods = BTreeMap::from([("u".to_owned(), known)]);
        let selected = |namespaces| {
            let update = select(&rules, "home", &pods, &namespaces, Instant::now());
            let reported = &update.reported["u"];
            assert_eq!((reported.allowed, &*reported.name), (update.pods["u"].allowed, "team/p"));
            (reported.allowed, reported.forwards)
        };
        assert_eq!(selected(BTreeMap::new()), (false, false));
        let team = ("n".to_owned(), ("team".to_owned(), Labels::new()));
        assert_eq!(selected(BTreeMap::from([team])), (true, true));
    }

    #[test]
    fn pods_on_the_host_network_and_static_pods_are_reported() {
        let spec = json!({ "containers": [], "hostNetwork": true });
        let mut static_pod = pod(&spec, &json!({ "phase": "Running", "podIP": "10.0.0.1" }));
        let mut annotate = |hash: &str, mirror: &str| {
            let annotations = [(STATIC_UID[0], hash), (STATIC_UID[1], mirror)];
            static_pod.metadata.annotations =
                Some(annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
            facts(&static_pod).unwrap()
        };
        assert_eq!(annotate("h", "h").static_uid, Some("h".to_owned()));
        let known = annotate("h", "other");
        assert_eq!(known.static_uid, None);
        let pods = BTreeMap::from([("u".to_owned(), known)]);
        let update = select(&PodRules::default(), "home", &pods, &BTreeMap::new(), Instant::now());
        assert!(update.pods.is_empty() && update.reported["u"].host_network);
    }
}
