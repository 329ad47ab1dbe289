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
    io::copy_bidirectional,
    net::TcpStream,
    sync::Semaphore,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{
    http::{
        ConnectionLimiter, ConnectionPermit, ServerStream,
        tls::{FirstBytes, HANDSHAKE_TIMEOUT, TlsServer},
    },
    metrics::{Metrics, TlsHandling},
    reconciler::HTTP_PORT,
};

/// Maximum number of connections whose first bytes are awaited or whose handshake is in progress: of all pods, and of one.
const MAX_HANDSHAKES: (usize, usize) = (1024, 64);
/// Shortest and longest delay before a connection requests a permit again.
const RETRY_INTERVAL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// Maximum number of concurrent name resolutions, each of which blocks a thread.
const MAX_RESOLUTIONS: usize = 8;
/// Timeout for the resolution of a name, and for a connection to one of its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time without traffic after which a passed connection is probed.
const KEEPALIVE: Duration = Duration::from_secs(60);

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
}

impl PodStreams {
    /// Handles TLS with these certificates, and passes it on to `targets` under their own `names`.
    pub(super) fn new(
        tls: TlsServer,
        names: Endpoints,
        targets: Vec<PassTarget>,
        vips: Arc<[SocketAddr]>,
        metrics: Metrics,
    ) -> Self {
        let handshakes = ConnectionLimiter::new(MAX_HANDSHAKES.0, MAX_HANDSHAKES.1);
        let resolutions = Arc::new(Semaphore::new(MAX_RESOLUTIONS));
        let targets = targets.into();
        Self { tls, names, targets, vips, handshakes, resolutions, metrics, passes_on: true }
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
                        return pass_on(stream, server).await.map(|()| None);
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

/// Copies bytes until both sides have ended.
async fn pass_on(mut stream: TcpStream, mut server: TcpStream) -> io::Result<()> {
    for side in [&stream, &server] {
        side.set_nodelay(true)?;
        SockRef::from(side).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    }
    copy_bidirectional(&mut stream, &mut server).await.map(drop)
}
