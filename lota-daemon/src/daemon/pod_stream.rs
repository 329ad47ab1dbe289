//! First bytes of a pod's connection: plain HTTP, TLS that ends at LOTA, or TLS that is passed on to the gateway.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    time::Duration,
};

use lota_common::FIRST_STAND_IN;
use lota_s3::{Endpoints, GatewayId};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::Semaphore,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{
    http::{
        ConnectionLimiter, ConnectionPermit, LastProgress, ServerStream,
        tls::{FirstBytes, HANDSHAKE_TIMEOUT, TlsServer},
    },
    metrics::{Metrics, TlsHandling},
    reconciler::HTTP_PORT,
};

/// Maximum number of connections whose first bytes are awaited or whose handshake is in progress: of all pods, and of one.
/// Pods share them as they share connections.
const MAX_HANDSHAKES: (usize, usize) = (1024, 64);
/// Shortest and longest delay before a connection requests a permit again.
const RETRY_INTERVAL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// Maximum number of concurrent name resolutions, each of which blocks a thread.
const MAX_RESOLUTIONS: usize = 8;
/// Timeout for the resolution of a name, and for a connection to one of its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time without traffic after which a passed connection is probed.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Size in bytes of the buffer for each direction of a passed connection.
const PASS_BUFFER: usize = 8 << 10;

/// A gateway to which TLS is passed on.
#[derive(Clone, Debug)]
pub(super) struct PassTarget {
    pub(super) gateway: GatewayId,
    /// Host of the gateway in the configuration.
    pub(super) host: String,
    /// Ports on which pods reach it under its names.
    pub(super) ports: Vec<u16>,
}

/// Handles connections of pods before HTTP begins.
#[derive(Clone)]
pub(super) struct PodStreams {
    tls: TlsServer,
    /// The gateways' own names. TLS for LOTA's name is not passed on: it would leave the cluster.
    names: Endpoints,
    targets: Arc<[PassTarget]>,
    /// Addresses that a connection is never passed on to.
    vips: Arc<[SocketAddr]>,
    handshakes: ConnectionLimiter,
    resolutions: Arc<Semaphore>,
    metrics: Metrics,
    passes_on: bool,
    /// Time without traffic after which a passed connection is closed.
    idle_timeout: Duration,
}

impl PodStreams {
    /// Handles TLS with these certificates, and passes it on to `targets` under their own `names`. Passed connections end
    /// after `idle_timeout` without traffic.
    pub(super) fn new(
        tls: TlsServer,
        names: Endpoints,
        targets: Vec<PassTarget>,
        vips: Arc<[SocketAddr]>,
        metrics: Metrics,
        idle_timeout: Duration,
    ) -> Self {
        let handshakes = handshakes();
        let resolutions = Arc::new(Semaphore::new(MAX_RESOLUTIONS));
        let targets = targets.into();
        let passes_on = true;
        Self { tls, names, targets, vips, handshakes, resolutions, metrics, passes_on, idle_timeout }
    }

    /// Returns the same without passing on, for connections that only receive an error.
    pub(super) fn without_passing_on(&self) -> Self {
        Self { passes_on: false, ..self.clone() }
    }

