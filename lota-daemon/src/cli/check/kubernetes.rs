//! Checks that the API server answers, and that RBAC allows LOTA's requests.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Namespace, Pod};
use kube::{Api, Client, api::ListParams};
use tokio::time::timeout;

use super::CheckReport;
use crate::config::Config;

/// Timeout for a response of the API server.
const API_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn check(report: &mut CheckReport<'_>, config: &Config) {
    let Some(kubernetes) = &config.kubernetes else { return };
    let client = match Client::try_default().await {
        Ok(client) => client,
        Err(error) => {
            return report.fail(
                "kubernetes",
                format!("cannot locate the API server: {error}"),
                "in a pod, mount its service account; elsewhere, set KUBECONFIG",
            );
        }
    };
    let one = ListParams::default().limit(1);
    let here = one.clone().fields(&format!("spec.nodeName={}", config.node.name));
    let service = one.clone().fields(&format!("metadata.name={}", kubernetes.service));
    let endpoints = Api::<Endpoints>::namespaced(client.clone(), &kubernetes.namespace);
    let (pods, namespaces, nodes) = tokio::join!(
        answered(async { Api::<Pod>::all(client.clone()).list(&here).await.map(|_| ()) }),
        answered(async { Api::<Namespace>::all(client.clone()).list(&one).await.map(|_| ()) }),
        answered(async { endpoints.list(&service).await.map(|_| ()) }),
    );
    let follows_nodes = config.peers.as_ref().is_some_and(|peers| peers.nodes.is_empty());
    let results =
        [("this node's pods", pods), ("namespaces", namespaces), ("the nodes that run LOTA", nodes)];
    for (what, answer) in results.into_iter().take(if follows_nodes { 3 } else { 2 }) {
        match answer {
            Ok(()) => report.ok("kubernetes", format!("the API server lists {what}")),
            Err(error) => report.fail(
                "kubernetes",
                format!("the API server does not list {what}: {error}"),
                "check connectivity and RBAC; deploy/base/clusterrole.yaml and role.yaml contain what LOTA needs",
            ),
        }
    }
}

async fn answered(request: impl Future<Output = kube::Result<()>>) -> Result<(), String> {
    match timeout(API_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no response within {} s", API_TIMEOUT.as_secs())),
    }
}
