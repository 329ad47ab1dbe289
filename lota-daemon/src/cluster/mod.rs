//! Cluster membership as this node currently knows it, and the placement that results.
//!
//! Nodes may disagree for a while: a wrong owner costs a cache miss, never an error.

mod config;
mod keys;
mod node_key;
pub mod peer;
mod peer_keys;
mod pin_file;
mod pins;
mod zones;

pub use config::{
    NodeConfig, PeerAuthentication, PeerConfig, PeerKeyFiles, PeerServerName, PeerTlsConfig, PeerTlsMode,
    PeersConfig, default_peer_port,
};
pub use keys::ClusterKeys;
pub use node_key::{NodeKey, NodePublicKey};
pub use peer_keys::{PeerKeys, PublicKeys};
pub use pin_file::PinFile;
pub use pins::{PinState, TooManyPins, UnreadablePins};

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use lota_cache::{
    Stripe,
    placement::{NodeName, Placement},
};
use lota_s3::ObjectName;
use parking_lot::RwLock;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use self::zones::ZonePlacements;
use crate::cluster::peer::{LOST_NODE_GRACE, Peers};

/// Interval at which the state reported by peers is read.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A node of the cluster, as configuration or API server report it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterMember {
    /// Address of its peer port.
    pub address: IpAddr,
    /// Zone of the node; empty if unknown.
    pub zone: String,
    /// Capacity of its cache in bytes, until the node reports it itself.
    pub capacity: Option<u64>,
}

/// Nodes by name, which may include this one.
pub type Members = BTreeMap<NodeName, ClusterMember>;

/// Cluster membership and placement.
#[derive(Debug)]
pub struct Cluster {
    me: NodeName,
    zone: String,
    /// Capacity of this node's cache, in bytes.
    capacity: u64,
    /// Whether every object has an owner in each zone.
    per_zone: bool,
    peers: Option<Arc<Peers>>,
    view: RwLock<Arc<View>>,
    /// Addresses of the other nodes, for the guard.
    addresses: watch::Sender<Vec<IpAddr>>,
}

#[derive(Debug)]
struct View {
    /// The other nodes.
    members: Members,
    /// Zone of this node: from the configuration, otherwise from the members.
    zone: String,
    weights: BTreeMap<NodeName, u64>,
    placement: Arc<Placement>,
    zones: Arc<ZonePlacements>,
}

impl Cluster {
    /// Returns a cluster that consists of `me` alone, whose cache holds `capacity` bytes.
    #[must_use]
    pub fn new(me: NodeName, zone: String, capacity: u64, peers: Option<Arc<Peers>>) -> Self {
        let weights = BTreeMap::from([(me.clone(), capacity)]);
        let placement = Arc::new(Placement::new(weights.clone()));
        let (members, zones) = (Members::new(), Arc::default());
        let view = View { members, zone: zone.clone(), weights, placement, zones };
        let view = RwLock::new(Arc::new(view));
        Self { me, zone, capacity, per_zone: false, peers, view, addresses: watch::Sender::default() }
    }

    /// Gives every object an owner in each zone, if `per_zone`.
    #[must_use]
    pub fn with_owners_per_zone(self, per_zone: bool) -> Self {
        Self { per_zone, ..self }
    }

    /// Returns the placement of objects on all nodes.
    #[must_use]
    pub fn placement(&self) -> Arc<Placement> {
        self.view().placement.clone()
    }

    /// Returns the placement of objects on the nodes that this node asks for them: with owners per zone, those of its own
    /// zone, otherwise all.
    #[must_use]
    pub fn placement_near(&self) -> Arc<Placement> {
        let view = self.view();
        view.zones.on(&view.zone).unwrap_or(&view.placement).clone()
    }

    /// Returns whether the objects have an owner in each zone, of which this node's is one.
    #[must_use]
    pub fn has_owners_per_zone(&self) -> bool {
        let view = self.view();
        view.zones.on(&view.zone).is_some()
    }

    /// Returns the placements on the zones from whose owners this node's zone fills an object or a stripe of one, in order
    /// of preference. None for the object's first zone, and without owners per zone.
    #[must_use]
    pub fn earlier_zones(&self, object: &ObjectName, stripe: Option<Stripe>) -> Vec<Arc<Placement>> {
        let view = self.view();
        view.zones.before(&view.zone, &view.placement, object, stripe)
    }

