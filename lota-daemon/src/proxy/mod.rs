//! The request path: one request from its head to the last byte of its response.
//!
//! Every node has both roles. The **entry node** is the one whose daemon accepted the pod's connection:
//!
//! 1. `entry.rs` finds the gateway for the request's host (`s3_stores.rs`) and classifies the request. Everything but a
//!    GET of an object passes to the gateway and back.
//! 2. `owner.rs` selects the nodes to ask by placement, load and the owner count of `hot_objects.rs`. The entry node forwards
//!    the client's request to the first of them, or serves it itself if that is this node or none responds.
//! 3. `resume.rs` continues the response of an owner that fails in its middle, from another node.
//! 4. `striped.rs` serves a large object in stripes (`striping.rs`): the entry node authorizes the request itself, too,
//!    reads the stripes from their owners (`striped_get.rs`), and joins them (`stripe_body.rs`).
//! 5. `access_log.rs` counts and logs the request, also if the client does not wait for the response.
//!
//! The **owner** answers a peer's request (`peer_service.rs`) or its own pod's:
//!
//! 1. `authorize.rs` looks the object up in the cache and has the gateway authorize the client's own request, on the
//!    condition that the held version has changed. Of concurrent requests for an unknown object, one asks (`get.rs`).
//! 2. `serve.rs` serves the version that the gateway named: from the cache or a fill. If the gateway sends the object along,
//!    `plan.rs` decides whether to relay that response, to fill from it, or to start a fill.
//! 3. `fill.rs` fetches the whole object from the backend, the gateway or another owner. `fill_quota.rs` bounds the bytes
//!    that fills fetch for a pod in excess of its reads. Where nothing may fetch the whole object, `keep_range.rs` stores
//!    the range that the gateway sends. `zones.rs` has owners per zone fill from each other.
//! 4. `response.rs` makes the response from the grant and a reader of the cached file.
//!
//! After a write, `after_write.rs` at the entry node asks the object's owner to fetch it into its cache, which `write_fetches.rs`
//! does in the background if the configuration says so; `pod_queue.rs` has pods take turns. Or the entry node sends the bytes of an
//! upload to the owner as they pass (`upload_copy.rs`), which keeps them (`keep_upload.rs`).
//!
//! `pins.rs` keeps the pins of the cluster: which objects are evicted last.
//!
//! A failure of the cache costs speed: the request falls back to the gateway. A failure of authorization costs the
//! response: nothing is served without the gateway's grant.

mod access_log;
mod after_write;
mod authorize;
mod config;
mod entry;
mod fill;
mod fill_quota;
mod get;
mod hot_objects;
mod keep_range;
mod keep_upload;
mod owner;
mod peer_service;
mod pins;
mod plan;
mod pod_queue;
mod response;
mod resume;
mod s3_stores;
mod serve;
mod stripe_body;
mod striped;
mod striped_get;
mod striping;
mod upload_copy;
mod write_fetches;
mod zones;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper::{Response, StatusCode};
use lota_cache::{Cache, placement::NodeName};
use lota_s3::S3Error;

pub use self::{
    config::{LimitsConfig, PlacementConfig},
    fill_quota::FillQuota,
    hot_objects::HotObjects,
    owner::Load,
    pins::{ClusterPins, PinChanged, PinError, PinReport, PinRequest, PinStatus, UnreachedNode},
    s3_stores::{S3Store, S3Stores},
    striping::Striping,
    write_fetches::WriteFetches,
};

use self::get::Get;
use crate::{
    cluster::{Cluster, peer::Peers},
    gateway::Gateway,
    http::{Body, RequestHead, empty},
    metrics::{Metrics, Outcome, PeerLabels, UncachedLabels, heavy_hitters::HeavyHitterCounter},
    process::log_limit::LogLimit,
};

static UNEXPECTED_CONNECTIONS: LogLimit = LogLimit::new(Duration::from_secs(10));

/// Shared state of the request path.
pub struct Proxy {
    /// Name of this node.
    pub node: NodeName,
    /// Gateways with their storage, by the hosts that clients address.
    pub stores: S3Stores,
    /// Cache of this node.
    pub cache: Arc<Cache>,
    /// Nodes of the cluster, and the placement of objects on them.
    pub cluster: Arc<Cluster>,
    /// Connections to the other nodes; `None` on a single node.
    pub peers: Option<Arc<Peers>>,
    /// Request rates and owner counts of hot objects.
    pub hot_objects: HotObjects,
    /// Objects that are in stripes.
    pub striping: Striping,
    /// Bytes that this node still has to send.
    pub load: Load,
    /// Per-pod quota on bytes that fills fetch in excess of what the pod reads.
    pub fill_quota: Arc<FillQuota>,
    /// Objects that this node fetches because clients have written them.
    pub write_fetches: WriteFetches,
    /// Pins of the cluster.
    pub pins: Arc<ClusterPins>,
    /// Metrics.
    pub metrics: Metrics,
    /// Most requested objects, and the pods with the most requests.
    pub top: HeavyHitterCounter,
}

impl Proxy {
    /// Forwards a request to the gateway, and relays the response byte for byte.
    async fn pass(
        &self,
        gateway: &Gateway,
        head: &RequestHead,
        body: Body,
    ) -> Result<Response<Body>, S3Error> {
        let answer = gateway.forward(head, body).await?;
        Ok(response::relay(answer, Outcome::Bypass, &self.node))
    }

    /// Serves a granted request from the gateway because the cache cannot, and counts `reason`.
    async fn around_the_cache(
        &self,
        mut get: Get<'_>,
        reason: &'static str,
    ) -> Result<Response<Body>, S3Error> {
        self.uncached(reason);
        let answer = self.pass(&get.store.gateway, get.head, empty()).await?;
        let meter = self.meter(&mut get);
        Ok(response::metered(answer, meter))
    }

    /// Counts an object that is not cached.
    fn uncached(&self, reason: &'static str) {
        self.metrics.uncached.get_or_create(&UncachedLabels { reason }).inc();
    }

    fn count_peer_request(&self, role: &'static str) {
        self.metrics.peer_requests.get_or_create(&PeerLabels { role }).inc();
    }

    /// Counts and logs a connection that reached the hidden listener without the datapath.
    pub fn unexpected_connection(&self, client: SocketAddr) {
        self.metrics.unexpected_connections.inc();
        if let Some(left_out) = UNEXPECTED_CONNECTIONS.admit() {
            tracing::warn!(%client, left_out, "reset a connection that the datapath did not redirect here");
        }
    }
}

/// Returns whether a response has content, or is the head of one that would.
fn is_content(answer: &Result<Response<Body>, S3Error>) -> bool {
    let is_content = |status: StatusCode| status.is_success() && status != StatusCode::NO_CONTENT;
    answer.as_ref().is_ok_and(|answer| is_content(answer.status()))
}