    /// Returns the connection of `pod` for HTTP, or `None` if it was passed on and has ended.
    ///
    /// # Errors
    /// If its first bytes do not arrive, or are for a name that is no endpoint, or a connection fails.
    pub(super) async fn open(&self, stream: TcpStream, pod: IpAddr) -> io::Result<Option<ServerStream>> {
        let port = stream.local_addr()?.port();
        // Targets are of gateways without TLS.
        if port == HTTP_PORT || port >= FIRST_STAND_IN {
            return Ok(Some(stream.into()));
        }
        let turn = timeout(HANDSHAKE_TIMEOUT, self.wait_for_permit(pod)).await?;
        let opened = match FirstBytes::of(&stream).await {
            Ok(FirstBytes::Plain) => return Ok(Some(stream.into())),
            Ok(FirstBytes::Tls(Some(name))) if self.tls.certificates.has(&name) => {
                let tls = self.tls.accept(stream).await;
                tls.map(ServerStream::Tls)
            }
            Ok(FirstBytes::Tls(name)) => {
                let target = name.as_deref().and_then(|name| self.target(name, port));
                let Some(target) = target.filter(|_| self.passes_on) else {
                    self.count(TlsHandling::Failed);
                    let name = name.unwrap_or_default();
                    return Err(io::Error::other(format!("no server for TLS for `{name}` on port {port}")));
                };
                match self.connect(target, port).await {
                    Ok(server) => {
                        self.count(TlsHandling::Passed);
                        drop(turn);
                        return pass_on(stream, server, self.idle_timeout).await.map(|()| None);
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        self.count(if opened.is_ok() { TlsHandling::Terminated } else { TlsHandling::Failed });
        opened.map(Some)
    }

    /// Waits for a permit for another handshake of the pod.
    async fn wait_for_permit(&self, pod: IpAddr) -> ConnectionPermit {
        let mut pause = RETRY_INTERVAL.0;
        loop {
            if let Some(permit) = self.handshakes.take(pod) {
                return permit;
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_INTERVAL.1);
        }
    }

    fn target(&self, name: &str, port: u16) -> Option<&PassTarget> {
        let gateway = &self.names.find(name)?.gateway;
        self.targets.iter().find(|target| target.gateway == *gateway && target.ports.contains(&port))
    }

    /// Connects to a gateway, as the configuration names it.
    async fn connect(&self, target: &PassTarget, port: u16) -> io::Result<TcpStream> {
        let permit = self.resolutions.clone().acquire_owned().await.map_err(io::Error::other)?;
        let host = target.host.clone();
        // The permit is held until the thread is free, whether or not the connection still waits for it.
        let resolved = spawn_blocking(move || {
            let _permit = permit;
            (host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>)
        });
        let mut result = Err(io::Error::other(format!("`{}` has no usable address", target.host)));
        for address in timeout(CONNECT_TIMEOUT, resolved).await???.into_iter().filter(|to| !self.is_own(*to))
        {
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(server)) => return Ok(server),
                Ok(Err(error)) => result = Err(error),
                Err(late) => result = Err(late.into()),
            }
        }
        result
    }

    fn is_own(&self, address: SocketAddr) -> bool {
        self.vips.iter().any(|vip| vip.ip() == address.ip().to_canonical())
    }

    fn count(&self, handling: TlsHandling) {
        self.metrics.tls_connections.of(handling).inc();
    }
}

/// Returns the limits of handshakes.
fn handshakes() -> ConnectionLimiter {
    ConnectionLimiter::new(MAX_HANDSHAKES.0, MAX_HANDSHAKES.1)
}

/// Copies bytes until both sides have ended, or no byte has passed in either direction for `idle_timeout`.
async fn pass_on(mut client: TcpStream, mut server: TcpStream, idle_timeout: Duration) -> io::Result<()> {
    for side in [&client, &server] {
        side.set_nodelay(true)?;
        SockRef::from(side).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    }
    let last = LastProgress::default();
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    let copying = async {
        tokio::try_join!(copy(from_client, to_server, &last), copy(from_server, to_client, &last)).map(drop)
    };
    tokio::select! {
        copied = copying => copied,
        () = last.stalled(idle_timeout) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Copies bytes of one direction until its end, and notes when some have passed.
async fn copy(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, last: &LastProgress) -> io::Result<()> {
    let mut buffer = vec![0; PASS_BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let mut left = &buffer[..read];
        while !left.is_empty() {
            let written = to.write(left).await?;
            last.note();
            left = &left[written..];
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const IDLE: Duration = Duration::from_millis(1500);

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (stream, listener.accept().await.unwrap().0)
    }

    #[test]
    fn handshakes_of_many_pods_leave_some_to_others() {
        let handshakes = handshakes();
        let all_of = |number| std::iter::from_fn(|| handshakes.take([10, 0, 0, number].into())).collect();
        let held: Vec<Vec<_>> = (0..40).map(all_of).collect();
        assert!(held[0].len() == MAX_HANDSHAKES.1 && held[39].len() == 1);
        assert!(handshakes.take([10, 0, 0, 40].into()).is_some(), "a pod without one");
    }

    #[tokio::test]
    async fn a_passed_connection_ends_when_nothing_passes() {
        let ((mut client, inner), (outer, mut server)) = (pair().await, pair().await);
        let passing = tokio::spawn(pass_on(inner, outer, IDLE));
        // Traffic in one direction suffices, whichever it is.
        for _ in 0..4 {
            client.write_all(b"a").await.unwrap();
            sleep(IDLE / 3).await;
        }
        for _ in 0..4 {
            server.write_all(b"b").await.unwrap();
            sleep(IDLE / 3).await;
        }
        assert!(!passing.is_finished(), "it was not idle");
        let ended = timeout(IDLE * 10, passing).await.expect("it is kept").unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let mut received = String::new();
        client.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "bbbb");
    }

    #[tokio::test]
    async fn both_directions_of_a_passed_connection_end_by_themselves() {
        let ((mut client, inner), (outer, mut server)) = (pair().await, pair().await);
        let passing = tokio::spawn(pass_on(inner, outer, IDLE * 100));
        let question = vec![b'q'; PASS_BUFFER * 50];
        let asking = async {
            client.write_all(&question).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answering = async {
            let mut asked = Vec::new();
            server.read_to_end(&mut asked).await.unwrap();
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
            asked
        };
        let (answer, asked) = tokio::join!(asking, answering);
        assert!(asked == question && answer == "answer", "{} bytes, {answer}", asked.len());
        passing.await.unwrap().unwrap();
    }
}
