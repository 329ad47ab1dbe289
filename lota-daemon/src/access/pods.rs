//! Pods that Kubernetes tells of, each bound once to the interface it is behind.
//!
//! An address is reused, an interface is not: a pod whose interface is gone has no access any more, whatever the API
//! server still says, and who has its address next begins without.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::datapath::Interfaces;

/// A pod's identity, which no later pod has.
pub type Uid = String;

/// A pod of this node with addresses of its own, as the API server tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Do the rules select it?
    pub allowed: bool,
    /// When it was made, in seconds: of two with one address, the later one has it.
    pub created: i64,
}

/// Every pod of this node.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    pods: BTreeMap<Uid, Known>,
    /// How many pods have been told of, ever.
    told: u64,
    /// What an earlier daemon had let in, until the API server tells.
    adopted: BTreeMap<IpAddr, u32>,
}

/// A pod, and where it is.
#[derive(Clone, Debug)]
struct Known {
    pod: Pod,
    /// How many had been told of before: an API server's times are whole seconds.
    place: u64,
    bindings: BTreeMap<IpAddr, Binding>,
}

/// Where an address of a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binding {
    /// Nowhere yet.
    Unbound,
    /// Behind the interface of this index.
    At(u32),
    /// Its interface is gone.
    Gone,
}

impl Pods {
    /// What an earlier daemon had let in: it holds until the API server tells, for interfaces that live.
    pub fn adopt(&mut self, addresses: impl IntoIterator<Item = (IpAddr, u32)>) {
        self.adopted.extend(addresses);
    }

    /// All pods that there are now. Those that were there keep what they are bound to.
    pub fn set(&mut self, mut now: BTreeMap<Uid, Pod>) {
        let adopted = std::mem::take(&mut self.adopted);
        self.pods.retain(|uid, known| match now.remove(uid) {
            Some(told) => {
                known.pod = told;
                known.bindings.retain(|address, _| known.pod.addresses.contains(address));
                true
            }
            None => false,
        });
        self.pods.extend(now.into_iter().map(|(uid, pod)| {
            self.told += 1;
            (uid, Known { pod, place: self.told, bindings: BTreeMap::new() })
        }));
        for known in self.pods.values_mut() {
            for address in &known.pod.addresses {
                let binding = adopted.get(address).map_or(Binding::Unbound, |index| Binding::At(*index));
                known.bindings.entry(*address).or_insert(binding);
            }
        }
    }

    /// Who has each address: of several, who was made last.
    fn holders(&self) -> BTreeMap<IpAddr, &Uid> {
        let mut claims: Vec<_> = self.pods.iter().collect();
        claims.sort_by_key(|(_, known)| (known.pod.created, known.place));
        let mut holders = BTreeMap::new();
        for (uid, known) in claims {
            holders.extend(known.pod.addresses.iter().map(|address| (*address, uid)));
        }
        holders
    }

    /// Addresses whose interface is to be found, so that they can be bound.
    #[must_use]
    pub fn unbound(&self) -> Vec<IpAddr> {
        let is_unbound =
            |(address, uid): &(IpAddr, &Uid)| self.pods[*uid].bindings[address] == Binding::Unbound;
        self.holders().into_iter().filter(is_unbound).map(|(address, _)| address).collect()
    }

    /// The pod that has this address now is behind the interface of this index.
    pub fn bind(&mut self, address: IpAddr, index: u32) {
        let holder = self.holders().get(&address).map(|uid| (*uid).clone());
        let pod = holder.and_then(|uid| self.pods.get_mut(&uid));
        if let Some(binding @ Binding::Unbound) = pod.and_then(|pod| pod.bindings.get_mut(&address)) {
            *binding = Binding::At(index);
        }
    }

    /// Who may, from which interface, given those that there are.
    pub fn entries(&mut self, interfaces: &Interfaces) -> BTreeMap<IpAddr, u32> {
        let lives = |index: &u32| interfaces.0.contains_key(index);
        self.adopted.retain(|_, index| lives(index));
        for binding in self.pods.values_mut().flat_map(|known| known.bindings.values_mut()) {
            if let Binding::At(index) = binding
                && !lives(index)
            {
                *binding = Binding::Gone;
            }
        }
        let mut entries = self.adopted.clone();
        entries.extend(self.holders().into_iter().filter_map(|(address, uid)| {
            let known = &self.pods[uid];
            match known.bindings[&address] {
                Binding::At(index) if known.pod.allowed => Some((address, index)),
                _ => None,
            }
        }));
        entries
    }
}

#[cfg(test)]
mod tests {
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

    fn pod(last: u8, created: i64) -> Pod {
        Pod { addresses: BTreeSet::from([address(last)]), allowed: true, created }
    }

    fn told(pods: &[(&str, Pod)]) -> BTreeMap<Uid, Pod> {
        pods.iter().map(|(uid, pod)| ((*uid).to_owned(), pod.clone())).collect()
    }

