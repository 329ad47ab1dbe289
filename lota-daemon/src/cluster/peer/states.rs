//! Last known state of each peer: whether it responds, its load and capacity, and the versions that it speaks.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use lota_cache::placement::NodeName;
use lota_s3::Origin;
use parking_lot::MutexGuard;

use super::{LOST_NODE_GRACE, PeerError, Peers, WireVersion, headers::PeerHints};

/// Time for which a peer's reported load is valid.
const LOAD_TTL: Duration = Duration::from_secs(1);

/// Last known state of a peer.
#[derive(Clone, Debug, Default)]
pub struct PeerState {
    /// Time of the first failed attempt since its last response.
    pub lost: Option<Instant>,
    /// Error of the last failed attempt.
    pub why: Option<Arc<str>>,
    /// Load in bytes that it reported last, and the time of the report.
    pub load: Option<(u64, Instant)>,
    /// Capacity of its cache in bytes that it reported last.
    pub capacity: Option<u64>,
    /// Newest version of the peer protocol that it speaks, if it reported one with its last response. `None` after a connection
    /// was lost, because another build may have replaced it.
    pub wire: Option<WireVersion>,
}

impl Peers {
    /// Returns the cache capacity of each peer that has reported it, in bytes.
    #[must_use]
    pub fn capacities(&self) -> BTreeMap<NodeName, u64> {
        let states = self.states();
        states.iter().filter_map(|(name, state)| Some((name.clone(), state.capacity?))).collect()
    }

    /// Returns whether a peer has not responded since its last failure.
    #[must_use]
    pub fn is_lost(&self, peer: &NodeName) -> bool {
        self.states().get(peer).is_some_and(|state| state.lost.is_some())
    }

    /// Returns the number of peers.
    #[must_use]
    pub fn known(&self) -> usize {
        self.names().len()
    }

    /// Returns the number of peers whose public key is known.
    #[must_use]
    pub fn known_with_key(&self) -> usize {
        self.names().iter().filter(|peer| self.keys().has_key_of(peer)).count()
    }

    /// Returns the number of peers that are not lost.
    #[must_use]
    pub fn active(&self) -> usize {
        self.names().iter().filter(|peer| !self.is_lost(peer)).count()
    }

    /// Returns the peers that have been lost for so long that they have no share of the objects.
    #[must_use]
    pub fn gone(&self) -> Vec<NodeName> {
        let is_gone = |state: &PeerState| state.lost.is_some_and(|since| since.elapsed() > LOST_NODE_GRACE);
        let states = self.states();
        states.iter().filter(|(_, state)| is_gone(state)).map(|(name, _)| name.clone()).collect()
    }

    /// Returns the load that a peer reported recently, in bytes; 0 without a recent report, so that it is tried again.
    #[must_use]
    pub fn load(&self, peer: &NodeName) -> u64 {
        match self.states().get(peer).and_then(|state| state.load) {
            Some((load, reported)) if reported.elapsed() < LOAD_TTL => load,
            _ => 0,
        }
    }

    /// Returns each peer's name, address and last known state.
    #[must_use]
    pub fn each(&self) -> Vec<(NodeName, String, PeerState)> {
        let (nodes, states) = (self.nodes.read(), self.states());
        let state = |name| states.get(name).cloned().unwrap_or_default();
        nodes.iter().map(|(name, origin)| (name.clone(), origin.authority.to_string(), state(name))).collect()
    }

    /// Notes an authentic response of a peer, unless it has another address by now.
    pub(super) fn is_here(&self, peer: &NodeName, origin: &Origin, hints: PeerHints) {
        let nodes = self.nodes.read();
        if nodes.get(peer) != Some(origin) {
            return;
        }
        let mut states = self.states();
        let state = match states.get_mut(peer) {
            Some(state) => state,
            None => states.entry(peer.clone()).or_default(),
        };
        let capacity = hints.capacity.or(state.capacity);
        let (load, wire) = (Some((hints.load, Instant::now())), hints.wire);
        *state = PeerState { lost: None, why: None, load, capacity, wire };
    }

    /// Notes that a peer is lost by this error, unless it has been removed.
    pub(super) fn lose(&self, peer: &NodeName, error: &PeerError) {
        let nodes = self.nodes.read();
        if !nodes.contains_key(peer) {
            return;
        }
        let mut states = self.states();
        let state = states.entry(peer.clone()).or_default();
        state.lost.get_or_insert_with(Instant::now);
        state.why = Some(error.to_string().into());
        state.wire = None;
    }

    /// Lets the next message to a peer be in the oldest version.
    pub(super) fn forget_version(&self, peer: &NodeName) {
        if let Some(state) = self.states().get_mut(peer) {
            state.wire = None;
        }
    }

    /// Returns the version in which messages are sent to a peer.
    #[must_use]
    pub fn version_with(&self, peer: &NodeName) -> WireVersion {
        self.wire.versions().with(self.states().get(peer).and_then(|state| state.wire))
    }

    pub(super) fn states(&self) -> MutexGuard<'_, HashMap<NodeName, PeerState>> {
        self.states.lock()
    }
}
