//! HTTP server: serves accepted connections with hyper, with limits and timeouts.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{
    Request, Response, Version,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use lota_common::ByteSize;
use lota_s3::GatewayId;
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{
    Body, HeadCharge, Raw, Reject, Sending,
    head_timer::HeadTimer,
    raw,
    sendfile::{SendfileStream, ServerStream, Slices},
    stream::{ClientStream, REFUSED},
};
use crate::process::log_limit::LogLimit;

/// Timeout for a request's headers, and for the start of the next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout for the headers of an address that has not sent an authentic peer message.
const STRANGER_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for progress of a response on the admin port.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout for a transfer without progress; long enough for a training job that pauses.
const PEER_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Time after which an idle connection frees its hyper state (16 KiB); a request within it reuses the state. Short, so that
/// thousands of clients that send one request each hold little memory at once. A busy client sends its next request sooner.
const FREE_IDLE_AFTER: Duration = Duration::from_millis(10);
/// Minimum wait for a head until it is verified again that the client still receives the last answer.
const MIN_WAIT: Duration = Duration::from_millis(100);
/// Duration for which a connection without a first request stays open after its listener has ended: its client is about to
/// send one.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);
/// Delay after a failed `accept`, for example without free file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Limits of one connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Maximum size of the request line and headers, in bytes.
    pub head: usize,
    /// Maximum number of request headers.
    pub headers: usize,
    /// Timeout for a request's headers.
    pub head_timeout: Duration,
    /// Timeout for progress of a request or response body.
    pub idle_timeout: Duration,
    /// Whether the client may close its half of the connection and still receive the response. Otherwise a closed half
    /// cancels the request.
    pub half_close: bool,
    /// Whether the connection can carry further requests after a raw body.
    pub reuses_raw: bool,
}

impl ConnectionLimits {
    /// Returns the limits of pods, from the configuration.
    #[must_use]
    pub fn for_pods(header_size: ByteSize, idle_timeout: Duration) -> Self {
        Self { head: usize::try_from(header_size.0).unwrap_or(usize::MAX), idle_timeout, ..Self::CLIENT }
    }

    /// Returns the timeout for a request's headers, at most the idle timeout.
    fn head_timeout(&self) -> Duration {
        self.head_timeout.min(self.idle_timeout)
    }

    /// Returns the wait for the next head of a connection that has been idle for a while.
    fn wait_when_idle(&self) -> Duration {
        self.head_timeout().saturating_sub(FREE_IDLE_AFTER).max(MIN_WAIT)
    }

    /// Default limits of clients.
    pub const CLIENT: Self = Self {
        head: 64 << 10,
        headers: 256,
        head_timeout: HEAD_TIMEOUT,
        idle_timeout: PEER_IDLE_TIMEOUT,
        half_close: true,
        reuses_raw: false,
    };
    /// Limits of peers, which forward the headers of clients (up to a mebibyte, if so configured) and add their own.
    pub const PEER: Self = Self {
        head: (1 << 20) + (64 << 10),
        headers: 512,
        head_timeout: HEAD_TIMEOUT,
        idle_timeout: PEER_IDLE_TIMEOUT,
        half_close: false,
        reuses_raw: true,
    };
    /// Limits of addresses at the peer port that are not a member's and have not sent an authentic message.
    pub const STRANGER: Self = Self {
        head: 16 << 10,
        headers: 256,
        head_timeout: STRANGER_HEAD_TIMEOUT,
        reuses_raw: false,
        ..Self::PEER
    };
    /// Limits of clients of the admin and metrics ports.
    pub const ADMIN: Self = Self { head: 16 << 10, headers: 64, idle_timeout: ADMIN_TIMEOUT, ..Self::CLIENT };
}

static ACCEPT_ERRORS: LogLimit = LogLimit::new(Duration::from_secs(10));

