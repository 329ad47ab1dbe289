//! `[limits]` and `[placement]` of the configuration.

use std::time::Duration;

use lota_cache::{CachePlan, StripeLength};
use lota_common::ByteSize;
use serde::{Deserialize, Deserializer, de::Error as _};

/// Resource limits of this node.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Maximum number of concurrent connections from pods. Further connections receive `503 SlowDown`.
    pub connections: usize,
    /// Maximum number of concurrent connections from one pod. Beyond its first connection, a pod may not hold more than
    /// remain free, not counting a sixteenth of `connections` that is kept for pods without a connection.
    pub connections_per_pod: usize,
    /// Maximum size of a request line with its headers.
    pub header_size: ByteSize,
    /// Timeout in seconds for a transfer that makes no progress.
    pub idle_timeout_seconds: u64,
    /// Maximum number of concurrent fills. Further objects pass through uncached. Beyond its first fill, a pod may not
    /// hold more fills than remain free: a single pod gets at most half of them.
    pub fills: usize,
    /// Memory for buffered parts of bodies. Half is for chunks of fills; objects for which none is left pass through
    /// uncached. Half is for signed chunks of uploads that LOTA re-signs; they wait up to 30 s and then receive `503
    /// SlowDown`. Pods share the memory as they share `fills`.
    pub body_memory: ByteSize,
    /// Maximum number of bytes that fills fetch for one pod in excess of what the pod reads. If the unread bytes of
    /// responses in progress are included, the maximum is twice as high. The count expires within one hour. A pod
    /// over the limit reads uncached. Default: a quarter of the cache capacity.
    pub fill_overread: Option<ByteSize>,
    /// Maximum number of bytes per second that one address of a pod receives through this node, over all its connections.
    /// While one daemon replaces another, each limits its own connections. Pods that receive large responses at the same
    /// time take turns, with or without a limit. Default: no limit.
    pub pod_bandwidth: Option<ByteSize>,
}

/// Placement of objects on nodes.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlacementConfig {
    /// Size of the largest object that one node caches as a whole. Larger objects are cached in stripes, each on a node
    /// and a disk of its own, if LOTA has a credential in `[backend]` or the gateway returns direct paths. `"0"`: every
    /// object is cached as a whole. The same on all nodes.
    pub stripe_above: ByteSize,
    /// Length of a stripe: a multiple of 1 MiB, up to 1 GiB. The gateway authorizes each stripe that a request reads. The
    /// same on all nodes.
    #[serde(deserialize_with = "stripe_length")]
    pub stripe: StripeLength,
    /// Whether every object, and every stripe, has an owner in each zone, so that hits come from the reader's zone. The
    /// caches hold as many different objects as that of the smallest zone. The zones of nodes are those of `peers.nodes`
    /// or of the API server. Without effect if fewer than two are known. The same on all nodes.
    pub per_zone: bool,
}

impl Default for PlacementConfig {
    fn default() -> Self {
        let stripe = const { StripeLength::new(16 << 20).unwrap() };
        Self { stripe_above: ByteSize(4 << 30), stripe, per_zone: false }
    }
}

/// Reads the length of a stripe.
fn stripe_length<'de, D: Deserializer<'de>>(deserializer: D) -> Result<StripeLength, D::Error> {
    let ByteSize(bytes) = ByteSize::deserialize(deserializer)?;
    let length = StripeLength::new(bytes).filter(|_| bytes <= 1 << 30);
    length.ok_or_else(|| D::Error::custom("must be a multiple of 1 MiB, up to 1 GiB"))
}

impl LimitsConfig {
    /// Returns the timeout for a transfer that makes no progress.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_seconds)
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_pod: 2_500,
            header_size: ByteSize(64 << 10),
            idle_timeout_seconds: 300,
            fills: CachePlan::DEFAULT.fills,
            body_memory: ByteSize(1 << 30),
            fill_overread: None,
            pod_bandwidth: None,
        }
    }
}
