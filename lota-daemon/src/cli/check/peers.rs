//! Checks that the other nodes can be reached and have a cluster key in common with this one.

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
        PeerConfig,
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
    Peer,
    Stranger(PeerError),
    Unreachable(String),
}

pub(super) async fn check(report: &mut CheckReport<'_>, config: &Config) {
    let Some(configured) = &config.peers else { return };
    // An unreadable file is reported by the check of files.
    let (Ok(keys), Ok(upstream)) = (configured.keys(), Upstream::new(false)) else { return };
    let me = NodeName(config.node.name.clone());
    let others: Vec<&PeerConfig> = configured.nodes.iter().filter(|node| node.name != me.0).collect();
    let names: Vec<NodeName> = others.iter().map(|node| NodeName(node.name.clone())).collect();
    let mut peers = Peers::new(me, Reloadable::new(keys), configured.port, upstream.without_retries());
    if let Some(tls) = &configured.tls {
        let Ok(current) = tls.files().read() else { return };
        let tls = PeerTls::new(tls.mode, Reloadable::new(current), config.node.address);
        let Finding { part, level, what, fix } =
            node_status::peer_certificate(&PeerTlsStatus::of(&tls, SystemTime::now()));
        report.add(level, &part, what, fix);
        peers = peers.with_tls(tls);
    }
    peers.set_nodes(names.iter().zip(others.iter().map(|node| node.address)));
    let found = stream::iter(others).map(async |node| {
        let address = SocketAddr::new(node.address, configured.port);
        let found = match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Err(_) => PeerProbe::Unreachable(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())),
            Ok(Err(error)) => PeerProbe::Unreachable(error.to_string()),
            Ok(Ok(_)) => match peers.ping(&NodeName(node.name.clone())).await {
                Ok(()) => PeerProbe::Peer,
                Err(error) => PeerProbe::Stranger(error),
            },
        };
        (node, address, found)
    });
    let found: Vec<_> = found.buffered(MAX_CONCURRENT_CHECKS).collect().await;
    let there = found.iter().filter(|(.., found)| matches!(found, PeerProbe::Peer)).count();
    if there > 0 {
        report.ok(
            "peers",
            format!("{there} of {} other nodes answer, with a cluster key of this node", found.len()),
        );
    }
    for (node, address, found) in found {
        match found {
            PeerProbe::Peer => {}
            PeerProbe::Stranger(why) => report.fail(
                "peers",
                format!("{} at {address} does not answer as a peer: {why}", node.name),
                "check the cluster key, name and clock of that node; see its log",
            ),
            PeerProbe::Unreachable(why) => report.warn(
                "peers",
                format!("{} at {address} cannot be reached: {why}", node.name),
                "expected if no daemon runs there yet; other nodes take over its objects",
            ),
        }
    }
}
