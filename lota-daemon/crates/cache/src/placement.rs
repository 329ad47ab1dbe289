//! Placement of objects: weighted rendezvous hashing over the cluster's nodes.
//!
//! The crate `rendezvous_hash` computes the weights. The hash function is LOTA's own: that of the standard library
//! changes between toolchains, and all nodes must agree for as long as caches live.

mod owners;
mod stripes;

use std::{
    cmp::Reverse,
    fmt,
    hash::{Hash, Hasher},
};

use lota_s3::ObjectName;
use rendezvous_hash::{Capacity, IdNode, Node as _, NodeHasher, WeightedNode};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::owners::StripeOwners;
use super::Stripe;

/// A node's name. It is the node's identity in placement, so that a change of its address moves no objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(pub String);

/// The nodes of a cluster.
///
/// ```
/// use lota_cache::placement::{NodeName, Placement};
/// use lota_s3::ObjectName;
///
/// let nodes = ["n1", "n2", "n3"].map(|name| (NodeName(name.to_owned()), 1 << 40));
/// let placement = Placement::new(nodes.clone());
/// let object = ObjectName::from_parts("http://gateway", "bucket", "key", None).unwrap();
/// let owner = placement.first(&object, 1)[0];
///
/// // Other nodes come and go without moving the object.
/// let smaller = nodes.iter().filter(|(name, _)| name == owner).cloned();
/// assert_eq!(Placement::new(smaller).first(&object, 1), [owner]);
/// ```
pub struct Placement {
    nodes: Vec<WeightedNode<IdNode<PlacementNode>>>,
    /// Weight of each node, relative to the sum of all.
    shares: Vec<f64>,
    stripes: StripeOwners,
}

impl Placement {
    /// Creates the placement of objects on nodes, each weighted by its cache's capacity in bytes.
    pub fn new(nodes: impl IntoIterator<Item = (NodeName, u64)>) -> Self {
        let nodes = nodes.into_iter().filter_map(|(name, capacity)| {
            #[expect(clippy::cast_precision_loss, reason = "a weight needs no more than 52 bits")]
            let weight = capacity.max(1) as f64;
            let digest = digest([&name.0], 0);
            let node = IdNode::new(PlacementNode { name, digest });
            Some((WeightedNode::new(node, Capacity::new(weight)?), weight))
        });
        let (nodes, weights): (Vec<_>, Vec<f64>) = nodes.unzip();
        let all: f64 = weights.iter().sum();
        let shares = weights.into_iter().map(|weight| weight / all).collect();
        Self { nodes, shares, stripes: StripeOwners::default() }
    }

    /// Returns at most `most` nodes for an object, in order of preference.
    #[must_use]
    pub fn first(&self, name: &ObjectName, most: usize) -> Vec<&NodeName> {
        self.first_for(name, None, most)
    }

    /// Returns at most `most` nodes for an object or a stripe of one, in order of preference. Stripes are placed
    /// independently of each other; [`Placement::first_of_stripe`] places those of one object evenly.
    #[must_use]
    pub fn first_for(&self, name: &ObjectName, stripe: Option<Stripe>, most: usize) -> Vec<&NodeName> {
        let item = Digest::of(name, stripe);
        let weigh = |node| Reverse(WeightedNode::hash_code(node, &FixedHash, &item));
        let mut weighed: Vec<_> = self.nodes.iter().map(|node| (weigh(node), &node.node.name)).collect();
        if most < weighed.len() {
            weighed.select_nth_unstable(most);
            weighed.truncate(most);
        }
        weighed.sort_unstable();
        weighed.into_iter().map(|(_, name)| name).collect()
    }

    /// Returns the number of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns whether there are no nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placement").field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}

/// A node and the digest of its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PlacementNode {
    name: NodeName,
    digest: u64,
}

impl Hash for PlacementNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Digest(self.digest).hash(state);
    }
}

/// A digest that is hashed by `write`, whose input is stable between toolchains and machines.
struct Digest(u64);

impl Digest {
    fn of(name: &ObjectName, stripe: Option<Stripe>) -> Self {
        // The version id is left out: versions of an object are on the same node.
        let names = [name.gateway.as_str(), name.bucket.as_str(), name.key.as_str()];
        let object = digest(names, 0);
        Self(match stripe {
            Some(stripe) => xxh3_64_with_seed(&stripe.index().to_le_bytes(), object),
            None => object,
        })
    }
}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0.to_le_bytes());
    }
}

