use proptest::prelude::*;

use super::*;
use crate::datapath::Interface;

fn interfaces(indices: impl IntoIterator<Item = u32>) -> Interfaces {
    let veth = |index| Interface { name: format!("veth{index}"), kind: "veth".into(), controller: None };
    Interfaces(indices.into_iter().map(|index| (index, veth(index))).collect())
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn pod(last: u8, started: i64) -> Pod {
    Pod { addresses: BTreeSet::from([address(last)]), allowed: true, started }
}

fn told(pods: &[(&str, Pod)]) -> BTreeMap<Uid, Pod> {
    pods.iter().map(|(uid, pod)| ((*uid).to_owned(), pod.clone())).collect()
}

#[test]
fn a_reused_address_begins_without_access() {
    let mut pods = Pods::default();
    pods.set(told(&[("a", pod(2, 1))]), &interfaces([7]));
    assert_eq!(pods.unbound(), [address(2)]);
    pods.bind(address(2), 7);
    assert_eq!(pods.entries(&interfaces([7])), BTreeMap::from([(address(2), 7)]));
    // Its interface goes, another comes; the API server has not heard of either.
    assert!(pods.entries(&interfaces([8])).is_empty());
    pods.set(told(&[("a", pod(2, 1))]), &interfaces([7, 8]));
    assert!(pods.unbound().is_empty() && pods.entries(&interfaces([7, 8])).is_empty());
    // The next pod with the address has been told of, too, beside the one that is going.
    pods.set(told(&[("a", pod(2, 1)), ("b", pod(2, 2))]), &interfaces([8]));
    pods.bind(address(2), 8);
    assert_eq!(pods.entries(&interfaces([8])), BTreeMap::from([(address(2), 8)]));
    let refused = Pod { allowed: false, ..pod(2, 2) };
    pods.set(told(&[("a", pod(2, 1)), ("b", refused)]), &interfaces([8]));
    assert!(pods.entries(&interfaces([8])).is_empty(), "the older one has no claim to it");
}

#[test]
fn an_address_is_not_given_to_an_interface_that_came_after_it_was_told_of() {
    let mut pods = Pods::default();
    // The pod's interface is gone, and another pod gets its address.
    pods.set(told(&[("a", pod(2, 1))]), &interfaces([6]));
    pods.bind(address(2), 8);
    assert!(pods.entries(&interfaces([6, 8])).is_empty());
    pods.set(told(&[("a", pod(2, 1))]), &interfaces([6, 8]));
    pods.bind(address(2), 8);
    assert!(pods.entries(&interfaces([6, 8])).is_empty());
}

#[test]
fn a_pod_from_before_the_daemon_is_where_it_can_have_been() {
    for (started, expected) in [(99, None), (100, Some(8))] {
        let mut pods = Pods::default();
        pods.find([(address(2), 7)], &interfaces([7]), 100);
        // Before the API server tells, the interface goes, and another comes for the address.
        assert!(pods.entries(&interfaces([8])).is_empty());
        pods.set(told(&[("a", pod(2, started))]), &interfaces([8]));
        pods.bind(address(2), 8);
        assert_eq!(pods.entries(&interfaces([8])).get(&address(2)).copied(), expected);
        pods.set(told(&[("b", pod(2, 98))]), &interfaces([8]));
        pods.bind(address(2), 8);
        assert_eq!(pods.entries(&interfaces([8])).len(), 1, "who comes later is not from before");
    }
}

#[test]
fn who_had_an_address_before_another_never_gets_it_back() {
    let mut pods = Pods::default();
    pods.find([(address(2), 8)], &interfaces([8]), 10);
    pods.set(told(&[("a", pod(2, 1)), ("b", pod(2, 2))]), &interfaces([8]));
    assert_eq!(pods.entries(&interfaces([8])), BTreeMap::from([(address(2), 8)]), "b's");
    pods.set(told(&[("a", pod(2, 1))]), &interfaces([8]));
    assert!(
        pods.unbound().is_empty() && pods.entries(&interfaces([8])).is_empty(),
        "b is gone, its network not yet"
    );
}

#[test]
fn a_pod_that_starts_anew_with_its_address_has_access_again() {
    let mut pods = Pods::default();
    pods.set(told(&[("a", pod(2, 1))]), &interfaces([7]));
    pods.bind(address(2), 7);
    assert!(pods.entries(&interfaces([8])).is_empty());
    pods.set(told(&[("a", pod(2, 2))]), &interfaces([8]));
    pods.bind(address(2), 8);
    assert_eq!(pods.entries(&interfaces([8])), BTreeMap::from([(address(2), 8)]));
    // A container that starts again does not move its pod.
    pods.set(told(&[("a", pod(2, 3))]), &interfaces([8, 9]));
    assert!(pods.unbound().is_empty());
}

#[test]
fn a_pod_that_loses_and_regains_access_stays_where_it_was() {
    let mut pods = Pods::default();
    let there = interfaces([7, 8]);
    pods.set(told(&[("a", Pod { allowed: false, ..pod(2, 1) })]), &there);
    pods.bind(address(2), 7);
    assert!(pods.entries(&there).is_empty());
    pods.set(told(&[("a", pod(2, 1))]), &there);
    assert!(pods.unbound().is_empty());
    assert_eq!(pods.entries(&there), BTreeMap::from([(address(2), 7)]));
}

#[test]
fn what_an_earlier_daemon_let_in_holds_until_the_api_server_tells() {
    let mut pods = Pods::default();
    pods.find([(address(2), 7), (address(3), 8)], &interfaces([6, 7, 8]), 10);
    assert_eq!(pods.entries(&interfaces([7, 9])), BTreeMap::from([(address(2), 7)]));
    assert_eq!(pods.entries(&interfaces([7, 8])), BTreeMap::from([(address(2), 7)]), "8 is another now");
    pods.set(told(&[("a", pod(2, 1)), ("b", pod(4, 1))]), &interfaces([6, 7]));
    assert_eq!(pods.unbound(), [address(4)]);
    assert_eq!(pods.entries(&interfaces([7])), BTreeMap::from([(address(2), 7)]));
}

/// What happens to a node.
#[derive(Clone, Debug)]
enum Event {
    /// A pod comes: its network, then what is told of it.
    Come {
        uid: u8,
        last: u8,
        allowed: bool,
    },
    /// The network of a pod that nobody has told of yet.
    Connect {
        last: u8,
    },
    /// A pod's network is made anew, with the address it had.
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
    /// The daemon starts anew, and before it is told of anyone the network of such a pod comes.
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
    /// Nobody is let in but pods that are allowed, the last to have their address, where their network was made.
    #[test]
    fn nobody_else_is_let_in(events in prop::collection::vec(event(), 0..60)) {
        let (mut pods, mut api) = (Pods::default(), BTreeMap::<Uid, Pod>::new());
        // Which interface leads to each address, and, by a model that keeps nothing else, where each pod's network is.
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
                    // A daemon that was not there cannot know that a network is not of the pod that is told of.
                    links.retain(|_, index| api.keys().any(|uid| homes[uid] == *index));
                    let there = interfaces(links.values().copied());
                    let let_in = pods.entries(&there);
                    pods = Pods::default();
                    pods.find(let_in, &there, clock);
                    links.insert(last, next);
                }
            }
            let there = interfaces(links.values().copied());
            pods.set(api.clone(), &there);
            for unbound in pods.unbound() {
                if let Some((_, index)) = links.iter().find(|(last, _)| address(**last) == unbound) {
                    pods.bind(unbound, *index);
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
            prop_assert_eq!(pods.entries(&there), expected);
        }
    }
}
