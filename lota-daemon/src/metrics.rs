//! Metrics, by Prometheus' conventions.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric as _, text::encode},
    metrics::{counter::ConstCounter, counter::Counter, family::Family, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use crate::{
    cache::{Cache, DiskStatus},
    datapath::Status,
    gateway::{Gateway, Standing},
    http::SentBytes,
    peer::Peers,
};

/// What the cache did for one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Served from a complete file.
    Hit,
    /// Not here: this request began to bring it, or (by `no-cache`) was answered past the cache.
    Miss,
    /// On its way already: served from the growing file.
    Fill,
    /// The cache was not involved.
    Bypass,
}

impl Outcome {
    /// Its name, in `Lota-Cache` and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Fill => "fill",
            Self::Bypass => "bypass",
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(self.name())
    }
}

/// Labels of `lota_requests`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// What the cache did.
    pub cache: Outcome,
    /// The status given.
    pub status: u16,
}

/// Labels of `lota_fills`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FillLabels {
    /// `direct`, `own`, `client` or `sibling`.
    pub authority: &'static str,
    /// `complete` or `broken`.
    pub end: &'static str,
}

/// Labels of `lota_uncached`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UncachedLabels {
    /// Why the object passed through.
    pub reason: &'static str,
}

/// Labels of `lota_peer_requests`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PeerLabels {
    /// `asked` (of an owner), `served` (as one), `resumed` (elsewhere, in the middle), `unavailable` or `refused`.
    pub role: &'static str,
}

/// Every counter that the road of a request moves.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Requests of pods that were answered.
    pub requests: Family<RequestLabels, Counter>,
    /// Fills that ended.
    pub fills: Family<FillLabels, Counter>,
    /// Bytes that fills brought.
    pub fill_bytes: Counter,
    /// Objects that could have been cached and were not.
    pub uncached: Family<UncachedLabels, Counter>,
    /// Requests between nodes.
    pub peer_requests: Family<PeerLabels, Counter>,
    /// Connections that reached the hidden listener without having been steered.
    pub unsteered: Counter,
    /// Bytes that were sent without entering user space.
    pub sent: SentBytes,
}

/// Everything `/metrics` shows.
#[derive(Debug)]
pub struct Exposition {
    registry: Registry,
    datapath: Datapath,
}

/// The state of the kernel side when it was last asked for.
type Datapath = Arc<Mutex<Option<Status>>>;

impl Exposition {
    /// Registers the road's counters, and what is read at each scrape.
    pub fn new(
        metrics: &Metrics,
        cache: Arc<Cache>,
        gateway: Arc<Gateway>,
        peers: Option<Arc<Peers>>,
    ) -> Self {
        let datapath = Datapath::default();
        let mut registry = Registry::with_prefix("lota");
        registry.register("requests", "Requests of pods that were answered", metrics.requests.clone());
        registry.register("fills", "Fills that ended", metrics.fills.clone());
        registry.register_with_unit(
            "fill",
            "Bytes that fills brought",
            Unit::Bytes,
            metrics.fill_bytes.clone(),
        );
        registry.register("uncached", "Objects that passed through uncached", metrics.uncached.clone());
        registry.register("peer_requests", "Requests between nodes", metrics.peer_requests.clone());
        registry.register(
            "unsteered_connections",
            "Connections to the hidden listener that the datapath had not steered, and were reset",
            metrics.unsteered.clone(),
        );
        registry.register_collector(Box::new(Scraped {
            cache,
            gateway,
            peers,
            datapath: datapath.clone(),
            sent: metrics.sent.clone(),
        }));
        Self { registry, datapath }
    }

