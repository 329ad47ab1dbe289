//! Checks that the other nodes can be reached and answer messages under this node's keys.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use lota_cache::placement::NodeName;
use tokio::{net::TcpStream, time::timeout};

use super::CheckReport;
use crate::{
    admin::node_status::{self, Finding, PeerTlsStatus},
    cluster::{
        ClusterKeys, NodeKey, PeerAuthentication, PeerConfig, PeerKeys,
        peer::{PeerError, PeerTls, Peers},
    },
    config::Config,
    http::upstream::Upstream,
    settings::Reloadable,
};

/// Timeout for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Number of nodes that are checked at the same time.
const MAX_CONCURRENT_CHECKS: usize = 32;

/// Result of checking one node.
enum PeerProbe {
    /// It answers.
    Peer,
    /// It answers by a cluster key only.
    OnlyShared,
    /// It does not answer as a peer.
    Stranger(PeerError),
    /// There is no connection.
    Unreachable(String),
}

pub(super) async fn check(report: &mut CheckReport<'_>, config: &Config) {
    let Some(configured) = &config.peers else { return };
    let authentication = configured.keys.authentication();
    let me = NodeName(config.node.name.clone());
    let others: Vec<&PeerConfig> = configured.nodes.iter().filter(|node| node.name != me.0).collect();
    if authentication == PeerAuthentication::Both {
        report.warn(
            "peers",
            "peers.authentication is \"both\": a stolen cluster key still counts",
            "when all nodes have the public keys of all others, and `lota check` reports nothing else, set it to \"node\" everywhere",
        );
    }
    let keyless = others.iter().filter(|node| authentication.has_node_keys() && node.public_keys.is_empty());
    let keyless: Vec<&str> = keyless.map(|node| &*node.name).collect();
    if !keyless.is_empty() {
        report.warn(
            "peers",
            format!("no public key of {}", keyless.join(", ")),
            "run `lota node-key` there, and add the keys to peers.nodes on all nodes",
        );
    }
    // Unreadable files are reported by the check of files.
    let shared = configured.keys.shared().map(ClusterKeys::read).transpose();
    let own = configured.keys.node().map(NodeKey::read).transpose();
    let (Ok(shared), Ok(own), Ok(upstream)) = (shared, own, Upstream::new(false)) else { return };
    let (shared, own) = (shared.map(Reloadable::new), own.map(Reloadable::new));
    let names: Vec<NodeName> = others.iter().map(|node| NodeName(node.name.clone())).collect();
    let mut tls = None;
    if let Some(configured) = &configured.tls {
        let Ok(current) = configured.files().read() else { return };
        let current = PeerTls::new(configured.mode, Reloadable::new(current), config.node.address);
        let Finding { part, level, what, fix } =
            node_status::peer_certificate(&PeerTlsStatus::of(&current, SystemTime::now()));
        report.add(level, &part, what, fix);
        tls = Some(current);
    }
    let with = |shared, own| {
        let keys = PeerKeys::new(shared, own);
        keys.publish(configured.public_keys());
        let mut peers = Peers::new(me.clone(), keys, configured.port, upstream.clone().without_retries());
        if let Some(tls) = tls.clone() {
            peers = peers.with_tls(tls);
        }
        peers.set_nodes(names.iter().zip(others.iter().map(|node| node.address)));
        peers
    };
    let peers = with(shared.clone().filter(|_| own.is_none()), own);
    let by_shared =
        shared.filter(|_| authentication == PeerAuthentication::Both).map(|shared| with(Some(shared), None));
    let found = stream::iter(others).map(async |node| {
        let address = SocketAddr::new(node.address, configured.port);
        let name = NodeName(node.name.clone());
        let found = match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Err(_) => PeerProbe::Unreachable(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())),
            Ok(Err(error)) => PeerProbe::Unreachable(error.to_string()),
            Ok(Ok(_)) => match (peers.ping(&name).await, &by_shared) {
                (Ok(()), _) => PeerProbe::Peer,
                (Err(_), Some(peers)) if peers.is_alive(&name).await => PeerProbe::OnlyShared,
                (Err(error), _) => PeerProbe::Stranger(error),
            },
        };
        (node, address, found)
    });
    let found: Vec<_> = found.buffered(MAX_CONCURRENT_CHECKS).collect().await;
    let there = found.iter().filter(|(.., found)| matches!(found, PeerProbe::Peer)).count();
    if there > 0 {
        let key = match authentication {
            PeerAuthentication::Shared => "a cluster key of this node",
            PeerAuthentication::Both | PeerAuthentication::Node => "the keys of both nodes",
        };
        report.ok("peers", format!("{there} of {} other nodes answer, with {key}", found.len()));
    }
    for (node, address, found) in found {
        match found {
            PeerProbe::Peer => {}
            PeerProbe::OnlyShared => report.warn(
                "peers",
                format!("{} at {address} answers by a cluster key only", node.name),
                "set peers.authentication to \"both\" there, and compare its public key and this node's in both configurations",
            ),
            PeerProbe::Stranger(why) => report.fail(
                "peers",
                format!("{} at {address} does not answer as a peer: {why}", node.name),
                "check the keys, name and clock of that node; see its log",
            ),
            PeerProbe::Unreachable(why) => report.warn(
                "peers",
                format!("{} at {address} cannot be reached: {why}", node.name),
                "expected if no daemon runs there yet; other nodes take over its objects",
            ),
        }
    }
}
