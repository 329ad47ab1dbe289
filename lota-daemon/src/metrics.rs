//! Metrics, by Prometheus' conventions. What there is, [`catalog`] says; each is counted where it happens.

pub mod catalog;
mod each;
mod exposition;

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
pub use exposition::Exposition;

use self::each::values;
use crate::{http::SentBytes, s3::S3Error};

values! {
    /// What the cache did for one answer.
    Outcome, "cache":
    /// Served from a complete file.
    Hit = "hit",
    /// Not here: this request began to bring it, or (by `no-cache`) was answered past the cache.
    Miss = "miss",
    /// On its way already: served from the growing file.
    Fill = "fill",
    /// The cache was not involved.
    Bypass = "bypass",
}

values! {
    /// Where the bytes of an answer come from.
    SentFrom, "source":
    /// A complete file of this node.
    Local = "local",
    /// Another node.
    Remote = "remote",
    /// A file of this node that is growing.
    Fill = "fill",
    /// The gateway, or a place that it pointed to, past the cache.
    Gateway = "gateway",
}

values! {
    /// Where an object's owner is.
    Locality, "locality":
    /// Here.
    Local = "local",
    /// Elsewhere.
    Remote = "remote",
}

values! {
    /// How large an object is, at most.
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
    /// What went wrong.
    Fault, "kind":
    /// LOTA refused a request, as malformed or forbidden.
    Request = "request",
    /// A limit was reached.
    SlowDown = "slow-down",
    /// LOTA had no answer.
    Unavailable = "unavailable",
    /// An answer broke off in its middle.
    AnswerBroken = "answer-broken",
    /// The gateway could not be reached, or its connection ended without an answer.
    GatewayUnreachable = "gateway-unreachable",
    /// It did not answer in time.
    GatewayLate = "gateway-late",
    /// An owner could not be asked, or said that it cannot answer.
    OwnerUnavailable = "owner-unavailable",
    /// A fill's source refused.
    SourceRefused = "source-refused",
    /// A fill broke off.
    FillBroken = "fill-broken",
}

impl Size {
    /// The one of so many bytes.
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
    /// What an error of LOTA's own counts as.
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
    /// What the cache did.
    pub cache: Outcome,
    /// The status given.
    pub status: u16,
}

/// Labels of `lota_gateway_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GatewayLabels {
    /// The status that it answered with.
    pub status: Status,
}

/// The status of an answer that there may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub Option<u16>);

impl EncodeLabelValue for Status {
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
    /// `direct`, `own`, `client` or `sibling`.
    pub authority: &'static str,
    /// `complete` or `broken`.
    pub end: &'static str,
}

/// Labels of `lota_uncached_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UncachedLabels {
    /// Why the object passed through.
    pub reason: &'static str,
}

/// Labels of `lota_peer_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PeerLabels {
    /// `asked` (of an owner), `served` (as one), `resumed` (elsewhere, in the middle), `unavailable` or `refused`.
    pub role: &'static str,
}

/// Every counter that the road of a request moves.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests of pods that were answered.
    pub requests: Family<RequestLabels, Counter>,
    /// Those of the two statuses that nearly all have, at hand.
    usual: Each<Outcome, Usual>,
    /// How long until an answer began.
    pub request_seconds: Each<Outcome, Timing>,
    /// Those for a part of an object.
    pub range_requests: Counter,
    /// Those for objects of each size.
    pub object_sizes: Each<Size, Counter>,
    /// Those for objects, by where the owner was.
    pub owners: Each<Locality, Counter>,
    /// Bytes that went to pods.
    pub sent_from: Each<SentFrom, Counter>,
    /// What went wrong.
    pub faults: Each<Fault, Counter>,
    /// Requests to the gateway.
    pub gateway_requests: Family<GatewayLabels, Counter>,
    /// How long until it answered.
    pub gateway_seconds: Timing,
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
    /// How long until the kernel enforced what the node had heard of access.
    pub access_lag: Timing,
    /// Is the API server watched?
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
            let counter = |status| requests.get_or_create_owned(&RequestLabels { cache, status });
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
            gateway_seconds: Timing::default(),
            fills: Family::default(),
            fill_bytes: Counter::default(),
            uncached: Family::default(),
            peer_requests: Family::default(),
            unsteered: Counter::default(),
            sent: SentBytes::default(),
            access_lag: Timing::default(),
            kubernetes: Watched::default(),
        }
    }
}

impl Metrics {
    /// A pod's request was answered, after so long.
    pub fn answered(&self, cache: Outcome, status: u16, took: Duration) {
        match status {
            200 => self.usual.of(cache).ok.inc(),
            206 => self.usual.of(cache).part.inc(),
            _ => self.requests.get_or_create(&RequestLabels { cache, status }).inc(),
        };
        self.request_seconds.of(cache).observe(took);
    }

    /// The gateway has answered, or not; after so long, if that was not the client's time.
    pub fn asked_gateway(&self, status: Option<u16>, took: Option<Duration>) {
        self.gateway_requests.get_or_create(&GatewayLabels { status: Status(status) }).inc();
        if let Some(took) = took {
            self.gateway_seconds.observe(took);
        }
    }

    /// How pods' reads were answered so far.
    #[must_use]
    pub fn reads(&self) -> Reads {
        let count = |cache| {
            let Usual { ok, part } = self.usual.of(cache);
            ok.get() + part.get()
        };
        Reads { hits: count(Outcome::Hit), fills: count(Outcome::Fill), misses: count(Outcome::Miss) }
    }

    /// Something went wrong.
    pub fn fault(&self, fault: Fault) {
        self.faults.of(fault).inc();
    }
}

/// How reads were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reads {
    /// From complete files.
    pub hits: u64,
    /// From files that were growing already.
    pub fills: u64,
    /// Otherwise.
    pub misses: u64,
}

impl Reads {
    /// The share of hits, if there were any reads.
    #[must_use]
    pub fn hit_ratio(&self) -> Option<f64> {
        let all = self.hits + self.fills + self.misses;
        (all > 0).then(|| self.hits as f64 / all as f64)
    }
}

/// Whether something is watched, if it is to be.
#[derive(Clone, Debug, Default)]
pub struct Watched(Arc<AtomicU8>);

impl Watched {
    /// It is to be watched, and is, or is not just now.
    pub fn set(&self, up: bool) {
        self.0.store(if up { 2 } else { 1 }, Ordering::Relaxed);
    }

    /// Is it? `None`, if it is not to be.
    #[must_use]
    pub fn get(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            state => Some(state == 2),
        }
    }
}
