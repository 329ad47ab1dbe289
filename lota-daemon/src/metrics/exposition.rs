//! What `/metrics` shows: the counters, and what others know, read at each scrape.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, MetricEncoder, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Metric as Registered, Registry},
};

use super::{
    Metrics,
    catalog::{self, Kind, Metric},
};
use crate::{
    cache::{Cache, DiskStatus},
    datapath::{INSTEAD, Status},
    gateway::{Gateway, Standing},
    peer::Peers,
};

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
        let mut registry = Registry::default();
        register(&mut registry, metrics);
        registry.register_collector(Box::new(Scraped {
            cache,
            gateway,
            peers,
            datapath: datapath.clone(),
            metrics: metrics.clone(),
        }));
        Self { registry, datapath }
    }

    /// What to show of the kernel side from now on.
    pub fn set_datapath(&self, status: Status) {
        *self.datapath.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    /// The text that Prometheus reads, in its text format, version 0.0.4.
    ///
    /// # Errors
    /// Never seen: writing to memory does not fail.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(classic(&text))
    }
}

fn register(registry: &mut Registry, metrics: &Metrics) {
    let Metrics {
        requests, request_seconds, range_requests, object_sizes, owners, sent_from, faults, ..
    } = metrics;
    add(registry, &catalog::REQUESTS, requests);
    add(registry, &catalog::REQUEST_SECONDS, request_seconds);
    add(registry, &catalog::RANGE_REQUESTS, range_requests);
    add(registry, &catalog::OBJECT_SIZE_REQUESTS, object_sizes);
    add(registry, &catalog::OWNER_REQUESTS, owners);
    add(registry, &catalog::SENT_BYTES, sent_from);
    add(registry, &catalog::ERRORS, faults);
    add(registry, &catalog::UNSTEERED, &metrics.unsteered);
    add(registry, &catalog::GATEWAY_REQUESTS, &metrics.gateway_requests);
    add(registry, &catalog::GATEWAY_SECONDS, &metrics.gateway_seconds);
    add(registry, &catalog::FILLS, &metrics.fills);
    add(registry, &catalog::FILL_BYTES, &metrics.fill_bytes);
    add(registry, &catalog::UNCACHED, &metrics.uncached);
    add(registry, &catalog::PEER_REQUESTS, &metrics.peer_requests);
    add(registry, &catalog::ACCESS_LAG, &metrics.access_lag);
}

fn add(registry: &mut Registry, metric: &Metric, counted: &(impl Registered + Clone)) {
    registry.register(metric.base(), metric.help, counted.clone());
}

/// The crate writes OpenMetrics, which not every reader takes; the older format differs in what a counter's comments
/// call it, and in having neither units nor an end.
fn classic(open: &str) -> String {
    let (mut text, mut help) = (String::with_capacity(open.len()), "");
    for line in open.lines() {
        let comment = line.strip_prefix("# ").and_then(|comment| comment.split_once(' '));
        let _ = match comment {
            Some(("HELP", told)) => {
                help = told;
                Ok(())
            }
            Some(("TYPE", told)) => {
                let (name, kind) = told.split_once(' ').unwrap_or((told, "untyped"));
                let help = help.strip_prefix(name).unwrap_or_default();
                let total = if kind == "counter" { "_total" } else { "" };
                writeln!(text, "# HELP {name}{total}{help}\n# TYPE {name}{total} {kind}")
            }
            _ if line.starts_with('#') => Ok(()),
            _ => writeln!(text, "{line}"),
        };
    }
    text
}

/// What others count, read when asked.
#[derive(Debug)]
struct Scraped {
    cache: Arc<Cache>,
    gateway: Arc<Gateway>,
    peers: Option<Arc<Peers>>,
    datapath: Datapath,
    metrics: Metrics,
}

