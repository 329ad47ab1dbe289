//! Pods that read, and a pod on a host port.

use std::fs;

use anyhow::{Context as _, Result};
use lota_tests::lab::{
    ADMIN, GATEWAY, GATEWAY_PORT, NODES,
    kubernetes::{images::CLIENT, kubelet::static_pods},
};
use serde_json::{Value, json};

use crate::{
    kubectl::{Kubectl, PodInfo, wait},
    reads::Kind,
    setup::{Cluster, OBJECT},
};

/// Namespace that the rules select.
pub(crate) const TRAINING: &str = "training";
/// Namespace that they do not select.
pub(crate) const ELSEWHERE: &str = "elsewhere";
/// Value of the label `app` that the rules select.
pub(crate) const SELECTED: &str = "train";
/// Number of addresses that [`apply`] uses on each node.
pub(crate) const ADDRESSES_PER_NODE: usize = 4;

/// Kinds of reads of pods with a network of their own, on which LOTA answers queries and intercepts connections.
const OWN_NETWORK: [Kind; 3] = [Kind::Name, Kind::Address, Kind::Gateway];
/// The same where netfilter handles packets before LOTA sees them.
const FILTERED_NETWORK: [Kind; 2] = [Kind::Name, Kind::Address];
/// Kind that LOTA answers for pods on the node's network.
const HOST_NETWORK: [Kind; 1] = [Kind::Address];

/// A deployment of readers with a pod on each node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readers {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    /// Value of the label `app`.
    app: &'static str,
    host_network: bool,
    /// Pause between reads, in seconds.
    period: &'static str,
}

/// The pods that the rules select, with a network of their own.
pub(crate) const TRAIN: Readers = of(TRAINING, "train", SELECTED, "0.2");
/// Other pods in the same namespace.
pub(crate) const OTHER: Readers = of(TRAINING, "other", "other", "2");
/// Every deployment of readers.
pub(crate) const READERS: [Readers; 5] = [
    TRAIN,
    OTHER,
    of(ELSEWHERE, "elsewhere", SELECTED, "2"),
    on_host(of(TRAINING, "host-train", SELECTED, "1")),
    on_host(of(TRAINING, "host-other", "other", "2")),
];

const fn of(namespace: &'static str, name: &'static str, app: &'static str, period: &'static str) -> Readers {
    Readers { namespace, name, app, host_network: false, period }
}

const fn on_host(readers: Readers) -> Readers {
    Readers { host_network: true, ..readers }
}

impl Readers {
    /// Returns the kinds of reads that LOTA answers; empty if the rules do not select the pods. `filtered`: behind a bridge at
    /// whose ports netfilter handles packets.
    pub(crate) fn kinds(&self, filtered: bool) -> &'static [Kind] {
        match (self.is_selected(), self.host_network, filtered) {
            (false, ..) => &[],
            (true, true, _) => &HOST_NETWORK,
            (true, false, false) => &OWN_NETWORK,
            (true, false, true) => &FILTERED_NETWORK,
        }
    }

    pub(crate) fn is_selected(&self) -> bool {
        self.namespace == TRAINING && self.app == SELECTED
    }

    fn deployment(&self) -> Value {
        let spec = pod_spec(reader(self.period));
        let spec = if self.host_network { on_host_network(spec) } else { spec };
        deployment(self.namespace, self.name, self.app, spec)
    }
}

/// Makes a pod of each deployment on each node, and a static pod on the host network; waits until they run.
pub(crate) fn apply(cluster: &Cluster) -> Result<()> {
    let namespace = |name: &str, access: &str| {
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": { "lota.dev/access": access } },
        })
    };
    let mut objects = vec![namespace(TRAINING, "true"), namespace(ELSEWHERE, "false")];
    objects.extend(READERS.iter().map(Readers::deployment));
    let command = ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/etc"];
    let mut ingress = json!({ "command": command, "ports": [{ "containerPort": 8080, "hostPort": 80 }] });
    ingress["image"] = CLIENT.into();
    objects.push(deployment(ELSEWHERE, "ingress", "ingress", pod_spec(ingress)));
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    cluster.kubectl.apply(&list.to_string())?;
    for node in 1..=NODES {
        let file = static_pods(&cluster.lab, node).join("pod.json");
        if !file.exists() {
            // Kubelet must not see half of it.
            let unfinished = cluster.lab.folder().join("static-pod.json");
            fs::write(&unfinished, static_pod().to_string())?;
            fs::rename(unfinished, file)?;
        }
    }
    for Readers { namespace, name, .. } in READERS {
        wait_pods(&cluster.kubectl, namespace, name)?;
    }
    wait_pods(&cluster.kubectl, ELSEWHERE, "ingress")?;
    wait_pods(&cluster.kubectl, TRAINING, "static").map(drop)
}

/// Waits until a deployment has a running pod on each node; returns them, in the order of nodes.
pub(crate) fn wait_pods(kubectl: &Kubectl, namespace: &str, name: &str) -> Result<Vec<PodInfo>> {
    let mut pods = Vec::new();
    let waited = wait(&format!("the pods of {namespace}/{name} to run"), || {
        pods = kubectl.pods(namespace, &format!("deployment={name}"))?;
        pods.sort_by_key(|pod| pod.node);
        Ok(pods.iter().filter(|pod| pod.is_ready).map(|pod| pod.node).eq(1..=NODES))
    });
    waited.with_context(|| {
        let state = kubectl.run(&["get", "pods,events", "--all-namespaces", "-o", "wide"]);
        state.unwrap_or_else(|error| format!("{error:#}"))
    })?;
    Ok(pods)
}

/// Returns a container that reads in a loop, with a pause in seconds.
pub(crate) fn reader(period: &str) -> Value {
    let variable = |name: &str, value: &str| json!({ "name": name, "value": value });
    json!({
        "image": CLIENT,
        "env": [
            variable("KINDS", "name address gateway"),
            variable("OBJECT", OBJECT),
            variable("GATEWAY", &format!("{GATEWAY}:{GATEWAY_PORT}")),
            variable("ACCESS_KEY", &ADMIN.access_key),
            variable("SECRET_KEY", &ADMIN.secret_key),
            variable("PERIOD", period),
        ],
    })
}

/// Returns the specification of a pod with this container.
pub(crate) fn pod_spec(mut container: Value) -> Value {
    container["name"] = "main".into();
    container["imagePullPolicy"] = "Never".into();
    json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
    })
}

fn on_host_network(mut spec: Value) -> Value {
    spec["hostNetwork"] = true.into();
    spec["dnsPolicy"] = "ClusterFirstWithHostNet".into();
    spec
}

/// Returns a static pod on the host network that the rules select. Kubelet adds the name of its node.
fn static_pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": TRAINING, "name": "static", "labels": { "deployment": "static", "app": SELECTED },
        },
        "spec": on_host_network(pod_spec(reader("2"))),
    })
}

fn deployment(namespace: &str, name: &str, app: &str, mut spec: Value) -> Value {
    let own = json!({ "matchLabels": { "deployment": name } });
    spec["affinity"]["podAntiAffinity"] = json!({
        "requiredDuringSchedulingIgnoredDuringExecution":
            [{ "labelSelector": own, "topologyKey": "kubernetes.io/hostname" }],
    });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "replicas": NODES,
            "strategy": { "type": "Recreate" },
            "selector": own,
            "template": { "metadata": { "labels": { "deployment": name, "app": app } }, "spec": spec },
        },
    })
}
