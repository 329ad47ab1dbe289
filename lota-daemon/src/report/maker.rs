//! Where a report comes from.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use nix::net::if_::if_indextoname;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    Access, Backend, Cache, Disk, Endpoint, Gateway, Kubernetes, Node, Peer, Presence, Refused, Report,
    Requests, Sent, Top, Traffic, judge, reach::Reach,
};
use crate::{
    admin::Ready,
    cache::DiskStatus,
    config::Config,
    control::{Command, Entrances},
    datapath,
    gateway::Standing,
    metrics::{Metrics, Outcome, RequestLabels, SentFrom, Value as _},
    placement::NodeName,
    proxy::Proxy,
};

/// The environment variable that tells daemons of one node apart. `lota ready` compares its own.
pub const INSTANCE: &str = "LOTA_INSTANCE";
/// Longest wait for the kernel side: while a daemon hands over, it does not answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Refused for longer, nobody is shown any more,
const LATELY: Duration = Duration::from_secs(15 * 60);
/// nor more than these,
const MOST_REFUSED: usize = 50;
/// nor more objects and pods.
const MOST_RANKED: usize = 20;

/// Makes reports.
pub struct Reporter {
    config: Arc<Config>,
    proxy: Arc<Proxy>,
    ready: Ready,
    control: mpsc::Sender<Command>,
    began: Instant,
    instance: Option<String>,
    gateway: Reach,
    backends: Vec<Reach>,
}

impl Reporter {
    /// Reports on these parts.
    #[must_use]
    pub fn new(config: Arc<Config>, proxy: Arc<Proxy>, ready: Ready, control: mpsc::Sender<Command>) -> Self {
        let endpoints = config.backend.iter().flat_map(|backend| &backend.endpoints);
        Self {
            gateway: Reach::new(&config.gateway.endpoint),
            backends: endpoints.map(Reach::new).collect(),
            began: Instant::now(),
            instance: std::env::var(INSTANCE).ok().filter(|instance| !instance.is_empty()),
            config,
            proxy,
            ready,
            control,
        }
    }

    /// Is this daemon ready, and which is it?
    #[must_use]
    pub fn presence(&self) -> Presence {
        Presence {
            ready: self.ready.load(Ordering::Acquire),
            instance: self.instance.clone(),
            pid: std::process::id(),
        }
    }

    /// The state of everything; with the names of objects only for who may know them.
    pub async fn report(&self, with_objects: bool) -> Report {
        let (datapath, entrances, gateway, backend) = tokio::join!(
            self.ask(Command::Status),
            self.ask(Command::Entrances),
            self.gateway(),
            self.backend()
        );
        let top = &self.proxy.top;
        let mut report = Report {
            node: self.node(),
            gateway,
            backend,
            access: entrances.map(|entrances| access(&entrances)),
            datapath,
            kubernetes: self.proxy.metrics.kubernetes.get().map(|up| Kubernetes { up }),
            cache: self.cache(),
            peers: self.peers(),
            traffic: traffic(&self.proxy.metrics),
            top: Top { objects: with_objects.then(|| top.objects(MOST_RANKED)), pods: top.pods(MOST_RANKED) },
            findings: Vec::new(),
        };
        report.findings = judge::judge(&report);
        report
    }

    /// Asks the control part, which may be gone, or busy.
    async fn ask<T>(&self, command: fn(oneshot::Sender<Result<T, String>>) -> Command) -> Option<T> {
        let asked = async {
            let (answer, answered) = oneshot::channel();
            self.control.send(command(answer)).await.ok()?;
            answered.await.ok()?.ok()
        };
        timeout(PATIENCE, asked).await.ok()?
    }

    fn node(&self) -> Node {
        let Presence { ready, instance, pid } = self.presence();
        let config = &self.config.node;
        Node {
            name: self.proxy.node.0.clone(),
            address: config.address,
            zone: config.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid,
            instance,
            uptime_seconds: self.began.elapsed().as_secs_f64(),
            ready,
        }
    }

