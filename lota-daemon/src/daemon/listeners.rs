//! Accept loop for pods, with limits on their number of connections.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use hyper::{Request, Response, body::Incoming};
use lota_datapath::{AccessTable, AddressPlace};
use lota_s3::GatewayId;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::{mpsc, watch},
};

use super::{peer_stream::PeerStreams, pod_stream::PodStreams};
use crate::{
    http::{
        Body, ConnectionLimiter, HeadBudget, HeadCharge, PodBandwidth, Reject, Sending, ServerStream,
        server::{self, Connection, ConnectionLimits, Life, NoAnswer},
    },
    process::workers::Workers,
    proxy::Proxy,
    reconciler::Arrivals,
};

/// Maximum number of connections beyond the limit that receive an error; further ones are reset.
pub(super) const TURNED_AWAY: usize = 256;
/// The maximum of [`TURNED_AWAY`] for one pod.
const TURNED_AWAY_PER_POD: usize = 16;
/// Memory in bytes for incomplete request heads of all pods, and of one pod.
const HEAD_MEMORY: (usize, usize) = (16 << 20, 4 << 20);
/// Timeout for sending the error.
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(10);

/// State that every accepted connection needs.
#[derive(Clone)]
pub(super) struct PodListeners {
    pub(super) proxy: Arc<Proxy>,
    pub(super) life: watch::Receiver<Life>,
    /// Closes with the last connection.
    pub(super) alive: mpsc::Sender<()>,
    /// Addresses that pods connect to, except those that stand for targets.
    pub(super) vips: Arc<[SocketAddr]>,
    /// Gateways by the address of LOTA that stands for theirs.
    pub(super) targets: Arc<BTreeMap<SocketAddr, GatewayId>>,
    pub(super) access: watch::Receiver<Arc<AccessTable>>,
    /// Records accepted connections.
    pub(super) arrivals: Arc<Arrivals>,
    pub(super) limits: ConnectionLimits,
    /// Limits the connections of pods.
    pub(super) limiter: ConnectionLimiter,
    /// Limits the connections that receive an error.
    pub(super) turned_away: ConnectionLimiter,
    /// Memory for incomplete request heads of pods.
    pub(super) heads: HeadBudget,
    /// Bandwidth of pods; `None` on ports of peers.
    pub(super) bandwidth: Option<PodBandwidth>,
    /// Workers that serve the connections.
    pub(super) workers: Workers,
    /// Handles what precedes HTTP.
    pub(super) streams: Streams,
}

/// Handles what precedes HTTP on a connection.
#[derive(Clone)]
pub(super) enum Streams {
    Pods(PodStreams),
    Peers(PeerStreams),
}

impl Streams {
    /// Returns the same without passing on, for connections that only receive an error.
    fn without_passing_on(&self) -> Self {
        match self {
            Self::Pods(streams) => Self::Pods(streams.without_passing_on()),
            Self::Peers(streams) => Self::Peers(streams.clone()),
        }
    }

    /// Returns the connection for HTTP, or `None` if it was passed on and has ended.
    async fn open(&self, stream: TcpStream, client: SocketAddr) -> io::Result<Option<ServerStream>> {
        match self {
            Self::Pods(streams) => streams.open(stream, client.ip().to_canonical()).await,
            Self::Peers(streams) => streams.open(stream, client).await.map(Some),
        }
    }
}

impl PodListeners {
    /// Returns the limits of connections that receive an error.
    pub(super) fn outside() -> ConnectionLimiter {
        ConnectionLimiter::new(TURNED_AWAY, TURNED_AWAY_PER_POD)
    }

    /// Returns the memory for incomplete request heads of pods.
    pub(super) fn heads() -> HeadBudget {
        HeadBudget::new(HEAD_MEMORY.0, HEAD_MEMORY.1)
    }

