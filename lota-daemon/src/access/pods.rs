//! Pods that Kubernetes tells of, each bound once to the interface it is behind.
//!
//! An address is reused, an interface is not: a pod whose interface is gone has no access any more, whatever the API
//! server still says, and who has its address next begins without.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
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
    /// When what runs in it last started, in seconds.
    pub started: i64,
}

/// Every pod of this node.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    pods: BTreeMap<Uid, Known>,
    /// How often has been told of pods.
    told: u64,
    /// What was found at the start, until the API server tells.
    found: Option<Found>,
}

/// What a daemon finds when it starts.
#[derive(Clone, Debug)]
struct Found {
    /// Whom an earlier daemon had let in, and from which interface.
    let_in: BTreeMap<IpAddr, u32>,
    interfaces: Arc<BTreeSet<u32>>,
    /// When that was, in seconds.
    at: i64,
}

/// A pod, and where it is.
#[derive(Clone, Debug)]
struct Known {
    pod: Pod,
    since: Since,
    bindings: BTreeMap<IpAddr, Binding>,
}

/// Since when a pod's addresses are its own: by when they were told of, then by when the pod started.
type Since = (u64, i64);

/// Where an address of a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Binding {
    /// Behind one of the interfaces that there were when it was told of: an address is told after its network is made.
    OneOf(Arc<BTreeSet<u32>>),
    /// Behind the interface of this index.
    At(u32),
    /// Its interface is gone.
    Gone,
}

impl Pods {
    /// What a daemon finds when it starts: whom an earlier one had let in, which holds until the API server tells; and
    /// which interfaces there are, when it is so many seconds past the epoch.
    pub fn find(
        &mut self,
        let_in: impl IntoIterator<Item = (IpAddr, u32)>,
        interfaces: &Interfaces,
        at: i64,
    ) {
        self.found =
            Some(Found { let_in: let_in.into_iter().collect(), interfaces: indices(interfaces), at });
    }

    /// All pods that there are now, and these interfaces. Those that were there keep what they are bound to, until they
    /// start anew.
    pub fn set(&mut self, mut now: BTreeMap<Uid, Pod>, interfaces: &Interfaces) {
        self.forget_what_is_gone(interfaces);
        self.told += 1;
        let (found, interfaces) = (self.found.take(), indices(interfaces));
        self.pods.retain(|uid, known| match now.remove(uid) {
            Some(told) => {
                // Its network may have been made anew, with the address that it had.
                if told.started > known.pod.started {
                    known.since = (self.told, told.started);
                    known.bindings.retain(|_, binding| matches!(binding, Binding::At(_)));
                }
                known.bindings.retain(|address, _| told.addresses.contains(address));
                known.pod = told;
                true
            }
            None => false,
        });
        self.pods.extend(now.into_iter().map(|(uid, pod)| {
            let since = (self.told, pod.started);
            (uid, Known { pod, since, bindings: BTreeMap::new() })
        }));
        for known in self.pods.values_mut() {
            // Who has its address since the daemon started, did not start before it.
            let was_found = found.as_ref().filter(|found| known.pod.started < found.at);
            let there = was_found.map_or(&interfaces, |found| &found.interfaces);
            for address in &known.pod.addresses {
                known.bindings.entry(*address).or_insert_with(|| Binding::OneOf(there.clone()));
            }
        }
        for (address, index) in found.into_iter().flat_map(|found| found.let_in) {
            self.bind(address, index);
        }
        self.take_from_the_earlier();
    }

    /// Of several pods with one address, those before the last have lost it for good.
    fn take_from_the_earlier(&mut self) {
        let holders = self.holders().into_iter();
        let last: BTreeMap<IpAddr, Since> =
            holders.map(|(address, uid)| (address, self.pods[uid].since)).collect();
        for known in self.pods.values_mut() {
            for (address, binding) in &mut known.bindings {
                // Those that were told of together and started in one second cannot be told apart.
                if known.since < last[address] {
                    *binding = Binding::Gone;
                }
            }
        }
    }

    /// Who has each address: of several, who got it last.
    fn holders(&self) -> BTreeMap<IpAddr, &Uid> {
        let mut claims: Vec<_> = self.pods.iter().collect();
        claims.sort_by_key(|(_, known)| known.since);
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
            |(address, uid): &(IpAddr, &Uid)| matches!(self.pods[*uid].bindings[address], Binding::OneOf(_));
        self.holders().into_iter().filter(is_unbound).map(|(address, _)| address).collect()
    }

    /// The pod that has this address now is behind the interface of this index, if it can be.
    pub fn bind(&mut self, address: IpAddr, index: u32) {
        let holder = self.holders().get(&address).map(|uid| (*uid).clone());
        let pod = holder.and_then(|uid| self.pods.get_mut(&uid));
        if let Some(binding) = pod.and_then(|pod| pod.bindings.get_mut(&address))
            && let Binding::OneOf(interfaces) = binding
            && interfaces.contains(&index)
        {
            *binding = Binding::At(index);
        }
    }

    /// Who may, from which interface, given those that there are.
    pub fn entries(&mut self, interfaces: &Interfaces) -> BTreeMap<IpAddr, u32> {
        self.forget_what_is_gone(interfaces);
        let mut entries = self.found.as_ref().map(|found| found.let_in.clone()).unwrap_or_default();
        entries.extend(self.holders().into_iter().filter_map(|(address, uid)| {
            let known = &self.pods[uid];
            match known.bindings[&address] {
                Binding::At(index) if known.pod.allowed => Some((address, index)),
                _ => None,
            }
        }));
        entries
    }

    fn forget_what_is_gone(&mut self, interfaces: &Interfaces) {
        let lives = |index: &u32| interfaces.0.contains_key(index);
        if let Some(found) = &mut self.found {
            found.let_in.retain(|_, index| lives(index));
        }
        for binding in self.pods.values_mut().flat_map(|known| known.bindings.values_mut()) {
            if matches!(binding, Binding::At(index) if !lives(index)) {
                *binding = Binding::Gone;
            }
        }
    }
}

fn indices(interfaces: &Interfaces) -> Arc<BTreeSet<u32>> {
    Arc::new(interfaces.0.keys().copied().collect())
}

#[cfg(test)]
#[path = "pods_tests.rs"]
mod tests;
