//! Catalog of all metrics with their labels and help texts. Registration and `docs/metrics.md` both use this table.

/// Type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Increases only, and starts at 0 with each daemon.
    Counter,
    /// Increases and decreases.
    Gauge,
    /// Counts durations in buckets.
    Histogram,
}

impl MetricKind {
    /// Returns the name of the type in Prometheus' text format.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Name, type, labels and help text of one metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Name in Prometheus.
    pub name: &'static str,
    /// Type of the metric.
    pub kind: MetricKind,
    /// Labels, each with a description of its values.
    pub labels: &'static [(&'static str, &'static str)],
    /// Help text, without a full stop.
    pub help: &'static str,
}

/// Group of related metrics.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Heading of the group.
    pub title: &'static str,
    /// Metrics of the group.
    pub metrics: &'static [&'static Metric],
}

/// Defines each metric as a constant, and all of them as one list. Only metrics of the list can be registered.
macro_rules! catalog {
    ($($title:literal: { $($id:ident = $kind:ident $name:literal { $($label:ident: $values:literal),* } $help:literal;)* })*) => {
        $($(
            #[doc = $help]
            pub const $id: Metric = Metric {
                name: $name,
                kind: MetricKind::$kind,
                labels: &[$((stringify!($label), $values)),*],
                help: $help,
            };
        )*)*

        /// All metrics, in groups.
        pub const SECTIONS: &[Section] = &[$(Section { title: $title, metrics: &[$(&$id),*] }),*];
    };
}

