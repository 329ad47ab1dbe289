//! What is on the road of a request, built from the configuration.

use std::{fs::File, sync::Arc};

use anyhow::{Context as _, Result};

use crate::{
    backend::Backend,
    cache::{Cache, Plan},
    cluster::{Cluster, Member, Members},
    config::{Config, Origin, Peer},
    gateway::Gateway,
    http::upstream::Upstream,
    metrics::Metrics,
    peer::Peers,
    placement::NodeName,
    proxy::{Crowds, Debts, Load, Proxy},
    top::Top,
};

/// What a fill holds in memory for its one request, and as much for another: a chunk that is being written, and the
/// next one.
const FILL_MEMORY: u64 = 4 << 20;

/// The nodes that the configuration names.
pub(super) fn configured_members(config: &Config) -> Members {
    let nodes = config.peers.iter().flat_map(|peers| &peers.nodes);
    let member = |peer: &Peer| {
        let member = Member { address: peer.address, zone: String::new(), capacity: Some(peer.capacity.0) };
        (NodeName(peer.name.clone()), member)
    };
    nodes.map(member).collect()
}

/// Everything on the road of a request, put together as the configuration says.
pub(super) fn proxy(config: &Config, metrics: Metrics, locks: &[File]) -> Result<Proxy> {
    let me = NodeName(config.node.name.clone());
    let gateway_origin = &config.gateway.endpoint;
    let tls = |origin: &Origin| origin.tls;
    let backend_tls = config.backend.iter().flat_map(|backend| &backend.endpoints).any(tls);
    let any_tls = gateway_origin.tls || backend_tls || config.gateway.direct_allow.iter().any(tls);
    let upstream = Upstream::new(any_tls).context("loading the system's root certificates for TLS")?;

    // Half for what fills hold, half for what uploads do.
    let body_memory = config.limits.body_memory.0 / 2;
    let mut gateway =
        Gateway::new(&config.gateway, &config.node, upstream.clone()).map_err(anyhow::Error::msg)?;
    gateway = gateway.counting(metrics.clone());
    if let Some(resign) = &config.gateway.resign {
        gateway = gateway.resigning(resign, &config.endpoint.zone, body_memory)?;
    }
    let gateway = Arc::new(gateway);
    let backend = Backend::new(config.backend.as_ref(), gateway.clone(), upstream.clone())?;
    let scope = gateway_origin.to_string();
    let capacity = config.cache.capacity();
    let limits = &config.limits;
    let most_fills = limits.fills.min(usize::try_from(body_memory / FILL_MEMORY).unwrap_or(usize::MAX));
    let plan = Plan {
        min_free: config.cache.min_free.0,
        high: config.cache.high_percent,
        low: config.cache.low_percent,
        admission: config.cache.admission,
        encryption: config.cache.encryption,
        scrub: config.cache.scrub.0,
        fills: most_fills,
        requests: config.fill.requests,
        part: config.fill.part.0,
        md5_up_to: config.fill.md5_up_to.0,
    };
    let cache = Cache::open(&config.cache.disks, &scope, &plan, locks).context("opening the cache")?;

    let (mut peers, mut crowds) = (None, Crowds::new(u32::MAX, 1));
    if let Some(configured) = &config.peers {
        let secret = configured.secret()?;
        peers = Some(Arc::new(Peers::new(me.clone(), &secret, configured.port, upstream.impatient())));
        crowds = Crowds::new(configured.hot_requests, configured.owners);
    }
    let zone = config.node.zone.clone();
    let cluster = Arc::new(Cluster::new(me.clone(), zone, scope, capacity, peers.clone()));
    Ok(Proxy {
        cluster,
        node: me,
        zone: config.endpoint.zone.clone(),
        gateway,
        backend,
        cache: Arc::new(cache),
        peers,
        crowds,
        load: Load::default(),
        debts: Arc::new(Debts::new(limits.fill_debt.map_or(capacity / 4, |debt| debt.0))),
        metrics,
        top: Top::default(),
    })
}