/// Accepts a connection. Retries after errors: an aborted connection, or a temporary lack of file descriptors or memory,
/// must not end the daemon.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if let Some(left_out) = ACCEPT_ERRORS.admit() {
                    tracing::error!(%error, left_out, "cannot accept a connection; retrying");
                }
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// Phase of a listener's life, which its connections follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Connections are kept alive.
    Serving,
    /// Another daemon accepts new connections. Each connection ends with its next response, which carries
    /// `Connection: close`. Idle ones stay open, since their client may be about to send a request.
    Draining,
    /// Connections end as soon as they have no request in progress; new ones, after a second without a request.
    Ending,
}

/// One accepted connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Address of the client.
    pub client: SocketAddr,
    /// Queue for zero-copy body slices.
    pub slices: Slices,
    /// Bytes to send after a response that switches protocols.
    pub raw: Raw,
    /// Reason for rejecting the request, if it is rejected.
    pub refused: Option<Reject>,
    /// Gateway at whose own address the client connected.
    pub target: Option<GatewayId>,
}

/// The connection ends without a response.
#[derive(Clone, Copy, Debug, Error)]
#[error("not answered")]
pub struct NoAnswer;

/// Serves one connection until it ends or `life` ends it; resets it when `cut` completes. Charges the headers of its
/// requests to `heads`.
///
/// hyper's state exists only while requests are in progress. Before the first request, while idle and while lingering, a
/// connection needs little more memory than its socket, so thousands of idle connections are cheap.
pub async fn serve<S, F>(
    (stream, client): (impl Into<ServerStream>, SocketAddr),
    (limits, heads): (ConnectionLimits, HeadCharge),
    sending: impl Into<Sending>,
    mut life: watch::Receiver<Life>,
    cut: impl Future<Output = ()>,
    mut service: S,
) where
    S: Fn(Connection, Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Body>, NoAnswer>>,
{
    // MSG_MORE already joins headers and file; Nagle's algorithm would only delay the last segment.
    let stream = stream.into();
    let _ = stream.tcp().set_nodelay(true);
    let (slices, heads) = (Slices::default(), Arc::new(heads));
    let Sending { sent, pace } = sending.into();
    let io = SendfileStream::new(stream, slices.clone(), sent);
    let mut io = ClientStream::new(io, &limits, heads.clone(), pace);
    let mut cut = pin!(cut);
    let (mut wait, mut grace) = (limits.head_timeout(), FIRST_REQUEST_GRACE);
    let mut io = loop {
        let head = tokio::select! {
            // A request that has arrived is served before the connection ends.
            biased;
            head = io.next_head_within(wait) => head,
            () = ended_for(grace, &mut life) => {
                io.finish().await;
                break io;
            }
            () = &mut cut => return io.reset(),
        };
        if matches!(head, Ok(false)) && io.is_receiving() {
            // The client has closed its half but is still receiving the last response.
            io.finish().await;
            break io;
        }
        if !matches!(head, Ok(true)) {
            return tracing::debug!(%client, ?head, "connection ended between requests");
        }
        let terms = (&limits, heads.clone(), slices.clone());
        match Box::pin(exchange(io, client, terms, &mut life, cut.as_mut(), &mut service)).await {
            Exchanged::Idle(left) => io = left,
            Exchanged::Ended(left) => break left,
            Exchanged::Cut => return,
        }
        (wait, grace) = (limits.wait_when_idle(), Duration::ZERO);
    };
    let leaving = async {
        io.linger().await;
        tokio::select! {
            () = io.delivered() => {}
            () = ending(&mut life) => {}
        }
    };
    tokio::select! {
        () = leaving => {}
        () = &mut cut => io.reset(),
    }
}

/// State of a connection after hyper has served requests on it.
enum Exchanged {
    /// The connection is idle and can be reused.
    Idle(ClientStream),
    /// The last response was sent, or the connection failed.
    Ended(ClientStream),
    /// The connection was reset.
    Cut,
}

impl Exchanged {
    fn cut(io: ClientStream) -> Self {
        io.reset();
        Self::Cut
    }
}

/// Serves the requests of a connection with hyper until the connection ends or is idle.
async fn exchange<S, F>(
    io: ClientStream,
    client: SocketAddr,
    (limits, heads, slices): (&ConnectionLimits, Arc<HeadCharge>, Slices),
    life: &mut watch::Receiver<Life>,
    mut cut: Pin<&mut impl Future<Output = ()>>,
    service: &mut S,
) -> Exchanged
where
    S: Fn(Connection, Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Body>, NoAnswer>>,
{
    let refusal = io.refusal();
    let raw = Raw::default();
    let (watched, follows) = (life.clone(), raw.clone());
    // The end of the connection may be the end of a response in HTTP/1.0.
    let ends_bodies = Arc::new(AtomicBool::new(false));
    let old_client = ends_bodies.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        old_client.store(request.version() == Version::HTTP_10, Ordering::Relaxed);
        let refused = refusal.get().filter(|_| request.method() == REFUSED).copied();
        let (life, heads) = (watched.clone(), heads.clone());
        let answer = service(
            Connection { client, slices: slices.clone(), raw: follows.clone(), refused, target: None },
            request,
        );
        async move {
            let mut answer = answer.await?;
            heads.answered();
            if *life.borrow() != Life::Serving {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, NoAnswer>(answer)
        }
    });
    let mut connection = http1::Builder::new()
        .timer(HeadTimer::new(io.unsent()))
        .header_read_timeout(limits.head_timeout().min(FREE_IDLE_AFTER))
        .max_buf_size(limits.head)
        .max_headers(limits.headers)
        .preserve_header_case(true)
        .half_close(limits.half_close)
        .writev(true)
        .serve_connection(io, service);
    let result = tokio::select! {
        biased;
        result = &mut connection => result,
        () = ending(life) => {
            Pin::new(&mut connection).graceful_shutdown();
            tokio::select! {
                result = &mut connection => result,
                () = &mut cut => return Exchanged::cut(connection.into_parts().io),
            }
        }
        () = &mut cut => return Exchanged::cut(connection.into_parts().io),
    };
    let parts = connection.into_parts();
    let mut io = parts.io;
    if result.as_ref().is_err_and(hyper::Error::is_timeout) && parts.read_buf.is_empty() {
        return Exchanged::Idle(io);
    }
    let result = match (result, raw.take()) {
        (Ok(()), Some(body)) => {
            let written = tokio::select! {
                written = raw::write(&mut io, body) => written.map_err(|error| error.to_string()),
                () = &mut cut => return Exchanged::cut(io),
            };
            if limits.reuses_raw
                && written.is_ok()
                && parts.read_buf.is_empty()
                && *life.borrow() == Life::Serving
            {
                return Exchanged::Idle(io);
            }
            io.finish().await;
            written
        }
        (Ok(()), None) => {
            // hyper omits the shutdown after a request with `Upgrade`, even if the response did not switch protocols.
            tokio::select! {
                () = io.finish() => Ok(()),
                () = &mut cut => return Exchanged::cut(io),
            }
        }
        (Err(error), _) => Err(error.to_string()),
    };
    if let Err(error) = result {
        tracing::debug!(%client, %error, "connection ended");
        if ends_bodies.load(Ordering::Relaxed) {
            return Exchanged::cut(io);
        }
    }
    Exchanged::Ended(io)
}

/// Waits for [`Life::Ending`], and then for `grace`.
async fn ended_for(grace: Duration, life: &mut watch::Receiver<Life>) {
    ending(life).await;
    tokio::time::sleep(grace).await;
}

/// Waits for [`Life::Ending`].
async fn ending(life: &mut watch::Receiver<Life>) {
    if life.wait_for(|life| *life == Life::Ending).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
