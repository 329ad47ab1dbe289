//! Requests out: to the gateway, to backends, to peers.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{
    Method, Request, Response,
    body::{Body as _, Incoming},
};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::net::TcpStream;

use super::{
    Body, BodyError,
    connect::{Connector, Stream},
    empty,
};
use crate::{s3::S3Error, workers};

pub use super::connect::Front;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Attempts at a request: more than one kept connection may have been closed meanwhile.
const ATTEMPTS: u32 = 3;
/// How long an idle connection is kept; shorter than the usual servers' minute.
const IDLE: Duration = Duration::from_secs(30);

/// A client with pools of connections.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// One for each worker, whose connections it has.
    clients: Arc<[Client<Connector, Body>]>,
    connector: Connector,
    /// Most of them for a request that may be repeated.
    attempts: u32,
}

impl Upstream {
    /// A client that can speak plain HTTP, and TLS with the system's root certificates if `tls`.
    ///
    /// # Errors
    /// If TLS is wanted and the system has no root certificates.
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
        Ok(Self::with(ATTEMPTS, Connector::new(builder.https_or_http().enable_http1().wrap_connector(http))))
    }

    fn with(attempts: u32, connector: Connector) -> Self {
        let client = |_| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .http1_preserve_header_case(true)
                .build(connector.clone())
        };
        Self { clients: (0..workers::count()).map(client).collect(), connector, attempts }
    }

    /// The same, without second attempts: for those who can ask someone else instead.
    #[must_use]
    pub fn impatient(&self) -> Self {
        Self::with(1, self.connector.clone().once())
    }

    /// Sends a request; the answer when its head has arrived. It carries the [`Front`] that gave it. A GET or HEAD is
    /// sent again if its connection ends without an answer: a server may close one that it has kept just when the next
    /// request comes (RFC 9112, section 9.3.1).
    ///
    /// # Errors
    /// If there is no connection, or it ends before an answer.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let client = &self.clients[workers::current()];
        let is_repeatable = matches!(*request.method(), Method::GET | Method::HEAD)
            && self.attempts > 1
            && request.body().is_end_stream();
        if !is_repeatable {
            return client.request(request).await;
        }
        let (head, _) = request.into_parts();
        for _ in 1..self.attempts {
            match client.request(Request::from_parts(head.clone(), empty())).await {
                Err(error) if is_lost(&error) => {}
                answered => return answered,
            }
        }
        client.request(Request::from_parts(head, empty())).await
    }
}

/// Did a connection end that there was?
fn is_lost(error: &Error) -> bool {
    let is_end = |cause: &(dyn std::error::Error + 'static)| {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        let by_us = cause.downcast_ref::<hyper::Error>();
        let by_kernel = cause.downcast_ref::<io::Error>();
        by_us.is_some_and(|error| error.is_incomplete_message() || error.is_closed() || error.is_canceled())
            || by_kernel
                .is_some_and(|error| matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset))
    };
    !error.is_connect() && causes(error).any(is_end)
}

/// What follows an answer that switched protocols: its connection, and what was read of it with the head.
///
/// # Errors
/// If the connection is lost, or not plain TCP.
pub async fn switched(answer: &mut Response<Incoming>) -> io::Result<(TcpStream, Bytes)> {
    let switched = hyper::upgrade::on(answer).await.map_err(io::Error::other)?;
    let parts = switched.downcast::<Stream>().map_err(|_| io::Error::other("not a connection of ours"))?;
    let connection = parts.io.into_tcp().ok_or_else(|| io::Error::other("not plain TCP"))?;
    Ok((connection, parts.read_buf))
}

/// Was it the body that went wrong on its way from the client, rather than the connection?
#[must_use]
pub fn is_from_body(error: &Error) -> bool {
    causes(error).any(|cause| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_user))
}

/// What this node itself found wrong with the body, if it was that.
#[must_use]
pub fn refusal_of_body(error: &Error) -> Option<&S3Error> {
    causes(error).find_map(|cause| cause.downcast_ref::<BodyError>()?.downcast_ref())
}

/// An error with all its causes, in one line.
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
