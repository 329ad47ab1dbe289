//! Pins of the cluster: changes by an operator, exchange with other nodes, and the cache that follows them.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use lota_cache::{Cache, PinUsage, PinnedPrefix, pinnable, pins_file, placement::NodeName};
use parking_lot::Mutex;
use rand::seq::IndexedRandom as _;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cluster::{
    Cluster, PinFile, PinState, TooManyPins,
    peer::{PeerError, Peers},
};

/// Interval at which pins are exchanged with a random node.
const EXCHANGE_INTERVAL: Duration = Duration::from_secs(60);
/// Interval of attempts until an exchange succeeds, and at which the capacity of the cluster is looked at.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum number of concurrent exchanges.
const EXCHANGES: usize = 32;
/// Reason why a node that has answered lacks a change.
const REFUSED: &str =
    "it has not accepted the change: its clock differs by minutes, or there are too many pins";

/// The pins of the cluster, as this node knows them.
#[derive(Debug)]
pub struct ClusterPins {
    cache: Arc<Cache>,
    cluster: Arc<Cluster>,
    peers: Option<Arc<Peers>>,
    /// Low watermark of the cache, in percent.
    low: u8,
    file: PinFile,
    state: Mutex<PinState>,
    /// Serializes changes, which are saved before they are valid.
    changing: tokio::sync::Mutex<()>,
}

/// An operator's request to set a pin.
#[derive(Debug, Deserialize, Serialize)]
pub struct PinRequest {
    /// Objects to pin.
    pub prefix: PinnedPrefix,
    /// Bytes of the cluster's cache; default: all that can be pinned and is not.
    pub bytes: Option<u64>,
}

/// Result of a change.
#[derive(Debug, Deserialize, Serialize)]
pub struct PinChanged {
    /// Bytes of the pin; 0 if it was removed.
    pub bytes: u64,
    /// Nodes that were not told, or have not accepted the change, with the reason. They learn of it later.
    pub unreached: Vec<UnreachedNode>,
}

/// A node that was not told of a change, or has not accepted it.
#[derive(Debug, Deserialize, Serialize)]
pub struct UnreachedNode {
    /// Name of the node.
    pub node: String,
    /// Reason.
    pub why: String,
}

/// All pins.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PinReport {
    /// Each pin.
    pub pins: Vec<PinStatus>,
    /// Bytes of the cluster's cache that can be pinned.
    pub possible: u64,
}

/// A pin, and what this node has of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PinStatus {
    /// The pinned objects.
    #[serde(flatten)]
    pub prefix: PinnedPrefix,
    /// Bytes of the cluster's cache.
    pub bytes: u64,
    /// Use of this node's cache for it.
    pub here: PinUsage,
}

/// Reason why pins are not changed.
#[derive(Debug, Error)]
pub enum PinError {
    /// No bytes, or more than can be pinned.
    #[error(
        "cannot pin {asked} bytes: {pinned} of the {possible} bytes that can be pinned are pinned already"
    )]
    OutOfBounds {
        /// Bytes that were asked for; 0 if it was all, and nothing is left.
        asked: u64,
        /// Bytes of all other pins.
        pinned: u64,
        /// Bytes of the cluster's cache that can be pinned.
        possible: u64,
    },
    /// The names are not those of a bucket and a key.
    #[error("not a prefix: {0}")]
    Invalid(PinnedPrefix),
    /// There is no such pin.
    #[error("{0} is not pinned; `lota cache pins` lists the pins")]
    NotPinned(PinnedPrefix),
    /// Too many pins.
    #[error(transparent)]
    TooMany(#[from] TooManyPins),
    /// The file cannot be written; nothing was changed.
    #[error("cannot save the pins: {0}")]
    NotSaved(String),
}

impl ClusterPins {
    /// Reads the pins from a cache folder. Call [`ClusterPins::follow`] to apply them.
    #[must_use]
    pub fn new(
        cache: Arc<Cache>,
        cluster: Arc<Cluster>,
        peers: Option<Arc<Peers>>,
        (folder, low): (&Path, u8),
    ) -> Self {
        let (file, state) = PinFile::open(pins_file(folder));
        let (state, changing) = (Mutex::new(state), tokio::sync::Mutex::default());
        Self { cache, cluster, peers, low, file, state, changing }
    }

