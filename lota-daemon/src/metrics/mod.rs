//! Metrics by Prometheus' conventions. [`catalog`] lists all of them; each is counted where the event happens.

pub mod catalog;
mod each;
pub mod heavy_hitters;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family},
};
use serde::{Deserialize, Serialize};

pub use each::{Each, Timing, Value};

use self::each::values;
use crate::http::SentBytes;
use lota_s3::S3Error;

values! {
    /// Outcome of the cache for one response.
    Outcome, "cache":
    /// Served from a complete file.
    Hit = "hit",
    /// Not cached: this request started a fill, or bypassed the cache with `no-cache`.
    Miss = "miss",
    /// Joined a fill in progress: served from the growing file.
    Fill = "fill",
    /// The cache was not involved.
    Bypass = "bypass",
}

values! {
    /// Source of the bytes of a response.
    SentFrom, "source":
    /// A complete file of this node.
    Local = "local",
    /// Another node.
    Remote = "remote",
    /// A growing file of this node.
    Fill = "fill",
    /// The gateway or the target of its direct path, past the cache.
    Gateway = "gateway",
}

values! {
    /// Handling of a connection over TLS.
    TlsHandling, "handling":
    /// TLS ended at LOTA.
    Terminated = "terminated",
    /// It was passed on, encrypted, to the server of its name.
    Passed = "passed",
    /// Its handshake failed, its name is no endpoint, or the server could not be reached.
    Failed = "failed",
}

values! {
    /// Location of an object's owner.
    Locality, "locality":
    /// This node.
    Local = "local",
    /// Another node.
    Remote = "remote",
}

values! {
    /// Upper bound of an object's size.
    Size, "size":
    /// 4 KiB.
    KiB4 = "4KiB",
    /// 64 KiB.
    KiB64 = "64KiB",
    /// 1 MiB.
    MiB1 = "1MiB",
    /// 16 MiB.
    MiB16 = "16MiB",
    /// 256 MiB.
    MiB256 = "256MiB",
    /// 4 GiB.
    GiB4 = "4GiB",
    /// No bound.
    Larger = "larger",
}

values! {
    /// Kind of error.
    Fault, "kind":
    /// LOTA rejected a malformed or forbidden request.
    Request = "request",
    /// A limit was reached.
    SlowDown = "slow-down",
    /// LOTA could not answer.
    Unavailable = "unavailable",
    /// A response was cut short.
    ResponseBroken = "response-broken",
    /// The gateway could not be reached, or closed the connection without a response.
    GatewayUnreachable = "gateway-unreachable",
    /// The gateway timed out.
    GatewayLate = "gateway-late",
    /// The gateway's response could not be parsed.
    GatewayUnreadable = "gateway-unreadable",
    /// An owner could not be reached or could not answer.
    OwnerUnavailable = "owner-unavailable",
    /// The source of a fill refused.
    SourceRefused = "source-refused",
    /// A fill was interrupted.
    FillBroken = "fill-broken",
    /// A DNS query caused a panic.
    DnsPanicked = "dns-panicked",
}

values! {
    /// Outcome of the fetch of an object after a client has written it.
    WriteFetch, "result":
    /// The object was fetched.
    Fetched = "fetched",
    /// It was cached, or being filled, already.
    Present = "present",
    /// A fetch that waits for an earlier write of the object fetches this one, too.
    Merged = "merged",
    /// The gateway has no backend with a credential of LOTA.
    NoCredential = "no-credential",
    /// The object is encrypted with the client's key.
    CustomerKey = "sse-c",
    /// The result of a copy states no ETag, which means at Ceph RGW that the copy has failed.
    NoEtag = "no-etag",
    /// The body of the gateway's response ended without a result known to LOTA.
    Unrecognized = "unrecognized",
    /// The node, or the pod's share of it, has too many fetches.
    QueueFull = "queue-full",
    /// The owner could not be reached, or does not fetch.
    OwnerUnavailable = "owner-unavailable",
    /// The pod has used up its quota.
    Overread = "fill-overread",
    /// The cache does not take the object.
    NoRoom = "no-room",
    /// The object is cached in stripes, which reads fetch.
    Striped = "striped",
    /// The backend refused, or its response cannot be stored.
    Refused = "refused",
    /// The backend's object is not the written one.
    OtherObject = "other-object",
    /// The object was overwritten during the fetch.
    Replaced = "replaced",
    /// The fetch was cut short.
    Broken = "broken",
    /// The bytes of the upload were kept.
    Kept = "kept",
    /// They were not: the owner was slower than the client, or too many uploads were in progress.
    KeepTooSlow = "keep-too-slow",
    /// They were not: the owner did not answer.
    KeepUnavailable = "keep-unavailable",
    /// They were not: the owner has no room for them.
    KeepNoRoom = "keep-no-room",
    /// They were not: the backend does not state that they are the object.
    KeepDiffers = "keep-differs",
    /// They were not: the backend refused to describe the object, or its response cannot be stored.
    KeepRefused = "keep-refused",
}

