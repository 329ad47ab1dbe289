//! Every metric: what it is called, and what it says. Registration and `docs/metrics.md` are both made from this table.

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the daemon restarts.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often something took up to so long.
    Histogram,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, as Prometheus sees it.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its labels, and the values of each.
    pub labels: &'static [(&'static str, &'static str)],
    /// What it says.
    pub help: &'static str,
}

/// Metrics that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// What they are about.
    pub title: &'static str,
    /// The metrics.
    pub metrics: &'static [&'static Metric],
}

/// The table as constants, and as one list: what is not in the list cannot be registered.
macro_rules! catalog {
    ($($title:literal: { $($id:ident = $kind:ident $name:literal { $($label:ident: $values:literal),* } $help:literal;)* })*) => {
        $($(
            #[doc = $help]
            pub const $id: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                labels: &[$((stringify!($label), $values)),*],
                help: $help,
            };
        )*)*

        /// All of them.
        pub const SECTIONS: &[Section] = &[$(Section { title: $title, metrics: &[$(&$id),*] }),*];
    };
}

catalog! {
    "Requests of pods": {
        REQUESTS = Counter "lota_requests_total" {
            cache: "`hit`, `miss`, `fill` (on its way already) or `bypass` (the cache was not involved)",
            status: "the HTTP status"
        } "Requests of pods that were answered, at the entry node";
        REQUEST_SECONDS = Histogram "lota_request_seconds" {
            cache: "as above"
        } "From a request's head to its answer's head, which goes out with the first byte";
        RANGE_REQUESTS = Counter "lota_range_requests_total" {
        } "Requests of pods for a part of an object";
        OBJECT_SIZE_REQUESTS = Counter "lota_object_size_requests_total" {
            size: "the object has up to `4KiB`, `64KiB`, `1MiB`, `16MiB`, `256MiB`, `4GiB`; or is `larger`"
        } "Requests of pods that the cache answered or missed, by the whole object's size";
        OWNER_REQUESTS = Counter "lota_owner_requests_total" {
            locality: "`local`: this node is the owner, or had to stand in for it; `remote`: another node is"
        } "Requests of pods for objects, by where the owner was that answered";
        SENT_BYTES = Counter "lota_sent_bytes_total" {
            source: "`local`: this node's cache; `remote`: another node; `fill`: an object that was arriving here; \
                     `gateway`: past the cache"
        } "Bytes of bodies that went to pods, by where they came from";
        ERRORS = Counter "lota_errors_total" {
            kind: "`request`: LOTA refused it as malformed or forbidden (4xx); `slow-down`: a limit was reached (503); \
                   `unavailable`: LOTA had no answer (5xx); `answer-broken`: an answer broke off in its middle; \
                   `gateway-unreachable`; `gateway-late`; `owner-unavailable`: an owner could not be asked; \
                   `source-refused`: a fill did not begin; `fill-broken`: one broke off"
        } "What went wrong. Only the first four are a pod's to notice";
        UNSTEERED = Counter "lota_unsteered_connections_total" {
        } "Connections to the hidden listener that the datapath had not steered, and were reset";
    }
    "Gateway": {
        GATEWAY_REQUESTS = Counter "lota_gateway_requests_total" {
            status: "the HTTP status; `none` if there was no answer"
        } "Requests to the gateway: every authorization, and whatever passes through";
        GATEWAY_SECONDS = Histogram "lota_gateway_seconds" {
        } "From a request to the gateway to its answer's head; uploads and POSTs left out";
        GATEWAY_TRUSTED = Gauge "lota_gateway_trusted" {
        } "1 once the gateway has passed its trial, so that hits are served";
    }
    "Fills": {
        FILLS = Counter "lota_fills_total" {
            authority: "where the bytes came from: `direct`, `own`, `client` or `sibling` (another owner)",
            end: "`complete` or `broken`"
        } "Fills that ended";
        FILL_BYTES = Counter "lota_fill_bytes_total" {
        } "Bytes that fills brought";
        FILLS_IN_PROGRESS = Gauge "lota_fills_in_progress" {
        } "Fills under way";
        UNCACHED = Counter "lota_uncached_total" {
            reason: "`no-room`, `no-fill-authority`, `fill-debt`, `fill-refused`, `fill-broke-off`, `overrides`, \
                     `checksums-unknown`, `direct-path-failed` or `granted-otherwise`"
        } "Objects that passed through uncached";
    }
    "Cache": {
        CACHE_OBJECTS = Gauge "lota_cache_objects" {
        } "Complete objects in the cache";
        CACHE_BYTES = Gauge "lota_cache_bytes" {
        } "Bytes of objects and fills in the cache";
        CACHE_CAPACITY = Gauge "lota_cache_capacity_bytes" {
        } "Most bytes of objects, on the disks that work";
        CACHE_DISK_UP = Gauge "lota_cache_disk_up" {
            folder: "the disk's folder"
        } "1 while a disk of the cache works";
        CACHE_EVICTIONS = Counter "lota_cache_evictions_total" {
        } "Objects that were removed: for others, because they were gone at the gateway, or by an operator";
        CACHE_CORRUPT = Counter "lota_cache_corrupt_total" {
        } "Cached objects whose bytes were found to be others";
        CACHE_VERIFIED = Counter "lota_cache_verified_bytes_total" {
        } "Bytes compared with their checksums";
        SENDFILE = Counter "lota_sendfile_bytes_total" {
        } "Bytes of cached files, sent by sendfile(2), to pods and to other nodes";
        SPLICE = Counter "lota_splice_bytes_total" {
        } "Bytes of other nodes, passed on by splice(2)";
    }
    "Cluster": {
        NODES_ACTIVE = Gauge "lota_nodes_active" {
        } "Nodes of the cluster that are not lost, this one among them";
        NODES_KNOWN = Gauge "lota_nodes_known" {
        } "Nodes of the cluster, this one among them";
        PEER_REQUESTS = Counter "lota_peer_requests_total" {
            role: "`asked` (of an owner), `served` (as one), `resumed` (elsewhere, in the middle), `unavailable` or \
                   `refused` (not a peer)"
        } "Requests between nodes";
        KUBERNETES_UP = Gauge "lota_kubernetes_up" {
        } "1 while the API server is watched without trouble; missing without [kubernetes]";
        BUILD_INFO = Gauge "lota_build_info" {
            version: "the daemon's"
        } "Always 1";
    }
    "Access and datapath": {
        ACCESS_LAG = Histogram "lota_access_lag_seconds" {
        } "From when the node hears of a pod, an interface or an operator's word to when the kernel enforces it";
        ACCESS_ENTRIES = Gauge "lota_access_entries" {
            subject: "`address` or `prefix`"
        } "Access entries in the kernel, by what they are about";
        DATAPATH_PACKETS = Counter "lota_datapath_packets_total" {
            verdict: "as `lota datapath status` shows them"
        } "Packets, by what the datapath decided about them";
        DATAPATH_INTERFACES = Gauge "lota_datapath_interfaces" {
            steered: "how: `tcx`, `clsact`, `sk_lookup`; `bridge`: the bridge that it is a port of is steered; or `none`"
        } "Interfaces that were asked for, by how packets from them are steered";
        DATAPATH_POSITION = Gauge "lota_datapath_position" {
            interface: "the interface"
        } "How many other programs see an interface's packets before LOTA's does";
    }
}

