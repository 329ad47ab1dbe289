//! One node: the one place that knows every part, and wires them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use hyper::{Request, Response, body::Incoming};
use lota_common::Settings;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{mpsc, watch},
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
    http::{
        Body,
        server::{self, Connection, Limits, NoAnswer},
        upstream::Upstream,
    },
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
    raise_descriptor_limit();
    let metrics = Metrics::default();
    let proxy = Arc::new(proxy(&config, metrics.clone())?);

    // In this order, nothing is ever reachable before what protects it is in place.
    let mut netlink = Netlink::connect()?;
    let mut datapath = Datapath::load(&config.datapath, settings(&config))?;
    netlink.add_virtual_address(config.endpoint.vip.into()).await?;
    datapath.set_nodes(&nodes(&config))?;
    follow_interfaces(&config, &netlink, &mut datapath).await?;
    if config.datapath.uplink.is_none() {
        tracing::warn!("no datapath.uplink: the peer port is kept by the cluster's secret alone");
    }
    if let Err(error) = netlink::reserve_port(config.peer_port()) {
        tracing::warn!(port = config.peer_port(), %error, "cannot reserve the peer port");
    }
    let exposition =
        Arc::new(Exposition::new(&metrics, proxy.cache.clone(), proxy.gateway.clone(), datapath.verdicts()?));
    let listen = Listeners::bind(&config).await?;
    datapath.set_listener(&listen.hidden)?;

    let ready = Ready::default();
    let (connections, mut drained) = mpsc::channel::<()>(1);
    let door = Door { proxy: proxy.clone(), stop: stop.clone(), alive: connections };
    let responder = Responder::new(&config.endpoint.zone, config.endpoint.vip)?;
    let names = responder.clone();
    let mut parts = JoinSet::new();
    parts.spawn(async move { responder.serve_udp(listen.dns_udp).await });
    parts.spawn(async move { names.serve_tcp(listen.dns_tcp).await });
    parts.spawn(admin::serve(listen.admin, exposition, ready.clone(), stop.clone()));
    let vip = SocketAddr::from((config.endpoint.vip, HTTP_PORT));
    parts.spawn(door.clone().serve_pods(TcpListener::from_std(listen.hidden)?, vip));
    if let Some(peers) = listen.peers {
        parts.spawn(door.clone().serve_peers(peers));
    }
    drop(door);

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
                if let Err(error) = follow_interfaces(&config, &netlink, &mut datapath).await {
                    tracing::error!(error = format!("{error:#}"), "not everything follows the interfaces");
                }
            }
            Some(ended) = parts.join_next() => ended.context("a part of the node panicked")?,
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

/// Brings attachments, guard and access entries in line with the interfaces that there are now.
///
/// # Errors
/// What could not be, after all that could.
async fn follow_interfaces(config: &Config, netlink: &Netlink, datapath: &mut Datapath) -> Result<()> {
    let interfaces = netlink.interfaces().await?;
    let pods = netlink::matching(&interfaces, &config.datapath.pod_interfaces);
    let mut problems = Vec::new();
    for (interface, attached) in datapath.set_interfaces(&pods) {
        match attached {
            Ok(mode) => tracing::info!(interface, %mode, "attached"),
            Err(error) => problems.push(format!("attaching to {interface}: {error:#}")),
        }
    }
    if let Some(uplink) = &config.datapath.uplink {
        match interfaces.get(uplink).map(|index| datapath.set_uplink(uplink, *index)) {
            Some(Ok(None)) => {}
            Some(Ok(Some(mode))) => tracing::info!(uplink, %mode, "the guard is up"),
            Some(Err(error)) => problems.push(format!("{error:#}")),
            None => problems.push(format!("the uplink {uplink} does not exist")),
        }
    }
    datapath.set_access(&access::entries(&config.access.pods, &interfaces))?;
    if problems.is_empty() { Ok(()) } else { Err(anyhow!(problems.join("; "))) }
}

/// Every socket the node listens on.
struct Listeners {
    /// Only what the datapath steers here is served.
    hidden: std::net::TcpListener,
    peers: Option<TcpListener>,
    admin: TcpListener,
    dns_udp: UdpSocket,
    dns_tcp: TcpListener,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self> {
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
        let hidden = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the hidden listener")?;
        hidden.set_nonblocking(true)?;
        Ok(Self { hidden, peers, admin, dns_udp, dns_tcp })
    }
}

/// What every accepted connection needs.
#[derive(Clone)]
struct Door {
    proxy: Arc<Proxy>,
    stop: watch::Receiver<bool>,
    /// Dropped with the last connection.
    alive: mpsc::Sender<()>,
}

impl Door {
    async fn serve_pods(self, listener: TcpListener, vip: SocketAddr) {
        loop {
            let (stream, client) = server::accept(&listener).await;
            if stream.local_addr().ok() != Some(vip) {
                // A process of the node found the hidden listener; the datapath steers to the VIP only.
                self.proxy.unsteered(client);
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                continue;
            }
            let entry = self.clone();
            let service = move |connection, request| {
                let proxy = entry.proxy.clone();
                async move { proxy.enter(connection, request).await }
            };
            self.serve((stream, client), Limits::CLIENT, service);
        }
    }

    async fn serve_peers(self, listener: TcpListener) {
        loop {
            let accepted = server::accept(&listener).await;
            let owner = self.clone();
            let service = move |connection, request| {
                let proxy = owner.proxy.clone();
                async move { proxy.own(connection, request).await }
            };
            self.serve(accepted, Limits::PEER, service);
        }
    }

    fn serve<S, F>(&self, accepted: (TcpStream, SocketAddr), limits: Limits, service: S)
    where
        S: Fn(Connection, Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Result<Response<Body>, NoAnswer>> + Send + 'static,
    {
        let (sent, stop) = (self.proxy.metrics.sendfile.clone(), self.stop.clone());
        let alive = self.alive.clone();
        tokio::spawn(async move {
            server::serve(accepted, limits, sent, stop, service).await;
            drop(alive);
        });
    }
}

/// As many descriptors as the system allows: each connection is one, each open object another.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
