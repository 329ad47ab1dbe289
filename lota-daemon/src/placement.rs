//! Who should hold an object: weighted rendezvous hashing over the cluster's nodes.
//!
//! The crate `rendezvous_hash` keeps the nodes and sorts them; the hash is ours, since the standard library's
//! changes between toolchains, and every node must agree for as long as caches live.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use rendezvous_hash::{Capacity, IdNode, NodeHasher, RendezvousNodes, WeightedNode};
use xxhash_rust::xxh3::Xxh3;

use crate::s3::ObjectName;

/// A node's name: its identity in placement, so that a new address moves no keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeName(pub String);

/// The nodes of a cluster.
pub struct Placement {
    nodes: RendezvousNodes<WeightedNode<IdNode<NodeName>>, FixedHash>,
    gateway: String,
}

impl Placement {
    /// Places the objects of one gateway over nodes, each weighted by its cache's capacity in bytes.
    pub fn new(gateway: &str, nodes: impl IntoIterator<Item = (NodeName, u64)>) -> Self {
        let mut placement = RendezvousNodes::new(FixedHash);
        for (name, capacity) in nodes {
            #[expect(clippy::cast_precision_loss, reason = "a weight needs no more than 52 bits")]
            let weight = Capacity::new(capacity.max(1) as f64);
            if let Some(weight) = weight {
                placement.insert(WeightedNode::new(IdNode::new(name), weight));
            }
        }
        Self { nodes: placement, gateway: gateway.to_owned() }
    }

    /// Every node, the object's first choice first.
    #[must_use]
    pub fn order(&self, name: &ObjectName) -> Vec<&NodeName> {
        let item = Item { gateway: &self.gateway, name };
        self.nodes.calc_candidates(&item).map(|node| &*node.node).collect()
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placement").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

/// XXH3, fed length-prefixed fields in a fixed byte order.
struct FixedHash;

impl NodeHasher<NodeName> for FixedHash {
    fn hash<T: Hash>(&self, node: &NodeName, item: &T) -> u64 {
        let mut hash = Xxh3::new();
        item.hash(&mut hash);
        node.hash(&mut hash);
        hash.finish()
    }
}

impl Hash for NodeName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        field(state, &self.0);
    }
}

struct Item<'a> {
    gateway: &'a str,
    name: &'a ObjectName,
}

impl Hash for Item<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        field(state, self.gateway);
        field(state, self.name.bucket.as_str());
        field(state, self.name.key.as_str());
    }
}

/// `write` alone is stable between toolchains; `Hash for str` need not be.
fn field<H: Hasher>(state: &mut H, text: &str) {
    state.write(&(text.len() as u64).to_le_bytes());
    state.write(text.as_bytes());
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
        placement.order(&name).into_iter().map(|node| node.0.clone()).collect()
    }

    #[test]
    fn the_order_is_settled() {
        // A change here moves every object in the field.
        let placement = placement(&[("n1", 100), ("n2", 100), ("n3", 100), ("big", 400)]);
        for (key, expected) in [
            ("a", ["n2", "n1", "big", "n3"]),
            ("dir/b", ["big", "n2", "n3", "n1"]),
            ("€", ["n3", "big", "n2", "n1"]),
        ] {
            assert_eq!(order(&placement, key), expected, "{key}");
        }
    }

    #[test]
    fn versions_of_an_object_live_together() {
        let placement = placement(&[("n1", 1), ("n2", 1), ("n3", 1)]);
        let old = ObjectName::from_parts("bucket", "k", Some("v1".into())).unwrap();
        let new = ObjectName::from_parts("bucket", "k", None).unwrap();
        assert_eq!(placement.order(&old), placement.order(&new));
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