catalog! {
    "Requests of pods": {
        REQUESTS = Counter "lota_requests_total" {
            cache: "`hit`, `miss`, `fill` (joined a fill in progress) or `bypass` (cache not involved)",
            status: "the HTTP status; `none` if the connection ended before the response, with `cache=\"bypass\"`"
        } "Requests from pods, counted at the entry node";
        REQUEST_SECONDS = Histogram "lota_request_seconds" {
            cache: "as above"
        } "Time in seconds from a pod's request headers to the response headers, which are sent with the first byte of the body";
        RANGE_REQUESTS = Counter "lota_range_requests_total" {
        } "Requests from pods for a part of an object";
        OBJECT_SIZE_REQUESTS = Counter "lota_object_size_requests_total" {
            size: "upper bound of the object's size: `4KiB`, `64KiB`, `1MiB`, `16MiB`, `256MiB`, `4GiB`; or `larger`"
        } "Requests from pods that were hits, misses or joined fills, by the size of the whole object";
        OWNER_REQUESTS = Counter "lota_owner_requests_total" {
            locality: "`local`: this node is the owner or answered in its place; `remote`: another node is the owner"
        } "Requests from pods for objects, by location of the owner that answered";
        SENT_BYTES = Counter "lota_sent_bytes_total" {
            source: "`local`: this node's cache; `remote`: another node; `fill`: a fill in progress on this node; \
                     `gateway`: the gateway, uncached"
        } "Bytes of bodies sent to pods, by source";
        ERRORS = Counter "lota_errors_total" {
            kind: "`request`: LOTA rejected a malformed or forbidden request (4xx); `slow-down`: a limit was reached (503); \
                   `unavailable`: LOTA could not answer (5xx); `response-broken`: a response was cut short; \
                   `gateway-unreachable`: no connection to the gateway, or no response on it; `gateway-late`: the gateway timed out; \
                   `gateway-unreadable`: the gateway's response was malformed or too large; \
                   `owner-unavailable`: an owner could not be reached or could not answer; \
                   `source-refused`: the source of a fill rejected it; `fill-broken`: a fill was cut short; \
                   `dns-panicked`: a DNS query caused a panic, and was not answered"
        } "Errors. Only the first four kinds are visible to pods";
        TLS_CONNECTIONS = Counter "lota_tls_connections_total" {
            handling: "`terminated`: TLS ended at LOTA; `passed`: passed on, encrypted and uncached, to the server of its name; \
                       `failed`: the handshake failed, the name is no endpoint, or the server could not be reached"
        } "Connections over TLS from pods";
        UNEXPECTED_CONNECTIONS = Counter "lota_unexpected_connections_total" {
        } "Connections to the hidden listener that the datapath had not redirected; LOTA reset them";
    }
    "Gateway": {
        GATEWAY_REQUESTS = Counter "lota_gateway_requests_total" {
            gateway: "name of the gateway in the configuration; `default` for `[gateway]`",
            status: "the HTTP status; `none` without a response"
        } "Requests to the gateway: authorizations, requests that pass through, and those that verify the gateway";
        GATEWAY_SECONDS = Histogram "lota_gateway_seconds" {
            gateway: "as above"
        } "Time in seconds from a request to the gateway to the response headers, without uploads and POSTs";
        GATEWAY_TRUSTED = Gauge "lota_gateway_trusted" {
            gateway: "as above"
        } "1 if the gateway has passed verification, so that LOTA serves hits; otherwise 0";
    }
    "Fills": {
        FILLS = Counter "lota_fills_total" {
            authority: "source of the bytes: `direct` (a direct path of the gateway), `own` (the backend, with LOTA's credential), `client` (the gateway, with the client's request) or `owner` (another owner)",
            end: "`complete`; `range`: one range of a partial object; `broken`: cut short; `replaced`: the object was overwritten during the fill, which is not an error"
        } "Finished fills";
        FILL_BYTES = Counter "lota_fill_bytes_total" {
        } "Bytes fetched by fills";
        FILLS_IN_PROGRESS = Gauge "lota_fills_in_progress" {
        } "Fills in progress";
        UNCACHED = Counter "lota_uncached_total" {
            reason: "`no-room`, `pod-fills`, `no-fill-authority`, `fragments` (too many separate ranges of one object), `range-late` (another request's response with the range has stopped), `fill-overread`, `fill-refused`, `fill-broke-off`, `overrides`, \
                     `checksums-unknown`, `direct-path-failed`, `stripe-owner` (no owner could serve a stripe), `granted-otherwise`, `replaced` \
                     (overwritten while its fill began); or the part of the gateway's response that prevents \
                     caching: `response-status`, `response-etag`, `response-length`, `response-range`, `response-vary`, \
                     `response-encoding` or `response-rdma`"
        } "Objects that passed through uncached, by reason";
        WRITE_FETCHES = Counter "lota_write_fetches_total" {
            result: "`fetched`; `present`: it was cached or being filled already; `merged`: a waiting fetch for an earlier write of the object \
                     fetches this one, too; or the reason why it was not fetched. At the node of the client's pod: `no-credential` (no [backend] of the gateway), \
                     `sse-c`, `no-etag` (a copy that failed at Ceph RGW), `unrecognized` (the body of the gateway's \
                     response was cut short, or no result of S3), `queue-full`, `owner-unavailable`. At the owner: `queue-full`, `fill-overread`, \
                     `no-room`, `striped` (too large to be cached as a whole), `refused` (by the backend, or its response cannot be stored), `other-object` (the backend's object has another ETag than \
                     the gateway stated for the write), `replaced` (overwritten during the fetch), `broken` (cut short). With `keep`, `kept`: the bytes of the \
                     upload were kept; or why not, in which case the object is fetched, with another result. At the node of the client's pod: \
                     `keep-too-slow` (the owner was slower than the client, or too many uploads were in progress), `keep-unavailable` (no answer of the owner). \
                     At the owner: `keep-no-room` (no free space, or a limit), `keep-differs` (the backend's object has another size, or an ETag that is not the MD5 \
                     hash of the uploaded bytes), `keep-refused` (by the backend, or its response cannot be stored)"
        } "Objects written by pods that LOTA was to fetch or keep (cache.after_write), by result";
        WRITE_KEPT_BYTES = Counter "lota_write_kept_bytes_total" {
        } "Bytes of uploads that were kept (cache.after_write = \"keep\")";
    }
    "Cache": {
        CACHE_OBJECTS = Gauge "lota_cache_objects" {
        } "Complete objects in the cache, without those in stripes";
        CACHE_STRIPES = Gauge "lota_cache_stripes" {
        } "Complete stripes of larger objects in the cache";
        CACHE_PARTIAL = Gauge "lota_cache_partial_objects" {
        } "Partial objects in the cache: some ranges of each are cached";
        CACHE_BYTES = Gauge "lota_cache_bytes" {
        } "Disk space used by cached objects and by fills, in bytes";
        CACHE_PINNED = Gauge "lota_cache_pinned_bytes" {
            folder: "the cache folder on the disk"
        } "Disk space in bytes of cached objects that are evicted last because of pins (lota cache pin)";
        CACHE_CAPACITY = Gauge "lota_cache_capacity_bytes" {
        } "Cache capacity of the working disks, in bytes";
        CACHE_DISK_UP = Gauge "lota_cache_disk_up" {
            folder: "the cache folder on the disk"
        } "1 if a cache disk works, 0 if it failed";
        CACHE_EVICTIONS = Counter "lota_cache_evictions_total" {
        } "Objects removed from the cache: to free space, because the gateway names another version, or by an operator";
        CACHE_CORRUPT = Counter "lota_cache_corrupt_total" {
        } "Cached objects that failed checksum verification";
        CACHE_VERIFIED = Counter "lota_cache_verified_bytes_total" {
        } "Bytes verified against checksums";
        SENDFILE = Counter "lota_sendfile_bytes_total" {
        } "Bytes of cached files sent with sendfile(2) to pods and to other nodes";
        SPLICE = Counter "lota_splice_bytes_total" {
        } "Bytes relayed from other nodes with splice(2)";
    }
    "Cluster": {
        NODES_ACTIVE = Gauge "lota_nodes_active" {
        } "Reachable nodes of the cluster, including this one";
        NODES_KNOWN = Gauge "lota_nodes_known" {
        } "Known nodes of the cluster, including this one";
        PEER_REQUESTS = Counter "lota_peer_requests_total" {
            role: "`sent`: sent to an owner; `served`: answered as owner; `resumed`: continued on another node; \
                   `unavailable`: the owner could not answer; `refused`: the sender is not a peer"
        } "Requests between nodes";
        CLUSTER_KEYS = Gauge "lota_cluster_keys" {
        } "Cluster keys that this node accepts: 2 during a rotation; 0 without [peers] or with peers.authentication = `node`";
        NODE_KEYS = Gauge "lota_node_keys" {
        } "Other nodes whose public key this node knows";
        PEER_AUTHENTICATION = Gauge "lota_peer_authentication" {
            mode: "peers.authentication: `shared`, `both` or `node`"
        } "Always 1; absent without [peers]";
        PEER_CERTIFICATE_EXPIRY = Gauge "lota_peer_certificate_expiry_timestamp_seconds" {
        } "Time at which this node's certificate of [peers.tls] expires, in seconds since 1970; 0 without one";
        SECRET_RELOADS = Counter "lota_secret_reloads_total" {
            file: "`cluster-key`: peers.secret_file; `node-key`: peers.node_key_file; `clients`: gateway.re_sign.clients_file; `credential`: \
                   backend.credential_file; `tls`: certificate and key of gateway.tls; `peer-tls`: the files of peers.tls",
            result: "`applied`; or `failed`: it cannot be read or is invalid, and the previous content is still used"
        } "Changes of files with secrets while the daemon runs";
        KUBERNETES_UP = Gauge "lota_kubernetes_up" {
        } "1 while the watches on the API server work; absent without [kubernetes]";
        BUILD_INFO = Gauge "lota_build_info" {
            version: "version of the daemon"
        } "Always 1";
    }
    "Access and datapath": {
        ACCESS_LAG = Histogram "lota_access_lag_seconds" {
        } "Time in seconds from when the node detects a change (pod, interface or operator command) until the kernel enforces it";
        ACCESS_ENTRIES = Gauge "lota_access_entries" {
            subject: "`address` or `prefix`"
        } "Access entries in the kernel, by kind of subject";
        DATAPATH_PACKETS = Counter "lota_datapath_packets_total" {
            verdict: "the verdicts that `lota datapath status` shows"
        } "Packets, by verdict of the datapath";
        DATAPATH_INTERFACES = Gauge "lota_datapath_interfaces" {
            mode: "`tcx`, `clsact`, `sk_lookup`; `bridge`: through the bridge that the interface is a port of; or `none`"
        } "Interfaces that match the configuration, by method of redirection";
        HANGING_PODS = Gauge "lota_hanging_pods" {
        } "Pods with access of which the last attempts to connect, three or more within a minute, did not arrive at the daemon";
        DATAPATH_PROGRAMS_AHEAD = Gauge "lota_datapath_programs_ahead" {
            interface: "name of the interface"
        } "Number of other programs that run before LOTA's on an interface";
    }
}

