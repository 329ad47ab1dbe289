//! The other nodes: are they there, and do they have the same secret?

use std::{net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::{net::TcpStream, time::timeout};

use super::Report;
use crate::{
    config::{Config, Peer},
    http::upstream::Upstream,
    peer::Peers,
    placement::NodeName,
};

/// Longest wait for a connection.
const PATIENCE: Duration = Duration::from_secs(3);
/// Nodes that are asked at once.
const AT_ONCE: usize = 32;

/// What became of a node.
enum Found {
    Peer,
    Stranger,
    Nobody(String),
}

pub(super) async fn check(report: &mut Report<'_>, config: &Config) {
    let Some(configured) = &config.peers else { return };
    // That it cannot be read was said before.
    let (Ok(secret), Ok(upstream)) = (configured.secret(), Upstream::new(false)) else { return };
    let me = NodeName(config.node.name.clone());
    let others: Vec<&Peer> = configured.nodes.iter().filter(|node| node.name != me.0).collect();
    let names: Vec<NodeName> = others.iter().map(|node| NodeName(node.name.clone())).collect();
    let peers = Peers::new(me, &secret, configured.port, upstream.impatient());
    peers.set_nodes(names.iter().zip(others.iter().map(|node| node.address)));
    let found = stream::iter(others).map(async |node| {
        let address = SocketAddr::new(node.address, configured.port);
        let found = match timeout(PATIENCE, TcpStream::connect(address)).await {
            Err(_) => Found::Nobody(format!("no connection within {} s", PATIENCE.as_secs())),
            Ok(Err(error)) => Found::Nobody(error.to_string()),
            Ok(Ok(_)) => match peers.is_alive(&NodeName(node.name.clone())).await {
                true => Found::Peer,
                false => Found::Stranger,
            },
        };
        (node, address, found)
    });
    let found: Vec<_> = found.buffered(AT_ONCE).collect().await;
    let there = found.iter().filter(|(.., found)| matches!(found, Found::Peer)).count();
    if there > 0 {
        report.ok("peers", format!("{there} of {} other nodes answer, with the same secret", found.len()));
    }
    for (node, address, found) in found {
        match found {
            Found::Peer => {}
            Found::Stranger => report.fail(
                "peers",
                format!("{} at {address} does not answer as a peer", node.name),
                "has it another secret, another name, or a clock that is off? Its log says why",
            ),
            Found::Nobody(why) => report.warn(
                "peers",
                format!("{} at {address} cannot be reached: {why}", node.name),
                "right, if no daemon runs there yet; its share of the objects is the others' meanwhile",
            ),
        }
    }
}