    async fn gateway(&self) -> Gateway {
        let config = &self.config.gateway;
        let (trusted, why) = match self.proxy.gateway.standing() {
            Standing::Untried => (None, None),
            Standing::Trusted => (Some(true), None),
            Standing::Distrusted(why) => (Some(false), Some(why)),
        };
        let (silent_seconds, silent_why) =
            self.proxy.gateway.silent().map(|(since, why)| (since.as_secs_f64(), why)).unzip();
        Gateway {
            endpoint: self.gateway.address(),
            protocol: config.protocol,
            resigned: config.resign.is_some(),
            unreachable: self.gateway.problem().await,
            silent_seconds,
            silent_why,
            trusted,
            why,
            servers: self.proxy.gateway.servers(),
        }
    }

    async fn backend(&self) -> Option<Backend> {
        let endpoints = self.backends.iter().map(async |backend| Endpoint {
            address: backend.address(),
            unreachable: backend.problem().await,
        });
        let endpoints = join_all(endpoints).await;
        let credential = self.proxy.backend.has_own_credential();
        (!endpoints.is_empty()).then_some(Backend { endpoints, credential })
    }

    fn cache(&self) -> Cache {
        let usage = self.proxy.cache.usage();
        let disk = |disk: DiskStatus| Disk {
            folder: disk.folder.display().to_string(),
            works: disk.works,
            encrypted: disk.encrypted,
            objects: disk.usage.objects,
            bytes: disk.usage.bytes,
            capacity: disk.capacity,
            evictions: disk.evictions,
            corrupt: disk.corrupt,
        };
        let disks: Vec<_> = self.proxy.cache.disks().map(disk).collect();
        let capacity = disks.iter().filter(|disk| disk.works).map(|disk| disk.capacity).sum();
        Cache { objects: usage.objects, bytes: usage.bytes, capacity, fills: usage.fills, disks }
    }

    fn peers(&self) -> Option<Vec<Peer>> {
        let members = self.proxy.cluster.members();
        let configured = |name: &NodeName| members.get(name).and_then(|member| member.capacity);
        let peers = self.proxy.peers.as_ref()?.each();
        let seconds = |since: Instant| since.elapsed().as_secs_f64();
        let peers = peers.into_iter().map(|(name, address, state)| Peer {
            capacity: state.capacity.or_else(|| configured(&name)),
            name: name.0,
            address,
            lost_seconds: state.lost.map(seconds),
            load_bytes: state.load.map(|(bytes, _)| bytes),
            heard_seconds: state.load.map(|(_, when)| seconds(when)),
        });
        let mut peers: Vec<_> = peers.collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        Some(peers)
    }
}

fn access((table, denied): &Entrances) -> Access {
    let mut access = Access {
        default_allow: table.default_allow,
        entries: Default::default(),
        denied: denied
            .iter()
            .filter(|denied| denied.last.elapsed().unwrap_or_default() < LATELY)
            .take(MOST_REFUSED)
            .map(|denied| Refused::of(denied, name_of(denied)))
            .collect(),
    };
    for entry in table.addresses.values().chain(table.prefixes.values()) {
        let entries = access.entries.entry(entry.source.label().to_owned()).or_default();
        *if entry.allow { &mut entries.allow } else { &mut entries.deny } += 1;
    }
    access
}

fn name_of(denied: &datapath::Denied) -> Option<String> {
    if_indextoname(denied.ifindex).ok()?.into_string().ok()
}

fn traffic(metrics: &Metrics) -> Traffic {
    let mut requests = Vec::new();
    for cache in Outcome::ALL.iter().copied() {
        for status in 100..600 {
            if let Some(counter) = metrics.requests.get(&RequestLabels { cache, status })
                && counter.get() > 0
            {
                requests.push(Requests { cache: cache.name().to_owned(), status, count: counter.get() });
            }
        }
    }
    Traffic { requests, sent: sent(metrics), filled: metrics.fill_bytes.get() }
}

fn sent(metrics: &Metrics) -> Sent {
    let of = |from| metrics.sent_from.of(from).get();
    Sent {
        local: of(SentFrom::Local),
        remote: of(SentFrom::Remote),
        fill: of(SentFrom::Fill),
        gateway: of(SentFrom::Gateway),
    }
}
