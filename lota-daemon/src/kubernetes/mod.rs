//! Watches the API server for this node's pods and for the nodes that run LOTA.
//!
//! The last known state holds while the server does not answer. An interrupted watch starts with a list; objects
//! missing from it are removed.

mod config;
mod nodes;
mod pods;
mod store;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use parking_lot::Mutex;
use rand::Rng as _;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;

pub use self::{
    config::KubernetesConfig,
    nodes::listed_nodes,
    pods::{PodRules, PodUpdate},
};

use crate::cluster::{Members, NodeConfig};

/// Initial wait between retries.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Maximum wait between retries.
const LAST_WAIT: Duration = Duration::from_secs(8);

/// Time without an error after which a watch counts as healthy: the longest wait for a retry plus the time to
/// connect.
const HEALTHY_AFTER: Duration = Duration::from_secs(45);
/// Minimum interval between warnings about a watch.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Health of the watches.
#[derive(Clone, Debug)]
pub struct Health(Arc<HealthState>);

#[derive(Debug)]
struct HealthState {
    watches: u32,
    /// Number of watches whose first list is complete.
    complete: AtomicU32,
    failed: Mutex<Option<Instant>>,
}

impl Health {
    fn new(watches: u32) -> Self {
        Self(Arc::new(HealthState { watches, complete: AtomicU32::new(0), failed: Mutex::default() }))
    }

    /// Returns whether all watches have a complete list and none failed recently.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let failed = *self.0.failed.lock();
        self.0.complete.load(Ordering::Relaxed) == self.0.watches
            && failed.is_none_or(|failed| failed.elapsed() > HEALTHY_AFTER)
    }

    fn fail(&self) {
        *self.0.failed.lock() = Some(Instant::now());
    }
}

/// Watches the API server.
pub struct Kubernetes {
    config: KubernetesConfig,
    node: NodeConfig,
    rules: watch::Sender<PodRules>,
    health: Health,
    /// Receives updates of this node's pods.
    pods: watch::Sender<Option<PodUpdate>>,
    /// Receives the nodes; `None` if the configuration lists them.
    members: Option<watch::Sender<Members>>,
}

impl Kubernetes {
    /// Returns the watches. `rules` select pods; the nodes are watched if `members` is there to receive them.
    #[must_use]
    pub fn new(
        config: KubernetesConfig,
        node: NodeConfig,
        rules: PodRules,
        members: Option<watch::Sender<Members>>,
    ) -> Self {
        Self {
            config,
            node,
            rules: watch::Sender::new(rules),
            // Pods, namespaces, nodes.
            health: Health::new(2 + u32::from(members.is_some())),
            pods: watch::Sender::new(None),
            members,
        }
    }

    /// Returns the health of the watches.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Replaces the rules that select pods.
    pub fn set_rules(&self, rules: PodRules) {
        self.rules.send_replace(rules);
    }

    /// Returns a receiver of this node's pods, which is empty until all have been listed.
    #[must_use]
    pub fn pods(&self) -> watch::Receiver<Option<PodUpdate>> {
        self.pods.subscribe()
    }

    /// Follows the API server until the future is dropped.
    pub async fn follow(&self) {
        let client = self.connect().await;
        let nodes = async {
            if let Some(members) = &self.members {
                nodes::follow(self, client.clone(), members).await;
            }
        };
        let taint = async {
            if let Some(taint) = &self.config.taint {
                self.remove_taint(client.clone(), taint).await;
            }
        };
        tokio::join!(pods::follow(self, client.clone()), nodes, taint);
        std::future::pending::<()>().await;
    }

    /// Returns a client of the API server. Retries because a service account's files may appear late.
    async fn connect(&self) -> Client {
        let mut waits = Waits::default();
        let mut is_logged = false;
        loop {
            match Client::try_default().await {
                Ok(client) => return client,
                Err(error) if !is_logged => {
                    tracing::error!(%error, "cannot find the API server; retrying");
                    is_logged = true;
                }
                Err(_) => {}
            }
            waits.wait().await;
        }
    }

    /// Removes the startup taint, so that pods are scheduled to this node.
    async fn remove_taint(&self, client: Client, taint: &str) {
        let nodes: Api<Node> = Api::all(client);
        let mut waits = Waits::default();
        let mut is_logged = false;
        while let Err(error) = self.try_to_remove_taint(&nodes, taint).await {
            if !is_logged {
                tracing::error!(taint, %error, "cannot remove this node's taint; retrying");
                is_logged = true;
            }
            waits.wait().await;
        }
    }

    async fn try_to_remove_taint(&self, nodes: &Api<Node>, taint: &str) -> kube::Result<()> {
        let node = nodes.get(&self.node.name).await?;
        let taints = node.spec.unwrap_or_default().taints.unwrap_or_default();
        let others: Vec<&Taint> = taints.iter().filter(|other| other.key != taint).collect();
        if others.len() == taints.len() {
            return Ok(());
        }
        // The list is replaced as a whole, and only if the node has not changed since it was read.
        let version = node.metadata.resource_version;
        let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": others } });
        nodes.patch(&self.node.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        tracing::info!(taint, "removed the taint from this node");
        Ok(())
    }

    /// Returns the events of a watch. Logs its errors at a limited rate.
    fn watch<K>(
        &self,
        api: Api<K>,
        config: watcher::Config,
        what: &'static str,
    ) -> impl Stream<Item = Event<K>>
    where
        K: Resource + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
    {
        let health = self.health.clone();
        let (mut is_complete, mut warned) = (false, None::<Instant>);
        watcher(api, config).backoff(Waits::default()).filter_map(move |event| {
            let event = match event {
                Ok(event) => {
                    if matches!(event, Event::InitDone) && !is_complete {
                        is_complete = true;
                        health.0.complete.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(event)
                }
                Err(error) => {
                    health.fail();
                    if warned.is_none_or(|at| at.elapsed() > WARNING_INTERVAL) {
                        warned = Some(Instant::now());
                        tracing::warn!(%error, "cannot watch {what} at the API server; keeping the last known state");
                    }
                    None
                }
            };
            std::future::ready(event)
        })
    }
}

/// Exponential backoff with jitter.
#[derive(Debug, Default)]
struct Waits {
    tries: u32,
}

impl Waits {
    async fn wait(&mut self) {
        tokio::time::sleep(self.next().unwrap_or(LAST_WAIT)).await;
    }
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = FIRST_WAIT.saturating_mul(1 << self.tries.min(16)).min(LAST_WAIT);
        self.tries += 1;
        Some(wait.mul_f64(rand::rng().random_range(0.5..1.0)))
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        self.tries = 0;
    }
}