    /// Returns all pins.
    #[must_use]
    pub fn report(&self) -> PinReport {
        let (state, mut here) = (self.state.lock().clone(), self.cache.pinned());
        let pins = state.pins().map(|(prefix, bytes)| {
            let here = here.remove(prefix).unwrap_or_default();
            PinStatus { prefix: prefix.clone(), bytes, here }
        });
        PinReport { pins: pins.collect(), possible: self.possible() }
    }

    /// Pins objects, or changes the bytes of a pin, on all nodes.
    ///
    /// # Errors
    /// [`PinError`]; nothing is changed then.
    pub async fn pin(
        self: &Arc<Self>,
        PinRequest { prefix, bytes }: PinRequest,
    ) -> Result<PinChanged, PinError> {
        if !prefix.is_valid() {
            return Err(PinError::Invalid(prefix));
        }
        let (pins, of) = (self.clone(), prefix.clone());
        let change = async move {
            let _one = pins.changing.lock().await;
            let mut state = pins.state.lock().clone();
            let others = state.pins().filter(|(other, _)| **other != of);
            let pinned = others.fold(0, |all: u64, (_, bytes)| all.saturating_add(bytes));
            let possible = pins.possible();
            let left = possible.saturating_sub(pinned);
            let bytes = bytes.unwrap_or(left);
            if !(1..=left).contains(&bytes) {
                return Err(PinError::OutOfBounds { asked: bytes, pinned, possible });
            }
            state.set(of, Some(bytes), SystemTime::now())?;
            pins.replace(state.clone()).await.map_err(PinError::NotSaved)?;
            Ok((bytes, state))
        };
        let (bytes, state) = to_its_end(change).await.map_err(PinError::NotSaved)??;
        tracing::info!(%prefix, bytes, "pinned objects on request of an operator");
        Ok(PinChanged { bytes, unreached: self.spread(&prefix, &state).await })
    }

    /// Removes a pin on all nodes.
    ///
    /// # Errors
    /// [`PinError`]; nothing is changed then.
    pub async fn unpin(self: &Arc<Self>, prefix: PinnedPrefix) -> Result<PinChanged, PinError> {
        let (pins, of) = (self.clone(), prefix.clone());
        let change = async move {
            let _one = pins.changing.lock().await;
            let mut state = pins.state.lock().clone();
            if state.bytes(&of).is_none() {
                return Err(PinError::NotPinned(of));
            }
            state.set(of, None, SystemTime::now())?;
            pins.replace(state.clone()).await.map_err(PinError::NotSaved)?;
            Ok(state)
        };
        let state = to_its_end(change).await.map_err(PinError::NotSaved)??;
        tracing::info!(%prefix, "unpinned objects on request of an operator");
        Ok(PinChanged { bytes: 0, unreached: self.spread(&prefix, &state).await })
    }

    /// Merges what another node knows, and returns the result.
    pub async fn merge(self: &Arc<Self>, received: PinState) -> PinState {
        let pins = self.clone();
        let change = async move {
            let _one = pins.changing.lock().await;
            let mut state = pins.state.lock().clone();
            if state.merge(received, SystemTime::now()) {
                tracing::info!(pins = state.pins().count(), "pins changed on another node");
                if let Err(error) = pins.replace(state.clone()).await {
                    tracing::warn!(error, "cannot save the pins; applying them until the daemon ends");
                    pins.apply(state);
                }
            }
        };
        if let Err(error) = to_its_end(change).await {
            tracing::warn!(error, "cannot merge the pins of another node");
        }
        self.state.lock().clone()
    }

