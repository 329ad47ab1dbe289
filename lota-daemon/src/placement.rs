//! Who should hold an object: weighted rendezvous hashing over the cluster's nodes.
//!
//! The crate `rendezvous_hash` weighs each node; the hash is ours, since the standard library's changes between
//! toolchains, and every node must agree for as long as caches live.

use std::{
    cmp::Reverse,
    fmt,
    hash::{Hash, Hasher},
};

use rendezvous_hash::{Capacity, IdNode, Node as _, NodeHasher, WeightedNode};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::s3::ObjectName;

/// A node's name: its identity in placement, so that a new address moves no keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(pub String);

/// The nodes of a cluster.
pub struct Placement {
    nodes: Vec<WeightedNode<IdNode<Member>>>,
    gateway: u64,
}

impl Placement {
    /// Places the objects of one gateway over nodes, each weighted by its cache's capacity in bytes.
    pub fn new(gateway: &str, nodes: impl IntoIterator<Item = (NodeName, u64)>) -> Self {
        let nodes = nodes.into_iter().filter_map(|(name, capacity)| {
            #[expect(clippy::cast_precision_loss, reason = "a weight needs no more than 52 bits")]
            let weight = Capacity::new(capacity.max(1) as f64)?;
            let digest = digest([&name.0], 0);
            Some(WeightedNode::new(IdNode::new(Member { name, digest }), weight))
        });
        Self { nodes: nodes.collect(), gateway: digest([gateway], 0) }
    }

    /// The object's first choices, `most` of them at most, the very first first.
    #[must_use]
    pub fn first(&self, name: &ObjectName, most: usize) -> Vec<&NodeName> {
        // Versions of an object live together.
        let item = Digest(digest([name.bucket.as_str(), name.key.as_str()], self.gateway));
        let weigh = |node| Reverse(WeightedNode::hash_code(node, &FixedHash, &item));
        let mut weighed: Vec<_> = self.nodes.iter().map(|node| (weigh(node), &node.node.name)).collect();
        if most < weighed.len() {
            weighed.select_nth_unstable(most);
            weighed.truncate(most);
        }
        weighed.sort_unstable();
        weighed.into_iter().map(|(_, name)| name).collect()
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Are there none?
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

/// A node, and its name's digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    name: NodeName,
    digest: u64,
}

impl Hash for Member {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Digest(self.digest).hash(state);
    }
}

/// What the crate hashes: `write` alone is stable between toolchains, and between machines.
struct Digest(u64);

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0.to_le_bytes());
    }
}

struct FixedHash;

impl NodeHasher<Member> for FixedHash {
    fn hash<T: Hash>(&self, node: &Member, item: &T) -> u64 {
        let mut chain = Chain(0);
        item.hash(&mut chain);
        node.hash(&mut chain);
        chain.0
    }
}

/// XXH3, seeded with what came before.
struct Chain(u64);

impl Hasher for Chain {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// One digest of some texts; no other list of texts is the same bytes.
fn digest<const N: usize>(texts: [&str; N], seed: u64) -> u64 {
    texts.iter().fold(seed, |seed, text| xxh3_64_with_seed(text.as_bytes(), seed ^ text.len() as u64))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn placement(nodes: &[(&str, u64)]) -> Placement {
        Placement::new(
            "http://gw",
            nodes.iter().map(|(name, weight)| (NodeName((*name).to_owned()), *weight)),
        )
    }

    fn order(placement: &Placement, key: &str) -> Vec<String> {
        let name = ObjectName::from_parts("bucket", key, None).unwrap();
        placement.first(&name, usize::MAX).into_iter().map(|node| node.0.clone()).collect()
    }

    #[test]
    fn the_order_is_settled() {
        // A change here moves every object in the field.
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
    fn versions_of_an_object_live_together() {
        let placement = placement(&[("n1", 1), ("n2", 1), ("n3", 1)]);
        let old = ObjectName::from_parts("bucket", "k", Some("v1".into())).unwrap();
        let new = ObjectName::from_parts("bucket", "k", None).unwrap();
        assert_eq!(placement.first(&old, 3), placement.first(&new, 3));
    }

    #[test]
    fn the_first_few_are_the_first_of_all() {
        let nodes: Vec<(String, u64)> = (0..50).map(|node| (format!("n{node}"), 1 + node % 3)).collect();
        let placement = Placement::new("g", nodes.into_iter().map(|(name, weight)| (NodeName(name), weight)));
        for key in 0..100 {
            let name = ObjectName::from_parts("bucket", &key.to_string(), None).unwrap();
            let all = placement.first(&name, usize::MAX);
            for most in [0, 1, 2, 49, 50, 51] {
                assert_eq!(placement.first(&name, most), all[..most.min(50)]);
            }
        }
    }

    #[test]
    fn weight_decides_the_share_and_a_leaver_moves_only_its_own() {
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
