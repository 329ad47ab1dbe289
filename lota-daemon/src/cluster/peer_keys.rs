//! The keys that messages between nodes are signed and verified with: cluster keys, which all nodes share, and keys of each
//! pair of nodes.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::Arc,
};

use lota_cache::placement::NodeName;
use parking_lot::RwLock;

use super::{ClusterKeys, NodeKey, NodePublicKey, PeerAuthentication, node_key::PairKey};
use crate::settings::Reloadable;

/// Maximum number of public keys of one node: two while its key is replaced.
pub(super) const MAX_PUBLIC_KEYS: usize = 2;

/// Public keys of nodes.
pub type PublicKeys = HashMap<NodeName, Vec<NodePublicKey>>;

/// Keys of this node, and the public keys of the others.
#[derive(Debug)]
pub struct PeerKeys {
    shared: Option<Reloadable<ClusterKeys>>,
    own: Option<Reloadable<NodeKey>>,
    /// By the name of the node.
    published: RwLock<HashMap<String, PublishedNode>>,
}

/// Public keys of a node, and the keys that this node shares with it, once they were needed.
#[derive(Debug)]
struct PublishedNode {
    keys: Vec<NodePublicKey>,
    pairs: Option<Arc<PairKeys>>,
}

/// Keys that two nodes share: one for each public key of the other.
#[derive(Debug)]
struct PairKeys {
    /// Public half of this node's key that they are derived from.
    own: NodePublicKey,
    keys: Vec<PairKey>,
}

/// Keys for messages with one node.
#[derive(Clone)]
pub(super) struct MessageKeys {
    shared: Option<Arc<ClusterKeys>>,
    pairs: Option<Arc<PairKeys>>,
}

impl PeerKeys {
    /// Maximum number of MACs in a message.
    pub(super) const MAX_MACS: usize = ClusterKeys::MAX + MAX_PUBLIC_KEYS;

    /// Returns the keys of a node with cluster keys, a key of its own, or both.
    #[must_use]
    pub fn new(shared: Option<Reloadable<ClusterKeys>>, own: Option<Reloadable<NodeKey>>) -> Self {
        Self { shared, own, published: RwLock::default() }
    }

    /// Returns the kind of keys.
    #[must_use]
    pub fn authentication(&self) -> PeerAuthentication {
        match (&self.shared, &self.own) {
            (_, None) => PeerAuthentication::Shared,
            (Some(_), Some(_)) => PeerAuthentication::Both,
            (None, Some(_)) => PeerAuthentication::Node,
        }
    }

    /// Replaces the public keys of all nodes. Messages under others are refused from now on.
    pub fn publish(&self, keys: PublicKeys) {
        let mut published = self.published.write();
        let node = |(NodeName(name), mut keys): (NodeName, Vec<NodePublicKey>)| {
            keys.truncate(MAX_PUBLIC_KEYS);
            let pairs =
                published.remove(&name).filter(|known| known.keys == keys).and_then(|known| known.pairs);
            (name, PublishedNode { keys, pairs })
        };
        let nodes = keys.into_iter().filter(|(_, keys)| !keys.is_empty()).map(node).collect();
        *published = nodes;
    }

    /// Returns whether a node has a public key.
    #[must_use]
    pub fn has_key_of(&self, node: &NodeName) -> bool {
        self.published.read().contains_key(&node.0)
    }

    /// Returns the number of cluster keys.
    #[must_use]
    pub fn shared(&self) -> usize {
        self.shared.as_ref().map_or(0, |keys| keys.get().count())
    }

    /// Returns the keys for messages with a node.
    pub(super) fn with(&self, node: &str) -> MessageKeys {
        MessageKeys { shared: self.shared.as_ref().map(Reloadable::get), pairs: self.pairs_with(node) }
    }

    /// Returns the keys of this node and another one. They are derived only when one of the two has another key than before.
    fn pairs_with(&self, node: &str) -> Option<Arc<PairKeys>> {
        let own = self.own.as_ref()?.get();
        let public = own.public();
        let is_current = |pairs: &&Arc<PairKeys>| pairs.own == public;
        let known = self.published.read().get(node)?.pairs.as_ref().filter(is_current).cloned();
        if known.is_some() {
            return known;
        }
        let mut published = self.published.write();
        let Entry::Occupied(mut entry) = published.entry(node.to_owned()) else { return None };
        let keys = entry.get().keys.iter().filter_map(|theirs| own.pair_with(theirs)).collect();
        let derived = Arc::new(PairKeys { own: public, keys });
        entry.get_mut().pairs = Some(derived.clone());
        Some(derived)
    }
}

impl From<Reloadable<ClusterKeys>> for PeerKeys {
    fn from(shared: Reloadable<ClusterKeys>) -> Self {
        Self::new(Some(shared), None)
    }
}

impl MessageKeys {
    /// Returns the keys in the order of their MACs: first those that nodes of builds without keys of nodes know.
    pub(super) fn each(&self) -> Vec<&[u8]> {
        let shared = self.shared.iter().flat_map(|keys| keys.each()).map(|key| key.expose().as_bytes());
        let pairs = self.pairs.iter().flat_map(|pairs| &pairs.keys).map(PairKey::bytes);
        shared.chain(pairs).collect()
    }
}

impl fmt::Debug for MessageKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageKeys(…)")
    }
}
