//! Connections in: one hyper connection each, with limits and timeouts.

use std::{net::SocketAddr, time::Duration};

use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioTimer;
use thiserror::Error;
use tokio::{net::TcpStream, sync::watch};

use super::{
    Body,
    sendfile::{FileSlices, SendfileStream, SentBytes},
};

/// Longest a client may take to send a request's head, or to begin the next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 256;

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
    stream: TcpStream,
    client: SocketAddr,
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
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .preserve_header_case(true)
        .half_close(true)
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
