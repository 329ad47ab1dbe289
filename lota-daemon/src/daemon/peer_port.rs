//! The peer port: connections of members, and a small share for unknown addresses.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use hyper::{
    StatusCode,
    header::{CONNECTION, HeaderValue},
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::watch};

use super::{
    listeners::{PodListeners, Streams},
    peer_stream::{PeerLife, PeerStreams},
};
use crate::http::{
    ConnectionLimiter, HeadBudget, Slots,
    server::{self, ConnectionLimits},
};

/// Maximum number of connections from unknown addresses.
pub(super) const STRANGERS: usize = 64;
/// Maximum number of connections from one unknown address.
const STRANGERS_OF_ONE: usize = 16;
/// Memory in bytes for incomplete heads of all connections, and of one address.
const HEAD_MEMORY: (usize, usize) = (8 << 20, 4 << 20);
/// Duration for which an address counts as a peer's after an authenticated message.
const VOUCHED_TTL: Duration = Duration::from_secs(600);
/// Maximum number of addresses that count as a peer's without being a member's.
const MAX_VOUCHED: usize = 1024;

/// Limits of the peer port.
#[derive(Clone)]
pub(super) struct PeerPort {
    /// Addresses of the members.
    members: watch::Receiver<Vec<IpAddr>>,
    vouched: Arc<Mutex<VecDeque<(IpAddr, Instant)>>>,
    known: ConnectionLimiter,
    strangers: Slots,
    heads: HeadBudget,
    life: PeerLife,
    streams: PeerStreams,
}

impl PeerPort {
    /// Returns the limits for `connections` of members, of which each address gets at most half.
    pub(super) fn new(
        connections: usize,
        members: watch::Receiver<Vec<IpAddr>>,
        life: PeerLife,
        streams: PeerStreams,
    ) -> Self {
        Self {
            members,
            vouched: Arc::default(),
            known: ConnectionLimiter::of_nodes(connections, connections.div_ceil(2)),
            strangers: Slots::new(STRANGERS, STRANGERS_OF_ONE),
            heads: HeadBudget::new(HEAD_MEMORY.0, HEAD_MEMORY.1),
            life,
            streams,
        }
    }

    /// Serves peers until the future is dropped.
    pub(super) async fn serve(self, listener: TcpListener, mut listeners: PodListeners) {
        listeners.streams = Streams::Peers(self.streams.clone());
        listeners.bandwidth = None;
        // A separate rotation, since relaying a long response opens a connection on both ports.
        for worker in listeners.workers.turns() {
            let accepted = server::accept(&listener).await;
            listeners.life = self.life.of_new();
            let client = accepted.1.ip().to_canonical();
            let heads = self.heads.charge(client);
            let proxy = listeners.proxy.clone();
            if self.knows(client) {
                let Some(permit) = self.known.take(client) else { continue };
                let service = move |connection, request| {
                    let proxy = proxy.clone();
                    async move { proxy.own(connection, request).await }
                };
                listeners.serve(
                    worker,
                    accepted,
                    (ConnectionLimits::PEER, heads),
                    permit,
                    std::future::pending(),
                    service,
                );
                continue;
            }
            let Some(slot) = self.strangers.take(client) else { continue };
            let (port, marker, busy) = (self.clone(), slot.marker(), Arc::new(OnceLock::new()));
            let service = move |connection, request| {
                let (proxy, port, marker, busy) = (proxy.clone(), port.clone(), marker.clone(), busy.clone());
                async move {
                    let mut answer = proxy.own(connection, request).await?;
                    // The client has the cluster key: treat its next connection as a peer's.
                    let _ = busy.set(marker.busy());
                    port.vouch(client);
                    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok(answer)
                }
            };
            let cut = slot.closed();
            listeners.serve(worker, accepted, (ConnectionLimits::STRANGER, heads), slot, cut, service);
        }
    }

    /// Returns whether an address is a member's or has recently sent an authenticated message.
    fn knows(&self, client: IpAddr) -> bool {
        if self.members.borrow().iter().any(|member| member.to_canonical() == client) {
            return true;
        }
        let vouched = self.vouched.lock();
        vouched.iter().any(|(address, at)| *address == client && at.elapsed() < VOUCHED_TTL)
    }

    fn vouch(&self, client: IpAddr) {
        let mut vouched = self.vouched.lock();
        vouched.retain(|(address, at)| *address != client && at.elapsed() < VOUCHED_TTL);
        if vouched.len() == MAX_VOUCHED {
            vouched.pop_front();
        }
        vouched.push_back((client, Instant::now()));
    }
}
