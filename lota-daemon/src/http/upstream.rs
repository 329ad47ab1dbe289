//! Requests out: to the gateway, to backends, to peers.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{Request, Response, body::Incoming};
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
};
use crate::{s3::S3Error, workers};

pub use super::connect::Front;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an idle connection is kept; shorter than the usual servers' minute.
const IDLE: Duration = Duration::from_secs(30);

/// A client with pools of connections.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// One for each worker, whose connections it has.
    clients: Arc<[Client<Connector, Body>]>,
    connector: Connector,
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
        Ok(Self::with(Connector::new(builder.https_or_http().enable_http1().wrap_connector(http))))
    }

    fn with(connector: Connector) -> Self {
        let client = |_| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .http1_preserve_header_case(true)
                .build(connector.clone())
        };
        Self { clients: (0..workers::count()).map(client).collect(), connector }
    }

    /// The same, without second attempts at a connection: for those who can ask someone else instead.
    #[must_use]
    pub fn impatient(&self) -> Self {
        Self::with(self.connector.clone().once())
    }

    /// Sends a request; the answer when its head has arrived. It carries the [`Front`] that gave it.
    ///
    /// # Errors
    /// If there is no connection, or it ends before an answer.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        self.clients[workers::current()].request(request).await
    }
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