impl Size {
    /// Returns the size class of an object with so many bytes.
    #[must_use]
    pub fn of(bytes: u64) -> Self {
        match bytes {
            0..=0x1000 => Self::KiB4,
            0x1001..=0x1_0000 => Self::KiB64,
            0x1_0001..=0x10_0000 => Self::MiB1,
            0x10_0001..=0x100_0000 => Self::MiB16,
            0x100_0001..=0x1000_0000 => Self::MiB256,
            0x1000_0001..=0x1_0000_0000 => Self::GiB4,
            _ => Self::Larger,
        }
    }
}

impl Fault {
    /// Returns the kind of an error that LOTA itself answers with.
    #[must_use]
    pub fn of(error: &S3Error) -> Self {
        match error.status {
            status if status.is_client_error() => Self::Request,
            _ if error.code == "SlowDown" => Self::SlowDown,
            _ => Self::Unavailable,
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        EncodeLabelValue::encode(&self.name(), encoder)
    }
}

/// Labels of `lota_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Outcome of the cache.
    pub cache: Outcome,
    /// HTTP status of the response.
    pub status: StatusLabel,
}

/// Name of a gateway, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayNameLabel(Arc<str>);

impl EncodeLabelValue for GatewayNameLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        EncodeLabelValue::encode(&&*self.0, encoder)
    }
}

/// Label of metrics of each gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GatewayLabel {
    /// Name of the gateway.
    pub gateway: GatewayNameLabel,
}

/// Labels of `lota_gateway_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GatewayLabels {
    /// Name of the gateway.
    pub gateway: GatewayNameLabel,
    /// HTTP status of the response.
    pub status: StatusLabel,
}

/// HTTP status of a response; `None` without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatusLabel(pub Option<u16>);

impl EncodeLabelValue for StatusLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        match self.0 {
            Some(status) => EncodeLabelValue::encode(&status, encoder),
            None => EncodeLabelValue::encode(&"none", encoder),
        }
    }
}

/// Labels of `lota_fills_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FillLabels {
    /// `direct`, `own`, `client` or `owner`.
    pub authority: &'static str,
    /// `complete`, `range`, `broken` or `replaced`.
    pub end: &'static str,
}

/// Labels of `lota_uncached_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UncachedLabels {
    /// Reason why the object was not cached.
    pub reason: &'static str,
}

/// Labels of `lota_peer_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PeerLabels {
    /// `sent` (to an owner), `served` (answered as owner), `resumed` (continued on another node), `unavailable`
    /// or `refused`.
    pub role: &'static str,
}

/// Labels of `lota_secret_reloads_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SecretReloadLabels {
    /// `cluster-key`, `node-key`, `clients`, `credential` or `tls`.
    pub file: &'static str,
    /// `applied` or `failed`.
    pub result: &'static str,
}

/// All counters of the request path.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests from pods.
    pub requests: Family<RequestLabels, Counter>,
    /// Requests with the two most common statuses, without a lookup.
    usual: Each<Outcome, Usual>,
    /// Time from a request to its response headers.
    pub request_seconds: Each<Outcome, Timing>,
    /// Requests for a part of an object.
    pub range_requests: Counter,
    /// Requests for objects by size.
    pub object_sizes: Each<Size, Counter>,
    /// Requests for objects by location of the owner.
    pub owners: Each<Locality, Counter>,
    /// Bytes sent to pods.
    pub sent_from: Each<SentFrom, Counter>,
    /// Errors.
    pub faults: Each<Fault, Counter>,
    /// Requests to the gateway.
    pub gateway_requests: Family<GatewayLabels, Counter>,
    /// Time from a request to the gateway to its response headers.
    pub gateway_seconds: Family<GatewayLabel, Timing>,
    /// Finished fills.
    pub fills: Family<FillLabels, Counter>,
    /// Bytes fetched by fills.
    pub fill_bytes: Counter,
    /// Cacheable objects that passed through uncached.
    pub uncached: Family<UncachedLabels, Counter>,
    /// Objects written by clients that were to be fetched.
    pub write_fetches: Each<WriteFetch, Counter>,
    /// Bytes of uploads that were kept.
    pub write_kept_bytes: Counter,
    /// Requests between nodes.
    pub peer_requests: Family<PeerLabels, Counter>,
    /// Connections to the hidden listener that the datapath had not redirected.
    pub unexpected_connections: Counter,
    /// Connections over TLS.
    pub tls_connections: Each<TlsHandling, Counter>,
    /// Bytes sent without entering user space.
    pub sent: SentBytes,
    /// Time from when the node learned of an access change until the kernel enforced it.
    pub access_lag: Timing,
    /// Changes of files with secrets.
    pub secret_reloads: Family<SecretReloadLabels, Counter>,
    /// Whether the watches on the API server work.
    pub kubernetes: Watched,
}

