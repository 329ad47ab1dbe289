use lota_datapath::{Interface, PeerInterface};
use proptest::prelude::*;

use super::*;

fn interfaces(indices: impl IntoIterator<Item = u32>) -> Interfaces {
    let veth =
        |index| Interface { name: format!("veth{index}"), kind: "veth".into(), controller: None, peer: None };
    Interfaces(indices.into_iter().map(|index| (index, veth(index))).collect())
}

/// Returns the interface with this index.
fn link(index: u32) -> PodLink {
    interfaces([index]).pod_link(index).unwrap()
}

/// Returns the index of the interface at which each allowed address is seen.
fn entries(pods: &mut Pods, interfaces: &Interfaces) -> BTreeMap<IpAddr, u32> {
    pods.entries(interfaces).into_iter().map(|(address, link)| (address, link.ifindex)).collect()
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn pod(last: u8, started: i64) -> Pod {
    Pod { addresses: BTreeSet::from([address(last)]), allowed: true, started }
}

fn reported(pods: &[(&str, Pod)]) -> BTreeMap<Uid, Pod> {
    pods.iter().map(|(uid, pod)| ((*uid).to_owned(), pod.clone())).collect()
}

#[test]
fn a_reused_address_begins_without_access() {
    let mut pods = Pods::default();
    pods.set(reported(&[("a", pod(2, 1))]), &interfaces([7]));
    assert_eq!(pods.unbound(), [address(2)]);
    pods.bind(address(2), link(7));
    assert_eq!(entries(&mut pods, &interfaces([7])), BTreeMap::from([(address(2), 7)]));
    // The interface is replaced before the API server reports it.
    assert!(entries(&mut pods, &interfaces([8])).is_empty());
    pods.set(reported(&[("a", pod(2, 1))]), &interfaces([7, 8]));
    assert!(pods.unbound().is_empty() && entries(&mut pods, &interfaces([7, 8])).is_empty());
    // The API server reports the next pod with the address while the first still terminates.
    pods.set(reported(&[("a", pod(2, 1)), ("b", pod(2, 2))]), &interfaces([8]));
    pods.bind(address(2), link(8));
    assert_eq!(entries(&mut pods, &interfaces([8])), BTreeMap::from([(address(2), 8)]));
    let refused = Pod { allowed: false, ..pod(2, 2) };
    pods.set(reported(&[("a", pod(2, 1)), ("b", refused)]), &interfaces([8]));
    assert!(entries(&mut pods, &interfaces([8])).is_empty(), "the earlier pod must not get the address back");
}

#[test]
fn an_address_is_not_bound_to_an_interface_that_was_added_after_its_update() {
    let mut pods = Pods::default();
    // The pod's interface is removed, and another pod gets its address.
    pods.set(reported(&[("a", pod(2, 1))]), &interfaces([6]));
    pods.bind(address(2), link(8));
    assert!(entries(&mut pods, &interfaces([6, 8])).is_empty());
    pods.set(reported(&[("a", pod(2, 1))]), &interfaces([6, 8]));
    pods.bind(address(2), link(8));
    assert!(entries(&mut pods, &interfaces([6, 8])).is_empty());
}

#[test]
fn a_pod_from_before_the_daemon_is_bound_only_to_an_interface_from_before_it() {
    for (started, expected) in [(99, None), (100, Some(8))] {
        let mut pods = Pods::default();
        pods.find([(address(2), link(7))], &interfaces([7]), 100);
        // Before the first update, the interface is replaced by another one with the same address.
        assert!(entries(&mut pods, &interfaces([8])).is_empty());
        pods.set(reported(&[("a", pod(2, started))]), &interfaces([8]));
        pods.bind(address(2), link(8));
        assert_eq!(entries(&mut pods, &interfaces([8])).get(&address(2)).copied(), expected);
        pods.set(reported(&[("b", pod(2, 98))]), &interfaces([8]));
        pods.bind(address(2), link(8));
        assert_eq!(
            entries(&mut pods, &interfaces([8])).len(),
            1,
            "a pod of a later update may use a new interface"
        );
    }
}

#[test]
fn an_earlier_holder_never_gets_its_address_back() {
    let mut pods = Pods::default();
    pods.find([(address(2), link(8))], &interfaces([8]), 10);
    pods.set(reported(&[("a", pod(2, 1)), ("b", pod(2, 2))]), &interfaces([8]));
    assert_eq!(entries(&mut pods, &interfaces([8])), BTreeMap::from([(address(2), 8)]), "b's");
    pods.set(reported(&[("a", pod(2, 1))]), &interfaces([8]));
    assert!(
        pods.unbound().is_empty() && entries(&mut pods, &interfaces([8])).is_empty(),
        "b is gone, but its network still exists"
    );
}

#[test]
fn a_pod_that_restarts_with_its_address_has_access_again() {
    let mut pods = Pods::default();
    pods.set(reported(&[("a", pod(2, 1))]), &interfaces([7]));
    pods.bind(address(2), link(7));
    assert!(entries(&mut pods, &interfaces([8])).is_empty());
    pods.set(reported(&[("a", pod(2, 2))]), &interfaces([8]));
    pods.bind(address(2), link(8));
    assert_eq!(entries(&mut pods, &interfaces([8])), BTreeMap::from([(address(2), 8)]));
    // A container restart does not move its pod.
    pods.set(reported(&[("a", pod(2, 3))]), &interfaces([8, 9]));
    assert!(pods.unbound().is_empty());
}

#[test]
fn a_pod_that_loses_and_regains_access_keeps_its_interface() {
    let mut pods = Pods::default();
    let there = interfaces([7, 8]);
    pods.set(reported(&[("a", Pod { allowed: false, ..pod(2, 1) })]), &there);
    pods.bind(address(2), link(7));
    assert!(entries(&mut pods, &there).is_empty());
    pods.set(reported(&[("a", pod(2, 1))]), &there);
    assert!(pods.unbound().is_empty());
    assert_eq!(entries(&mut pods, &there), BTreeMap::from([(address(2), 7)]));
}

#[test]
fn entries_of_the_previous_daemon_hold_until_the_first_update() {
    let mut pods = Pods::default();
    pods.find([(address(2), link(7)), (address(3), link(8))], &interfaces([6, 7, 8]), 10);
    assert_eq!(entries(&mut pods, &interfaces([7, 9])), BTreeMap::from([(address(2), 7)]));
    assert_eq!(
        entries(&mut pods, &interfaces([7, 8])),
        BTreeMap::from([(address(2), 7)]),
        "8 is another interface now"
    );
    pods.set(reported(&[("a", pod(2, 1)), ("b", pod(4, 1))]), &interfaces([6, 7]));
    assert_eq!(pods.unbound(), [address(4)]);
    assert_eq!(entries(&mut pods, &interfaces([7])), BTreeMap::from([(address(2), 7)]));
}

/// Returns interfaces to pods' network namespaces, by index.
fn pairs(namespaces: &[(u32, i32)]) -> Interfaces {
    let mut pairs = interfaces(namespaces.iter().map(|(index, _)| *index));
    for (index, namespace) in namespaces {
        pairs.0.get_mut(index).unwrap().peer = Some(PeerInterface { index: 2, namespace: *namespace });
    }
    pairs
}

fn claims(of: &[(u32, &[u8])]) -> AddressClaims {
    let mut claims = AddressClaims::default();
    of.iter().for_each(|(interface, lasts)| claims.add(*interface, lasts.iter().map(|last| address(*last))));
    claims
}

#[test]
fn a_pod_cannot_claim_the_address_of_another() {
    let there = pairs(&[(7, 0), (8, 1), (9, 2)]);
    let both = reported(&[("a", pod(2, 1)), ("b", pod(3, 1))]);
    for (found, expected) in [
        // b adds a's address to its own interface: it is a's namespace that remains for it.
        (claims(&[(7, &[2]), (8, &[3, 2])]), vec![(2, 7), (3, 8)]),
        // An interface of no known pod has the address, too.
        (claims(&[(7, &[2]), (8, &[3]), (9, &[2])]), vec![(3, 8)]),
        // Each claims the other's.
        (claims(&[(7, &[2, 3]), (8, &[3, 2])]), vec![]),
    ] {
        let mut pods = Pods::default();
        pods.set(both.clone(), &there);
        pods.locate(&found, &there);
        let expected: BTreeMap<_, _> =
            expected.into_iter().map(|(last, index)| (address(last), index)).collect();
        assert_eq!(entries(&mut pods, &there), expected, "{found:?}");
        // What is bound stays bound, whatever is claimed later.
        pods.locate(&claims(&[(9, &[2, 3])]), &there);
        let kept = entries(&mut pods, &there);
        assert!(expected.iter().all(|(address, index)| kept.get(address) == Some(index)), "{found:?}");
    }
}

#[test]
fn a_pod_that_loses_its_own_address_cannot_take_another_one() {
    let before = pairs(&[(7, 0), (8, 1)]);
    let mut pods = Pods::default();
    pods.set(reported(&[("b", pod(3, 1))]), &before);
    pods.locate(&claims(&[(8, &[3])]), &before);
    // It moves its interface to another namespace, or is no longer reported, and claims the address of a new pod.
    let moved = pairs(&[(7, 0), (8, 5)]);
    pods.set(reported(&[("a", pod(2, 2))]), &moved);
    pods.locate(&claims(&[(8, &[2])]), &moved);
    assert!(entries(&mut pods, &moved).is_empty());
    pods.locate(&claims(&[(7, &[2]), (8, &[2])]), &moved);
    assert_eq!(entries(&mut pods, &moved), BTreeMap::from([(address(2), 7)]));
    assert_eq!(pods.ports(), BTreeSet::from([7, 8]), "its interface stays protected");
    pods.forget_interfaces(&BTreeSet::from([8]));
    assert_eq!(pods.ports(), BTreeSet::from([7]));
}

#[test]
fn a_new_interface_with_a_reused_index_is_another_one() {
    let mut pods = Pods::default();
    pods.set(reported(&[("a", pod(2, 1))]), &pairs(&[(7, 0)]));
    pods.locate(&claims(&[(7, &[2])]), &pairs(&[(7, 0)]));
    assert_eq!(entries(&mut pods, &pairs(&[(7, 0)])).len(), 1);
    assert!(entries(&mut pods, &pairs(&[(7, 1)])).is_empty(), "another namespace is behind it");
    assert!(entries(&mut pods, &pairs(&[(7, 0)])).is_empty(), "the access does not come back");
}

#[test]
fn an_interface_that_was_removed_does_not_come_back_under_its_index() {
    let there = pairs(&[(7, 0), (8, 1)]);
    let mut pods = Pods::default();
    pods.set(reported(&[("a", pod(2, 1)), ("b", pod(3, 1))]), &there);
    pods.locate(&claims(&[(7, &[2])]), &there);
    pods.forget_interfaces(&BTreeSet::from([7, 8]));
    // Interfaces with the same indices and namespace IDs.
    pods.locate(&claims(&[(7, &[2]), (8, &[3])]), &there);
    assert!(entries(&mut pods, &there).is_empty());
    assert_eq!(pods.unbound(), [address(3)]);
}

#[test]
fn a_pod_at_a_bridge_loses_access_with_its_port() {
    let bridged = |ports: &[(u32, i32)]| {
        let mut there = pairs(ports);
        there.0.values_mut().for_each(|port| port.controller = Some(4));
        let bridge = Interface { name: "cni0".into(), kind: "bridge".into(), controller: None, peer: None };
        there.0.insert(4, bridge);
        there
    };
    let mut pods = Pods::default();
    pods.set(reported(&[("a", pod(2, 1)), ("b", pod(3, 1))]), &bridged(&[(7, 0), (8, 1)]));
    pods.locate(&claims(&[(7, &[2]), (8, &[3])]), &bridged(&[(7, 0), (8, 1)]));
    assert_eq!(
        entries(&mut pods, &bridged(&[(7, 0), (8, 1)])),
        BTreeMap::from([(address(2), 4), (address(3), 4)])
    );
    assert_eq!(entries(&mut pods, &bridged(&[(8, 1)])), BTreeMap::from([(address(3), 4)]));
}

/// Event on a node.
#[derive(Clone, Debug)]
enum Event {
    /// Adds a pod: first its network, then its update.
    Come {
        uid: u8,
        last: u8,
        allowed: bool,
    },
    /// Adds the network of a pod that is not reported yet.
    Connect {
        last: u8,
    },
    /// Makes a pod's network again, with the same address.
    Again {
        uid: u8,
    },
    Go {
        uid: u8,
    },
    Relabel {
        uid: u8,
        allowed: bool,
    },
    Disconnect {
        last: u8,
    },
    /// Restarts the daemon and adds the network of an unreported pod before the first update.
    Restart {
        last: u8,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let (uid, last) = (0u8..6, 0u8..3);
    prop_oneof![
        (uid.clone(), last.clone(), any::<bool>()).prop_map(|(uid, last, allowed)| Event::Come {
            uid,
            last,
            allowed
        }),
        last.clone().prop_map(|last| Event::Connect { last }),
        uid.clone().prop_map(|uid| Event::Again { uid }),
        uid.clone().prop_map(|uid| Event::Go { uid }),
        (uid, any::<bool>()).prop_map(|(uid, allowed)| Event::Relabel { uid, allowed }),
        last.clone().prop_map(|last| Event::Disconnect { last }),
        last.prop_map(|last| Event::Restart { last }),
    ]
}

proptest! {
    /// Allows only pods that the rules select, that got their address last, and only at their own interface.
    #[test]
    fn no_other_pod_is_allowed(events in prop::collection::vec(event(), 0..60)) {
        let (mut pods, mut api) = (Pods::default(), BTreeMap::<Uid, Pod>::new());
        // The interface of each address, and a reference model: the interface of each pod's network.
        let (mut links, mut homes) = (BTreeMap::<u8, u32>::new(), BTreeMap::<Uid, u32>::new());
        let (mut next, mut clock) = (0, 0);
        for event in events {
            (next, clock) = (next + 1, clock + 1);
            let named = |uid: u8| api.keys().find(|name| name.starts_with(&format!("{uid}-"))).cloned();
            match event {
                Event::Come { uid, last, allowed } => {
                    let uid = format!("{uid}-{clock}");
                    links.insert(last, next);
                    homes.insert(uid.clone(), next);
                    api.insert(uid, Pod { allowed, ..pod(last, clock) });
                }
                Event::Connect { last } => drop(links.insert(last, next)),
                Event::Again { uid } => if let Some(uid) = named(uid) && let Some(pod) = api.get_mut(&uid) {
                    pod.started = clock;
                    let last = (0..3).find(|last| pod.addresses.contains(&address(*last))).unwrap();
                    links.insert(last, next);
                    homes.insert(uid, next);
                }
                Event::Go { uid } => if let Some(uid) = named(uid) { api.remove(&uid); }
                Event::Relabel { uid, allowed } => if let Some(uid) = named(uid) {
                    api.get_mut(&uid).unwrap().allowed = allowed;
                }
                Event::Disconnect { last } => drop(links.remove(&last)),
                Event::Restart { last } => {
                    // A daemon that did not run cannot know that a network belongs to another pod than the reported
                    // one.
                    links.retain(|_, index| api.keys().any(|uid| homes[uid] == *index));
                    let there = interfaces(links.values().copied());
                    let let_in = entries(&mut pods, &there).into_iter().map(|(address, index)| (address, link(index)));
                    pods = Pods::default();
                    pods.find(let_in, &there, clock);
                    links.insert(last, next);
                }
            }
            let there = interfaces(links.values().copied());
            pods.set(api.clone(), &there);
            for unbound in pods.unbound() {
                if let Some((_, index)) = links.iter().find(|(last, _)| address(**last) == unbound) {
                    pods.bind(unbound, link(*index));
                }
            }
            let mut expected = BTreeMap::new();
            for last in 0..3 {
                let holder = api.iter().filter(|(_, pod)| pod.addresses.contains(&address(last)))
                    .max_by_key(|(_, pod)| pod.started);
                if let Some((uid, pod)) = holder && pod.allowed && links.get(&last) == Some(&homes[uid]) {
                    expected.insert(address(last), homes[uid]);
                }
            }
            prop_assert_eq!(entries(&mut pods, &there), expected);
        }
    }
}
