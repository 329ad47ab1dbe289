//! Connector for outgoing connections: retries failed attempts, and identifies the server of each connection.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::AsRawFd as _,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use hyper::{
    Uri,
    http::uri::Scheme,
    rt::{Read, ReadBuf, ReadBufCursor, Write},
};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use nix::sys::socket::{MsgFlags, recv};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpStream, runtime::Handle, time::timeout};
use tower_service::Service;

use super::{
    MutualTls, TlsRefusal,
    idle::{IdleConnections, Reuse},
    stray::{Bodyless, StrayBytes},
};
use crate::{process::log_limit::LogLimit, settings::Reloadable};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Maximum number of attempts to connect, within [`RETRY_WINDOW`].
const ATTEMPTS: u32 = 3;
/// Time after which a failed attempt is not repeated; the client would only wait longer for its error.
const RETRY_WINDOW: Duration = Duration::from_secs(2);
/// Timeout for one attempt, including the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Average delay before the second attempt; doubles for the third.
const RETRY_BACKOFF: Duration = Duration::from_millis(50);

/// Identity of a server, by which gateway verification distinguishes servers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamServer {
    /// Its address.
    pub address: SocketAddr,
    /// SHA-256 of its certificate, over TLS.
    pub certificate: Option<[u8; 32]>,
}

/// Connector for hyper's client.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    inner: HttpsConnector<HttpConnector>,
    /// Mutual TLS for servers of HTTPS, instead of the configuration of `inner`.
    mutual: Option<Reloadable<MutualTls>>,
    attempts: u32,
    stray: StrayBytes,
    idle: IdleConnections,
}

/// Time for which a retired connection is watched for stray bytes.
const STRAY_WATCH: Duration = Duration::from_millis(250);

/// A connection with the identity of its server.
pub(super) struct Stream {
    /// `None` after the connection was handed over.
    io: Option<Io>,
    front: Option<UpstreamServer>,
    stray: StrayBytes,
    retired: Retired,
    idle: IdleConnections,
}

type Io = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Set on a connection that is not reused but watched for stray bytes, with the kind of the last response. Attached to
/// each response as an extension.
#[derive(Clone, Debug, Default)]
pub(super) struct Retired(Arc<OnceLock<Bodyless>>);

impl Retired {
    pub(super) fn set(&self, after: Bodyless) {
        let _ = self.0.set(after);
    }
}

impl Connector {
    pub(super) fn new(inner: HttpsConnector<HttpConnector>) -> Self {
        let (stray, idle) = (StrayBytes::default(), IdleConnections::default());
        Self { inner, mutual: None, attempts: ATTEMPTS, stray, idle }
    }

    /// Returns a connector that speaks mutual TLS with servers of HTTPS, which are addresses.
    pub(super) fn with_mutual_tls(self, tls: Reloadable<MutualTls>) -> Self {
        Self { mutual: Some(tls), ..self }
    }

    /// Returns what is known about stray bytes of each server.
    pub(super) fn stray(&self) -> &StrayBytes {
        &self.stray
    }

    /// Returns a connector without retries.
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
        let Self { mut inner, mutual, attempts, stray, idle } = self.clone();
        Box::pin(async move {
            if let Some(stream) = address(&uri).and_then(|server| idle.take(server)) {
                return Ok(Stream::new(MaybeHttpsStream::Http(TokioIo::new(stream)), stray, idle));
            }
            let began = Instant::now();
            let mut attempt = 1;
            loop {
                let connected = timeout(HANDSHAKE_TIMEOUT, dial(&mut inner, mutual.as_ref(), &uri)).await;
                let connected =
                    connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
                match connected {
                    Ok(stream) => return Ok(Stream::new(stream, stray, idle)),
                    Err(error) if attempt == attempts || began.elapsed() > RETRY_WINDOW => return Err(error),
                    Err(_) => {}
                }
                let jitter = rand::random_range(0.5..1.5);
                tokio::time::sleep(RETRY_BACKOFF.mul_f64(jitter) * (1 << (attempt - 1))).await;
                attempt += 1;
            }
        })
    }
}

