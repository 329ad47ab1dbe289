//! One TOML file, parsed into types. Unknown keys are errors that name the nearest right one.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

mod check;
mod reload;
mod secrets;
mod values;

pub use reload::{Reload, Reloaded};
pub use secrets::{Client, Credential};
pub use values::{ByteSize, Origin, Secret};

use crate::{
    access::{Subject, rules::Rule},
    cache::{Admission, DiskPlan, Encryption, Plan},
    s3::Zone,
};

/// Everything the daemon is told; `deploy/lota.toml` shows every key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This node.
    pub node: Node,
    /// Where pods find LOTA.
    #[serde(default)]
    pub endpoint: Endpoint,
    /// The kernel side.
    #[serde(default)]
    pub datapath: Datapath,
    /// Who authorizes.
    pub gateway: Gateway,
    /// Where whole objects may be read.
    pub backend: Option<Backend>,
    /// Where objects are kept.
    pub cache: Cache,
    /// How they get there.
    #[serde(default)]
    pub fill: Fill,
    /// The other nodes.
    pub peers: Option<Peers>,
    /// The cluster's API server, which tells of pods and nodes; not asked, if nothing is said.
    pub kubernetes: Option<Kubernetes>,
    /// Metrics and health.
    #[serde(default)]
    pub admin: Admin,
    /// How much of everything.
    #[serde(default)]
    pub limits: Limits,
    /// Which pods may talk to LOTA.
    #[serde(default)]
    pub access: Access,
}

/// This node.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "values::Node")]
pub struct Node {
    /// Its name: what placement hashes, so it must not change while its cache lives.
    pub name: String,
    /// Its address in the cluster; the peer port listens here and nowhere else.
    pub address: IpAddr,
    /// Its zone, told to gateways that speak LOTA; nodes of the same zone are preferred among an object's owners.
    pub zone: String,
    /// Its region, told to gateways that speak LOTA.
    pub region: String,
}

/// Where pods find LOTA.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Endpoint {
    /// The DNS zone: the endpoint's host name, with every bucket's name under it.
    pub zone: Zone,
    /// The virtual address the zone resolves to, the same on every node.
    pub vip: Ipv4Addr,
    /// The same for IPv6; none, if nothing is said.
    pub vip6: Option<Ipv6Addr>,
}

impl Default for Endpoint {
    fn default() -> Self {
        let zone = Zone::parse("cwlota.com").unwrap_or_else(|_| unreachable!("a DNS name"));
        Self { zone, vip: Ipv4Addr::new(169, 254, 77, 80), vip6: None }
    }
}

impl Endpoint {
    /// The virtual addresses.
    #[must_use]
    pub fn vips(&self) -> Vec<IpAddr> {
        let v6 = self.vip6.map(IpAddr::from);
        [IpAddr::from(self.vip)].into_iter().chain(v6).collect()
    }
}

/// The kernel side.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Datapath {
    /// Names of the interfaces that pods are behind; a trailing `*` matches any rest.
    pub pod_interfaces: Vec<String>,
    /// The interface toward the other nodes, which the guard watches.
    pub uplink: Option<String>,
    /// How to steer.
    pub mode: Mode,
    /// How to attach TC programs.
    pub attach: Attach,
    /// Answer pods' name queries for the zone in the datapath, whatever resolver they go to?
    pub answer_names: bool,
    /// Where maps and links are pinned; on a bpffs.
    pub pins: PathBuf,
}

impl Default for Datapath {
    fn default() -> Self {
        Self {
            pod_interfaces: ["veth*", "cali*", "lxc*", "eni*"].map(str::to_owned).to_vec(),
            uplink: None,
            mode: Mode::Auto,
            attach: Attach::Auto,
            answer_names: true,
            pins: PathBuf::from("/sys/fs/bpf/lota"),
        }
    }
}

/// How to steer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By TC where that works, else at socket lookup.
    Auto,
    /// By TC programs on the pods' interfaces.
    Tc,
    /// At socket lookup (kernel 5.17): without anything on the pods' interfaces, and so without name answers there.
    #[serde(rename = "sk_lookup")]
    Lookup,
}

