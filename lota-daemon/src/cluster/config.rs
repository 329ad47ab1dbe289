//! `[peers]` of the configuration.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
};

use lota_cache::placement::NodeName;
use lota_common::ByteSize;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};

use super::{NodePublicKey, PublicKeys, peer_keys::MAX_PUBLIC_KEYS};
use crate::http::{MutualTlsFiles, tls::CertificateFiles};

/// Identity of this node.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "NodeSection")]
pub struct NodeConfig {
    /// Name of the node. Placement hashes it, so it must stay the same for as long as the cache is kept.
    pub name: String,
    /// Address of the node in the cluster. The peer port listens on this address only.
    pub address: IpAddr,
    /// Zone of the node, sent to gateways that speak the LOTA protocol. Among several owners of an object, a node
    /// prefers one in its own zone; with `placement.per_zone`, it asks only those.
    pub zone: String,
    /// Region of the node, sent to gateways that speak the LOTA protocol.
    pub region: String,
}

/// `[node]` as written in the file. Where nodes share one file, the environment supplies the keys that differ.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeSection {
    /// Name of the node. Placement hashes it, so it must stay the same for as long as the cache is kept. Default: the
    /// environment variable `LOTA_NODE_NAME`; one of the two is required.
    name: Option<String>,
    /// Address of the node in the cluster. The peer port listens on this address only. Default: the environment
    /// variable `LOTA_NODE_ADDRESS`; one of the two is required.
    address: Option<IpAddr>,
    /// Zone of the node, sent to gateways that speak the LOTA protocol. Among several owners of an object, a node
    /// prefers one in its own zone; with `placement.per_zone`, it asks only those. Default: the environment variable
    /// `LOTA_NODE_ZONE`, or else the zone that `peers.nodes` or the API server reports.
    #[serde(default)]
    zone: String,
    /// Region of the node, sent to gateways that speak the LOTA protocol.
    #[serde(default)]
    region: String,
}

impl TryFrom<NodeSection> for NodeConfig {
    type Error = String;

    fn try_from(NodeSection { name, address, zone, region }: NodeSection) -> Result<Self, String> {
        let environment = |variable: &str| std::env::var(variable).ok().filter(|value| !value.is_empty());
        let name = name.or_else(|| environment("LOTA_NODE_NAME"));
        let name = name.ok_or("node.name: missing; set it, or LOTA_NODE_NAME in the environment")?;
        let address = match (address, environment("LOTA_NODE_ADDRESS")) {
            (Some(address), _) => address,
            (None, Some(text)) => {
                text.parse().map_err(|_| format!("LOTA_NODE_ADDRESS: `{text}` is not an IP address"))?
            }
            (None, None) => {
                return Err("node.address: missing; set it, or LOTA_NODE_ADDRESS in the environment".into());
            }
        };
        let zone = if zone.is_empty() { environment("LOTA_NODE_ZONE").unwrap_or_default() } else { zone };
        Ok(Self { name, address, zone, region })
    }
}

/// Other nodes of the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "PeersSection")]
pub struct PeersConfig {
    /// Port for traffic between nodes, the same on every node.
    pub port: u16,
    /// Files with the keys that authenticate messages between nodes.
    pub keys: PeerKeyFiles,
    /// Maximum number of owners of a hot object.
    pub max_owners: usize,
    /// Request rate, in requests per second for one object, up to which a single owner serves it.
    pub hot_request_rate: u32,
    /// Mutual TLS between nodes.
    pub tls: Option<PeerTlsConfig>,
    /// All nodes of the cluster; empty if the API server lists them.
    pub nodes: Vec<PeerConfig>,
}

/// Kind of keys that authenticate messages between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerAuthentication {
    /// Cluster keys, the same on every node.
    Shared,
    /// Cluster keys and keys of nodes, of which one that both nodes have suffices, during a migration.
    Both,
    /// Keys of nodes only, so that each node proves which one it is.
    Node,
}

impl PeerAuthentication {
    /// Returns the name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Both => "both",
            Self::Node => "node",
        }
    }

    /// Returns whether keys of nodes are used.
    #[must_use]
    pub fn has_node_keys(self) -> bool {
        self != Self::Shared
    }
}