    /// What to show of the kernel side from now on.
    pub fn set_datapath(&self, status: Status) {
        *self.datapath.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// Never seen: writing to memory does not fail.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What others count, read when asked.
#[derive(Debug)]
struct Scraped {
    cache: Arc<Cache>,
    gateway: Arc<Gateway>,
    peers: Option<Arc<Peers>>,
    datapath: Datapath,
    sent: SentBytes,
}

impl Collector for Scraped {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let usage = self.cache.usage();
        let standing = i64::from(self.gateway.standing() == Standing::Trusted);
        let nodes = 1 + self.peers.as_ref().map_or(0, |peers| peers.active());
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        for (name, help, unit, value) in [
            ("cache_objects", "Complete objects in the cache", None, usage.objects as u64),
            ("cache", "Bytes of objects and fills in the cache", Some(&Unit::Bytes), usage.bytes),
            ("fills_in_progress", "Fills under way", None, usage.fills as u64),
            (
                "nodes_active",
                "Nodes of the cluster that are not lost, this one among them",
                None,
                nodes as u64,
            ),
        ] {
            let gauge = ConstGauge::new(signed(value));
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)?;
        }
        self.encode_disks(&mut encoder)?;
        let gauge = ConstGauge::new(standing);
        let help = "1 once the gateway has passed its trial, so that hits are served";
        gauge.encode(encoder.encode_descriptor("gateway_trusted", help, None, gauge.metric_type())?)?;
        for (name, help, sent) in [
            ("sendfile", "Bytes of cached files, sent by sendfile(2)", &self.sent.sendfile),
            ("splice", "Bytes of other nodes, passed on by splice(2)", &self.sent.splice),
        ] {
            let counter = ConstCounter::new(sent.load(Ordering::Relaxed));
            let unit = Some(&Unit::Bytes);
            counter.encode(encoder.encode_descriptor(name, help, unit, counter.metric_type())?)?;
        }

        match &*self.datapath.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(status) => encode_datapath(status, &mut encoder),
            None => Ok(()),
        }
    }
}

impl Scraped {
    fn encode_disks(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let disks: Vec<_> = self.cache.disks().collect();
        let any = ConstGauge::new(0i64);
        let help = "1 while a disk of the cache works";
        let mut family = encoder.encode_descriptor("cache_disk_up", help, None, any.metric_type())?;
        for disk in &disks {
            let up = ConstGauge::new(i64::from(disk.works));
            up.encode(family.encode_family(&[("folder", &*disk.folder.to_string_lossy())])?)?;
        }
        let sum = |of: fn(&DiskStatus) -> u64| disks.iter().map(of).sum::<u64>();
        for (name, help, unit, count) in [
            ("cache_evictions", "Objects that went for others", None, sum(|disk| disk.evictions)),
            (
                "cache_corrupt",
                "Cached objects whose bytes were found to be others",
                None,
                sum(|disk| disk.corrupt),
            ),
            (
                "cache_verified",
                "Bytes compared with their checksums",
                Some(&Unit::Bytes),
                sum(|disk| disk.verified),
            ),
        ] {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, unit, counter.metric_type())?)?;
        }
        Ok(())
    }
}

fn encode_datapath(status: &Status, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
    let any = ConstCounter::new(0u64);
    let help = "Packets, by what the datapath decided about them";
    let mut family = encoder.encode_descriptor("datapath_packets", help, None, any.metric_type())?;
    for verdict in &status.verdicts {
        let counter = ConstCounter::new(verdict.packets);
        counter.encode(family.encode_family(&[("verdict", verdict.verdict.as_str())])?)?;
    }
    let mut by_mode: BTreeMap<String, i64> = BTreeMap::new();
    for interface in &status.interfaces {
        let mode = interface.steered.map_or("none".to_owned(), |mode| mode.to_string());
        *by_mode.entry(mode).or_default() += 1;
    }
    let any = ConstGauge::new(0i64);
    let help = "Interfaces that were asked for, by how packets from them are steered";
    let mut family = encoder.encode_descriptor("datapath_interfaces", help, None, any.metric_type())?;
    for (mode, count) in &by_mode {
        ConstGauge::new(*count).encode(family.encode_family(&[("steered", mode.as_str())])?)?;
    }
    let help = "How many other programs see an interface's packets before LOTA's does";
    let mut family = encoder.encode_descriptor("datapath_position", help, None, any.metric_type())?;
    for interface in &status.interfaces {
        let Some(position) = interface.position else { continue };
        let gauge = ConstGauge::new(i64::try_from(position).unwrap_or(i64::MAX));
        gauge.encode(family.encode_family(&[("interface", interface.name.as_str())])?)?;
    }
    let help = "Access entries in the kernel, by what they are about";
    let mut family = encoder.encode_descriptor("access_entries", help, None, any.metric_type())?;
    for (subject, count) in [("address", status.addresses), ("prefix", status.prefixes)] {
        let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
        gauge.encode(family.encode_family(&[("subject", subject)])?)?;
    }
    Ok(())
}
