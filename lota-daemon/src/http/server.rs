//! Connections in: one hyper connection each, with limits and timeouts.

use std::{io, net::SocketAddr, time::Duration};

use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioTimer;
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{
    Body, Raw, raw,
    sendfile::{SendfileStream, SentBytes, Slices},
    stream::{ClientStream, REFUSED},
};
use crate::{config, s3::S3Error};

/// Longest a client may take to send a request's head, or to begin the next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest a transfer may stand still: a training job that pauses may come back.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long to wait when there is nothing to accept a connection with.
const SHORTAGE: Duration = Duration::from_millis(100);

/// What one client may send, and do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of a request's head.
    pub head: usize,
    /// Most headers of a request.
    pub headers: usize,
    /// Longest wait for it to send more of a body, or to take more of an answer.
    pub patience: Duration,
    /// May it close its half of the connection and still read the answer? If not, a closed half ends a request
    /// whose client is gone.
    pub half_close: bool,
}

impl Limits {
    /// For pods, as configured.
    #[must_use]
    pub fn for_pods(limits: &config::Limits) -> Self {
        Self {
            head: usize::try_from(limits.head.0).unwrap_or(usize::MAX),
            patience: Duration::from_secs(limits.idle_seconds),
            ..Self::CLIENT
        }
    }

    /// For clients at large, unless configured otherwise.
    pub const CLIENT: Self = Self { head: 64 << 10, headers: 256, patience: PATIENCE, half_close: true };
    /// For peers: they pass on what clients sent (a mebibyte, if so configured), and something of their own.
    pub const PEER: Self =
        Self { head: (1 << 20) + (64 << 10), headers: 512, patience: PATIENCE, half_close: false };
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

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// They stay.
    Serving,
    /// Another daemon takes the next ones: each ends with its next answer, which says so. An idle one is left to
    /// its client, which may be about to send a request.
    Draining,
    /// Each ends as soon as nothing is under way.
    Ending,
}

/// One accepted connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who connected.
    pub client: SocketAddr,
    /// Where bodies that are not copied are queued.
    pub slices: Slices,
    /// What follows an answer that switches protocols.
    pub raw: Raw,
    /// Why what it sent is to be refused, if it is.
    pub refused: Option<S3Error>,
}

/// Whoever sent this gets no answer: the connection ends.
#[derive(Clone, Copy, Debug, Error)]
#[error("not answered")]
pub struct NoAnswer;

/// Serves one connection until it ends, or until `life` says so, or `cut` does: then it is reset at once.
pub async fn serve<S, F>(
    (stream, client): (TcpStream, SocketAddr),
    limits: Limits,
    sent: SentBytes,
    mut life: watch::Receiver<Life>,
    cut: impl Future<Output = ()>,
    service: S,
) where
    S: Fn(Connection, Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Body>, NoAnswer>>,
{
    // Head and file are joined by MSG_MORE already; Nagle would only delay the last segment.
    let _ = stream.set_nodelay(true);
    let (slices, raw) = (Slices::default(), Raw::default());
    let io = SendfileStream::new(stream, slices.clone(), sent);
    let io = ClientStream::new(io, &limits);
    let refusal = io.refusal();
    let (watched, follows) = (life.clone(), raw.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let refused = refusal.get().filter(|_| request.method() == REFUSED).cloned();
        let life = watched.clone();
        let answer =
            service(Connection { client, slices: slices.clone(), raw: follows.clone(), refused }, request);
        async move {
            let mut answer = answer.await?;
            if *life.borrow() != Life::Serving {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, NoAnswer>(answer)
        }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT.min(limits.patience))
        .max_buf_size(limits.head)
        .max_headers(limits.headers)
        .preserve_header_case(true)
        .half_close(limits.half_close)
        .writev(true)
        .serve_connection(io, service);
    let ending = async {
        if life.wait_for(|life| *life == Life::Ending).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let mut cut = std::pin::pin!(cut);
    let result = tokio::select! {
        result = &mut connection => result,
        () = ending => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            tokio::select! {
                result = &mut connection => result,
                () = &mut cut => return connection.into_parts().io.reset(),
            }
        }
        () = &mut cut => return connection.into_parts().io.reset(),
    };
    let result = match (result, raw.take()) {
        (Ok(()), Some(body)) => {
            let mut io = connection.into_parts().io;
            tokio::select! {
                written = raw::write(&mut io, body, limits.patience) => written.map_err(|error| error.to_string()),
                () = &mut cut => return io.reset(),
            }
        }
        (result, _) => result.map_err(|error| error.to_string()),
    };
    if let Err(error) = result {
        tracing::debug!(%client, %error, "connection ended");
    }
}
