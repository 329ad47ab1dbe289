//! Response of `/metrics`: the counters, and values of other parts that are read at each scrape.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use lota_cache::{Cache, DiskStatus};
use lota_datapath::{DatapathStatus, SkipReason};
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, MetricEncoder, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Metric as Registered, Registry},
};

use crate::{
    cluster::peer::Peers,
    gateway::{Gateway, GatewayName, GatewayTrust},
    metrics::{
        Metrics,
        catalog::{self, Metric, MetricKind},
    },
};

/// Encodes all metrics.
#[derive(Debug)]
pub struct Exposition {
    registry: Registry,
    datapath: Datapath,
}

/// State of the kernel side when it was last read.
type Datapath = Arc<Mutex<Option<DatapathStatus>>>;

impl Exposition {
    /// Registers the counters of the request path, and the values that are read at each scrape.
    pub fn new(
        metrics: &Metrics,
        cache: Arc<Cache>,
        gateways: Vec<(GatewayName, Arc<Gateway>)>,
        peers: Option<Arc<Peers>>,
    ) -> Self {
        let datapath = Datapath::default();
        let mut registry = Registry::default();
        register(&mut registry, metrics);
        registry.register_collector(Box::new(Scraped {
            cache,
            gateways,
            peers,
            datapath: datapath.clone(),
            metrics: metrics.clone(),
        }));
        Self { registry, datapath }
    }

    /// Sets the state of the kernel side for further scrapes.
    pub fn set_datapath(&self, status: DatapathStatus) {
        *self.datapath.lock() = Some(status);
    }

    /// Returns all metrics in Prometheus' text format, version 0.0.4.
    ///
    /// # Errors
    /// Never, since writing to a String cannot fail.
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
    add(registry, &catalog::TLS_CONNECTIONS, &metrics.tls_connections);
    add(registry, &catalog::UNEXPECTED_CONNECTIONS, &metrics.unexpected_connections);
    add(registry, &catalog::GATEWAY_REQUESTS, &metrics.gateway_requests);
    add(registry, &catalog::GATEWAY_SECONDS, &metrics.gateway_seconds);
    add(registry, &catalog::FILLS, &metrics.fills);
    add(registry, &catalog::FILL_BYTES, &metrics.fill_bytes);
    add(registry, &catalog::UNCACHED, &metrics.uncached);
    add(registry, &catalog::WRITE_FETCHES, &metrics.write_fetches);
    add(registry, &catalog::WRITE_KEPT_BYTES, &metrics.write_kept_bytes);
    add(registry, &catalog::PEER_REQUESTS, &metrics.peer_requests);
    add(registry, &catalog::ACCESS_LAG, &metrics.access_lag);
    add(registry, &catalog::SECRET_RELOADS, &metrics.secret_reloads);
}

fn add(registry: &mut Registry, metric: &Metric, counted: &(impl Registered + Clone)) {
    registry.register(metric.base(), metric.help, counted.clone());
}