/// Files with the keys that authenticate messages between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerKeyFiles {
    /// Cluster keys.
    Shared(PathBuf),
    /// Cluster keys, and the key of this node.
    Both(PathBuf, PathBuf),
    /// Key of this node.
    Node(PathBuf),
}

/// `[peers]` as written in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeersSection {
    /// Port for traffic between nodes, the same on every node.
    #[serde(default = "default_peer_port")]
    port: u16,
    /// Keys that authenticate messages between nodes. Default: `"node"` with `node_key_file` only, `"both"` with both files,
    /// otherwise `"shared"`.
    authentication: Option<PeerAuthentication>,
    /// File with the cluster key: at least 32 bytes, the same on every node. During a rotation, it contains two or three keys,
    /// one per line, all of which are accepted. It is read again when it changes. Required unless `authentication` is `"node"`.
    secret_file: Option<PathBuf>,
    /// File with the private key of this node: an Ed25519 key in PKCS#8 PEM. The daemon makes it if it does not exist, and reads it
    /// again when it changes. Required if `authentication` is `"both"` or `"node"`.
    node_key_file: Option<PathBuf>,
    /// Maximum number of owners of a hot object.
    #[serde(default = "default_max_owners")]
    max_owners: usize,
    /// Request rate, in requests per second for one object, up to which a single owner serves it. At a higher rate
    /// LOTA adds owners.
    #[serde(default = "default_hot_request_rate")]
    hot_request_rate: u32,
    /// Mutual TLS 1.3 between nodes ([how to introduce it](install.md#encrypt-the-traffic-between-nodes)). The files are in PEM
    /// format, and are one group that is read again when one of them changes.
    tls: Option<PeerTlsConfig>,
    /// All nodes of the cluster; this node may be included. With `[kubernetes]`, leave it out: the endpoints of
    /// `kubernetes.service` are used.
    #[serde(default)]
    nodes: Vec<PeerConfig>,
}

impl TryFrom<PeersSection> for PeersConfig {
    type Error = String;

    fn try_from(section: PeersSection) -> Result<Self, String> {
        let PeersSection {
            port,
            authentication,
            secret_file,
            node_key_file,
            max_owners,
            hot_request_rate,
            tls,
            nodes,
        } = section;
        let keys = PeerKeyFiles::new(authentication, secret_file, node_key_file)?;
        let (mut names, mut owners) = (HashSet::new(), HashMap::<NodePublicKey, &str>::new());
        for node in &nodes {
            let PeerConfig { name, public_keys, .. } = node;
            if !names.insert(name) {
                return Err(format!("peers.nodes: two nodes have the name `{name}`; remove one of them"));
            }
            if public_keys.len() > MAX_PUBLIC_KEYS {
                return Err(format!(
                    "peers.nodes.public_keys: more than {MAX_PUBLIC_KEYS} keys of `{name}`; remove those that it has replaced"
                ));
            }
            for key in public_keys {
                if let Some(other) = owners.insert(*key, name) {
                    return Err(format!(
                        "peers.nodes.public_keys: `{name}` has a key of `{other}`; each node needs a key of its own"
                    ));
                }
            }
        }
        Ok(Self { port, keys, max_owners, hot_request_rate, tls, nodes })
    }
}

impl PeerKeyFiles {
    fn new(
        authentication: Option<PeerAuthentication>,
        secret_file: Option<PathBuf>,
        node_key_file: Option<PathBuf>,
    ) -> Result<Self, String> {
        let missing = |key: &str, authentication: PeerAuthentication| {
            format!("peers.{key}: missing; authentication = \"{}\" needs it", authentication.name())
        };
        let by_files = match (&secret_file, &node_key_file) {
            (_, None) => PeerAuthentication::Shared,
            (Some(_), Some(_)) => PeerAuthentication::Both,
            (None, Some(_)) => PeerAuthentication::Node,
        };
        let authentication = authentication.unwrap_or(by_files);
        let secret_file = secret_file.ok_or_else(|| missing("secret_file", authentication));
        let node_key_file = node_key_file.ok_or_else(|| missing("node_key_file", authentication));
        Ok(match authentication {
            PeerAuthentication::Shared => Self::Shared(secret_file?),
            PeerAuthentication::Both => Self::Both(secret_file?, node_key_file?),
            PeerAuthentication::Node => Self::Node(node_key_file?),
        })
    }