/// Makes a connection.
async fn dial(
    inner: &mut HttpsConnector<HttpConnector>,
    mutual: Option<&Reloadable<MutualTls>>,
    uri: &Uri,
) -> Result<Io, Error> {
    static REFUSED: LogLimit = LogLimit::every_ten_seconds();

    let Some(tls) = mutual.filter(|_| uri.scheme() == Some(&Scheme::HTTPS)) else {
        return inner.call(uri.clone()).await;
    };
    let mut plain = uri.clone().into_parts();
    plain.scheme = Some(Scheme::HTTP);
    let tcp = match inner.call(Uri::from_parts(plain)?).await? {
        MaybeHttpsStream::Http(tcp) => tcp,
        https @ MaybeHttpsStream::Https(_) => return Ok(https),
    };
    let server = tcp.inner().peer_addr()?;
    // Certificates are taken after the connection is made, when they are needed.
    let connected = tls.get().connect(server.ip(), TokioIo::new(tcp)).await;
    if let Err(error) = &connected
        && let Some(refusal @ TlsRefusal::Here(_)) = TlsRefusal::of(error)
        && let Some(left_out) = REFUSED.admit()
    {
        tracing::warn!(peer = %server, %refusal, left_out, "refused a TLS connection to a node");
    }
    Ok(connected?.into())
}

/// Returns the address in a URI for plain TCP, as those of peers are.
fn address(uri: &Uri) -> Option<SocketAddr> {
    uri.authority().filter(|_| uri.scheme() == Some(&Scheme::HTTP))?.as_str().parse().ok()
}

impl Stream {
    fn new(io: Io, stray: StrayBytes, idle: IdleConnections) -> Self {
        let front = front(&io);
        if let Some(front) = &front {
            stray.meet(front);
        }
        Self { io: Some(io), front, stray, retired: Retired::default(), idle }
    }

    /// Returns the TCP connection, unless it uses TLS, and the right to return it.
    pub(super) fn into_tcp(mut self) -> Option<(TcpStream, Reuse)> {
        let reuse = self.idle.reuse(self.front.as_ref()?.address);
        match self.io.take()? {
            MaybeHttpsStream::Http(tcp) => Some((tcp.into_inner(), reuse)),
            MaybeHttpsStream::Https(_) => None,
        }
    }

    fn io(self: Pin<&mut Self>) -> io::Result<Pin<&mut Io>> {
        self.get_mut().io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Fails if a request is about to be sent on a connection that already has input, since that cannot be the response
    /// to it. TLS connections are not checked: their input may be TLS records without data.
    fn check_no_input(&self, sends: &[u8]) -> io::Result<()> {
        let Some(MaybeHttpsStream::Http(tcp)) = &self.io else { return Ok(()) };
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        if !begins_request(sends) || !matches!(recv(tcp.inner().as_raw_fd(), &mut [0], flags), Ok(1..)) {
            return Ok(());
        }
        if let Some(front) = &self.front {
            self.stray.stray(front);
        }
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server sent bytes before the request"))
    }
}

/// Returns whether a write begins with a request line. A part of an upload that looks like one is checked as well,
/// and fails only if the server has answered before the end of the upload.
fn begins_request(bytes: &[u8]) -> bool {
    let method = bytes.iter().take(8).take_while(|byte| byte.is_ascii_uppercase()).count();
    method >= 3 && matches!(bytes[method..], [b' ', b'/' | b'*', ..])
}

fn front(io: &Io) -> Option<UpstreamServer> {
    let (tcp, certificate) = match io {
        MaybeHttpsStream::Http(tcp) => (tcp, None),
        MaybeHttpsStream::Https(tls) => {
            let (tcp, tls) = tls.inner().get_ref();
            let certificate = tls.peer_certificates().and_then(<[_]>::first);
            (tcp.inner(), certificate.map(|certificate| Sha256::digest(certificate).into()))
        }
    };
    Some(UpstreamServer { address: tcp.inner().peer_addr().ok()?, certificate })
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let (Some(io), Some(front), Some(after)) =
            (self.io.take(), self.front.take(), self.retired.0.get())
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(watch(io, front, *after, self.stray.clone()));
        }
    }
}

/// Watches a retired connection for stray bytes.
async fn watch(mut io: Io, front: UpstreamServer, after: Bodyless, stray: StrayBytes) {
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    let read = poll_fn(|cx| Pin::new(&mut io).poll_read(cx, buffer.unfilled()));
    let read = timeout(STRAY_WATCH, read).await;
    match read {
        Ok(Ok(())) if !buffer.filled().is_empty() => stray.stray(&front),
        // Timeout, or the server has closed the connection.
        _ => stray.clean(&front, after),
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = self.io.as_ref().map_or_else(Connected::new, Connection::connected);
        let connected = connected.extra(self.retired.clone());
        match self.front.clone() {
            Some(front) => connected.extra(front),
            None => connected,
        }
    }
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.io()?.poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.check_no_input(buffer)?;
        self.io()?.poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_no_input(buffers.first().map_or(&[], |first| first))?;
        self.io()?.poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(Write::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A retired connection is closed after it was watched: after a shutdown, the server might not send stray bytes.
        match self.retired.0.get() {
            Some(_) => Poll::Ready(Ok(())),
            None => self.io()?.poll_shutdown(cx),
        }
    }
}
