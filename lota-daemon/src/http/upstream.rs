//! HTTP client for requests to the gateway, backends and peers.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{
    Method, Request, Response,
    body::{Body as _, Incoming},
};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{
        Client, Error,
        connect::{HttpConnector, capture_connection},
    },
    rt::{TokioExecutor, TokioTimer},
};
use lota_s3::S3Error;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::net::TcpStream;

use super::{
    Body, BodyError, BodyTimeout, MutualTls, Reuse,
    connect::{Connector, Retired, Stream},
    empty,
    stray::Bodyless,
};
use crate::{process::workers, settings::Reloadable};

pub use super::connect::UpstreamServer;
/// Error of a request that has no response.
pub type UpstreamError = Error;

/// Timeout for a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum number of attempts for an idempotent request: the server may have closed several pooled connections.
const ATTEMPTS: u32 = 3;
/// Maximum number of response headers. An object's metadata can be as large as `limits.header_size`, and the gateway adds
/// headers. hyper allocates for all of them before it parses any.
const MAX_HEADERS: usize = 1024;
/// Maximum number of headers that a node adds to a forwarded response.
const PEER_HEADERS: usize = 32;
/// TCP keepalive: idle time, interval, probes. Detects a dead host without limiting the time of a slow response.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// Timeout of an idle pooled connection; shorter than the usual minute of servers.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout for each pause in the body of a response, unless it is configured.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// HTTP client with pooled connections.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// One client per worker, each with its own pool.
    clients: Arc<[Client<Connector, Body>]>,
    connector: Connector,
    /// Maximum number of attempts for an idempotent request.
    attempts: u32,
    /// Longest pause in the body of a response.
    idle_timeout: Duration,
}

impl Upstream {
    /// Returns a client for HTTP, and with `tls` also for HTTPS with the system's root certificates.
    ///
    /// # Errors
    /// If `tls` is set and the system has no root certificates.
    pub fn new(tls: bool) -> io::Result<Self> {
        let builder = HttpsConnectorBuilder::new();
        let builder = if tls {
            builder.with_provider_and_native_roots(ring::default_provider())?
        } else {
            let provider = Arc::new(ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(io::Error::other)?
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth();
            builder.with_tls_config(config)
        };
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        http.set_keepalive(Some(KEEPALIVE_IDLE));
        http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        http.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        Ok(Self::with(
            ATTEMPTS,
            MAX_HEADERS,
            Connector::new(builder.https_or_http().enable_http1().wrap_connector(http)),
        ))
    }

    fn with(attempts: u32, max_headers: usize, connector: Connector) -> Self {
        let client = |_| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE_TIMEOUT)
                .http1_preserve_header_case(true)
                .http1_max_headers(max_headers)
                .build(connector.clone())
        };
        let clients = (0..workers::count()).map(client).collect();
        Self { clients, connector, attempts, idle_timeout: IDLE_TIMEOUT }
    }

    /// Returns the client with this timeout for each pause in the body of a response that is relayed.
    #[must_use]
    pub fn with_idle_timeout(self, idle_timeout: Duration) -> Self {
        Self { idle_timeout, ..self }
    }

    /// Returns the timeout for each pause in the body of a response that is relayed.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// Returns a client that speaks mutual TLS with servers of HTTPS, which must be addresses.
    #[must_use]
    pub fn with_mutual_tls(&self, tls: Reloadable<MutualTls>) -> Self {
        Self::with(self.attempts, MAX_HEADERS, self.connector.clone().with_mutual_tls(tls))
            .with_idle_timeout(self.idle_timeout)
    }

    /// Returns a client without retries, for callers that can try another server instead. It has none of the pooled
    /// connections of this client.
    #[must_use]
    pub fn without_retries(&self) -> Self {
        Self::with(1, MAX_HEADERS + PEER_HEADERS, self.connector.clone().once())
            .with_idle_timeout(self.idle_timeout)
    }

    /// Sends a request. Returns the response when its headers have arrived, with the [`UpstreamServer`] and the
    /// [`BodyTimeout`] as extensions. A GET or HEAD without a body is retried if its connection ends without a response: a server may close an idle
    /// connection while the next request is on its way (RFC 9112, section 9.3.1).
    ///
    /// # Errors
    /// If no connection can be made, or it ends before a response.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let is_repeatable = matches!(*request.method(), Method::GET | Method::HEAD)
            && self.attempts > 1
            && request.body().is_end_stream();
        if !is_repeatable {
            return self.send_once(request).await;
        }
        let (head, _) = request.into_parts();
        for _ in 1..self.attempts {
            match self.send_once(Request::from_parts(head.clone(), empty())).await {
                Err(error) if is_lost(&error) => {}
                answered => return answered,
            }
        }
        self.send_once(Request::from_parts(head, empty())).await
    }

    async fn send_once(&self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        // The response to a write may have begun long before the gateway has completed it.
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let mut answer = self.send_watching(request).await?;
        if is_read {
            answer.extensions_mut().insert(BodyTimeout(self.idle_timeout));
        }
        Ok(answer)
    }

    /// Sends a request, and replaces a connection on which bytes after a response without a body are to be watched for.
    async fn send_watching(&self, mut request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let (client, stray) = (&self.clients[workers::current()], self.connector.stray());
        // Ceph RGW sends a body after the response headers of `HEAD ?acl`, although not of an object's `HEAD`.
        let is_odd_head = *request.method() == Method::HEAD && request.uri().query().is_some();
        if !stray.is_watching() && !is_odd_head {
            return client.request(request).await;
        }
        let (method, connection) = (request.method().clone(), capture_connection(&mut request));
        let answer = client.request(request).await?;
        if is_odd_head {
            if let Some(connection) = &*connection.connection_metadata() {
                connection.poison();
            }
        } else if let Some(kind) = Bodyless::of(&method, answer.status())
            && let (Some(front), Some(retired)) =
                (answer.extensions().get(), answer.extensions().get::<Retired>())
            && stray.is_to_watch(front, kind)
            && let Some(connection) = &*connection.connection_metadata()
        {
            // The pool belongs to this thread, so nothing else has used the connection since the response arrived.
            connection.poison();
            retired.set(kind);
        }
        Ok(answer)
    }
}