impl Metric {
    /// Returns the name for registration. The exporter appends `_total` to the names of counters.
    pub fn base(&self) -> &'static str {
        match self.kind {
            MetricKind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            MetricKind::Gauge | MetricKind::Histogram => self.name,
        }
    }
}

/// Returns every metric.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    SECTIONS.iter().flat_map(|section| section.metrics.iter().copied())
}

/// Returns the metric that the series of this name belongs to.
#[must_use]
pub fn of_series(name: &str) -> Option<&'static Metric> {
    all().find(|metric| match metric.kind {
        MetricKind::Histogram => {
            name.strip_prefix(metric.name).is_some_and(|rest| matches!(rest, "_bucket" | "_sum" | "_count"))
        }
        MetricKind::Counter | MetricKind::Gauge => name == metric.name,
    })
}

/// Returns the text of `docs/metrics.md`.
#[must_use]
pub fn document() -> String {
    let mut text = String::from(INTRODUCTION);
    for section in SECTIONS {
        text.push_str(&format!("\n## {}\n\n| metric | type | description |\n|---|---|---|\n", section.title));
        for metric in section.metrics {
            let kind = metric.kind.name();
            let labels: String =
                metric.labels.iter().map(|(label, values)| format!(" `{label}`: {values}.")).collect();
            text.push_str(&format!("| `{}` | {kind} | {}.{labels} |\n", metric.name, metric.help));
        }
    }
    text.push_str(QUESTIONS);
    text
}

