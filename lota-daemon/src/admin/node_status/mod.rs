//! The state of a node, as commands, the status page and support bundles show it.

mod diagnosis;
mod finding;
mod snapshot;
pub mod text;

use std::{collections::BTreeMap, net::IpAddr, time::SystemTime};

use serde::{Deserialize, Serialize};

pub use finding::{Finding, Level};
pub use snapshot::{INSTANCE, Reporter};

#[cfg(test)]
pub(crate) use diagnosis::healthy;
pub(crate) use diagnosis::peer_certificate;

use crate::{
    cluster::{
        PeerAuthentication,
        peer::{OwnCertificate, PeerTls},
    },
    gateway::{GatewayServer, Protocol},
    metrics::heavy_hitters::Ranked,
};
use lota_datapath::{self, Denied};

/// The state of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// This node and its daemon.
    pub node: NodeStatus,
    /// The S3 gateways that authorize requests.
    pub gateways: Vec<GatewayStatus>,
    /// The kernel side, if it could be read.
    pub datapath: Option<lota_datapath::DatapathStatus>,
    /// Access entries and refused addresses, if the kernel side could be read.
    pub access: Option<AccessStatus>,
    /// The watches on the API server, if configured.
    pub kubernetes: Option<KubernetesStatus>,
    /// The cache of this node.
    pub cache: CacheStatus,
    /// The other nodes, if configured.
    pub peers: Option<Vec<PeerStatus>>,
    /// Keys that authenticate messages between nodes, if there are other nodes.
    #[serde(default)]
    pub peer_authentication: Option<PeerAuthentication>,
    /// TLS between nodes, if configured.
    #[serde(default)]
    pub peer_tls: Option<PeerTlsStatus>,
    /// Traffic since the daemon started.
    pub traffic: TrafficStatus,
    /// The busiest objects and pods.
    pub top: HeavyHitters,
    /// Diagnosis of each part.
    pub findings: Vec<Finding>,
}

/// A node and its daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Name of the node.
    pub name: String,
    /// Address of the node in the cluster.
    pub address: IpAddr,
    /// Zone of the node; empty if it has none.
    pub zone: String,
    /// Version of the daemon.
    pub version: String,
    /// Process ID of the daemon.
    pub pid: u32,
    /// Instance name of the daemon from its environment: [`INSTANCE`].
    pub instance: Option<String>,
    /// Uptime of the daemon in seconds.
    pub uptime_seconds: f64,
    /// Whether the datapath is up and requests are served.
    pub ready: bool,
}

/// Readiness and identity of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Whether the datapath is up and requests are served.
    pub ready: bool,
    /// Instance name of the daemon from its environment: [`INSTANCE`].
    pub instance: Option<String>,
    /// Process ID of the daemon.
    pub pid: u32,
}

/// The gateway and the result of its verification.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// Name of the gateway; `default` for `[gateway]`.
    pub name: String,
    /// Its own host names under which pods reach LOTA.
    pub names: Vec<String>,
    /// URL of the gateway.
    pub endpoint: String,
    /// Protocol of the gateway.
    pub protocol: Protocol,
    /// Whether requests are re-signed for it.
    pub re_signed: bool,
    /// Error of connecting to it, if it cannot be reached.
    pub unreachable: Option<String>,
    /// Time in seconds for which it has not answered any request, if so.
    pub silent_seconds: Option<f64>,
    /// Reason why it has not answered.
    pub silent_why: Option<String>,
    /// Result of its verification; `None` before the first.
    pub trusted: Option<bool>,
    /// Reason why it is not trusted.
    pub why: Option<String>,
    /// Each server that has answered.
    pub servers: Vec<GatewayServer>,
    /// Storage that fills read directly, if configured.
    pub backend: Option<BackendStatus>,
}

/// Storage that LOTA reads with its own credential.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its servers.
    pub endpoints: Vec<EndpointStatus>,
    /// Whether LOTA has its own credential for them.
    pub credential: bool,
}

/// One server of the backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// URL of the server.
    pub address: String,
    /// Error of connecting to it, if it cannot be reached.
    pub unreachable: Option<String>,
}

/// Access entries and refused addresses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AccessStatus {
    /// Whether addresses without an entry have access.
    pub default_allow: bool,
    /// Entries in the kernel, by source.
    pub entries: BTreeMap<String, EntryCounts>,
    /// Recently refused addresses, most recent first; a limited number.
    pub denied: Vec<RefusedPod>,
}

/// The watches on the API server.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct KubernetesStatus {
    /// Whether all watches work.
    pub up: bool,
}

/// Number of entries of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryCounts {
    /// Entries that allow access.
    pub allow: usize,
    /// Entries that deny access.
    pub deny: usize,
}

/// An address that was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RefusedPod {
    /// The refused address.
    pub address: IpAddr,
    /// Number of its refused packets.
    pub packets: u64,
    /// Time in seconds since the last one.
    pub seconds_ago: f64,
    /// Interface that the last one came from.
    pub interface: Option<String>,
    /// Verdict of the last one.
    pub verdict: Option<String>,
}

/// The cache of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Number of complete objects, without those in stripes.
    pub objects: usize,
    /// Number of complete stripes of larger objects.
    #[serde(default)]
    pub stripes: usize,
    /// Number of partial objects.
    #[serde(default)]
    pub partial: usize,
    /// Bytes of objects, including those reserved by fills.
    pub bytes: u64,
    /// Capacity of the working disks, in bytes.
    pub capacity: u64,
    /// Number of fills in progress.
    pub fills: usize,
    /// Pins of the cluster, without their names.
    #[serde(default)]
    pub pins: PinsStatus,
    /// State of each disk.
    pub disks: Vec<CacheDiskStatus>,
}