/// Returns whether an established connection was lost.
#[must_use]
pub fn is_lost(error: &Error) -> bool {
    let is_end = |cause: &(dyn std::error::Error + 'static)| {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        let by_us = cause.downcast_ref::<hyper::Error>();
        let by_kernel = cause.downcast_ref::<io::Error>();
        by_us.is_some_and(|error| error.is_incomplete_message() || error.is_closed() || error.is_canceled())
            || by_kernel
                // The last is the end of a TLS connection whose server has died.
                .is_some_and(|error| {
                    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
                })
    };
    !error.is_connect() && causes(error).any(is_end)
}

/// Connection of a response that switched protocols.
#[derive(Debug)]
pub struct Switched {
    /// The connection.
    pub connection: TcpStream,
    /// Bytes that were read beyond the head.
    pub first: Bytes,
    /// The right to use the connection for another request at the end of the response.
    pub reuse: Reuse,
}

/// Returns the connection of a response that switched protocols.
///
/// # Errors
/// If the connection is lost, or not plain TCP.
pub async fn switched(answer: &mut Response<Incoming>) -> io::Result<Switched> {
    let switched = hyper::upgrade::on(answer).await.map_err(io::Error::other)?;
    let parts = switched
        .downcast::<Stream>()
        .map_err(|_| io::Error::other("unexpected type of an upgraded connection"))?;
    let (connection, reuse) = parts.io.into_tcp().ok_or_else(|| io::Error::other("not plain TCP"))?;
    Ok(Switched { connection, first: parts.read_buf, reuse })
}

/// Returns whether receiving the body from the client failed, rather than the connection to the server.
#[must_use]
pub fn is_from_body(error: &Error) -> bool {
    causes(error).any(|cause| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_user))
}

/// Returns whether the server sent a response that cannot be parsed.
#[must_use]
pub fn is_unreadable(error: &Error) -> bool {
    causes(error).any(|cause| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse))
}

/// Returns the error for which this node rejected the body, if it did.
#[must_use]
pub fn refusal_of_body(error: &Error) -> Option<&S3Error> {
    causes(error).find_map(|cause| cause.downcast_ref::<BodyError>()?.downcast_ref())
}

/// Formats an error with all its causes, in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

#[cfg(test)]
#[path = "upstream_tests.rs"]
mod tests;
