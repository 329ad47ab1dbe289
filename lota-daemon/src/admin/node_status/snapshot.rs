//! Collects the state of all parts.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::join_all;
use lota_cache::{DiskStatus, placement::NodeName};
use nix::net::if_::if_indextoname;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    AccessStatus, BackendStatus, CacheDiskStatus, CacheStatus, EndpointStatus, GatewayStatus, HeavyHitters,
    KubernetesStatus, NodeReport, NodeStatus, PeerStatus, PeerTlsStatus, PinsStatus, Presence, RefusedPod,
    RequestCount, SentBytesCount, TrafficStatus, diagnosis,
};
use crate::{
    admin::Ready,
    cluster::NodeConfig,
    gateway::{GatewayConfig, GatewayTrust, Protocol},
    http::ReachabilityProbe,
    metrics::{Metrics, Outcome, RequestLabels, SentFrom, StatusLabel, Value as _},
    proxy::{PinReport, PinStatus, Proxy, S3Store},
    reconciler::{ControlCommand, ControlError, Entrances},
    storage::BackendConfig,
};

/// Environment variable that distinguishes daemons of one node. `lota ready` compares its own value.
pub const INSTANCE: &str = "LOTA_INSTANCE";
/// Timeout for the state of the datapath, since a daemon that is handing over does not answer.
const DATAPATH_TIMEOUT: Duration = Duration::from_secs(2);
/// Age up to which refused addresses are reported.
const REFUSED_AGE: Duration = Duration::from_secs(15 * 60);
/// Maximum number of reported refused addresses.
const MAX_REFUSED: usize = 50;
/// Maximum number of reported objects and pods.
const MAX_RANKED: usize = 20;

/// Collects reports.
pub struct Reporter {
    node: NodeConfig,
    proxy: Arc<Proxy>,
    ready: Ready,
    control: mpsc::Sender<ControlCommand>,
    began: Instant,
    instance: Option<String>,
    gateways: Vec<GatewayProbes>,
}

/// A gateway with what probes it and its backend.
struct GatewayProbes {
    store: Arc<S3Store>,
    names: Vec<String>,
    protocol: Protocol,
    re_signed: bool,
    gateway: ReachabilityProbe,
    backends: Vec<ReachabilityProbe>,
}

impl Reporter {
    /// Returns a reporter of these parts. `settings` are those of the proxy's stores, in their order.
    #[must_use]
    pub fn new(
        node: NodeConfig,
        settings: &[(&GatewayConfig, Option<&BackendConfig>)],
        proxy: Arc<Proxy>,
        ready: Ready,
        control: mpsc::Sender<ControlCommand>,
    ) -> Self {
        let gateways = proxy.stores.each().zip(settings).map(|(store, (gateway, backend))| {
            let backends = backend.iter().flat_map(|backend| &backend.endpoints);
            GatewayProbes {
                store: store.clone(),
                names: gateway.names.iter().map(|name| name.as_str().to_owned()).collect(),
                protocol: gateway.protocol,
                re_signed: gateway.re_sign.is_some(),
                gateway: ReachabilityProbe::new(&gateway.endpoint),
                backends: backends.map(ReachabilityProbe::new).collect(),
            }
        });
        Self {
            gateways: gateways.collect(),
            began: Instant::now(),
            instance: std::env::var(INSTANCE).ok().filter(|instance| !instance.is_empty()),
            node,
            proxy,
            ready,
            control,
        }
    }

    /// Returns whether this daemon is ready, and its instance.
    #[must_use]
    pub fn presence(&self) -> Presence {
        Presence {
            ready: self.ready.load(Ordering::Acquire),
            instance: self.instance.clone(),
            pid: std::process::id(),
        }
    }

    /// Returns the state of all parts; with the names of objects only if `with_objects`.
    pub async fn report(&self, with_objects: bool) -> NodeReport {
        let (datapath, entrances, gateways) = tokio::join!(
            self.ask(ControlCommand::Status),
            self.ask(ControlCommand::Entrances),
            join_all(self.gateways.iter().map(GatewayProbes::status)),
        );
        let top = &self.proxy.top;
        let mut report = NodeReport {
            node: self.node(),
            gateways,
            access: entrances.map(|entrances| access(&entrances)),
            datapath,
            kubernetes: self.proxy.metrics.kubernetes.get().map(|up| KubernetesStatus { up }),
            cache: self.cache(),
            peers: self.peers(),
            peer_authentication: self.proxy.peers.as_ref().map(|peers| peers.keys().authentication()),
            peer_tls: self.peer_tls(),
            traffic: traffic(&self.proxy.metrics),
            top: HeavyHitters {
                objects: with_objects.then(|| top.objects(MAX_RANKED)),
                pods: top.pods(MAX_RANKED),
            },
            findings: Vec::new(),
        };
        report.findings = diagnosis::diagnose(&report);
        report
    }

    /// Sends a command to the control thread. Returns `None` if it has ended or does not answer in time.
    async fn ask<T>(
        &self,
        command: fn(oneshot::Sender<Result<T, ControlError>>) -> ControlCommand,
    ) -> Option<T> {
        let response = async {
            let (answer, answered) = oneshot::channel();
            self.control.send(command(answer)).await.ok()?;
            answered.await.ok()?.ok()
        };
        timeout(DATAPATH_TIMEOUT, response).await.ok()?
    }

    fn node(&self) -> NodeStatus {
        let Presence { ready, instance, pid } = self.presence();
        NodeStatus {
            name: self.proxy.node.0.clone(),
            address: self.node.address,
            zone: self.node.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid,
            instance,
            uptime_seconds: self.began.elapsed().as_secs_f64(),
            ready,
        }
    }

