//! First bytes of a connection at the peer port: TLS, or plain HTTP where `peers.tls.mode` allows it.

use std::{io, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::watch};

use crate::{
    cluster::peer::PeerTls,
    http::{ServerStream, TlsRefusal, server::Life, tls::FirstBytes},
    metrics::{Metrics, PeerLabels},
    process::log_limit::LogLimit,
};

static REFUSED: LogLimit = LogLimit::every_ten_seconds();

/// Handles connections at the peer port before HTTP begins.
#[derive(Clone)]
pub(super) struct PeerStreams {
    tls: Option<PeerTls>,
    metrics: Metrics,
}

impl PeerStreams {
    /// Handles connections as `tls` states; without it, all are plain HTTP.
    pub(super) fn new(tls: Option<PeerTls>, metrics: Metrics) -> Self {
        Self { tls, metrics }
    }

    /// Returns the connection of a peer for HTTP.
    ///
    /// # Errors
    /// If its first byte does not arrive in time, or it is refused, which is logged.
    pub(super) async fn open(&self, stream: TcpStream, client: SocketAddr) -> io::Result<ServerStream> {
        let Some(tls) = &self.tls else { return Ok(stream.into()) };
        if !FirstBytes::are_tls(&stream).await? {
            if !tls.is_required() {
                return Ok(stream.into());
            }
            let why = "it does not use TLS; set peers.tls.mode = \"send\" on that node, or \"accept\" or \"send\" on this one";
            self.refused(client, why);
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, why));
        }
        match tls.current().get().accept(stream).await {
            Ok(accepted) => Ok(ServerStream::Tls(accepted)),
            Err(failed) => {
                if let Some(refusal @ TlsRefusal::Here(_)) = TlsRefusal::of(failed.error()) {
                    self.refused(client, &refusal.to_string());
                }
                Err(failed.told().await)
            }
        }
    }

    fn refused(&self, client: SocketAddr, why: &str) {
        self.metrics.peer_requests.get_or_create(&PeerLabels { role: "refused" }).inc();
        if let Some(left_out) = REFUSED.admit() {
            tracing::warn!(%client, why, left_out, "refused a connection on the peer port");
        }
    }
}

/// State of the connections from peers. Those that were accepted before the certificates changed end with their current request.
#[derive(Clone)]
pub(super) struct PeerLife(Arc<Mutex<watch::Sender<Life>>>);

impl PeerLife {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(watch::Sender::new(Life::Serving))))
    }

    /// Returns the state that a new connection follows. To be taken before its certificate is verified.
    pub(super) fn of_new(&self) -> watch::Receiver<Life> {
        self.0.lock().subscribe()
    }

    /// Ends the present connections, but not those that come.
    pub(super) fn renew(&self) {
        let before = std::mem::replace(&mut *self.0.lock(), watch::Sender::new(Life::Serving));
        before.send_replace(Life::Ending);
    }

    /// Ends all connections.
    pub(super) fn end(&self) {
        self.0.lock().send_replace(Life::Ending);
    }
}

#[cfg(test)]
#[path = "peer_stream_tests.rs"]
mod tests;