    /// Applies the pins to the cache, and exchanges them with other nodes, until the future is dropped.
    pub async fn follow(self: Arc<Self>) {
        let (mut tick, mut next, mut capacity) = (interval(ATTEMPT_INTERVAL), Instant::now(), None);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let now = self.cluster.total_capacity();
            if capacity.replace(now) != Some(now) {
                self.set_limits(&self.state.lock());
            }
            if next <= Instant::now() && self.exchange_with_one().await {
                next = Instant::now() + EXCHANGE_INTERVAL;
            }
        }
    }

    /// Exchanges pins with a random node. Returns false if it should be tried again soon.
    async fn exchange_with_one(self: &Arc<Self>) -> bool {
        let Some(peers) = &self.peers else { return true };
        let reachable: Vec<NodeName> =
            self.cluster.members().into_keys().filter(|peer| !peers.is_lost(peer)).collect();
        let Some(peer) = reachable.choose(&mut rand::rng()) else { return false };
        match self.exchange(peers, peer).await {
            Ok(_) | Err(PeerError::OtherVersion) => true,
            Err(error) => {
                tracing::debug!(peer = %peer.0, %error, "cannot exchange pins");
                false
            }
        }
    }

    /// Exchanges pins with all nodes after a change of a pin to what it is in `state`. Returns those that did not respond, or
    /// have not accepted the change.
    async fn spread(self: &Arc<Self>, prefix: &PinnedPrefix, state: &PinState) -> Vec<UnreachedNode> {
        let Some(peers) = &self.peers else { return Vec::new() };
        let exchanges = stream::iter(self.cluster.members().into_keys()).map(async |peer: NodeName| {
            let why = match self.exchange(peers, &peer).await {
                Ok(answer) if answer.knows(prefix, state, SystemTime::now()) => return None,
                Ok(_) => REFUSED.to_owned(),
                Err(error) => error.to_string(),
            };
            Some(UnreachedNode { node: peer.0, why })
        });
        let mut unreached: Vec<_> =
            exchanges.buffer_unordered(EXCHANGES).filter_map(async |it| it).collect().await;
        unreached.sort_by(|a, b| a.node.cmp(&b.node));
        unreached
    }

    /// Exchanges pins with a node, and returns its answer.
    async fn exchange(self: &Arc<Self>, peers: &Peers, peer: &NodeName) -> Result<PinState, PeerError> {
        let state = self.state.lock().clone();
        let received = peers.exchange_pins(peer, &state).await?;
        self.merge(received.clone()).await;
        Ok(received)
    }

    /// Saves and applies changed pins; call it with `changing` locked, in [`to_its_end`].
    async fn replace(self: &Arc<Self>, state: PinState) -> Result<(), String> {
        if self.cache.is_handed_over() {
            return Err("another daemon owns the cache".to_owned());
        }
        let (pins, saved) = (self.clone(), state.clone());
        let saved = tokio::task::spawn_blocking(move || pins.file.save(&saved)).await;
        saved.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.apply(state);
        Ok(())
    }

    /// Makes pins valid; call it with `changing` locked.
    fn apply(&self, new: PinState) {
        let mut state = self.state.lock();
        *state = new;
        self.set_limits(&state);
    }

    /// Sets the pins of the cache to those in `state`, which is locked, so that the cache follows the last change.
    fn set_limits(&self, state: &PinState) {
        let pins: Vec<_> = state.pins().map(|(prefix, bytes)| (prefix.clone(), bytes)).collect();
        self.cache.set_pins(&pins, self.cluster.total_capacity());
    }

    /// Returns the bytes of the cluster's cache that can be pinned.
    fn possible(&self) -> u64 {
        pinnable(self.cluster.total_capacity(), self.low)
    }
}