    /// Returns the capacity of this node's cache, in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Returns the capacity of all nodes' caches, in bytes.
    #[must_use]
    pub fn total_capacity(&self) -> u64 {
        self.view().weights.values().fold(0, |all: u64, capacity| all.saturating_add(*capacity))
    }

    /// Returns the other nodes.
    #[must_use]
    pub fn members(&self) -> Members {
        self.view().members.clone()
    }

    /// Returns a receiver of the other nodes' addresses and their changes.
    #[must_use]
    pub fn addresses(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.addresses.subscribe()
    }

    /// Returns whether a node is in this node's zone.
    #[must_use]
    pub fn is_near(&self, node: &NodeName) -> bool {
        let view = self.view();
        !view.zone.is_empty() && view.members.get(node).is_some_and(|member| member.zone == view.zone)
    }

    /// Replaces the nodes of the cluster.
    pub fn set_members(&self, mut members: Members) {
        let zone = self.zone_in(&members);
        members.remove(&self.me);
        if let Some(peers) = &self.peers {
            peers.set_nodes(members.iter().map(|(name, member)| (name, member.address)));
        }
        let mut addresses: Vec<IpAddr> = members.values().map(|member| member.address).collect();
        addresses.sort_unstable();
        self.addresses.send_if_modified(|known| {
            let changed = *known != addresses;
            *known = addresses;
            changed
        });
        self.place(members, zone);
    }

    /// Returns the zone that the members state for this node, unless the configuration states it.
    fn zone_in(&self, members: &Members) -> Option<String> {
        members.get(&self.me).filter(|_| self.zone.is_empty()).map(|me| me.zone.clone())
    }

    /// Computes the placement of the known nodes; keeps the current one if nothing has changed.
    fn place(&self, members: Members, zone: Option<String>) {
        let reported = self.peers.as_ref().map(|peers| peers.capacities()).unwrap_or_default();
        // A node that has not reported its capacity is assumed to have this node's.
        let weight = |name, member: &ClusterMember| {
            reported.get(name).copied().or(member.capacity).unwrap_or(self.capacity)
        };
        let mut weights: BTreeMap<_, _> =
            members.iter().map(|(name, member)| (name.clone(), weight(name, member))).collect();
        weights.insert(self.me.clone(), self.capacity);
        let known = self.view();
        let placement = match known.weights == weights {
            true => known.placement.clone(),
            false => Arc::new(Placement::new(weights.clone())),
        };
        let zone = zone.unwrap_or_else(|| known.zone.clone());
        let nodes = members.iter().map(|(name, member)| (name, member.zone.as_str()));
        let nodes = nodes.chain([(&self.me, zone.as_str())]).filter(|_| self.per_zone);
        let nodes =
            nodes.filter_map(|(name, zone)| weights.get(name).map(|capacity| (name, *capacity, zone)));
        let zones = ZonePlacements::of(nodes, &known.zones);
        let view = Arc::new(View { members, zone, weights, placement, zones });
        *self.view.write() = view;
    }

    fn view(&self) -> Arc<View> {
        self.view.read().clone()
    }