#[derive(Debug, Default)]
struct Usual {
    ok: Counter,
    part: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let requests = Family::<RequestLabels, Counter>::default();
        let usual = Each::made(|cache| {
            let counter = |status| {
                requests.get_or_create_owned(&RequestLabels { cache, status: StatusLabel(Some(status)) })
            };
            Usual { ok: counter(200), part: counter(206) }
        });
        Self {
            requests,
            usual,
            request_seconds: Each::default(),
            range_requests: Counter::default(),
            object_sizes: Each::default(),
            owners: Each::default(),
            sent_from: Each::default(),
            faults: Each::default(),
            gateway_requests: Family::default(),
            gateway_seconds: Family::default(),
            fills: Family::default(),
            fill_bytes: Counter::default(),
            uncached: Family::default(),
            write_fetches: Each::default(),
            write_kept_bytes: Counter::default(),
            peer_requests: Family::default(),
            unexpected_connections: Counter::default(),
            tls_connections: Each::default(),
            sent: SentBytes::default(),
            access_lag: Timing::default(),
            secret_reloads: Family::default(),
            kubernetes: Watched::default(),
        }
    }
}

impl Metrics {
    /// Counts an answered request from a pod, and the time to its response headers.
    pub fn answered(&self, cache: Outcome, status: u16, took: Duration) {
        match status {
            200 => self.usual.of(cache).ok.inc(),
            206 => self.usual.of(cache).part.inc(),
            _ => self.count_request(cache, Some(status)),
        };
        self.request_seconds.of(cache).observe(took);
    }

    /// Counts a request from a pod whose connection ended before the response.
    pub fn unanswered(&self) {
        self.count_request(Outcome::Bypass, None);
    }

    fn count_request(&self, cache: Outcome, status: Option<u16>) -> u64 {
        self.requests.get_or_create(&RequestLabels { cache, status: StatusLabel(status) }).inc()
    }

    /// Returns the counters of the gateway with this name.
    #[must_use]
    pub fn of_gateway(&self, name: &str) -> GatewayCounts {
        let gateway = GatewayNameLabel(name.into());
        let seconds = self.gateway_seconds.get_or_create_owned(&GatewayLabel { gateway: gateway.clone() });
        GatewayCounts { requests: self.gateway_requests.clone(), gateway, seconds }
    }

    /// Returns the outcomes of pods' reads so far.
    #[must_use]
    pub fn reads(&self) -> Reads {
        let count = |cache| {
            let Usual { ok, part } = self.usual.of(cache);
            ok.get() + part.get()
        };
        Reads { hits: count(Outcome::Hit), fills: count(Outcome::Fill), misses: count(Outcome::Miss) }
    }

    /// Counts an error.
    pub fn fault(&self, fault: Fault) {
        self.faults.of(fault).inc();
    }
}

/// Counters of one gateway.
#[derive(Clone, Debug)]
pub struct GatewayCounts {
    requests: Family<GatewayLabels, Counter>,
    gateway: GatewayNameLabel,
    seconds: Timing,
}

impl Default for GatewayCounts {
    fn default() -> Self {
        Metrics::default().of_gateway("default")
    }
}

impl GatewayCounts {
    /// Counts a request to the gateway, and the time to its response headers unless a client's upload determined it.
    pub fn count_request(&self, status: Option<u16>, took: Option<Duration>) {
        let (gateway, status) = (self.gateway.clone(), StatusLabel(status));
        self.requests.get_or_create(&GatewayLabels { gateway, status }).inc();
        if let Some(took) = took {
            self.seconds.observe(took);
        }
    }
}

/// Number of reads by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reads {
    /// Served from complete files.
    pub hits: u64,
    /// Served from growing files.
    pub fills: u64,
    /// All other reads.
    pub misses: u64,
}

impl Reads {
    /// Returns the ratio of hits, if there were any reads.
    #[must_use]
    pub fn hit_ratio(&self) -> Option<f64> {
        let all = self.hits + self.fills + self.misses;
        (all > 0).then(|| self.hits as f64 / all as f64)
    }
}

/// Whether the watches work, if there are any.
#[derive(Clone, Debug, Default)]
pub struct Watched(Arc<AtomicU8>);

impl Watched {
    /// Records whether the watches work.
    pub fn set(&self, up: bool) {
        self.0.store(if up { 2 } else { 1 }, Ordering::Relaxed);
    }

    /// Returns whether the watches work, or `None` if there are none.
    #[must_use]
    pub fn get(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            state => Some(state == 2),
        }
    }
}
