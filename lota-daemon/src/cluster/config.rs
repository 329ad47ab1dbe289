//! `[peers]` of the configuration.

use std::{net::IpAddr, path::PathBuf};

use lota_common::ByteSize;
use rustls::pki_types::ServerName;
use serde::Deserialize;

use super::ClusterKeys;
use crate::{
    http::{MutualTlsFiles, tls::CertificateFiles},
    settings::{ConfigError, read},
};

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
#[serde(deny_unknown_fields)]
pub struct PeersConfig {
    /// Port for traffic between nodes, the same on every node.
    #[serde(default = "default_peer_port")]
    pub port: u16,
    /// File with the cluster key: at least 32 bytes, the same on every node. During a rotation, it contains two or three keys,
    /// one per line, all of which are accepted. It is read again when it changes.
    pub secret_file: PathBuf,
    /// Maximum number of owners of a hot object.
    #[serde(default = "default_max_owners")]
    pub max_owners: usize,
    /// Request rate, in requests per second for one object, up to which a single owner serves it. At a higher rate
    /// LOTA adds owners.
    #[serde(default = "default_hot_request_rate")]
    pub hot_request_rate: u32,
    /// Mutual TLS 1.3 between nodes ([how to introduce it](install.md#encrypt-the-traffic-between-nodes)). The files are in PEM
    /// format, and are one group that is read again when one of them changes.
    pub tls: Option<PeerTlsConfig>,
    /// All nodes of the cluster; this node may be included. With `[kubernetes]`, leave it out: the endpoints of
    /// `kubernetes.service` are used.
    #[serde(default)]
    pub nodes: Vec<PeerConfig>,
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
}

impl PeersConfig {
    /// Reads the cluster keys.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is missing or invalid, never with a key.
    pub fn keys(&self) -> Result<ClusterKeys, ConfigError> {
        self.parse_keys(&read(&self.secret_file)?)
    }

    /// Parses the contents of the file with the cluster keys.
    ///
    /// # Errors
    /// [`ConfigError`], never with a key.
    pub fn parse_keys(&self, text: &str) -> Result<ClusterKeys, ConfigError> {
        ClusterKeys::parse(text).map_err(|message| ConfigError::invalid(&self.secret_file, message))
    }
}