const INTRODUCTION: &str = "\
<!-- Generated by `cargo xtask docs` from lota-daemon/src/metrics/catalog.rs; a unit test compares them. -->

# Metrics

Each node serves its own metrics at `/metrics` on `admin.listen`. For a Prometheus server that runs in a pod, set
`admin.metrics_listen`: pods can reach that port, which serves only `/metrics`, `/healthz` and `/readyz`. The format is the
Prometheus text format, version 0.0.4. Counters start at 0 with each daemon. Histogram buckets range from half a
millisecond to two minutes (`lota-daemon/src/metrics/each.rs`).

[`deploy/monitoring/`](../deploy/monitoring) contains a Grafana dashboard and alert rules for these metrics.
";

const QUESTIONS: &str = "
## Useful queries

| value | PromQL |
|---|---|
| hit ratio | `sum(rate(lota_requests_total{cache=\"hit\"}[5m])) / sum(rate(lota_requests_total{cache!=\"bypass\"}[5m]))` |
| share of sent bytes that were not fetched from storage | `1 - sum(rate(lota_fill_bytes_total[5m])) / sum(rate(lota_sent_bytes_total[5m]))` |
| latency of hits, 99th percentile | `histogram_quantile(0.99, sum by (le) (rate(lota_request_seconds_bucket{cache=\"hit\"}[5m])))` |
| latency of the gateway, 99th percentile | `histogram_quantile(0.99, sum by (gateway, le) (rate(lota_gateway_seconds_bucket[5m])))` |
| whether a disk is too small | `rate(lota_cache_evictions_total[1h])` together with `lota_cache_bytes / lota_cache_capacity_bytes` |
| packets from pods without access | `rate(lota_datapath_packets_total{verdict=\"denied\"}[5m])`, then `lota access denied` |
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut names: Vec<_> = all().map(|metric| metric.name).collect();
        for metric in all() {
            assert!(metric.name.starts_with("lota_"), "{}", metric.name);
            assert_eq!(
                metric.kind == MetricKind::Counter,
                metric.name.ends_with("_total"),
                "{}",
                metric.name
            );
            assert!(!metric.help.ends_with('.') && !metric.help.is_empty(), "{}", metric.name);
        }
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "duplicate metric name");
    }

    #[test]
    fn series_are_found() {
        assert_eq!(
            of_series("lota_request_seconds_bucket").map(|metric| metric.name),
            Some("lota_request_seconds")
        );
        assert!(of_series("lota_request_seconds").is_none() && of_series("lota_requests").is_none());
    }

    #[test]
    fn the_document_is_up_to_date() {
        crate::testing::check("metrics.md", &document());
    }
}