/// How to attach TC programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// tcx where the kernel has it (6.6), else clsact.
    Auto,
    /// tcx, at the head of the chain.
    Tcx,
    /// The older clsact qdisc.
    Clsact,
}

/// Who authorizes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// Its address: `http://host:port` or `https://host:port`.
    pub endpoint: Origin,
    /// What it speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// Where a direct path may point: `http://host:port`, exactly. Anything else is not followed.
    #[serde(default)]
    pub direct_allow: Vec<Origin>,
    /// For a gateway on a fixed host name, which refuses what was signed for another: LOTA checks clients' signatures
    /// itself, and signs anew.
    pub resign: Option<Resign>,
}

/// What a gateway speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Plain S3.
    #[default]
    S3,
    /// S3, and LOTA's gateway protocol beside it (`docs/gateway-protocol.md`).
    Lota,
}

/// Signing clients' requests anew.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resign {
    /// A TOML file with a `[[client]]` for each access key that clients sign with.
    pub clients_file: PathBuf,
    /// The region to sign for.
    #[serde(default = "default_region")]
    pub region: String,
    /// How the gateway is told the bucket.
    #[serde(default)]
    pub style: Style,
}

/// How a server is told the bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Style {
    /// In the path.
    #[default]
    Path,
    /// In the host name.
    VirtualHost,
}

/// Where whole objects may be read, with LOTA's own credential.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// S3 endpoints, used in turn.
    pub endpoints: Vec<Origin>,
    /// The region to sign for.
    #[serde(default = "default_region")]
    pub region: String,
    /// A TOML file with `access_key` and `secret_key`; should permit reading and nothing else.
    pub credential_file: PathBuf,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

/// Where objects are kept.
#[derive(Debug, Deserialize)]
#[serde(try_from = "values::Cache")]
pub struct Cache {
    /// The folders, one on each disk, and how much each may hold; the sum is this node's weight in placement.
    pub disks: Vec<DiskPlan>,
    /// Space of each disk to leave to others.
    pub min_free: ByteSize,
    /// Hundredths of the capacity beyond which room is made ahead,
    pub high_percent: u8,
    /// and those that are left then.
    pub low_percent: u8,
    /// Who may come in when something must go for it.
    pub admission: Admission,
    /// Must it be encrypted?
    pub encryption: Encryption,
    /// Bytes per second, on each disk, that are compared with their checksums behind the requests; 0 for none.
    pub scrub: ByteSize,
}

impl Cache {
    /// Most bytes of objects to keep.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.disks.iter().map(|disk| disk.capacity).sum()
    }
}

/// How an object is brought into the cache.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fill {
    /// Ranged requests for one object at once, at most; fewer while the backend refuses some.
    pub requests: usize,
    /// Bytes that each asks for.
    pub part: ByteSize,
    /// Largest object that is compared with its ETag, where that is an MD5: about two seconds of a CPU per GiB. Checksums
    /// that S3 tells are compared for any size.
    pub md5_up_to: ByteSize,
}

impl Default for Fill {
    fn default() -> Self {
        let Plan { requests, part, md5_up_to, .. } = Plan::DEFAULT;
        Self { requests, part: ByteSize(part), md5_up_to: ByteSize(md5_up_to) }
    }
}

/// The other nodes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peers {
    /// The port nodes talk to each other on, the same on each.
    #[serde(default = "default_peer_port")]
    pub port: u16,
    /// A file with the cluster's secret: at least 32 bytes, the same on each node.
    pub secret_file: PathBuf,
    /// Most nodes that hold an object which many want at once.
    #[serde(default = "default_owners")]
    pub owners: usize,
    /// Requests a second for one object that one node answers alone.
    #[serde(default = "default_hot_requests")]
    pub hot_requests: u32,
    /// Every node of the cluster; this one may be among them. Left out with `[kubernetes]`, whose service says
    /// who they are.
    #[serde(default)]
    pub nodes: Vec<Peer>,
}

fn default_owners() -> usize {
    3
}

fn default_hot_requests() -> u32 {
    200
}

