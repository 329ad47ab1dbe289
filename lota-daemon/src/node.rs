//! One node: the one place that knows every part, and wires them.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use lota_common::Settings;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
};

use crate::{
    access,
    admin::{self, Ready},
    backend::Backend,
    cache::Cache,
    config::{Config, Origin},
    datapath::{
        self, Datapath,
        netlink::{self, Netlink},
    },
    dns::Responder,
    gateway::Gateway,
    http::{server, upstream::Upstream},
    metrics::{Exposition, Metrics},
    peer::Peers,
    placement::{NodeName, Placement},
    proxy::Proxy,
};

const HTTP_PORT: u16 = 80;
const DNS_PORT: u16 = 53;
/// Longest a stopping node waits for answers under way.
const DRAIN: Duration = Duration::from_secs(30);

/// Runs the node until it is told to stop, or a part of it fails.
///
/// # Errors
/// What failed, and to what it was being done.
pub async fn run(config: Config, mut stop: watch::Receiver<bool>) -> Result<()> {
    datapath::preflight(&config.datapath.pins)
        .map_err(|missing| anyhow!("cannot hold the datapath: {missing}"))?;
    let metrics = Metrics::default();
    let proxy = Arc::new(proxy(&config, metrics.clone())?);

    let mut netlink = Netlink::connect()?;
    netlink.add_virtual_address(config.endpoint.vip.into()).await?;
    let mut datapath = Datapath::load(&config.datapath, settings(&config))?;
    datapath.set_nodes(&nodes(&config))?;
    let exposition =
        Arc::new(Exposition::new(&metrics, proxy.cache.clone(), proxy.gateway.clone(), datapath.verdicts()?));

    let listen = Listeners::bind(&config, &mut datapath).await?;
    follow_interfaces(&config, &netlink, &mut datapath).await?;
    if let Some(uplink) = &config.datapath.uplink {
        let mode = datapath.guard(uplink)?;
        tracing::info!(uplink, %mode, "the guard is up");
    }

    let ready = Ready::default();
    let mut parts: JoinSet<Result<()>> = JoinSet::new();
    let responder = Responder::new(&config.endpoint.zone, config.endpoint.vip)?;
    let names = responder.clone();
    parts.spawn(async move { responder.serve_udp(listen.dns_udp).await.context("answering names over UDP") });
    parts.spawn(async move { names.serve_tcp(listen.dns_tcp).await.context("answering names over TCP") });
    let admin = admin::serve(listen.admin, exposition, ready.clone(), stop.clone());
    parts.spawn(async move { admin.await.context("serving the admin port") });
    let (connections, mut drained) = tokio::sync::mpsc::channel::<()>(1);
    let vip = SocketAddr::from((config.endpoint.vip, HTTP_PORT));
    parts.spawn(serve_pods(listen.pods, vip, proxy.clone(), stop.clone(), connections.clone()));
    if let Some(peers) = listen.peers {
        parts.spawn(serve_peers(peers, proxy.clone(), stop.clone(), connections.clone()));
    }
    drop(connections);

    ready.store(true, Ordering::Release);
    tracing::info!(
        node = config.node.name,
        vip = %config.endpoint.vip,
        zone = config.endpoint.zone.as_str(),
        gateway = %config.gateway.endpoint,
        pins = %datapath.pins().display(),
        cached = proxy.cache.usage().objects,
        "ready"
    );

    loop {
        tokio::select! {
            changed = netlink.changed() => {
                changed?;
                follow_interfaces(&config, &netlink, &mut datapath).await?;
            }
            Some(ended) = parts.join_next() => ended.context("a part of the node panicked")??,
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    // The datapath stays: until the next daemon comes, pods are refused rather than lost.
    ready.store(false, Ordering::Release);
    tracing::info!("stopping: no new connections, finishing answers under way");
    parts.abort_all();
    let _ = tokio::time::timeout(DRAIN, drained.recv()).await;
    Ok(())
}

fn proxy(config: &Config, metrics: Metrics) -> Result<Proxy> {
    let me = NodeName(config.node.name.clone());
    let gateway_origin = &config.gateway.endpoint;
    let tls = |origin: &Origin| origin.tls;
    let backend_tls = config.backend.iter().flat_map(|backend| &backend.endpoints).any(tls);
    let any_tls = gateway_origin.tls || backend_tls || config.gateway.direct_allow.iter().any(tls);
    let upstream = Upstream::new(any_tls).context("loading the system's root certificates for TLS")?;

    let gateway =
        Gateway::new(&config.gateway, &config.node, upstream.clone()).map_err(anyhow::Error::msg)?;
    let backend = Backend::new(config.backend.as_ref(), gateway_origin, upstream.clone())?;
    let scope = gateway_origin.to_string();
    let capacity = config.cache.capacity.0;
    let cache = Cache::open(&config.cache.folder, &scope, capacity, config.cache.min_free.0)
        .with_context(|| format!("opening the cache in {}", config.cache.folder.display()))?;

    let mut weights = BTreeMap::from([(me.clone(), capacity)]);
    let mut peers = None;
    if let Some(configured) = &config.peers {
        weights.extend(configured.nodes.iter().map(|node| (NodeName(node.name.clone()), node.capacity.0)));
        let others = configured.nodes.iter().filter(|node| node.name != me.0);
        let others = others.map(|node| (NodeName(node.name.clone()), node.address));
        peers = Some(Peers::new(me.clone(), &configured.secret()?, configured.port, others, upstream));
    }
    Ok(Proxy {
        placement: Placement::new(&scope, weights),
        node: me,
        zone: config.endpoint.zone.clone(),
        gateway: Arc::new(gateway),
        backend,
        cache: Arc::new(cache),
        peers,
        metrics,
    })
}

fn settings(config: &Config) -> Settings {
    Settings {
        vip4: config.endpoint.vip.octets(),
        vip6: [0; 16],
        http_port: HTTP_PORT.to_be_bytes(),
        dns_port: DNS_PORT.to_be_bytes(),
        peer_port: config.peer_port().to_be_bytes(),
        admin_port: config.admin.listen.port().to_be_bytes(),
    }
}

/// Every node's address; true for this node's own.
fn nodes(config: &Config) -> BTreeMap<IpAddr, bool> {
    let peers = config.peers.iter().flat_map(|peers| &peers.nodes).map(|peer| (peer.address, false));
    let own = [config.node.address, config.admin.listen.ip()].into_iter();
    peers.chain(own.filter(|address| !address.is_unspecified()).map(|address| (address, true))).collect()
}

/// Brings attachments and access entries in line with the interfaces that there are now.
async fn follow_interfaces(config: &Config, netlink: &Netlink, datapath: &mut Datapath) -> Result<()> {
    let interfaces = netlink.interfaces().await?;
    let pods = netlink::matching(&interfaces, &config.datapath.pod_interfaces);
    for (interface, attached) in datapath.set_interfaces(&pods) {
        match attached {
            Ok(mode) => tracing::info!(interface, %mode, "attached"),
            Err(error) => tracing::error!(
                interface,
                error = format!("{error:#}"),
                "pods behind this interface are refused"
            ),
        }
    }
    datapath.set_access(&access::entries(&config.access.pods, &interfaces))
}

/// Every socket the node listens on.
struct Listeners {
    /// Hidden: only what the datapath steers here is served.
    pods: TcpListener,
    peers: Option<TcpListener>,
    admin: TcpListener,
    dns_udp: UdpSocket,
    dns_tcp: TcpListener,
}

impl Listeners {
    async fn bind(config: &Config, datapath: &mut Datapath) -> Result<Self> {
        let about = |what: &str, address: SocketAddr| format!("listening for {what} on {address}");
        let dns = SocketAddr::from((config.endpoint.vip, DNS_PORT));
        let dns_udp = UdpSocket::bind(dns).await.with_context(|| about("names (UDP)", dns))?;
        let dns_tcp = TcpListener::bind(dns).await.with_context(|| about("names (TCP)", dns))?;
        let admin = config.admin.listen;
        let admin = TcpListener::bind(admin).await.with_context(|| about("metrics and health", admin))?;
        let peers = match &config.peers {
            None => None,
            Some(peers) => {
                let address = SocketAddr::new(config.node.address, peers.port);
                Some(TcpListener::bind(address).await.with_context(|| about("peers", address))?)
            }
        };
        // Last: from here on, pods are served.
        let hidden = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the hidden listener")?;
        hidden.set_nonblocking(true)?;
        datapath.set_listener(&hidden)?;
        Ok(Self { pods: TcpListener::from_std(hidden)?, peers, admin, dns_udp, dns_tcp })
    }
}

/// `alive` is dropped with the last connection.
async fn serve_pods(
    listener: TcpListener,
    vip: SocketAddr,
    proxy: Arc<Proxy>,
    stop: watch::Receiver<bool>,
    alive: tokio::sync::mpsc::Sender<()>,
) -> Result<()> {
    loop {
        let (stream, client) = accept(&listener).await.context("accepting pods")?;
        if stream.local_addr().ok() != Some(vip) {
            // A process of the node found the hidden listener; the datapath steers to the VIP only.
            proxy.unsteered(client);
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            continue;
        }
        let (entry, sent) = (proxy.clone(), proxy.metrics.sendfile.clone());
        let service = move |connection, request| {
            let entry = entry.clone();
            async move { entry.enter(connection, request).await }
        };
        let (stop, alive) = (stop.clone(), alive.clone());
        tokio::spawn(async move {
            server::serve(stream, client, sent, stop, service).await;
            drop(alive);
        });
    }
}

async fn serve_peers(
    listener: TcpListener,
    proxy: Arc<Proxy>,
    stop: watch::Receiver<bool>,
    alive: tokio::sync::mpsc::Sender<()>,
) -> Result<()> {
    loop {
        let (stream, client) = accept(&listener).await.context("accepting peers")?;
        let (owner, sent) = (proxy.clone(), proxy.metrics.sendfile.clone());
        let service = move |connection, request| {
            let owner = owner.clone();
            async move { owner.own(connection, request).await }
        };
        let (stop, alive) = (stop.clone(), alive.clone());
        tokio::spawn(async move {
            server::serve(stream, client, sent, stop, service).await;
            drop(alive);
        });
    }
}

/// Accepts; a client that gave up, or a lack of descriptors for a moment, must not end the node.
async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        match listener.accept().await {
            Ok(accepted) => return Ok(accepted),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE)) => {
                tracing::error!("out of file descriptors; raise the limit (ulimit -n)");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error),
        }
    }
}
