//! Where connections come in: pods that may, peers, and how many of them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::{Request, Response, body::Incoming};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::{mpsc, watch},
};

use crate::{
    access::Table,
    http::{
        Body, Seats,
        server::{self, Connection, Life, Limits, NoAnswer},
    },
    proxy::Proxy,
    s3::S3Error,
    workers::Workers,
};

/// Connections past the limit that are told so, at once; any more are reset.
const TURNED_AWAY: usize = 256;
/// The same of one pod.
const TURNED_AWAY_OF_ONE: usize = 16;
/// How long one of them may take to hear it.
const TURN_AWAY: Duration = Duration::from_secs(10);
/// What every accepted connection needs.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) proxy: Arc<Proxy>,
    pub(super) life: watch::Receiver<Life>,
    /// Dropped with the last connection.
    pub(super) alive: mpsc::Sender<()>,
    /// What pods connect to.
    pub(super) vips: Vec<SocketAddr>,
    pub(super) access: watch::Receiver<Arc<Table>>,
    pub(super) limits: Limits,
    /// One for each connection of a pod.
    pub(super) seats: Seats,
    /// One for each connection that is told there are no more.
    pub(super) turned_away: Seats,
    /// Who serves.
    pub(super) workers: Workers,
}

impl Door {
    /// Room for connections that are told that there is none.
    pub(super) fn outside() -> Seats {
        Seats::new(TURNED_AWAY, TURNED_AWAY_OF_ONE)
    }

    /// Serves pods for as long as it is polled.
    pub(super) async fn serve_pods(self, listener: TcpListener) {
        for worker in self.workers.turns() {
            let (stream, client) = server::accept(&listener).await;
            let pod = client.ip().to_canonical();
            // A process of the node may find the hidden listener; the datapath steers to the VIP only.
            let steered = stream.local_addr().is_ok_and(|local| self.vips.contains(&local));
            if !steered {
                self.proxy.unsteered(client);
            }
            // It may have lost its access since it was steered.
            let binding = self.access.borrow().binding(pod).filter(|_| steered);
            let Some(binding) = binding else {
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                continue;
            };
            let lost = access_lost(self.access.clone(), pod, binding);
            let Some(seat) = self.seats.take(pod) else {
                self.turn_away(worker, (stream, client), lost);
                continue;
            };
            let entry = self.clone();
            let service = move |connection, request| {
                let proxy = entry.proxy.clone();
                async move { proxy.enter(connection, request).await }
            };
            self.serve(worker, (stream, client), self.limits, seat, lost, service);
        }
    }

    /// Tells a pod that there are too many connections, if there are not even too many of those.
    fn turn_away(
        &self,
        worker: &Handle,
        (stream, client): (TcpStream, SocketAddr),
        lost: impl Future<Output = ()> + Send + 'static,
    ) {
        let Some(seat) = self.turned_away.take(client.ip().to_canonical()) else {
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            return;
        };
        let entry = self.clone();
        let service = move |mut connection: Connection, request| {
            let proxy = entry.proxy.clone();
            connection.refused =
                Some(S3Error::slow_down("There are as many connections as may be; try again"));
            async move { proxy.enter(connection, request).await }
        };
        let cut = async {
            tokio::select! {
                () = lost => {}
                () = tokio::time::sleep(TURN_AWAY) => {}
            }
        };
        self.serve(worker, (stream, client), self.limits, seat, cut, service);
    }

    /// Serves peers, likewise.
    pub(super) async fn serve_peers(self, listener: TcpListener) {
        // Turns of their own: a long answer brings a connection to both.
        for worker in self.workers.turns() {
            let accepted = server::accept(&listener).await;
            let owner = self.clone();
            let service = move |connection, request| {
                let proxy = owner.proxy.clone();
                async move { proxy.own(connection, request).await }
            };
            self.serve(worker, accepted, Limits::PEER, (), std::future::pending(), service);
        }
    }

    fn serve<S, F>(
        &self,
        worker: &Handle,
        (stream, client): (TcpStream, SocketAddr),
        limits: Limits,
        seat: impl Send + 'static,
        cut: impl Future<Output = ()> + Send + 'static,
        service: S,
    ) where
        S: Fn(Connection, Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Result<Response<Body>, NoAnswer>> + Send + 'static,
    {
        let (sent, life) = (self.proxy.metrics.sent.clone(), self.life.clone());
        let alive = self.alive.clone();
        let stream = stream.into_std();
        worker.spawn(async move {
            match stream.and_then(TcpStream::from_std) {
                Ok(stream) => server::serve((stream, client), limits, sent, life, cut, service).await,
                Err(error) => tracing::error!(%client, %error, "cannot serve a connection"),
            }
            drop((alive, seat));
        });
    }
}

/// Waits until a pod has lost the access it had when it was bound to `then`.
async fn access_lost(mut access: watch::Receiver<Arc<Table>>, pod: IpAddr, then: u32) {
    if access.wait_for(|table| !table.keeps(pod, then)).await.is_err() {
        std::future::pending::<()>().await;
    }
}
