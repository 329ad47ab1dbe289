//! Placement of the stripes of one object, evenly over the nodes.
//!
//! By rendezvous hashing alone, the fullest of three nodes would have a fifth more than its share of an object of 256
//! stripes. Therefore a stripe goes to the first node in its order that has not yet reached its limit of the object's
//! stripes. A limit close to the share would move many other stripes when a node joins or leaves; in a large cluster, where
//! a node has few stripes of any one object, the limit is loose.

use lota_s3::ObjectName;
use rendezvous_hash::{Node as _, WeightedNode};

use super::{Digest, FixedHash, NodeName, Placement, owners::StripeGroup};
use crate::Stripe;

/// Number of consecutive stripes that are placed together.
const GROUP: u64 = 256;
/// Limit on a node's stripes of a group, relative to its share of them.
const LIMIT: f64 = 1.08;
/// Maximum number of further stripes that large clusters allow.
const MAX_SLACK: f64 = 4.0;

impl Placement {
    /// Returns at most `most` nodes for a stripe of an object of `size` bytes, in order of preference.
    #[must_use]
    pub fn first_of_stripe(
        &self,
        name: &ObjectName,
        stripe: Stripe,
        size: u64,
        most: usize,
    ) -> Vec<&NodeName> {
        let mut nodes = self.first_for(name, Some(stripe), most);
        let first = stripe.index() - stripe.index() % GROUP;
        let count = stripe.length().count(size).saturating_sub(first).min(GROUP);
        let group = StripeGroup { object: Digest::of(name, None).0, length: stripe.length(), first, count };
        let place = usize::try_from(stripe.index() - first).unwrap_or(usize::MAX);
        let owners = self.stripes.of(group, || self.place(name, group));
        let owner = owners.get(place).and_then(|node| self.nodes.get(*node));
        if let Some(owner) = owner.map(|node| &node.node.name)
            && most > 0
        {
            nodes.retain(|node| *node != owner);
            nodes.insert(0, owner);
            nodes.truncate(most);
        }
        nodes
    }

    /// Computes the owner of each stripe of a group.
    fn place(&self, name: &ObjectName, group: StripeGroup) -> Vec<usize> {
        #[expect(clippy::cast_precision_loss, reason = "numbers of stripes and nodes are small")]
        let (count, slack) =
            (group.count as f64, (self.nodes.len() as f64 / 2.0 - 1.5).clamp(0.0, MAX_SLACK));
        let limits: Vec<f64> =
            self.shares.iter().map(|share| (share * count * LIMIT + slack).max(1.0)).collect();
        let mut counts = vec![0.0; self.nodes.len()];
        let stripes =
            (group.first..group.first + group.count).filter_map(|index| Stripe::new(index, group.length));
        stripes
            .map(|stripe| {
                let item = Digest::of(name, Some(stripe));
                let open = (0..self.nodes.len()).filter(|node| counts[*node] < limits[*node]);
                let weighed =
                    open.map(|node| (WeightedNode::hash_code(&self.nodes[node], &FixedHash, &item), node));
                let owner = weighed.max().map_or(0, |(_, node)| node);
                counts[owner] += 1.0;
                owner
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StripeLength;

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 16 << 30;

    fn cluster(nodes: u64) -> Placement {
        Placement::new((0..nodes).map(|node| (NodeName(format!("n{node}")), 1 << 40)))
    }

    fn owners(placement: &Placement, key: u32) -> Vec<NodeName> {
        let name = ObjectName::from_parts("http://gateway", "bucket", &key.to_string(), None).unwrap();
        let length = StripeLength::new(64 * MIB).unwrap();
        let stripes = (0..length.count(SIZE)).map(|index| Stripe::new(index, length).unwrap());
        stripes.map(|stripe| placement.first_of_stripe(&name, stripe, SIZE, 1)[0].clone()).collect()
    }

    #[test]
    fn an_object_is_even_over_a_few_nodes() {
        let placement = cluster(3);
        for key in 0..50 {
            let owners = owners(&placement, key);
            for node in ["n0", "n1", "n2"] {
                let count = owners.iter().filter(|owner| owner.0 == node).count();
                assert!((count as f64) <= 1.1 * 256.0 / 3.0, "{node} has {count} of {}", owners.len());
            }
        }
    }

    #[test]
    fn little_moves_when_a_node_joins() {
        for (nodes, objects, limit) in [(3, 40, 1.05), (100, 4, 1.05)] {
            let (before, after) = (cluster(nodes), cluster(nodes + 1));
            let (mut moved, mut minimum) = (0, 0);
            for key in 0..objects {
                for (old, new) in owners(&before, key).into_iter().zip(owners(&after, key)) {
                    moved += usize::from(old != new);
                    minimum += usize::from(new.0 == format!("n{nodes}"));
                }
            }
            assert!((moved as f64) <= limit * minimum as f64, "{nodes} nodes: {moved} of {minimum}");
        }
    }

    #[test]
    fn shares_follow_capacities() {
        let nodes = [("small", 1), ("large", 3)].map(|(name, weight)| (NodeName(name.into()), weight << 40));
        let owners = owners(&Placement::new(nodes), 7);
        let small = owners.iter().filter(|owner| owner.0 == "small").count();
        assert!((50..=70).contains(&small), "{small}");
    }

    #[test]
    fn the_owner_is_followed_by_the_others_in_their_order() {
        let placement = cluster(5);
        let name = ObjectName::from_parts("http://gateway", "bucket", "key", None).unwrap();
        let length = StripeLength::new(64 * MIB).unwrap();
        for stripe in (0..256).map(|index| Stripe::new(index, length).unwrap()) {
            let all = placement.first_of_stripe(&name, stripe, SIZE, usize::MAX);
            let mut others = placement.first_for(&name, Some(stripe), usize::MAX);
            others.retain(|node| *node != all[0]);
            assert_eq!(all[1..], others);
            for most in 0..6 {
                assert_eq!(placement.first_of_stripe(&name, stripe, SIZE, most), all[..most.min(5)]);
            }
        }
    }
}