impl Collector for Scraped {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let usage = self.cache.usage();
        let disks: Vec<_> = self.cache.disks().collect();
        let sum = |of: fn(&DiskStatus) -> u64| disks.iter().map(of).sum::<u64>();
        let capacity = disks.iter().filter(|disk| disk.works).map(|disk| disk.capacity).sum();
        let trusted = self.gateway.standing() == Standing::Trusted;
        let (known, active) = self.peers.as_ref().map_or((0, 0), |peers| (peers.known(), peers.active()));
        let sent = &self.metrics.sent;
        for (metric, value) in [
            (&catalog::CACHE_OBJECTS, usage.objects as u64),
            (&catalog::CACHE_BYTES, usage.bytes),
            (&catalog::CACHE_CAPACITY, capacity),
            (&catalog::FILLS_IN_PROGRESS, usage.fills as u64),
            (&catalog::NODES_ACTIVE, 1 + active as u64),
            (&catalog::NODES_KNOWN, 1 + known as u64),
            (&catalog::GATEWAY_TRUSTED, u64::from(trusted)),
            (&catalog::CACHE_EVICTIONS, sum(|disk| disk.evictions)),
            (&catalog::CACHE_CORRUPT, sum(|disk| disk.corrupt)),
            (&catalog::CACHE_VERIFIED, sum(|disk| disk.verified)),
            (&catalog::SENDFILE, sent.sendfile.load(Ordering::Relaxed)),
            (&catalog::SPLICE, sent.splice.load(Ordering::Relaxed)),
        ] {
            value_of(metric, value, describe(metric, &mut encoder)?)?;
        }
        if let Some(up) = self.metrics.kubernetes.get() {
            let metric = &catalog::KUBERNETES_UP;
            value_of(metric, u64::from(up), describe(metric, &mut encoder)?)?;
        }
        let version = [([("version", env!("CARGO_PKG_VERSION"))], 1)];
        encode_each(&catalog::BUILD_INFO, version, &mut encoder)?;
        let up = disks.iter().map(|disk| (disk.folder.to_string_lossy(), u64::from(disk.works)));
        let up = up.collect::<Vec<_>>();
        encode_each(
            &catalog::CACHE_DISK_UP,
            up.iter().map(|(folder, up)| ([("folder", &**folder)], *up)),
            &mut encoder,
        )?;
        match &*self.datapath.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(status) => encode_datapath(status, &mut encoder),
            None => Ok(()),
        }
    }
}

fn encode_datapath(status: &Status, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let verdicts = status.verdicts.iter();
    let packets = verdicts.map(|verdict| ([("verdict", verdict.verdict.as_str())], verdict.packets));
    encode_each(&catalog::DATAPATH_PACKETS, packets, encoder)?;
    let mut by_mode: BTreeMap<String, u64> = BTreeMap::new();
    for interface in &status.interfaces {
        let at_bridge = interface.skipped.as_ref().is_some_and(|why| why.ends_with(INSTEAD));
        let not = if at_bridge { "bridge" } else { "none" };
        let mode = interface.steered.map_or(not.to_owned(), |mode| mode.to_string());
        *by_mode.entry(mode).or_default() += 1;
    }
    let by_mode = by_mode.iter().map(|(mode, count)| ([("steered", mode.as_str())], *count));
    encode_each(&catalog::DATAPATH_INTERFACES, by_mode, encoder)?;
    let positions = status
        .interfaces
        .iter()
        .filter_map(|interface| Some(([("interface", interface.name.as_str())], interface.position? as u64)));
    encode_each(&catalog::DATAPATH_POSITION, positions, encoder)?;
    let entries = [("address", status.addresses), ("prefix", status.prefixes)];
    let entries = entries.map(|(subject, count)| ([("subject", subject)], count as u64));
    encode_each(&catalog::ACCESS_ENTRIES, entries, encoder)
}

/// Begins a metric.
fn describe<'e>(
    metric: &Metric,
    encoder: &'e mut DescriptorEncoder<'_>,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    let kind = match metric.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
    };
    encoder.encode_descriptor(metric.base(), &format!("{}.", metric.help), None, kind)
}

fn value_of(metric: &Metric, value: u64, encoder: MetricEncoder<'_>) -> fmt::Result {
    match metric.kind {
        Kind::Counter => ConstCounter::new(value).encode(encoder),
        _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder),
    }
}

/// A metric with labels.
fn encode_each<L: EncodeLabelSet>(
    metric: &Metric,
    values: impl IntoIterator<Item = (L, u64)>,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let mut family = describe(metric, encoder)?;
    values.into_iter().try_for_each(|(labels, value)| value_of(metric, value, family.encode_family(&labels)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_calls_counters_by_their_whole_names() {
        let open = "# HELP a Something.\n# TYPE a counter\n# UNIT a bytes\na_total{b=\"# x\"} 1\n# HELP c Else.\n\
                    # TYPE c gauge\nc 2\n# EOF\n";
        let expected = "# HELP a_total Something.\n# TYPE a_total counter\na_total{b=\"# x\"} 1\n# HELP c Else.\n\
                        # TYPE c gauge\nc 2\n";
        assert_eq!(classic(open), expected);
    }

    #[test]
    fn whatever_is_registered_is_in_the_catalog() {
        let mut registry = Registry::default();
        register(&mut registry, &Metrics::default());
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in classic(&text).lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(catalog::of_series(name).is_some(), "{name}");
        }
    }
}