    /// Follows membership and the state that nodes report until the future is dropped. A removed node keeps its share
    /// for a while, because it may only be restarting.
    pub async fn follow(&self, mut membership: watch::Receiver<Members>) {
        let mut look = tokio::time::interval(POLL_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leaving: BTreeMap<NodeName, (ClusterMember, Instant)> = BTreeMap::new();
        let mut before = Members::new();
        loop {
            tokio::select! {
                _ = look.tick() => {}
                changed = membership.changed() => if changed.is_err() { std::future::pending().await },
            }
            let now = membership.borrow_and_update().clone();
            for (name, member) in before {
                if !now.contains_key(&name) {
                    leaving.entry(name).or_insert((member, Instant::now()));
                }
            }
            leaving.retain(|name, (_, since)| !now.contains_key(name) && since.elapsed() < LOST_NODE_GRACE);
            let mut members = now.clone();
            members.extend(leaving.iter().map(|(name, (member, _))| (name.clone(), member.clone())));
            before = now;
            let others = || members.iter().filter(|(name, _)| **name != self.me);
            match others().eq(&self.view().members) {
                true => {
                    let others = others().map(|(name, member)| (name.clone(), member.clone())).collect();
                    self.place(others, self.zone_in(&members));
                }
                false => self.set_members(members),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lota_s3::ObjectName;

    fn node(name: &str) -> NodeName {
        NodeName(name.into())
    }

    fn member(last: u8, zone: &str) -> ClusterMember {
        ClusterMember { address: IpAddr::from([10, 0, 0, last]), zone: zone.into(), capacity: None }
    }

    fn first(cluster: &Cluster, key: u32) -> NodeName {
        let name = ObjectName::from_parts("http://gateway", "bucket", &key.to_string(), None).unwrap();
        cluster.placement().first(&name, 1)[0].clone()
    }

    fn cluster() -> Cluster {
        Cluster::new(node("n1"), "a".into(), 100, None)
    }

    #[test]
    fn members_get_a_share_by_capacity() {
        let cluster = cluster();
        assert!((0..100).all(|key| first(&cluster, key) == node("n1")));
        let big = ClusterMember { capacity: Some(300), ..member(2, "b") };
        cluster.set_members(
            [("n1", member(1, "a")), ("n2", big), ("n3", member(3, "a"))]
                .map(|(name, member)| (node(name), member))
                .into(),
        );
        assert_eq!(cluster.members().len(), 2, "the others");
        assert_eq!(*cluster.addresses().borrow(), [2, 3].map(|last| IpAddr::from([10, 0, 0, last])));
        let count = |name| (0..1000).filter(|key| first(&cluster, *key) == node(name)).count();
        assert!((150..250).contains(&count("n1")) && (550..650).contains(&count("n2")), "by capacity");
        assert!(
            cluster.is_near(&node("n3")) && !cluster.is_near(&node("n2")) && !cluster.is_near(&node("n9"))
        );
    }

    #[test]
    fn owners_per_zone_are_of_this_nodes_zone() {
        let members = || -> Members {
            [("n1", member(1, "b")), ("n2", member(2, "a")), ("n3", member(3, "b")), ("n4", member(4, ""))]
                .map(|(name, member)| (node(name), member))
                .into()
        };
        for (per_zone, own, near) in
            [(true, "a", 2), (true, "", 2), (true, "c", 1), (false, "a", 4), (true, "b", 2)]
        {
            let cluster = Cluster::new(node("n1"), own.into(), 100, None).with_owners_per_zone(per_zone);
            assert!(cluster.placement_near().len() == 1 && !cluster.has_owners_per_zone(), "alone");
            cluster.set_members(members());
            assert_eq!(cluster.placement_near().len(), near, "{per_zone} `{own}`");
            assert_eq!((cluster.placement().len(), cluster.has_owners_per_zone()), (4, per_zone));
        }
        let nowhere = Cluster::new(node("n4"), String::new(), 100, None).with_owners_per_zone(true);
        nowhere.set_members(members());
        assert_eq!(nowhere.placement_near().len(), 4, "a node without a zone asks all");
        let name = ObjectName::from_parts("http://gateway", "bucket", "key", None).unwrap();
        assert!(nowhere.earlier_zones(&name, None).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn this_nodes_zone_is_learned_after_the_other_nodes() {
        let cluster = Arc::new(Cluster::new(node("n1"), String::new(), 100, None));
        let other = (node("n2"), member(2, "a"));
        let (sender, receiver) = watch::channel(Members::from([other.clone()]));
        let following = tokio::spawn({
            let cluster = cluster.clone();
            async move { cluster.follow(receiver).await }
        });
        tokio::time::sleep(POLL_INTERVAL).await;
        assert!(!cluster.is_near(&node("n2")));
        sender.send_replace(Members::from([other, (node("n1"), member(1, "a"))]));
        tokio::time::sleep(POLL_INTERVAL).await;
        assert!(cluster.is_near(&node("n2")));
        following.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_node_keeps_its_share_for_a_while() {
        let cluster = Arc::new(cluster());
        let (sender, receiver) = watch::channel(Members::from([(node("n2"), member(2, ""))]));
        let following = tokio::spawn({
            let cluster = cluster.clone();
            async move { cluster.follow(receiver).await }
        });
        tokio::time::sleep(POLL_INTERVAL).await;
        assert_eq!(cluster.members().len(), 1);
        sender.send_replace(Members::new());
        tokio::time::sleep(POLL_INTERVAL).await;
        assert_eq!(cluster.members().len(), 1, "it may be restarting");
        tokio::time::sleep(LOST_NODE_GRACE + POLL_INTERVAL).await;
        assert!(cluster.members().is_empty() && cluster.addresses().borrow().is_empty());
        following.abort();
    }
}