    fn cache(&self) -> CacheStatus {
        let usage = self.proxy.cache.usage();
        let disk = |disk: DiskStatus| CacheDiskStatus {
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
        CacheStatus {
            objects: usage.objects,
            stripes: usage.stripes,
            partial: usage.partial,
            bytes: usage.bytes,
            capacity,
            fills: usage.fills,
            pins: pins(&self.proxy.pins.report()),
            disks,
        }
    }

    fn peers(&self) -> Option<Vec<PeerStatus>> {
        let members = self.proxy.cluster.members();
        let configured = |name: &NodeName| members.get(name).and_then(|member| member.capacity);
        let peers = self.proxy.peers.as_ref()?;
        let seconds = |since: Instant| since.elapsed().as_secs_f64();
        let each = peers.each().into_iter().map(|(name, address, state)| PeerStatus {
            wire_version: Some(peers.version_with(&name).0),
            capacity: state.capacity.or_else(|| configured(&name)),
            has_public_key: peers.keys().has_key_of(&name),
            name: name.0,
            address,
            lost_seconds: state.lost.map(seconds),
            lost_why: state.why.map(|why| why.to_string()),
            load_bytes: state.load.map(|(bytes, _)| bytes),
            heard_seconds: state.load.map(|(_, when)| seconds(when)),
        });
        let mut peers: Vec<_> = each.collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        Some(peers)
    }

    fn peer_tls(&self) -> Option<PeerTlsStatus> {
        let tls = self.proxy.peers.as_ref()?.tls()?;
        Some(PeerTlsStatus::of(tls, SystemTime::now()))
    }
}

impl GatewayProbes {
    async fn status(&self) -> GatewayStatus {
        let (unreachable, backend) = tokio::join!(self.gateway.problem(), self.backend());
        let gateway = &self.store.gateway;
        let (trusted, why) = match gateway.trust() {
            GatewayTrust::Unverified => (None, None),
            GatewayTrust::Trusted => (Some(true), None),
            GatewayTrust::Distrusted(why) => (Some(false), Some(why)),
        };
        let (silent_seconds, silent_why) =
            gateway.silent().map(|(since, why)| (since.as_secs_f64(), why)).unzip();
        GatewayStatus {
            name: self.store.name.as_str().to_owned(),
            names: self.names.clone(),
            endpoint: self.gateway.address(),
            protocol: self.protocol,
            re_signed: self.re_signed,
            unreachable,
            silent_seconds,
            silent_why,
            trusted,
            why,
            servers: gateway.servers(),
            backend,
        }
    }

    async fn backend(&self) -> Option<BackendStatus> {
        let endpoints = self.backends.iter().map(async |backend| EndpointStatus {
            address: backend.address(),
            unreachable: backend.problem().await,
        });
        let endpoints = join_all(endpoints).await;
        let credential = self.store.backend.has_own_credential();
        (!endpoints.is_empty()).then_some(BackendStatus { endpoints, credential })
    }
}

fn pins(report: &PinReport) -> PinsStatus {
    let sum =
        |of: fn(&PinStatus) -> u64| report.pins.iter().fold(0, |all: u64, pin| all.saturating_add(of(pin)));
    PinsStatus {
        count: report.pins.len(),
        bytes: sum(|pin| pin.bytes),
        possible: report.possible,
        cached: sum(|pin| pin.here.cached),
    }
}

fn access((table, denied): &Entrances) -> AccessStatus {
    let mut access = AccessStatus {
        default_allow: table.default_allow,
        entries: Default::default(),
        denied: denied
            .iter()
            .filter(|denied| denied.last.elapsed().unwrap_or_default() < REFUSED_AGE)
            .take(MAX_REFUSED)
            .map(|denied| RefusedPod::of(denied, name_of(denied)))
            .collect(),
    };
    for entry in table.addresses.values().chain(table.prefixes.values()) {
        let entries = access.entries.entry(entry.source.label().to_owned()).or_default();
        *if entry.allow { &mut entries.allow } else { &mut entries.deny } += 1;
    }
    access
}

fn name_of(denied: &lota_datapath::Denied) -> Option<String> {
    if_indextoname(denied.ifindex).ok()?.into_string().ok()
}

fn traffic(metrics: &Metrics) -> TrafficStatus {
    let mut requests = Vec::new();
    for cache in Outcome::ALL.iter().copied() {
        for status in (100..600).map(Some).chain([None]) {
            let labels = RequestLabels { cache, status: StatusLabel(status) };
            if let Some(counter) = metrics.requests.get(&labels)
                && counter.get() > 0
            {
                requests.push(RequestCount { cache: cache.name().to_owned(), status, count: counter.get() });
            }
        }
    }
    TrafficStatus { requests, sent: sent(metrics), filled: metrics.fill_bytes.get() }
}

fn sent(metrics: &Metrics) -> SentBytesCount {
    let of = |from| metrics.sent_from.of(from).get();
    SentBytesCount {
        local: of(SentFrom::Local),
        remote: of(SentFrom::Remote),
        fill: of(SentFrom::Fill),
        gateway: of(SentFrom::Gateway),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_without_a_response_are_counted() {
        let metrics = Metrics::default();
        metrics.answered(Outcome::Hit, 200, Duration::ZERO);
        metrics.answered(Outcome::Bypass, 503, Duration::ZERO);
        metrics.unanswered();
        let traffic = traffic(&metrics);
        assert_eq!((traffic.count(&[]), traffic.count(&["bypass"]), traffic.failed()), (3, 2, 1));
    }
}