    /// Returns the kind of keys.
    #[must_use]
    pub fn authentication(&self) -> PeerAuthentication {
        match self {
            Self::Shared(_) => PeerAuthentication::Shared,
            Self::Both(..) => PeerAuthentication::Both,
            Self::Node(_) => PeerAuthentication::Node,
        }
    }

    /// Returns the file with the cluster keys, if they are used.
    #[must_use]
    pub fn shared(&self) -> Option<&Path> {
        match self {
            Self::Shared(shared) | Self::Both(shared, _) => Some(shared),
            Self::Node(_) => None,
        }
    }

    /// Returns the file with the key of this node, if it is used.
    #[must_use]
    pub fn node(&self) -> Option<&Path> {
        match self {
            Self::Shared(_) => None,
            Self::Both(_, node) | Self::Node(node) => Some(node),
        }
    }
}

/// Mutual TLS between nodes. When the files change, connections between nodes end after their current request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerTlsConfig {
    /// Certificate of this node, followed by intermediate certificates. It must be valid for servers and for clients.
    pub certificate: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
    /// Certificates of the authorities that issue the nodes' certificates.
    pub ca: PathBuf,
    /// Certificate revocation lists (CRL) of these authorities. What no list covers is not revoked, and lists do not expire.
    pub crl: Option<PathBuf>,
    /// DNS name that the certificates of all nodes have. Default: each node's certificate has its address.
    pub server_name: Option<PeerServerName>,
    /// Use of TLS. To introduce it without an interruption, set one mode after the other on all nodes.
    #[serde(default)]
    pub mode: PeerTlsMode,
}

/// Use of TLS between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerTlsMode {
    /// Accept connections with and without TLS, and make them without.
    Accept,
    /// Accept connections with and without TLS, and make them with TLS.
    Send,
    /// Refuse connections without TLS.
    #[default]
    Require,
}

impl PeerTlsMode {
    /// Returns the name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Send => "send",
            Self::Require => "require",
        }
    }
}

/// DNS name in the certificates of all nodes.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct PeerServerName(ServerName<'static>);

impl TryFrom<String> for PeerServerName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match ServerName::try_from(name.clone()) {
            Ok(parsed @ ServerName::DnsName(_)) => Ok(Self(parsed)),
            _ => Err(format!("`{name}` is not a DNS name; leave it out to use the nodes' addresses")),
        }
    }
}

impl PeerTlsConfig {
    /// Returns the files.
    #[must_use]
    pub fn files(&self) -> MutualTlsFiles {
        MutualTlsFiles {
            own: CertificateFiles { certificate: self.certificate.clone(), key: self.key.clone() },
            ca: self.ca.clone(),
            crl: self.crl.clone(),
            server_name: self.server_name.clone().map(|PeerServerName(name)| name),
        }
    }
}

fn default_max_owners() -> usize {
    3
}

fn default_hot_request_rate() -> u32 {
    200
}

/// Returns the default port for traffic between nodes.
#[must_use]
pub fn default_peer_port() -> u16 {
    7480
}

/// Node of the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Name of the node.
    pub name: String,
    /// Address of the node.
    pub address: IpAddr,
    /// Cache capacity of the node: its weight in placement.
    pub capacity: ByteSize,
    /// Zone of the node, as in its own `node.zone`. Default: unknown.
    #[serde(default)]
    pub zone: String,
    /// Public keys of the node, as `lota node-key` prints them there: one, and during the rotation of its key two.
    #[serde(default)]
    pub public_keys: Vec<NodePublicKey>,
}

impl PeersConfig {
    /// Returns the public keys of all nodes; `None` if keys of nodes are not used.
    #[must_use]
    pub fn published_keys(&self) -> Option<PublicKeys> {
        self.keys.authentication().has_node_keys().then(|| self.public_keys())
    }

    /// Returns the public keys of all nodes.
    #[must_use]
    pub fn public_keys(&self) -> PublicKeys {
        self.nodes.iter().map(|node| (NodeName(node.name.clone()), node.public_keys.clone())).collect()
    }
}
