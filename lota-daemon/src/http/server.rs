//! Connections in: one hyper connection each, with limits and timeouts.

use std::{io, net::SocketAddr, time::Duration};

use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioTimer;
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{
    Body,
    sendfile::{FileSlices, SendfileStream, SentBytes},
};

/// Longest a client may take to send a request's head, or to begin the next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait when there is nothing to accept a connection with.
const SHORTAGE: Duration = Duration::from_millis(100);

/// What one client may send, and do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of a request's head.
    pub head: usize,
    /// Most headers of a request.
    pub headers: usize,
    /// May it close its half of the connection and still read the answer? If not, a closed half ends a request
    /// whose client is gone.
    pub half_close: bool,
}

impl Limits {
    /// For clients at large.
    pub const CLIENT: Self = Self { head: 64 << 10, headers: 256, half_close: true };
    /// For peers: they pass on what clients sent, and something of their own.
    pub const PEER: Self = Self { head: 128 << 10, headers: 512, half_close: false };
}

/// Accepts a connection, however long that takes: neither a client that gave up nor a lack of descriptors or
/// memory for a moment ends the daemon.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(SHORTAGE).await;
            }
        }
    }
}

/// One accepted connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who connected.
    pub client: SocketAddr,
    /// Where its file-backed bodies are queued.
    pub slices: FileSlices,
}

/// Whoever sent this gets no answer: the connection ends.
#[derive(Clone, Copy, Debug, Error)]
#[error("not answered")]
pub struct NoAnswer;

/// Serves one connection until it ends, or until `stop` says so and the request under way is answered.
pub async fn serve<S, F>(
    (stream, client): (TcpStream, SocketAddr),
    limits: Limits,
    sent: SentBytes,
    mut stop: watch::Receiver<bool>,
    service: S,
) where
    S: Fn(Connection, Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Body>, NoAnswer>>,
{
    // Head and file are joined by MSG_MORE already; Nagle would only delay the last segment.
    let _ = stream.set_nodelay(true);
    let slices = FileSlices::default();
    let io = SendfileStream::new(stream, slices.clone(), sent);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(limits.head)
        .max_headers(limits.headers)
        .preserve_header_case(true)
        .half_close(limits.half_close)
        .writev(true)
        .serve_connection(
            io,
            service_fn(move |request| service(Connection { client, slices: slices.clone() }, request)),
        );
    let mut connection = std::pin::pin!(connection);
    let stopping = async {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopping => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%client, %error, "connection ended");
    }
}
