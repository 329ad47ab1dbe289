//! Requests of the tests to the API server.

use anyhow::Result;
use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// LOTA's own namespace.
pub(crate) const HOME: &str = "cw-object-storage";
/// LOTA's RBAC objects.
pub(crate) const ROLES: [&str; 4] = ["clusterrole", "clusterrolebinding", "role", "rolebinding"];

pub(crate) async fn prepare(client: Client) -> Result<()> {
    for name in [HOME, "team-a", "team-b"] {
        create(&Api::<Namespace>::all(client.clone()), json!({ "metadata": { "name": name } })).await?;
    }
    Ok(())
}

pub(crate) async fn create<K>(api: &Api<K>, object: Value) -> Result<()>
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object)?;
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}

/// A pod to create.
#[derive(Clone, Debug)]
pub(crate) struct TestPod {
    pub(crate) name: String,
    pub(crate) namespace: &'static str,
    pub(crate) allowed: bool,
    pub(crate) host_network: bool,
    pub(crate) address: String,
    pub(crate) node: &'static str,
}

/// Creates a pod like kubelet: first the object, then its address.
pub(crate) async fn add(client: &Client, pod: &TestPod) -> Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), pod.namespace);
    create(
        &pods,
        json!({
            "metadata": { "name": pod.name, "labels": { "app": label(pod.allowed) } },
            "spec": {
                "nodeName": pod.node, "hostNetwork": pod.host_network,
                "containers": [{ "name": "c", "image": "none" }],
            },
        }),
    )
    .await?;
    let status = json!({ "status": {
        "phase": "Running", "podIP": pod.address, "podIPs": [{ "ip": pod.address }],
    } });
    pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

pub(crate) async fn remove(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    Api::<Pod>::namespaced(client.clone(), namespace).delete(name, &at_once).await?;
    Ok(())
}

pub(crate) async fn relabel(client: &Client, namespace: &str, name: &str, allowed: bool) -> Result<()> {
    let labels = json!({ "metadata": { "labels": { "app": label(allowed) } } });
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    pods.patch(name, &PatchParams::default(), &Patch::Merge(labels)).await?;
    Ok(())
}

/// Reports a start of a pod's containers now.
pub(crate) async fn start(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let state = json!({ "running": { "startedAt": Time(Timestamp::now()) } });
    let container = json!({ "name": "c", "ready": true, "restartCount": 1, "image": "none", "imageID": "", "state": state });
    let status = json!({ "status": { "containerStatuses": [container] } });
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

pub(crate) async fn end(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let status = json!({ "status": { "phase": "Succeeded" } });
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

pub(crate) async fn relabel_namespace(client: &Client, name: &str, allowed: bool) -> Result<()> {
    let labels = json!({ "metadata": { "labels": { "lota": label(allowed) } } });
    Api::<Namespace>::all(client.clone()).patch(name, &PatchParams::default(), &Patch::Merge(labels)).await?;
    Ok(())
}

fn label(allowed: bool) -> &'static str {
    if allowed { "train" } else { "other" }
}
