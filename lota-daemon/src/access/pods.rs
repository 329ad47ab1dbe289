//! Pods that Kubernetes reports, each bound once to the interface that it is behind.
//!
//! The API server says which address is which pod's; the kernel says which interface it is behind. A pod loses access
//! with its interface, whatever the API server still reports, and the next pod with its address starts without access.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use lota_datapath::{AddressClaims, Interfaces, PodLink};

/// UID of a pod, which is never reused.
pub type Uid = String;

/// A pod of this node with its own addresses, as the API server reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Addresses of the pod.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether the rules select the pod.
    pub allowed: bool,
    /// When the last of its containers started, in seconds since the Unix epoch.
    pub started: i64,
}

/// The pods of this node.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    pods: BTreeMap<Uid, KnownPod>,
    /// Number of updates received.
    updates: u64,
    /// State at the start of the daemon, until the first update.
    found: Option<ResolvedPod>,
    /// The pod that each interface with a peer was found to be behind it, until the interface is removed: no other pod
    /// can be there, whatever addresses it has.
    homes: BTreeMap<u32, Uid>,
}

/// State at the start of the daemon.
#[derive(Clone, Debug)]
struct ResolvedPod {
    /// Addresses that the previous daemon had allowed, with their interfaces.
    let_in: BTreeMap<IpAddr, PodLink>,
    interfaces: Arc<BTreeSet<u32>>,
    /// When the daemon started, in seconds since the Unix epoch.
    at: i64,
}

/// A pod and the interfaces of its addresses.
#[derive(Clone, Debug)]
struct KnownPod {
    pod: Pod,
    since: Since,
    bindings: BTreeMap<IpAddr, Binding>,
}

/// When a pod got its addresses: number of the update that first reported them, then start of the pod.
type Since = (u64, i64);

/// Interface of an address of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Binding {
    /// One of the interfaces that existed when the address was reported: a pod's network is made before it is
    /// reported.
    OneOf(Arc<BTreeSet<u32>>),
    /// This interface.
    At(PodLink),
    /// The interface was removed.
    Gone,
}

impl Pods {
    /// Sets the state at the start of the daemon: addresses that the previous daemon had allowed, which keep access
    /// until the first update, and the interfaces that existed at `at`, in seconds since the Unix epoch.
    pub fn find(
        &mut self,
        let_in: impl IntoIterator<Item = (IpAddr, PodLink)>,
        interfaces: &Interfaces,
        at: i64,
    ) {
        self.found =
            Some(ResolvedPod { let_in: let_in.into_iter().collect(), interfaces: indices(interfaces), at });
    }

    /// Replaces the pods by those of an update. Known pods keep their bindings until they restart.
    pub fn set(&mut self, mut now: BTreeMap<Uid, Pod>, interfaces: &Interfaces) {
        self.remove_lost_interfaces(interfaces);
        self.updates += 1;
        let (found, interfaces) = (self.found.take(), indices(interfaces));
        self.pods.retain(|uid, known| match now.remove(uid) {
            Some(reported) => {
                // The pod's network may have been made again, with the same address.
                if reported.started > known.pod.started {
                    known.since = (self.updates, reported.started);
                    known.bindings.retain(|_, binding| matches!(binding, Binding::At(_)));
                }
                known.bindings.retain(|address, _| reported.addresses.contains(address));
                known.pod = reported;
                true
            }
            None => false,
        });
        self.pods.extend(now.into_iter().map(|(uid, pod)| {
            let since = (self.updates, pod.started);
            (uid, KnownPod { pod, since, bindings: BTreeMap::new() })
        }));
        for known in self.pods.values_mut() {
            // A pod whose address is reported since the daemon started cannot have started before it.
            let was_found = found.as_ref().filter(|found| known.pod.started < found.at);
            let there = was_found.map_or(&interfaces, |found| &found.interfaces);
            for address in &known.pod.addresses {
                known.bindings.entry(*address).or_insert_with(|| Binding::OneOf(there.clone()));
            }
        }
        for (address, link) in found.into_iter().flat_map(|found| found.let_in) {
            self.bind(address, link);
        }
        self.revoke_earlier_holders();
    }

    /// Removes an address for good from all pods that had it before its last holder.
    fn revoke_earlier_holders(&mut self) {
        let holders = self.holders().into_iter();
        let last: BTreeMap<IpAddr, Since> =
            holders.map(|(address, uid)| (address, self.pods[uid].since)).collect();
        for known in self.pods.values_mut() {
            for (address, binding) in &mut known.bindings {
                // Pods that were reported in one update and started in the same second cannot be ordered.
                if known.since < last[address] {
                    *binding = Binding::Gone;
                }
            }
        }
    }

    /// Returns the holder of each address: the pod that got it last.
    pub(super) fn holders(&self) -> BTreeMap<IpAddr, &Uid> {
        let mut claims: Vec<_> = self.pods.iter().collect();
        claims.sort_by_key(|(_, known)| known.since);
        let mut holders = BTreeMap::new();
        for (uid, known) in claims {
            holders.extend(known.pod.addresses.iter().map(|address| (*address, uid)));
        }
        holders
    }

    /// Returns the addresses whose interface is not known yet.
    #[must_use]
    pub fn unbound(&self) -> Vec<IpAddr> {
        let is_unbound =
            |(address, uid): &(IpAddr, &Uid)| matches!(self.pods[*uid].bindings[address], Binding::OneOf(_));
        self.holders().into_iter().filter(is_unbound).map(|(address, _)| address).collect()
    }