impl Metric {
    /// The name it is registered by: a counter's `_total` is added when it is shown.
    pub(super) fn base(&self) -> &'static str {
        match self.kind {
            Kind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            Kind::Gauge | Kind::Histogram => self.name,
        }
    }
}

/// Every metric.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    SECTIONS.iter().flat_map(|section| section.metrics.iter().copied())
}

/// The metric that a series belongs to, by the series' name.
#[must_use]
pub fn of_series(name: &str) -> Option<&'static Metric> {
    all().find(|metric| match metric.kind {
        Kind::Histogram => {
            name.strip_prefix(metric.name).is_some_and(|rest| matches!(rest, "_bucket" | "_sum" | "_count"))
        }
        Kind::Counter | Kind::Gauge => name == metric.name,
    })
}

/// `docs/metrics.md`.
#[must_use]
pub fn document() -> String {
    let mut text = String::from(INTRODUCTION);
    for section in SECTIONS {
        text.push_str(&format!("\n## {}\n\n| metric | kind | says |\n|---|---|---|\n", section.title));
        for metric in section.metrics {
            let kind = format!("{:?}", metric.kind).to_lowercase();
            let labels: String =
                metric.labels.iter().map(|(label, values)| format!(" `{label}`: {values}.")).collect();
            text.push_str(&format!("| `{}` | {kind} | {}.{labels} |\n", metric.name, metric.help));
        }
    }
    text.push_str(QUESTIONS);
    text
}

const INTRODUCTION: &str = "\
<!-- Made by `cargo xtask docs` from lota-daemon/src/metrics/catalog.rs; a unit test compares. -->

# Metrics

Each node shows its own at `/metrics` of `admin.listen`, and, for a Prometheus that runs in a pod, of
`admin.metrics_listen`: pods can reach that port, and find nothing else there but `/healthz` and `/readyz`. The format is
Prometheus' text format, version 0.0.4. Counters begin at 0 with each daemon; histograms have the buckets of the source
(`lota-daemon/src/metrics/each.rs`), from half a millisecond to two minutes.

[`deploy/monitoring/`](../deploy/monitoring) has a Grafana dashboard and alert rules made of them.
";

const QUESTIONS: &str = "
## Questions, and where the answer is

| question | PromQL |
|---|---|
| how many requests are hits? | `sum(rate(lota_requests_total{cache=\"hit\"}[5m])) / sum(rate(lota_requests_total{cache!=\"bypass\"}[5m]))` |
| what does the cache save the storage? | `1 - sum(rate(lota_fill_bytes_total[5m])) / sum(rate(lota_sent_bytes_total[5m]))` |
| how fast is a hit? | `histogram_quantile(0.99, sum by (le) (rate(lota_request_seconds_bucket{cache=\"hit\"}[5m])))` |
| how fast is the gateway? | `histogram_quantile(0.99, sum by (le) (rate(lota_gateway_seconds_bucket[5m])))` |
| is a disk too small? | `rate(lota_cache_evictions_total[1h])` beside `lota_cache_bytes / lota_cache_capacity_bytes` |
| is someone refused who should not be? | `rate(lota_datapath_packets_total{verdict=\"denied\"}[5m])`, then `lota access denied` |
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut names: Vec<_> = all().map(|metric| metric.name).collect();
        for metric in all() {
            assert!(metric.name.starts_with("lota_"), "{}", metric.name);
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(!metric.help.ends_with('.') && !metric.help.is_empty(), "{}", metric.name);
        }
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "a name stands there twice");
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
        crate::docs::check("metrics.md", &document());
    }
}