/// Converts OpenMetrics, which the crate writes but not every reader accepts. The older format differs in the names
/// in a counter's comments, and has neither units nor an end marker.
fn classic(open: &str) -> String {
    let (mut text, mut help) = (String::with_capacity(open.len()), "");
    for line in open.lines() {
        let comment = line.strip_prefix("# ").and_then(|comment| comment.split_once(' '));
        let _ = match comment {
            Some(("HELP", comment)) => {
                help = comment;
                Ok(())
            }
            Some(("TYPE", comment)) => {
                let (name, kind) = comment.split_once(' ').unwrap_or((comment, "untyped"));
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

/// Reads the values of other parts at each scrape.
#[derive(Debug)]
struct Scraped {
    cache: Arc<Cache>,
    gateways: Vec<(GatewayName, Arc<Gateway>)>,
    peers: Option<Arc<Peers>>,
    datapath: Datapath,
    metrics: Metrics,
}

impl Scraped {
    /// Returns the time at which the certificate for TLS between nodes expires, in seconds since 1970.
    fn certificate_expiry(&self) -> u64 {
        let tls = self.peers.as_ref().and_then(|peers| peers.tls());
        let expiry = tls.and_then(|tls| tls.current().get().validity()).map(|(_, until)| until);
        let since_1970 = expiry.and_then(|expiry| expiry.duration_since(SystemTime::UNIX_EPOCH).ok());
        since_1970.unwrap_or_default().as_secs()
    }
}

impl Collector for Scraped {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let usage = self.cache.usage();
        let disks: Vec<_> = self.cache.disks().collect();
        let sum = |of: fn(&DiskStatus) -> u64| disks.iter().map(of).sum::<u64>();
        let capacity = disks.iter().filter(|disk| disk.works).map(|disk| disk.capacity).sum();
        let (known, active) = self.peers.as_ref().map_or((0, 0), |peers| (peers.known(), peers.active()));
        let keys = self.peers.as_ref().map_or(0, |peers| peers.keys().shared());
        let public_keys = self.peers.as_ref().map_or(0, |peers| peers.known_with_key());
        let sent = &self.metrics.sent;
        for (metric, value) in [
            (&catalog::CACHE_OBJECTS, usage.objects as u64),
            (&catalog::CACHE_STRIPES, usage.stripes as u64),
            (&catalog::CACHE_PARTIAL, usage.partial as u64),
            (&catalog::CACHE_BYTES, usage.bytes),
            (&catalog::CACHE_CAPACITY, capacity),
            (&catalog::FILLS_IN_PROGRESS, usage.fills as u64),
            (&catalog::NODES_ACTIVE, 1 + active as u64),
            (&catalog::NODES_KNOWN, 1 + known as u64),
            (&catalog::CLUSTER_KEYS, keys as u64),
            (&catalog::NODE_KEYS, public_keys as u64),
            (&catalog::PEER_CERTIFICATE_EXPIRY, self.certificate_expiry()),
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
        let mode = self.peers.as_ref().map(|peers| ([("mode", peers.keys().authentication().name())], 1));
        encode_each(&catalog::PEER_AUTHENTICATION, mode, &mut encoder)?;
        let trusted = self.gateways.iter().map(|(name, gateway)| {
            ([("gateway", name.as_str())], u64::from(gateway.trust() == GatewayTrust::Trusted))
        });
        encode_each(&catalog::GATEWAY_TRUSTED, trusted, &mut encoder)?;
        let version = [([("version", env!("CARGO_PKG_VERSION"))], 1)];
        encode_each(&catalog::BUILD_INFO, version, &mut encoder)?;
        let up = disks.iter().map(|disk| (disk.folder.to_string_lossy(), u64::from(disk.works)));
        let up = up.collect::<Vec<_>>();
        encode_each(
            &catalog::CACHE_DISK_UP,
            up.iter().map(|(folder, up)| ([("folder", &**folder)], *up)),
            &mut encoder,
        )?;
        let pinned = disks.iter().map(|disk| (disk.folder.to_string_lossy(), disk.usage.pinned));
        let pinned = pinned.collect::<Vec<_>>();
        encode_each(
            &catalog::CACHE_PINNED,
            pinned.iter().map(|(folder, bytes)| ([("folder", &**folder)], *bytes)),
            &mut encoder,
        )?;
        match &*self.datapath.lock() {
            Some(status) => encode_datapath(status, &mut encoder),
            None => Ok(()),
        }
    }
}

fn encode_datapath(status: &DatapathStatus, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let verdicts = status.verdicts.iter();
    let packets = verdicts.map(|verdict| ([("verdict", verdict.verdict.as_str())], verdict.packets));
    encode_each(&catalog::DATAPATH_PACKETS, packets, encoder)?;
    let mut by_mode: BTreeMap<String, u64> = BTreeMap::new();
    for interface in &status.interfaces {
        let not = match interface.skipped {
            Some(SkipReason::BridgePort { .. }) => "bridge",
            _ => "none",
        };
        let mode = interface.mode.map_or(not.to_owned(), |mode| mode.to_string());
        *by_mode.entry(mode).or_default() += 1;
    }
    let by_mode = by_mode.iter().map(|(mode, count)| ([("mode", mode.as_str())], *count));
    encode_each(&catalog::DATAPATH_INTERFACES, by_mode, encoder)?;
    let positions = status.interfaces.iter().filter_map(|interface| {
        Some(([("interface", interface.name.as_str())], interface.programs_ahead? as u64))
    });
    encode_each(&catalog::DATAPATH_PROGRAMS_AHEAD, positions, encoder)?;
    let hanging = status.connections.hanging.len() as u64;
    value_of(&catalog::HANGING_PODS, hanging, describe(&catalog::HANGING_PODS, encoder)?)?;
    let entries = [("address", status.addresses), ("prefix", status.prefixes)];
    let entries = entries.map(|(subject, count)| ([("subject", subject)], count as u64));
    encode_each(&catalog::ACCESS_ENTRIES, entries, encoder)
}

/// Starts the encoding of a metric.
fn describe<'e>(
    metric: &Metric,
    encoder: &'e mut DescriptorEncoder<'_>,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    let kind = match metric.kind {
        MetricKind::Counter => MetricType::Counter,
        MetricKind::Gauge => MetricType::Gauge,
        MetricKind::Histogram => MetricType::Histogram,
    };
    encoder.encode_descriptor(metric.base(), &format!("{}.", metric.help), None, kind)
}

fn value_of(metric: &Metric, value: u64, encoder: MetricEncoder<'_>) -> fmt::Result {
    match metric.kind {
        MetricKind::Counter => ConstCounter::new(value).encode(encoder),
        _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder),
    }
}

/// Encodes a metric with labels.
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
    fn the_older_format_uses_full_counter_names() {
        let open = "# HELP a Something.\n# TYPE a counter\n# UNIT a bytes\na_total{b=\"# x\"} 1\n# HELP c Else.\n\
                    # TYPE c gauge\nc 2\n# EOF\n";
        let expected = "# HELP a_total Something.\n# TYPE a_total counter\na_total{b=\"# x\"} 1\n# HELP c Else.\n\
                        # TYPE c gauge\nc 2\n";
        assert_eq!(classic(open), expected);
    }

    #[test]
    fn metrics_are_registered_as_the_catalog_describes_them() {
        let mut registry = Registry::default();
        register(&mut registry, &Metrics::default());
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let text = classic(&text);
        let shown: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let expected: Vec<String> =
            catalog::all().map(|metric| format!("{} {}", metric.name, metric.kind.name())).collect();
        let unknown: Vec<_> =
            shown.iter().filter(|shown| !expected.iter().any(|one| one == *shown)).collect();
        assert!(unknown.is_empty(), "not as in the catalog: {unknown:?}");
        // The others are read at each scrape.
        assert_eq!(shown.len(), 13, "{shown:?}");
    }
}