    /// Binds each unbound address to the interface that it is behind, if that is certain.
    pub fn locate(&mut self, claims: &AddressClaims, interfaces: &Interfaces) {
        // A pod that is bound rules out its interface for others, so that more may become certain.
        let mut is_progress = true;
        while is_progress {
            is_progress = false;
            for address in self.unbound() {
                let may_have = self.may_have(address, interfaces);
                let link = claims.locate(address, may_have).and_then(|port| interfaces.pod_link(port));
                is_progress |= link.is_some_and(|link| self.bind(address, link));
            }
        }
    }

    /// Returns a function that returns whether an interface may lead to this address, because no pod other than its
    /// holder is known to be behind it.
    pub fn may_have<'a>(
        &self,
        address: IpAddr,
        interfaces: &'a Interfaces,
    ) -> impl Fn(u32) -> bool + use<'a> {
        let holder = self.holders().get(&address).copied();
        let namespace = move |port: u32| Some(interfaces.pod_link(port)?.peer?.namespace);
        let ports: BTreeSet<u32> =
            self.homes.iter().filter(|(_, uid)| Some(*uid) != holder).map(|(port, _)| *port).collect();
        let namespaces: BTreeSet<i32> = ports.iter().filter_map(|port| namespace(*port)).collect();
        move |port| {
            !ports.contains(&port) && namespace(port).is_none_or(|namespace| !namespaces.contains(&namespace))
        }
    }

    /// Returns the indices of the interfaces that pods are behind, or were.
    #[must_use]
    pub fn ports(&self) -> BTreeSet<u32> {
        let bindings = self.pods.values().flat_map(|known| known.bindings.values());
        let found = self.found.iter().flat_map(|found| found.let_in.values());
        let bound = bindings.filter_map(Binding::link).chain(found).map(|link| link.port);
        bound.chain(self.homes.keys().copied()).collect()
    }

    /// Binds the current holder of an address to an interface, if that interface is possible. Returns whether it is.
    fn bind(&mut self, address: IpAddr, link: PodLink) -> bool {
        let Some(holder) = self.holders().get(&address).map(|uid| (*uid).clone()) else { return false };
        let binding = self.pods.get_mut(&holder).and_then(|pod| pod.bindings.get_mut(&address));
        let is_possible =
            |binding: &Binding| matches!(binding, Binding::OneOf(ports) if ports.contains(&link.port));
        let Some(binding) = binding.filter(|binding| is_possible(binding)) else { return false };
        *binding = Binding::At(link);
        if link.peer.is_some() {
            self.homes.insert(link.port, holder);
        }
        true
    }

    /// Returns the allowed addresses with their interfaces, given the current interfaces.
    pub fn entries(&mut self, interfaces: &Interfaces) -> BTreeMap<IpAddr, PodLink> {
        self.remove_lost_interfaces(interfaces);
        let found = self.found.iter().flat_map(|found| &found.let_in);
        let mut entries: BTreeMap<IpAddr, PodLink> = found.map(|(address, link)| (*address, *link)).collect();
        entries.extend(self.holders().into_iter().filter_map(|(address, uid)| {
            let known = &self.pods[uid];
            match known.bindings[&address] {
                Binding::At(link) if known.pod.allowed => Some((address, link)),
                _ => None,
            }
        }));
        entries
    }

    /// Removes the interfaces that were removed, by index, for good.
    pub fn forget_interfaces(&mut self, removed: &BTreeSet<u32>) {
        if removed.is_empty() {
            return;
        }
        self.homes.retain(|port, _| !removed.contains(port));
        if let Some(found) = &mut self.found {
            found.let_in.retain(|_, link| !link.is_among(removed));
            Arc::make_mut(&mut found.interfaces).retain(|port| !removed.contains(port));
        }
        for binding in self.pods.values_mut().flat_map(|known| known.bindings.values_mut()) {
            match binding {
                Binding::At(link) if link.is_among(removed) => *binding = Binding::Gone,
                Binding::OneOf(ports) if !ports.is_disjoint(removed) => {
                    Arc::make_mut(ports).retain(|port| !removed.contains(port));
                }
                Binding::At(_) | Binding::OneOf(_) | Binding::Gone => {}
            }
        }
    }

    fn remove_lost_interfaces(&mut self, interfaces: &Interfaces) {
        self.homes.retain(|port, _| interfaces.0.contains_key(port));
        if let Some(found) = &mut self.found {
            found.let_in.retain(|_, link| interfaces.has(*link));
        }
        for binding in self.pods.values_mut().flat_map(|known| known.bindings.values_mut()) {
            if matches!(binding, Binding::At(link) if !interfaces.has(*link)) {
                *binding = Binding::Gone;
            }
        }
    }
}

impl Binding {
    fn link(&self) -> Option<&PodLink> {
        match self {
            Self::At(link) => Some(link),
            Self::OneOf(_) | Self::Gone => None,
        }
    }
}

fn indices(interfaces: &Interfaces) -> Arc<BTreeSet<u32>> {
    Arc::new(interfaces.0.keys().copied().collect())
}

#[cfg(test)]
#[path = "pods_tests.rs"]
mod tests;
