//! What the cluster's API server tells: this node's pods, and the nodes that run LOTA.
//!
//! Watches only; what was told last holds while the server does not answer. An interrupted watch begins with a list, and
//! what is not in it is gone.

mod nodes;
mod pods;
mod store;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
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
use rand::Rng as _;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;

pub use self::pods::Told;

use crate::{
    access::rules::Rule,
    cluster::Members,
    config::{self, Config},
};

/// Waits between tries: from here,
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// to here.
const LAST_WAIT: Duration = Duration::from_secs(8);

/// Without an error for so long, a watch goes on: the longest wait for another try, and what connecting takes.
const CALM: Duration = Duration::from_secs(45);
/// How often trouble is spoken of.
const SAID: Duration = Duration::from_secs(60);

/// Does the API server answer?
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    watches: u32,
    /// Those that have told everything.
    complete: AtomicU32,
    failed: Mutex<Option<Instant>>,
}

impl Health {
    fn new(watches: u32) -> Self {
        Self(Arc::new(Inner { watches, complete: AtomicU32::new(0), failed: Mutex::default() }))
    }

    /// Has everything been told, and nothing failed of late?
    #[must_use]
    pub fn is_up(&self) -> bool {
        let failed = *self.0.failed.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.complete.load(Ordering::Relaxed) == self.0.watches
            && failed.is_none_or(|failed| failed.elapsed() > CALM)
    }

    fn fail(&self) {
        *self.0.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// Who asks the API server what.
pub struct Kubernetes {
    config: config::Kubernetes,
    node: config::Node,
    rules: watch::Sender<Vec<Rule>>,
    health: Health,
    /// Where what was told of this node's pods goes.
    pods: watch::Sender<Option<Told>>,
    /// Where who the nodes are goes; nowhere, if the configuration says.
    members: Option<watch::Sender<Members>>,
}

impl Kubernetes {
    /// Who asks, if the configuration says that there is an API server.
    #[must_use]
    pub fn new(config: &Config, members: watch::Sender<Members>) -> Option<Self> {
        let kubernetes = config.kubernetes.clone()?;
        let follows_nodes = config.peers.as_ref().is_some_and(|peers| peers.nodes.is_empty());
        Some(Self {
            config: kubernetes,
            node: config.node.clone(),
            rules: watch::Sender::new(config.access.from.clone()),
            // Pods, namespaces, nodes.
            health: Health::new(2 + u32::from(follows_nodes)),
            pods: watch::Sender::new(None),
            members: follows_nodes.then_some(members),
        })
    }

    /// Whether the server answers.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Which pods are meant, from now on.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        self.rules.send_replace(rules);
    }

    /// This node's pods, as they change; nothing, until all have been told of.
    #[must_use]
    pub fn pods(&self) -> watch::Receiver<Option<Told>> {
        self.pods.subscribe()
    }

    /// Follows what the server tells, for as long as it is polled.
    pub async fn follow(&self) {
        let client = self.connect().await;
        let nodes = async {
            if let Some(members) = &self.members {
                nodes::follow(self, client.clone(), members).await;
            }
        };
        let taint = async {
            if let Some(taint) = &self.config.taint {
                self.take_taint_off(client.clone(), taint).await;
            }
        };
        tokio::join!(pods::follow(self, client.clone()), nodes, taint);
        std::future::pending::<()>().await;
    }

    /// Where the server is, and who this is to it. A service account's files may come late.
    async fn connect(&self) -> Client {
        let mut waits = Waits::default();
        let mut said = false;
        loop {
            match Client::try_default().await {
                Ok(client) => return client,
                Err(error) if !said => {
                    tracing::error!(%error, "cannot tell where the API server is; trying again");
                    said = true;
                }
                Err(_) => {}
            }
            waits.wait().await;
        }
    }

    /// Pods may come to this node now.
    async fn take_taint_off(&self, client: Client, taint: &str) {
        let nodes: Api<Node> = Api::all(client);
        let mut waits = Waits::default();
        let mut said = false;
        while let Err(error) = self.try_to_take_off(&nodes, taint).await {
            if !said {
                tracing::error!(taint, %error, "cannot take this node's taint off; trying again");
                said = true;
            }
            waits.wait().await;
        }
    }

    async fn try_to_take_off(&self, nodes: &Api<Node>, taint: &str) -> kube::Result<()> {
        let node = nodes.get(&self.node.name).await?;
        let taints = node.spec.unwrap_or_default().taints.unwrap_or_default();
        let others: Vec<&Taint> = taints.iter().filter(|other| other.key != taint).collect();
        if others.len() == taints.len() {
            return Ok(());
        }
        // The list is changed as a whole, and only if nobody else has changed the node meanwhile.
        let version = node.metadata.resource_version;
        let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": others } });
        nodes.patch(&self.node.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        tracing::info!(taint, "taken off this node: pods may come");
        Ok(())
    }

    /// What a watch tells; trouble with it is said once.
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
        let (mut is_complete, mut said) = (false, None::<Instant>);
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
                    if said.is_none_or(|said| said.elapsed() > SAID) {
                        said = Some(Instant::now());
                        tracing::warn!(%error, "the API server does not tell of {what}; what it told last holds");
                    }
                    None
                }
            };
            std::future::ready(event)
        })
    }
}

/// Growing waits, of which no two nodes' are the same.
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
