//! Connections out: tried again before a byte was sent, and remembering who answered.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use hyper::{
    Uri,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpStream, time::timeout};
use tower_service::Service;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Attempts at a connection, as long as they fail within [`QUICKLY`].
const ATTEMPTS: u32 = 3;
/// Trying again after a longer wait would only make the client wait for its error.
const QUICKLY: Duration = Duration::from_secs(2);
/// Longest wait for a connection, TLS and all.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The wait before the second attempt, on average; twice that before the third.
const PAUSE: Duration = Duration::from_millis(50);

/// The server at the other end of a connection: what a trial is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Front {
    /// Its address.
    pub address: SocketAddr,
    /// SHA-256 of its certificate, over TLS.
    pub certificate: Option<[u8; 32]>,
}

/// Makes connections.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    inner: HttpsConnector<HttpConnector>,
    attempts: u32,
}

/// A connection that knows its [`Front`].
pub(super) struct Stream(MaybeHttpsStream<TokioIo<TcpStream>>);

impl Connector {
    pub(super) fn new(inner: HttpsConnector<HttpConnector>) -> Self {
        Self { inner, attempts: ATTEMPTS }
    }

    /// The same, that gives up after the first attempt.
    pub(super) fn once(self) -> Self {
        Self { attempts: 1, ..self }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Stream, Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (mut inner, attempts) = (self.inner.clone(), self.attempts);
        Box::pin(async move {
            let began = Instant::now();
            let mut attempt = 1;
            loop {
                let connected = timeout(HANDSHAKE, inner.call(uri.clone())).await;
                let connected =
                    connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
                match connected {
                    Ok(stream) => return Ok(Stream(stream)),
                    Err(error) if attempt == attempts || began.elapsed() > QUICKLY => return Err(error),
                    Err(_) => {}
                }
                let jitter = rand::random_range(0.5..1.5);
                tokio::time::sleep(PAUSE.mul_f64(jitter) * (1 << (attempt - 1))).await;
                attempt += 1;
            }
        })
    }
}

impl Stream {
    /// What is below, if it is not TLS.
    pub(super) fn into_tcp(self) -> Option<TcpStream> {
        match self.0 {
            MaybeHttpsStream::Http(tcp) => Some(tcp.into_inner()),
            MaybeHttpsStream::Https(_) => None,
        }
    }

    fn front(&self) -> Option<Front> {
        let (tcp, certificate) = match &self.0 {
            MaybeHttpsStream::Http(tcp) => (tcp, None),
            MaybeHttpsStream::Https(tls) => {
                let (tcp, tls) = tls.inner().get_ref();
                let certificate = tls.peer_certificates().and_then(<[_]>::first);
                (tcp.inner(), certificate.map(|certificate| Sha256::digest(certificate).into()))
            }
        };
        Some(Front { address: tcp.inner().peer_addr().ok()?, certificate })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self.front() {
            Some(front) => self.0.connected().extra(front),
            None => self.0.connected(),
        }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
