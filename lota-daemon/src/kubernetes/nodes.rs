//! The nodes that run LOTA: the endpoints of its headless service.

use std::net::IpAddr;

use futures_util::StreamExt as _;
use k8s_openapi::api::{
    core::v1::Endpoints,
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::{Api, Client, api::ListParams, runtime::watcher};
use lota_cache::placement::NodeName;
use tokio::sync::watch;

use super::{Kubernetes, KubernetesConfig, Waits, store::ObjectStore};
use crate::cluster::{ClusterMember, Members};

/// Name of a node with its member entry.
type Known = (NodeName, ClusterMember);

pub(super) async fn follow(kubernetes: &Kubernetes, client: Client, members: &watch::Sender<Members>) {
    let (namespace, service) = (&kubernetes.config.namespace, &kubernetes.config.service);
    let own = kubernetes.node.address;
    let mut store = ObjectStore::<Vec<Known>>::default();
    let publish = |store: &ObjectStore<Vec<Known>>| {
        if let Some(all) = store.all() {
            members.send_replace(all.values().flatten().cloned().collect());
        }
    };
    if has_slices(&client).await {
        let query = watcher::Config::default().labels(&format!("kubernetes.io/service-name={service}"));
        let api = Api::<EndpointSlice>::namespaced(client, namespace);
        let mut slices = Box::pin(kubernetes.watch(api, query, "the cluster's nodes"));
        while let Some(event) = slices.next().await {
            if store.take(event, |slice| Some(of_slice(slice, own))) {
                publish(&store);
            }
        }
    } else {
        let query = watcher::Config::default().fields(&format!("metadata.name={service}"));
        let api = Api::<Endpoints>::namespaced(client, namespace);
        let mut endpoints = Box::pin(kubernetes.watch(api, query, "the cluster's nodes"));
        while let Some(event) = endpoints.next().await {
            if store.take(event, |endpoints| Some(of_endpoints(endpoints, own))) {
                publish(&store);
            }
        }
    }
}

/// Returns the ready nodes that run LOTA, as the API server lists them now.
///
/// # Errors
/// The API server's, for example if it has no slices.
pub async fn listed_nodes(client: Client, config: &KubernetesConfig, own: IpAddr) -> kube::Result<Members> {
    let query = ListParams::default().labels(&format!("kubernetes.io/service-name={}", config.service));
    let slices = Api::<EndpointSlice>::namespaced(client, &config.namespace).list(&query).await?;
    Ok(slices.iter().flat_map(|slice| of_slice(slice, own)).collect())
}

/// Returns whether the server has `discovery.k8s.io/v1` (1.21 and later).
async fn has_slices(client: &Client) -> bool {
    let mut waits = Waits::default();
    loop {
        match client.list_api_group_resources("discovery.k8s.io/v1").await {
            Ok(resources) => {
                return resources.resources.iter().any(|resource| resource.name == "endpointslices");
            }
            Err(kube::Error::Api(status)) if status.code == 404 => return false,
            Err(error) => tracing::warn!(%error, "cannot list resources at the API server; retrying"),
        }
        waits.wait().await;
    }
}

/// Returns the ready nodes of a slice, with addresses of this node's own family.
fn of_slice(slice: &EndpointSlice, own: IpAddr) -> Vec<Known> {
    let is_ready = |endpoint: &&Endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    };
    let member = |endpoint: &Endpoint| {
        let zone = endpoint.zone.clone().unwrap_or_default();
        known(endpoint.node_name.as_ref()?, endpoint.addresses.first()?, zone, own)
    };
    slice.endpoints.iter().filter(is_ready).filter_map(member).collect()
}

/// Returns the ready nodes of `Endpoints`, for servers without slices. They contain no zones.
fn of_endpoints(endpoints: &Endpoints, own: IpAddr) -> Vec<Known> {
    let addresses = endpoints.subsets.iter().flatten().flat_map(|subset| subset.addresses.iter().flatten());
    addresses
        .filter_map(|address| known(address.node_name.as_ref()?, &address.ip, String::new(), own))
        .collect()
}

fn known(node: &str, address: &str, zone: String, own: IpAddr) -> Option<Known> {
    let address: IpAddr = address.parse().ok()?;
    let is_reachable = address.is_ipv4() == own.is_ipv4();
    is_reachable.then(|| (NodeName(node.to_owned()), ClusterMember { address, zone, capacity: None }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn own() -> IpAddr {
        IpAddr::from([10, 0, 0, 1])
    }

    #[test]
    fn nodes_are_the_ready_endpoints_of_a_slice() {
        let slice = serde_json::from_value(json!({
            "metadata": {}, "addressType": "IPv4", "endpoints": [
                {"addresses": ["10.0.0.1"], "nodeName": "n1", "zone": "a", "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "nodeName": "n2", "conditions": {}},
                {"addresses": ["10.0.0.3"], "nodeName": "n3", "conditions": {"ready": false}},
                {"addresses": ["10.0.0.4"], "conditions": {"ready": true}},
            ],
        }));
        let nodes = of_slice(&slice.unwrap(), own());
        let names: Vec<_> =
            nodes.iter().map(|(name, member)| (name.0.as_str(), member.zone.as_str())).collect();
        assert_eq!(names, [("n1", "a"), ("n2", "")]);
        let other = json!({
            "metadata": {}, "addressType": "IPv6",
            "endpoints": [{"addresses": ["fd00::1"], "nodeName": "n1"}],
        });
        assert!(of_slice(&serde_json::from_value(other).unwrap(), own()).is_empty());
    }

    #[test]
    fn nodes_are_the_ready_endpoints_of_older_servers() {
        let endpoints = json!({ "metadata": {}, "subsets": [{
            "addresses": [{"ip": "10.0.0.1", "nodeName": "n1"}, {"ip": "10.0.0.9"}],
            "notReadyAddresses": [{"ip": "10.0.0.2", "nodeName": "n2"}],
        }] });
        let nodes = of_endpoints(&serde_json::from_value(endpoints).unwrap(), own());
        assert_eq!(nodes.len(), 1);
        assert_eq!(nodes[0].0, NodeName("n1".into()));
    }
}