fn default_peer_port() -> u16 {
    7480
}

/// The API server, as the pod's service account or else `KUBECONFIG` says where it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    /// LOTA's own namespace: its service is there, and a rule with a `podSelector` alone is about pods there.
    pub namespace: String,
    /// The headless service whose endpoints are the cluster's nodes.
    pub service: String,
    /// A taint that new nodes have, to keep pods away until LOTA serves there; it is taken off then. None, if nothing is
    /// said.
    pub taint: Option<String>,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self { namespace: "cw-object-storage".into(), service: "lota".into(), taint: None }
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its cache's capacity: its weight in placement.
    pub capacity: ByteSize,
}

/// Metrics and health.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Where to listen: loopback, or the node's address. Pods cannot reach this port on any node, so it must be
    /// the same on each.
    pub listen: SocketAddr,
    /// Where metrics and health are shown once more, and nothing else: a port that pods can reach, for a Prometheus that
    /// is one.
    pub metrics_listen: Option<SocketAddr>,
    /// The socket that `lota access` and `lota datapath status` talk to; for root alone. The socket for handing over
    /// to a new daemon is beside it.
    pub socket: PathBuf,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7481)),
            metrics_listen: None,
            socket: PathBuf::from("/run/lota/admin.sock"),
        }
    }
}

/// How much of everything this node takes on.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections of pods at once; who comes then is told to slow down.
    pub connections: usize,
    /// The same of one pod.
    pub connections_per_pod: usize,
    /// Most bytes of a request's line and headers.
    pub head: ByteSize,
    /// Longest a transfer may stand still, in seconds.
    pub idle_seconds: u64,
    /// Fills at once; what comes then passes through uncached.
    pub fills: usize,
    /// Memory for the parts of bodies that must be held: half for the chunks of fills, what comes then passes through
    /// uncached; half for signed chunks of uploads that are signed anew, who comes then is told to slow down.
    pub body_memory: ByteSize,
    /// Most bytes that fills may bring for one pod beyond what it asks for; forgiven within an hour. A pod past it reads
    /// uncached. A quarter of the cache, if nothing is said.
    pub fill_debt: Option<ByteSize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_pod: 2_500,
            head: ByteSize(64 << 10),
            idle_seconds: 300,
            fills: Plan::DEFAULT.fills,
            body_memory: ByteSize(1 << 30),
            fill_debt: None,
        }
    }
}

/// Which pods may talk to LOTA; none, if nothing is said.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// What holds for addresses that nothing is said about.
    pub default: DefaultAccess,
    /// The pods, one by one, each bound to its interface.
    pub pods: Vec<Pod>,
    /// Pods of this node that may, each bound to its interface, and addresses, from any: a NetworkPolicy's `from`, in its
    /// own schema. Rules about pods need `[kubernetes]`.
    pub from: Vec<Rule>,
    /// Addresses and prefixes that may, from any interface.
    pub allow: Vec<Subject>,
    /// Addresses and prefixes that may not.
    pub deny: Vec<Subject>,
    /// May processes in the node's own network namespace? They cannot be told apart.
    pub host_network: bool,
}

/// What holds for addresses that nothing is said about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultAccess {
    /// No access.
    #[default]
    Deny,
    /// Access: for those who want only the acceleration.
    Allow,
}

/// A pod that may talk to LOTA.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Its address.
    pub address: IpAddr,
    /// The node's interface it is behind, and may send from.
    pub interface: String,
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file it names cannot be read.
    #[error("cannot read {path}: {error}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{path}: {message}", path = path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// The place, and what is wrong there.
        message: String,
    },
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`], with the line and, for an unknown key, the nearest right one.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        Self::parse(&text).map_err(|message| ConfigError::Invalid { path: path.to_owned(), message })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| values::explain(text, &error))?;
        config.check()?;
        Ok(config)
    }

    /// The port nodes talk to each other on; guarded even on a node without peers.
    #[must_use]
    pub fn peer_port(&self) -> u16 {
        self.peers.as_ref().map_or_else(default_peer_port, |peers| peers.port)
    }
}

#[cfg(test)]
mod reference;

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