    #[test]
    fn a_reused_address_begins_without_access() {
        let mut pods = Pods::default();
        pods.set(told(&[("a", pod(2, 1))]));
        assert_eq!(pods.unbound(), [address(2)]);
        pods.bind(address(2), 7);
        assert_eq!(pods.entries(&interfaces([7])), BTreeMap::from([(address(2), 7)]));
        // Its interface goes, another comes; the API server has not heard of either.
        assert!(pods.entries(&interfaces([8])).is_empty());
        pods.set(told(&[("a", pod(2, 1))]));
        assert!(pods.unbound().is_empty() && pods.entries(&interfaces([7, 8])).is_empty());
        // The next pod with the address has been told of, too, beside the one that is going.
        pods.set(told(&[("a", pod(2, 1)), ("b", pod(2, 2))]));
        pods.bind(address(2), 8);
        assert_eq!(pods.entries(&interfaces([8])), BTreeMap::from([(address(2), 8)]));
        pods.set(told(&[("a", pod(2, 1)), ("b", Pod { allowed: false, ..pod(2, 2) })]));
        assert!(pods.entries(&interfaces([8])).is_empty(), "the older one has no claim to it");
    }

    #[test]
    fn a_pod_that_loses_and_regains_access_stays_where_it_was() {
        let mut pods = Pods::default();
        pods.set(told(&[("a", Pod { allowed: false, ..pod(2, 1) })]));
        pods.bind(address(2), 7);
        assert!(pods.entries(&interfaces([7, 8])).is_empty());
        pods.set(told(&[("a", pod(2, 1))]));
        assert!(pods.unbound().is_empty());
        assert_eq!(pods.entries(&interfaces([7, 8])), BTreeMap::from([(address(2), 7)]));
    }

    #[test]
    fn what_an_earlier_daemon_let_in_holds_until_the_api_server_tells() {
        let mut pods = Pods::default();
        pods.adopt([(address(2), 7), (address(3), 8)]);
        assert_eq!(pods.entries(&interfaces([7, 9])), BTreeMap::from([(address(2), 7)]));
        assert_eq!(pods.entries(&interfaces([7, 8])), BTreeMap::from([(address(2), 7)]), "8 is another now");
        pods.set(told(&[("a", pod(2, 1)), ("b", pod(4, 1))]));
        assert_eq!(pods.unbound(), [address(4)]);
        assert_eq!(pods.entries(&interfaces([7])), BTreeMap::from([(address(2), 7)]));
    }

    /// What happens to a node: pods come and go, get and lose access, at interfaces that come and go.
    #[derive(Clone, Debug)]
    enum Event {
        Come { uid: u8, last: u8, allowed: bool },
        Go { uid: u8 },
        Relabel { uid: u8, allowed: bool },
        LinkGone { index: u32 },
        Look,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0u8..6, 0u8..3, any::<bool>()).prop_map(|(uid, last, allowed)| Event::Come {
                uid,
                last,
                allowed
            }),
            (0u8..6).prop_map(|uid| Event::Go { uid }),
            (0u8..6, any::<bool>()).prop_map(|(uid, allowed)| Event::Relabel { uid, allowed }),
            (0u32..12).prop_map(|index| Event::LinkGone { index }),
            Just(Event::Look),
        ]
    }

    proptest! {
        /// Nobody is let in but pods that are allowed, the last to have their address, where they were first seen.
        #[test]
        fn nobody_else_is_let_in(events in prop::collection::vec(event(), 0..60)) {
            let (mut pods, mut api) = (Pods::default(), BTreeMap::<Uid, Pod>::new());
            let (mut links, mut next, mut clock) = (BTreeSet::new(), 0u32, 0);
            // Where each was bound, by a model that keeps nothing else.
            let mut homes = BTreeMap::<Uid, u32>::new();
            for event in events {
                match event {
                    Event::Come { uid, last, allowed } => {
                        (next, clock) = (next + 1, clock + 1);
                        links.insert(next);
                        let uid = format!("{uid}-{clock}");
                        api.insert(uid.clone(), Pod { allowed, ..pod(last, clock) });
                        pods.set(api.clone());
                        prop_assert_eq!(pods.unbound(), [address(last)]);
                        pods.bind(address(last), next);
                        homes.insert(uid, next);
                    }
                    Event::Go { uid } => {
                        api.retain(|name, _| !name.starts_with(&format!("{uid}-")));
                        pods.set(api.clone());
                    }
                    Event::Relabel { uid, allowed } => {
                        let of_it = api.iter_mut().filter(|(name, _)| name.starts_with(&format!("{uid}-")));
                        of_it.for_each(|(_, pod)| pod.allowed = allowed);
                        pods.set(api.clone());
                    }
                    Event::LinkGone { index } => drop(links.remove(&index)),
                    Event::Look => pods.set(api.clone()),
                }
                let mut expected = BTreeMap::new();
                for last in 0..3 {
                    let holder = api.iter().filter(|(_, pod)| pod.addresses.contains(&address(last)))
                        .max_by_key(|(_, pod)| pod.created);
                    if let Some((uid, pod)) = holder && pod.allowed && links.contains(&homes[uid]) {
                        expected.insert(address(last), homes[uid]);
                    }
                }
                prop_assert_eq!(pods.entries(&interfaces(links.iter().copied())), expected);
            }
        }
    }
}