struct FixedHash;

impl NodeHasher<PlacementNode> for FixedHash {
    fn hash<T: Hash>(&self, node: &PlacementNode, item: &T) -> u64 {
        let mut chain = ChainedXxh3(0);
        item.hash(&mut chain);
        node.hash(&mut chain);
        chain.0
    }
}

/// XXH3, seeded with the hash of the preceding input.
struct ChainedXxh3(u64);

impl Hasher for ChainedXxh3 {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Returns the digest of a list of texts. Each text's length is part of the seed, so lists do not run together.
fn digest<const N: usize>(texts: [&str; N], seed: u64) -> u64 {
    texts.iter().fold(seed, |seed, text| xxh3_64_with_seed(text.as_bytes(), seed ^ text.len() as u64))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn placement(nodes: &[(&str, u64)]) -> Placement {
        Placement::new(nodes.iter().map(|(name, weight)| (NodeName((*name).to_owned()), *weight)))
    }

    fn order(placement: &Placement, key: &str) -> Vec<String> {
        let name = ObjectName::from_parts("http://gw", "bucket", key, None).unwrap();
        placement.first(&name, usize::MAX).into_iter().map(|node| node.0.clone()).collect()
    }

    #[test]
    fn the_order_is_stable() {
        // A change of this order moves every object of existing clusters.
        let placement = placement(&[("n1", 100), ("n2", 100), ("n3", 100), ("big", 400)]);
        for (key, expected) in [
            ("a", ["big", "n2", "n1", "n3"]),
            ("dir/b", ["big", "n3", "n1", "n2"]),
            ("€", ["big", "n3", "n2", "n1"]),
        ] {
            assert_eq!(order(&placement, key), expected, "{key}");
        }
    }

    #[test]
    fn versions_of_an_object_are_on_the_same_nodes() {
        let placement = placement(&[("n1", 1), ("n2", 1), ("n3", 1)]);
        let old = ObjectName::from_parts("http://gateway", "bucket", "k", Some("v1".into())).unwrap();
        let new = ObjectName::from_parts("http://gateway", "bucket", "k", None).unwrap();
        assert_eq!(placement.first(&old, 3), placement.first(&new, 3));
    }

    #[test]
    fn objects_of_different_gateways_are_placed_independently() {
        let placement = placement(&[("n1", 1), ("n2", 1), ("n3", 1)]);
        let owner = |gateway: &str, key: u32| {
            let name = ObjectName::from_parts(gateway, "bucket", &key.to_string(), None).unwrap();
            placement.first(&name, 1)[0].clone()
        };
        let same = (0..3000).filter(|key| owner("http://a", *key) == owner("http://b", *key)).count();
        assert!((850..1150).contains(&same), "{same}");
    }

    #[test]
    fn a_limited_list_is_a_prefix_of_the_full_list() {
        let nodes: Vec<(String, u64)> = (0..50).map(|node| (format!("n{node}"), 1 + node % 3)).collect();
        let placement = Placement::new(nodes.into_iter().map(|(name, weight)| (NodeName(name), weight)));
        for key in 0..100 {
            let name = ObjectName::from_parts("http://gateway", "bucket", &key.to_string(), None).unwrap();
            let all = placement.first(&name, usize::MAX);
            for most in [0, 1, 2, 49, 50, 51] {
                assert_eq!(placement.first(&name, most), all[..most.min(50)]);
            }
        }
    }

    #[test]
    fn shares_follow_weights_and_a_removed_node_moves_only_its_objects() {
        let all = [("n1", 100), ("n2", 100), ("n3", 200)];
        let (before, after) = (placement(&all), placement(&all[..2]));
        let mut shares: HashMap<String, u32> = HashMap::new();
        for key in 0..10_000 {
            let (before, after) = (order(&before, &key.to_string()), order(&after, &key.to_string()));
            *shares.entry(before[0].clone()).or_default() += 1;
            let survivors: Vec<_> = before.into_iter().filter(|node| node != "n3").collect();
            assert_eq!(survivors, after);
        }
        assert!((4800..5200).contains(&shares["n3"]), "{shares:?}");
        assert!((2350..2650).contains(&shares["n1"]), "{shares:?}");
    }
}