/// Runs a change of the pins to its end, also if the caller's future is dropped: what is saved must become valid, and the next
/// change must not be saved at the same time.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = T> + Send + 'static,
) -> Result<T, String> {
    tokio::spawn(change).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use lota_cache::{CachePlan, DiskPlan, Encryption};
    use tempfile::TempDir;

    use super::*;

    const CAPACITY: u64 = 1000 << 20;

    /// Returns the pins of a node whose cluster has twice its capacity.
    fn node(folder: &TempDir) -> Arc<ClusterPins> {
        let disk = DiskPlan { folder: folder.path().to_owned(), capacity: CAPACITY };
        let plan = CachePlan { min_free: 0, encryption: Encryption::Off, ..CachePlan::DEFAULT };
        // The task that sorts objects may still use the folder.
        let open = || Cache::open(std::slice::from_ref(&disk), &plan, &[]).ok();
        let cache = Arc::new(std::iter::repeat_with(open).take(1 << 20).find_map(|cache| cache).unwrap());
        let cluster = Arc::new(Cluster::new(NodeName("n1".into()), String::new(), 2 * CAPACITY, None));
        Arc::new(ClusterPins::new(cache, cluster, None, (folder.path(), plan.low)))
    }

    fn request(prefix: &str, bytes: Option<u64>) -> PinRequest {
        PinRequest { prefix: prefix.parse().unwrap(), bytes }
    }

    #[tokio::test]
    async fn pins_are_bounded_and_survive_a_restart() {
        let folder = TempDir::new().unwrap();
        let pins = node(&folder);
        let possible = pinnable(2 * CAPACITY, 95);
        let (half, more) = (possible / 2, possible / 2 + 1);
        pins.pin(request("s3://b/a/", Some(half))).await.unwrap();
        for refused in [Some(more + 1), Some(0), Some(u64::MAX)] {
            let error = pins.pin(request("s3://b/b/", refused)).await.unwrap_err();
            let PinError::OutOfBounds { asked, pinned, possible: stated } = error else { panic!("{error}") };
            assert_eq!((Some(asked), pinned, stated), (refused, half, possible));
        }
        let rest = pins.pin(request("s3://b/b/", None)).await.unwrap();
        assert_eq!(rest.bytes, possible - half);
        assert!(pins.pin(request("s3://b/c/", None)).await.is_err(), "nothing is left");
        pins.pin(request("s3://b/a/", Some(half - 5))).await.expect("its own bytes do not count");
        drop(pins);

        let pins = node(&folder);
        let report = pins.report();
        assert_eq!(report.pins.iter().map(|pin| pin.bytes).collect::<Vec<_>>(), [half - 5, possible - half]);
        assert_eq!(report.possible, possible);
        assert!(pins.cache.pinned().is_empty());
        let following = tokio::spawn(pins.clone().follow());
        while pins.cache.pinned().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        following.abort();
        let limit = pins.report().pins[0].here.limit;
        assert!(
            (half / 2 - 5..=half / 2).contains(&limit),
            "{limit}: its share, since all that is possible is pinned"
        );
        let prefix: PinnedPrefix = "s3://b/a/".parse().unwrap();
        pins.unpin(prefix.clone()).await.unwrap();
        assert!(matches!(pins.unpin(prefix).await, Err(PinError::NotPinned(_))));
        assert_eq!((pins.report().pins.len(), pins.cache.pinned().len()), (1, 1));
    }

    #[tokio::test]
    async fn after_a_handover_nothing_is_saved() {
        let folder = TempDir::new().unwrap();
        let pins = node(&folder);
        pins.cache.set_handed_over(true);
        assert!(matches!(pins.pin(request("s3://b/a/", None)).await, Err(PinError::NotSaved(_))));
        assert!(pins.report().pins.is_empty());
    }

    #[tokio::test]
    async fn a_change_is_completed_without_its_caller() {
        let folder = TempDir::new().unwrap();
        let pins = node(&folder);
        for number in 0..20 {
            let prefix = format!("s3://b/{number}/");
            let mut caller = Box::pin(pins.pin(request(&prefix, Some(1))));
            // It begins, and its caller gives up.
            assert!(futures_util::poll!(caller.as_mut()).is_pending());
        }
        for _ in 0..10_000 {
            if pins.report().pins.len() == 20 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let saved = PinFile::read(&pins_file(folder.path())).unwrap().unwrap();
        assert_eq!((saved.pins().count(), pins.cache.pinned().len()), (20, 20));
    }

    #[tokio::test]
    async fn pins_of_other_nodes_are_saved() {
        let folder = TempDir::new().unwrap();
        let pins = node(&folder);
        let mut other = PinState::default();
        other.set("s3://b/a/".parse().unwrap(), Some(7), SystemTime::now()).unwrap();
        assert_eq!(pins.merge(other.clone()).await, other);
        assert_eq!(PinFile::read(&pins_file(folder.path())).unwrap(), Ok(other));
        assert_eq!(pins.cache.pinned().len(), 1);
    }
}
