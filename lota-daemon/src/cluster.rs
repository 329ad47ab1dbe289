//! Who the cluster's nodes are, as this node knows them now, and the placement that follows.
//!
//! Nodes need not agree at each instant: a wrong owner costs a miss, never an error.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    peer::{GRACE, Peers},
    placement::{NodeName, Placement},
};

/// How often it is looked at what peers have said of themselves.
const LOOK: Duration = Duration::from_secs(1);

/// A node of the cluster, as who tells of it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where its peer port is.
    pub address: IpAddr,
    /// Its zone; empty, if nobody says.
    pub zone: String,
    /// Its cache's capacity in bytes, until it says so itself.
    pub capacity: Option<u64>,
}

/// The nodes by name; this one may be among them.
pub type Members = BTreeMap<NodeName, Member>;

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    me: NodeName,
    zone: String,
    /// What keeps placements of different gateways apart.
    scope: String,
    /// This node's, in bytes.
    capacity: u64,
    peers: Option<Arc<Peers>>,
    view: RwLock<Arc<View>>,
    /// The nodes' addresses, for the guard.
    addresses: watch::Sender<Vec<IpAddr>>,
}

#[derive(Debug)]
struct View {
    /// This node is not among them.
    members: Members,
    /// This node's; the configuration's, or else as it is told with the members.
    zone: String,
    weights: BTreeMap<NodeName, u64>,
    placement: Arc<Placement>,
}

impl Cluster {
    /// A cluster of `me` alone, whose cache holds `capacity` bytes.
    #[must_use]
    pub fn new(me: NodeName, zone: String, scope: String, capacity: u64, peers: Option<Arc<Peers>>) -> Self {
        let weights = BTreeMap::from([(me.clone(), capacity)]);
        let placement = Arc::new(Placement::new(&scope, weights.clone()));
        let view = View { members: Members::new(), zone: zone.clone(), weights, placement };
        let view = RwLock::new(Arc::new(view));
        Self { me, zone, scope, capacity, peers, view, addresses: watch::Sender::default() }
    }

    /// Which node should have what.
    #[must_use]
    pub fn placement(&self) -> Arc<Placement> {
        self.view().placement.clone()
    }

    /// What this node's cache holds at most, in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The other nodes.
    #[must_use]
    pub fn members(&self) -> Members {
        self.view().members.clone()
    }

    /// The other nodes' addresses, as they change.
    #[must_use]
    pub fn addresses(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.addresses.subscribe()
    }

    /// Is that node in this one's zone?
    #[must_use]
    pub fn is_near(&self, node: &NodeName) -> bool {
        let view = self.view();
        !view.zone.is_empty() && view.members.get(node).is_some_and(|member| member.zone == view.zone)
    }

    /// Who is told to be there from now on.
    pub fn set_members(&self, mut members: Members) {
        let told = members.remove(&self.me).map(|me| me.zone).filter(|_| self.zone.is_empty());
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
        self.place(members, told);
    }

    /// Places by what is known now; nothing moves, if that is nothing new.
    fn place(&self, members: Members, zone: Option<String>) {
        let told = self.peers.as_ref().map(|peers| peers.capacities()).unwrap_or_default();
        // One that has not said anything yet is most likely like this one.
        let weight =
            |name, member: &Member| told.get(name).copied().or(member.capacity).unwrap_or(self.capacity);
        let mut weights: BTreeMap<_, _> =
            members.iter().map(|(name, member)| (name.clone(), weight(name, member))).collect();
        weights.insert(self.me.clone(), self.capacity);
        let known = self.view();
        let placement = match known.weights == weights {
            true => known.placement.clone(),
            false => Arc::new(Placement::new(&self.scope, weights.clone())),
        };
        let zone = zone.unwrap_or_else(|| known.zone.clone());
        let view = Arc::new(View { members, zone, weights, placement });
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows who is told to be there, and what nodes say of themselves, for as long as it is polled. A node that nobody
    /// tells of any more keeps its share for a while: it may only be restarting.
    pub async fn follow(&self, mut told: watch::Receiver<Members>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leaving: BTreeMap<NodeName, (Member, Instant)> = BTreeMap::new();
        let mut before = Members::new();
        loop {
            tokio::select! {
                _ = look.tick() => {}
                changed = told.changed() => if changed.is_err() { std::future::pending().await },
            }
            let now = told.borrow_and_update().clone();
            for (name, member) in before {
                if !now.contains_key(&name) {
                    leaving.entry(name).or_insert((member, Instant::now()));
                }
            }
            leaving.retain(|name, (_, since)| !now.contains_key(name) && since.elapsed() < GRACE);
            let mut members = now.clone();
            members.extend(leaving.iter().map(|(name, (member, _))| (name.clone(), member.clone())));
            before = now;
            let others = || members.iter().filter(|(name, _)| **name != self.me);
            match others().eq(&self.view().members) {
                true => {
                    self.place(others().map(|(name, member)| (name.clone(), member.clone())).collect(), None);
                }
                false => self.set_members(members),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::ObjectName;

    fn node(name: &str) -> NodeName {
        NodeName(name.into())
    }

    fn member(last: u8, zone: &str) -> Member {
        Member { address: IpAddr::from([10, 0, 0, last]), zone: zone.into(), capacity: None }
    }

    fn first(cluster: &Cluster, key: u32) -> NodeName {
        let name = ObjectName::from_parts("bucket", &key.to_string(), None).unwrap();
        cluster.placement().first(&name, 1)[0].clone()
    }

    fn cluster() -> Cluster {
        Cluster::new(node("n1"), "a".into(), "http://gw".into(), 100, None)
    }

    #[test]
    fn who_is_told_of_has_a_share() {
        let cluster = cluster();
        assert!((0..100).all(|key| first(&cluster, key) == node("n1")));
        let big = Member { capacity: Some(300), ..member(2, "b") };
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

    #[tokio::test(start_paused = true)]
    async fn who_leaves_keeps_its_share_for_a_while() {
        let cluster = Arc::new(cluster());
        let (tell, told) = watch::channel(Members::from([(node("n2"), member(2, ""))]));
        let following = tokio::spawn({
            let cluster = cluster.clone();
            async move { cluster.follow(told).await }
        });
        tokio::time::sleep(LOOK).await;
        assert_eq!(cluster.members().len(), 1);
        tell.send_replace(Members::new());
        tokio::time::sleep(LOOK).await;
        assert_eq!(cluster.members().len(), 1, "it may be back soon");
        tokio::time::sleep(GRACE + LOOK).await;
        assert!(cluster.members().is_empty() && cluster.addresses().borrow().is_empty());
        following.abort();
    }
}
