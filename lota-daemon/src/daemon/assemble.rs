//! Builds the request path from the configuration.

use std::{collections::BTreeMap, fs::File, net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use lota_cache::{Cache, CachePlan, objects_by_memory, placement::NodeName};
use lota_datapath::InterceptedTarget;
use lota_s3::{GatewayId, signing::Signer};

use super::{
    pod_stream::PassTarget,
    secret_files::{SecretFiles, SecretKind},
};
use crate::{
    access::AccessConfig,
    cluster::{
        Cluster, ClusterKeys, ClusterMember, Members, NodeKey, NodePublicKey, PeerConfig, PeerKeys,
        PeerTlsConfig, PeersConfig,
        peer::{PeerTls, Peers},
    },
    config::{Config, ConfiguredGateway},
    gateway::{Gateway, TlsConfig},
    http::{
        tls::{CertificateFiles, Certificates, TlsServer},
        upstream::Upstream,
    },
    kubernetes::PodRules,
    metrics::{Metrics, heavy_hitters::HeavyHitterCounter},
    proxy::{ClusterPins, FillQuota, HotObjects, Load, Proxy, S3Store, S3Stores, Striping, WriteFetches},
    reconciler::ControlConfig,
    settings::Reloadable,
    storage::{BackendConfig, Storage},
};

/// Memory that a fill holds for its one range request, and for each further one: a chunk that is being written and
/// the next one.
const FILL_MEMORY: u64 = 4 << 20;

/// Returns the nodes that the configuration lists.
pub(super) fn configured_members(config: &Config) -> Members {
    let nodes = config.peers.iter().flat_map(|peers| &peers.nodes);
    let member = |peer: &PeerConfig| {
        let (zone, capacity) = (peer.zone.clone(), Some(peer.capacity.0));
        (NodeName(peer.name.clone()), ClusterMember { address: peer.address, zone, capacity })
    };
    nodes.map(member).collect()
}

/// Returns the rules of the configuration that select pods.
pub(super) fn pod_rules(access: &AccessConfig) -> PodRules {
    PodRules { allowed: access.from.clone(), forwarders: access.forwarders.clone() }
}

/// Returns the parts of the configuration that the kernel side follows.
pub(super) fn control_config(config: &Config) -> Result<ControlConfig> {
    let peers = config.peers.iter().flat_map(|peers| &peers.nodes);
    Ok(ControlConfig {
        datapath: config.datapath.clone(),
        endpoint: config.endpoint.clone(),
        names: config.names().map_err(anyhow::Error::msg)?,
        ports: config.ports().map_err(anyhow::Error::msg)?,
        targets: config.targets().map_err(anyhow::Error::msg)?,
        access: config.access.clone(),
        peers: peers.map(|peer| peer.address).collect(),
        own: [config.node.address, config.admin.listen.ip()],
        peer_port: config.peer_port(),
        admin_port: config.admin.listen.port(),
        has_kubernetes: config.kubernetes.is_some(),
    })
}

/// Builds the request path from the configuration.
pub(super) fn proxy(
    config: &Config,
    secrets: &SecretFiles,
    metrics: Metrics,
    locks: &[File],
) -> Result<Proxy> {
    let me = NodeName(config.node.name.clone());
    // Half for fills, half for uploads.
    let body_memory = config.limits.body_memory.0 / 2;
    let upstream = upstream(config)?;
    let stores = s3_stores(config, secrets, &metrics, &upstream, body_memory)?;
    let capacity = config.cache.capacity();
    let limits = &config.limits;
    let fill_overread = limits.fill_overread.map_or(capacity / 4, |limit| limit.0);
    let most_fills = limits.fills.min(usize::try_from(body_memory / FILL_MEMORY).unwrap_or(usize::MAX));
    let plan = CachePlan {
        min_free: config.cache.min_free.0,
        high: config.cache.high_percent,
        low: config.cache.low_percent,
        admission: config.cache.admission,
        encryption: config.cache.encryption,
        scrub: config.cache.scrub_rate.0,
        partial: config.cache.partial,
        objects: config.cache.max_objects.unwrap_or_else(objects_by_memory),
        fills: most_fills,
        requests: config.fill.concurrency,
        part: config.fill.part_size.0,
        md5_max_size: config.fill.md5_max_size.0,
        silence: limits.idle_timeout(),
    };
    let cache = Cache::open(&config.cache.disks, &plan, locks).context("cannot open the cache")?;

    let (mut peers, mut hot_objects) = (None, HotObjects::new(u32::MAX, 1));
    if let Some(configured) = &config.peers {
        let keys = peer_keys(configured, &me, secrets)?;
        let mut made = Peers::new(me.clone(), keys, configured.port, upstream.without_retries());
        if let Some(tls) = &configured.tls {
            made = made.with_tls(peer_tls(tls, config, secrets)?);
        }
        peers = Some(Arc::new(made.waiting(config.owner_timeout())));
        hot_objects = HotObjects::new(configured.hot_request_rate, configured.max_owners);
    }
    let zone = config.node.zone.clone();
    let cluster = Cluster::new(me.clone(), zone, capacity, peers.clone());
    let cluster = Arc::new(cluster.with_owners_per_zone(config.placement.per_zone));
    let cache = Arc::new(cache);
    let folder = config.cache.disks.first().context("no cache disk")?.folder.as_path();
    let pins = ClusterPins::new(cache.clone(), cluster.clone(), peers.clone(), (folder, plan.low));
    Ok(Proxy {
        cluster,
        node: me,
        stores,
        cache,
        peers,
        hot_objects,
        striping: Striping::new(&config.placement),
        load: Load::default(),
        fill_quota: Arc::new(FillQuota::new(fill_overread)),
        write_fetches: WriteFetches::new(config.cache.after_write, fill_overread),
        pins: Arc::new(pins),
        metrics,
        top: HeavyHitterCounter::default(),
    })
}

/// Reads the keys for messages between nodes.
fn peer_keys(configured: &PeersConfig, me: &NodeName, secrets: &SecretFiles) -> Result<PeerKeys> {
    let shared = configured.keys.shared().map(|file| {
        let path = file.to_owned();
        let parse = move |text: &str| Ok(ClusterKeys::of_file(&path, text)?);
        secrets.follow_text(SecretKind::ClusterKey, file.to_owned(), parse)
    });
    let public_keys = configured.public_keys();
    let listed = public_keys.get(me).map_or(&[][..], Vec::as_slice);
    let own = configured.keys.node().map(|file| node_key(file, listed, secrets));
    let keys = PeerKeys::new(shared.transpose()?, own.transpose()?);
    keys.publish(public_keys);
    Ok(keys)
}

/// Reads the key of this node, of which the configuration lists these public keys. Makes one if there is none and none is listed.
///
/// # Errors
/// If the file is invalid, cannot be made, or does not exist although the other nodes expect its key.
fn node_key(file: &Path, listed: &[NodePublicKey], secrets: &SecretFiles) -> Result<Reloadable<NodeKey>> {
    // Another key would be refused by all other nodes.
    let may_make = listed.is_empty();
    let made = may_make
        && NodeKey::create_file(file).with_context(|| {
            let file = file.display();
            format!(
                "cannot make the key of this node, {file}; make its folder, or correct peers.node_key_file"
            )
        })?;
    let path = file.to_owned();
    let parse = move |text: &str| Ok(NodeKey::of_file(&path, text)?);
    let key = secrets.follow_text(SecretKind::NodeKey, file.to_owned(), parse).context(match may_make {
        true => "cannot use the key of this node",
        false => "cannot use the key of this node; restore it, or remove its public keys from peers.nodes to have another one made",
    })?;
    let public_key = key.get().public();
    match made {
        true => {
            tracing::warn!(%public_key, "made a key of this node; add its public key to peers.nodes on all nodes");
        }
        false if listed.contains(&public_key) => tracing::info!(%public_key, "read the key of this node"),
        false => tracing::warn!(
            %public_key,
            "the key of this node is not in peers.nodes; other nodes that do not list it refuse this one"
        ),
    }
    Ok(key)
}

fn upstream(config: &Config) -> Result<Upstream> {
    let origins = config.all_gateways().flat_map(|ConfiguredGateway { gateway, backend, .. }| {
        let backends = backend.into_iter().flat_map(|backend| &backend.endpoints);
        [&gateway.endpoint].into_iter().chain(backends).chain(&gateway.direct_allow)
    });
    let any_tls = origins.into_iter().any(|origin| origin.tls);
    let upstream = Upstream::new(any_tls).context("cannot load the system's root certificates for TLS")?;
    Ok(upstream.with_idle_timeout(config.limits.idle_timeout()))
}

/// Builds every gateway with its storage. Gateways that re-sign share the memory for uploads equally.
fn s3_stores(
    config: &Config,
    secrets: &SecretFiles,
    metrics: &Metrics,
    upstream: &Upstream,
    upload_memory: u64,
) -> Result<S3Stores> {
    let endpoints = config.endpoints();
    let re_signing = config.all_gateways().filter(|configured| configured.gateway.re_sign.is_some()).count();
    let memory = upload_memory / re_signing.max(1) as u64;
    let stores = config.all_gateways().map(|configured| {
        let ConfiguredGateway { name, gateway: settings, backend } = &configured;
        let section = name.section();
        let mut gateway =
            Gateway::new(settings, &config.node, upstream.clone()).map_err(anyhow::Error::msg)?;
        gateway = gateway.counting(metrics.clone(), name.as_str());
        if let Some(re_sign) = &settings.re_sign {
            let (of_clients, path) = (re_sign.clone(), re_sign.clients_file.clone());
            let parse = move |text: &str| Ok(of_clients.parse_clients(text)?);
            let clients = secrets.follow_text(SecretKind::Clients, path, parse);
            let clients = clients.with_context(|| format!("cannot set up [{section}.re_sign]"))?;
            gateway = gateway.re_signing(re_sign, clients, &endpoints, memory);
        }
        let own = backend.map(|backend| own_signer(backend, secrets)).transpose()?;
        if let Some(own) = &own {
            gateway = gateway.tried_by(own.clone());
        }
        let gateway = Arc::new(gateway);
        let timeout = settings.response_timeout();
        let backend = Storage::new(backend.zip(own), gateway.clone(), upstream.clone(), timeout);
        Ok((configured.id(), Arc::new(S3Store { name: name.clone(), gateway, backend })))
    });
    Ok(S3Stores::new(endpoints.clone(), stores.collect::<Result<_>>()?))
}

/// Reads LOTA's own credential for a backend.
fn own_signer(backend: &BackendConfig, secrets: &SecretFiles) -> Result<Reloadable<Signer>> {
    let (backend, path) = (backend.clone(), backend.credential_file.clone());
    secrets.follow_text(SecretKind::Credential, path, move |text| {
        Ok(Signer::new(&backend.parse_credential(text)?, &backend.region))
    })
}

/// Reads the certificates for TLS between nodes.
fn peer_tls(tls: &PeerTlsConfig, config: &Config, secrets: &SecretFiles) -> Result<PeerTls> {
    let files = tls.files();
    let paths = files.paths();
    let parse = move |contents: &[Vec<u8>]| files.parse(contents).map_err(anyhow::Error::msg);
    let current = secrets.follow(SecretKind::PeerTls, paths, parse);
    let current =
        current.context("cannot use the files of [peers.tls]; correct them, or remove the section")?;
    Ok(PeerTls::new(tls.mode, current, config.node.address))
}

/// Reads the certificates of all gateways.
pub(super) fn tls_server(config: &Config, secrets: &SecretFiles) -> Result<TlsServer> {
    let with_tls = config
        .all_gateways()
        .filter_map(|configured| Some((configured.id(), configured.gateway.tls.as_ref()?)));
    let certified = with_tls.map(|(gateway, TlsConfig { certificate, key })| {
        let (paths, files) = (
            vec![certificate.clone(), key.clone()],
            CertificateFiles { certificate: certificate.clone(), key: key.clone() },
        );
        let parse = move |contents: &[Vec<u8>]| match contents {
            [certificate, key] => files.parse(certificate, key).map_err(anyhow::Error::msg),
            _ => anyhow::bail!("{} files instead of two", contents.len()),
        };
        Ok((gateway, secrets.follow(SecretKind::Tls, paths, parse)?))
    });
    let certified = certified.collect::<Result<_>>().context("cannot use a certificate of [gateway.tls]")?;
    TlsServer::new(Certificates::new(config.endpoints(), certified)).context("cannot set up TLS")
}

/// Returns the gateways by the address of LOTA that stands for theirs.
pub(super) fn targets(config: &Config, assigned: &[InterceptedTarget]) -> BTreeMap<SocketAddr, GatewayId> {
    let all = config.all_gateways().flat_map(|configured| {
        let id = configured.id();
        configured.gateway.targets().map(move |target| (target, id.clone())).collect::<Vec<_>>()
    });
    let vip = config.endpoint.vip;
    let stand_ins = all.filter_map(|(target, gateway)| {
        let assigned = assigned.iter().find(|assigned| assigned.target == target)?;
        Some((SocketAddr::from((vip, assigned.port)), gateway))
    });
    stand_ins.collect()
}

/// Returns the gateways that TLS can be passed on to.
pub(super) fn pass_targets(config: &Config) -> Vec<PassTarget> {
    let targets = config.all_gateways().map(|configured| PassTarget {
        gateway: configured.id(),
        host: configured.gateway.endpoint.authority.host().trim_matches(['[', ']']).to_owned(),
        ports: configured.gateway.all_ports().collect(),
    });
    targets.collect()
}
