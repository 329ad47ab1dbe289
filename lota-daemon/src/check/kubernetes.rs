//! The API server: does it answer, and may LOTA ask it what it will ask?

use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Namespace, Pod};
use kube::{Api, Client, api::ListParams};
use tokio::time::timeout;

use super::Report;
use crate::config::Config;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn check(report: &mut Report<'_>, config: &Config) {
    let Some(kubernetes) = &config.kubernetes else { return };
    let client = match Client::try_default().await {
        Ok(client) => client,
        Err(error) => {
            return report.fail(
                "kubernetes",
                format!("it is not known where the API server is: {error}"),
                "in a pod, its service account says; elsewhere, name a file in KUBECONFIG",
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
    let asked = [("this node's pods", pods), ("namespaces", namespaces), ("the nodes that run LOTA", nodes)];
    for (what, answer) in asked.into_iter().take(if follows_nodes { 3 } else { 2 }) {
        match answer {
            Ok(()) => report.ok("kubernetes", format!("the API server tells of {what}")),
            Err(error) => report.fail(
                "kubernetes",
                format!("the API server does not tell of {what}: {error}"),
                "does it answer here, and does RBAC allow it? deploy/base/clusterrole.yaml and role.yaml say what LOTA asks",
            ),
        }
    }
}

async fn answered(asked: impl Future<Output = kube::Result<()>>) -> Result<(), String> {
    match timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