/// The pins of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinsStatus {
    /// Number of pins.
    pub count: usize,
    /// Bytes of all pins.
    pub bytes: u64,
    /// Bytes of the cluster's cache that can be pinned.
    pub possible: u64,
    /// Disk space in bytes of the objects on this node that are evicted last.
    pub cached: u64,
}

/// A disk of the cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheDiskStatus {
    /// Cache folder on the disk.
    pub folder: String,
    /// Whether the disk works.
    pub works: bool,
    /// Whether the cached objects are encrypted.
    pub encrypted: bool,
    /// Number of complete objects.
    pub objects: usize,
    /// Bytes of objects, including those reserved by fills.
    pub bytes: u64,
    /// Capacity in bytes.
    pub capacity: u64,
    /// Objects evicted since the daemon started.
    pub evictions: u64,
    /// Objects that failed checksum verification since the daemon started.
    pub corrupt: u64,
}

/// Another node, as this one sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Name of the node.
    pub name: String,
    /// Address of its peer port.
    pub address: String,
    /// Capacity of its cache in bytes, if known.
    pub capacity: Option<u64>,
    /// Time in seconds for which it has not answered, if it does not.
    pub lost_seconds: Option<f64>,
    /// Error of the last attempt to reach it, if it does not answer.
    #[serde(default)]
    pub lost_why: Option<String>,
    /// Bytes that it had queued to send when it last answered.
    pub load_bytes: Option<u64>,
    /// Time in seconds since it last answered.
    pub heard_seconds: Option<f64>,
    /// Version of the peer protocol in which this node sends to it.
    pub wire_version: Option<u64>,
    /// Whether this node knows a public key of it.
    #[serde(default)]
    pub has_public_key: bool,
}

/// TLS between nodes, and this node's certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerTlsStatus {
    /// Value of `peers.tls.mode`.
    pub mode: String,
    /// Time in seconds for which the certificate is valid altogether.
    pub life_seconds: Option<f64>,
    /// Time in seconds until the certificate expires; negative after that.
    pub expires_seconds: Option<f64>,
    /// Reason why other nodes with the same files refuse the certificate, if they do.
    pub problem: Option<String>,
}

/// Traffic since the daemon started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TrafficStatus {
    /// Requests from pods that have ended.
    pub requests: Vec<RequestCount>,
    /// Bytes sent to pods.
    pub sent: SentBytesCount,
    /// Bytes fetched by fills.
    pub filled: u64,
}

/// Number of requests with the same outcome and status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCount {
    /// Outcome of the cache: `hit`, `miss`, `fill` or `bypass`.
    pub cache: String,
    /// HTTP status; `None` if the connection ended before the response.
    pub status: Option<u16>,
    /// Number of requests.
    pub count: u64,
}

/// Bytes by source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentBytesCount {
    /// Complete files of this node.
    pub local: u64,
    /// Other nodes.
    pub remote: u64,
    /// Fills in progress on this node.
    pub fill: u64,
    /// The gateway, past the cache.
    pub gateway: u64,
}

/// The busiest objects and pods of about the last minute.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HeavyHitters {
    /// Objects; only on the admin socket, since names of objects are confidential.
    pub objects: Option<Vec<Ranked>>,
    /// Pods.
    pub pods: Vec<Ranked>,
}

impl TrafficStatus {
    /// Returns the number of requests with these outcomes, or with any if the list is empty.
    #[must_use]
    pub fn count(&self, outcomes: &[&str]) -> u64 {
        let of =
            |requests: &&RequestCount| outcomes.is_empty() || outcomes.contains(&requests.cache.as_str());
        self.requests.iter().filter(of).map(|requests| requests.count).sum()
    }

    /// Returns the number of requests that failed because of LOTA or the gateway.
    #[must_use]
    pub fn failed(&self) -> u64 {
        let failed = |requests: &&RequestCount| requests.status.is_some_and(|status| status >= 500);
        self.requests.iter().filter(failed).map(|requests| requests.count).sum()
    }
}

impl SentBytesCount {
    /// Returns the sum of all sources.
    #[must_use]
    pub fn all(self) -> u64 {
        self.local + self.remote + self.fill + self.gateway
    }
}

impl NodeReport {
    /// Returns the worst level of all findings.
    #[must_use]
    pub fn level(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }
}

impl PeerTlsStatus {
    /// Returns the state of TLS between nodes at this time.
    #[must_use]
    pub fn of(tls: &PeerTls, now: SystemTime) -> Self {
        let OwnCertificate { validity, problem } = tls.own_certificate();
        let life = validity.and_then(|(from, until)| until.duration_since(from).ok());
        let left = validity.map(|(_, until)| match until.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(since) => -since.duration().as_secs_f64(),
        });
        Self {
            mode: tls.mode().name().to_owned(),
            life_seconds: life.map(|life| life.as_secs_f64()),
            expires_seconds: left,
            problem,
        }
    }
}

impl RefusedPod {
    fn of(denied: &Denied, interface: Option<String>) -> Self {
        Self {
            address: denied.address,
            packets: denied.count,
            seconds_ago: denied.last.elapsed().unwrap_or_default().as_secs_f64(),
            interface,
            verdict: denied.verdict.map(|verdict| verdict.label().to_owned()),
        }
    }
}