    /// Serves pods until the future is dropped.
    pub(super) async fn serve_pods(self, listener: TcpListener) {
        for worker in self.workers.turns() {
            let (stream, client) = server::accept(&listener).await;
            let pod = client.ip().to_canonical();
            // A process of the node may connect to the hidden listener directly; the datapath redirects only to the
            // VIP.
            let local = stream.local_addr().ok();
            let target = local.and_then(|local| self.targets.get(&local)).cloned();
            let redirected = target.is_some() || local.is_some_and(|local| self.vips.contains(&local));
            match redirected {
                true => self.arrivals.note(pod),
                false => self.proxy.unexpected_connection(client),
            }
            // The pod may have lost access since its connection was redirected.
            let binding = self.access.borrow().binding(pod).filter(|_| redirected);
            let Some(binding) = binding else {
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                continue;
            };
            let lost = access_lost(self.access.clone(), pod, binding);
            let Some(permit) = self.limiter.take(pod) else {
                self.turn_away(worker, (stream, client), lost);
                continue;
            };
            let proxy = self.proxy.clone();
            let service = move |mut connection: Connection, request| {
                let proxy = proxy.clone();
                connection.target = target.clone();
                async move { proxy.enter(connection, request).await }
            };
            let terms = (self.limits, self.heads.charge(pod));
            self.serve(worker, (stream, client), terms, permit, lost, service);
        }
    }

    /// Answers with an error that there are too many connections, or resets beyond a limit.
    fn turn_away(
        &self,
        worker: &Handle,
        (stream, client): (TcpStream, SocketAddr),
        lost: impl Future<Output = ()> + Send + 'static,
    ) {
        let Some(permit) = self.turned_away.take(client.ip().to_canonical()) else {
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            return;
        };
        let proxy = self.proxy.clone();
        let service = move |mut connection: Connection, request| {
            let proxy = proxy.clone();
            connection.refused = Some(Reject::TooManyConnections);
            async move { proxy.enter(connection, request).await }
        };
        let cut = async {
            tokio::select! {
                () = lost => {}
                () = tokio::time::sleep(TURN_AWAY_TIMEOUT) => {}
            }
        };
        let terms = (self.limits, self.heads.charge(client.ip().to_canonical()));
        let streams = self.streams.without_passing_on();
        Self { streams, ..self.clone() }.serve(worker, (stream, client), terms, permit, cut, service);
    }

    /// Serves one connection on a worker.
    pub(super) fn serve<S, F>(
        &self,
        worker: &Handle,
        (stream, client): (TcpStream, SocketAddr),
        terms: (ConnectionLimits, HeadCharge),
        permit: impl Send + 'static,
        cut: impl Future<Output = ()> + Send + 'static,
        service: S,
    ) where
        S: Fn(Connection, Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Result<Response<Body>, NoAnswer>> + Send + 'static,
    {
        let pace = self.bandwidth.as_ref().map(|pods| pods.pace(client.ip().to_canonical()));
        let (sending, life) = (Sending { sent: self.proxy.metrics.sent.clone(), pace }, self.life.clone());
        let (alive, streams) = (self.alive.clone(), self.streams.clone());
        let stream = stream.into_std();
        worker.spawn(async move {
            let mut cut = pin!(cut);
            let opened = async {
                let stream = stream.and_then(TcpStream::from_std)?;
                streams.open(stream, client).await
            };
            let opened = tokio::select! {
                opened = opened => opened,
                () = &mut cut => Ok(None),
            };
            match opened {
                Ok(Some(stream)) => server::serve((stream, client), terms, sending, life, cut, service).await,
                Ok(None) => {}
                Err(error) => tracing::debug!(%client, %error, "connection ended before its first request"),
            }
            drop((alive, permit));
        });
    }
}

/// Waits until a pod has lost the access that it had when it was bound to `then`.
async fn access_lost(mut access: watch::Receiver<Arc<AccessTable>>, pod: IpAddr, then: AddressPlace) {
    if access.wait_for(|table| !table.keeps(pod, then)).await.is_err() {
        std::future::pending::<()>().await;
    }
}
