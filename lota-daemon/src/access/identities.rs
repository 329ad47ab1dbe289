//! Identities of pods by their cgroups, beside those by their addresses.
//!
//! The API server says which pods this node has; the names of cgroups say which cgroup is which pod's. A packet from a
//! socket of a known pod's cgroup is from that pod, whatever its source address is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lota_datapath::{
    AddressHolder, IdentifiedPod, IdentityStatus, IdentityTable, LocalAccess, PodCgroup, PodCgroups,
};

use super::pods::Uid;

/// A pod of this node, with or without addresses of its own, as the API server reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportedPod {
    /// `namespace/name`.
    pub name: String,
    /// Whether the rules select the pod.
    pub allowed: bool,
    /// Whether the pod may send packets with addresses of other pods.
    pub forwards: bool,
    /// Whether the pod is on the host network.
    pub host_network: bool,
    /// UID in the names of the cgroups of a static pod, which differs from that at the API server.
    pub static_uid: Option<Uid>,
}

/// The pods of this node and their cgroups.
#[derive(Clone, Debug, Default)]
pub struct Identities {
    pods: BTreeMap<Uid, ReportedPod>,
    /// `None` if only addresses identify pods.
    cgroups: Option<PodCgroups>,
    /// Whether the API server has reported the pods.
    has_update: bool,
}

impl Identities {
    /// Replaces the pods.
    pub fn set_pods(&mut self, pods: BTreeMap<Uid, ReportedPod>) {
        self.pods = pods;
        self.has_update = true;
    }

    /// Replaces the cgroups; `None` if only addresses identify pods.
    pub fn set_cgroups(&mut self, cgroups: Option<PodCgroups>) {
        self.cgroups = cgroups;
    }

    /// Returns the cgroups, if they identify pods.
    #[must_use]
    pub fn cgroups(&self) -> Option<&PodCgroups> {
        self.cgroups.as_ref()
    }

    /// Returns the cgroup of each pod. A static pod's is named by the hash of its definition, which no other pod may
    /// have as its UID: an annotation says it, and anyone who can create pods can write that.
    fn found(&self) -> BTreeMap<&Uid, PodCgroup> {
        let Some(cgroups) = &self.cgroups else { return BTreeMap::new() };
        let mut claims = BTreeMap::<&Uid, Vec<&Uid>>::new();
        for (uid, pod) in &self.pods {
            let is_own = cgroups.by_uid.contains_key(uid);
            let static_uid = pod.static_uid.as_ref().filter(|uid| !is_own && !self.pods.contains_key(*uid));
            claims.entry(static_uid.unwrap_or(uid)).or_default().push(uid);
        }
        let only = claims.into_iter().filter_map(|(named, uids)| match *uids {
            [uid] => Some((uid, *cgroups.by_uid.get(named)?)),
            _ => None,
        });
        only.collect()
    }

    /// Returns the pods without a known cgroup, although they may have one.
    #[must_use]
    pub fn without_cgroups(&self) -> BTreeSet<&Uid> {
        if self.cgroups.is_none() {
            return BTreeSet::new();
        }
        let found = self.found();
        self.pods.keys().filter(|uid| !found.contains_key(uid)).collect()
    }

    /// Returns whether a pod on the host network has access by its cgroup.
    #[must_use]
    pub fn allow_local_pods(&self, default_allow: bool) -> bool {
        let may_connect = |pod: &ReportedPod| pod.host_network && (pod.allowed || default_allow);
        self.cgroups.is_some() && self.pods.values().any(may_connect)
    }

    /// Returns the table for the kernel. `holders` are the pods that have addresses; with `host_network`, processes of no
    /// pod have access at `lo`. Until the API server has reported this node's pods, those of the previous daemon hold.
    #[must_use]
    pub fn table(
        &self,
        holders: &BTreeMap<IpAddr, &Uid>,
        host_network: bool,
        is_strict: bool,
    ) -> IdentityTable {
        let found = self.found();
        let pods = found.iter().map(|(uid, cgroup)| {
            let pod = &self.pods[*uid];
            let (name, uid) = (pod.name.clone(), (*uid).clone());
            (cgroup.id, IdentifiedPod { name, uid, allowed: pod.allowed, forwards: pod.forwards })
        });
        let holders = holders.iter().filter_map(|(address, uid)| {
            let name = self.pods.get(*uid)?.name.clone();
            Some((*address, AddressHolder { name, uid: (*uid).clone(), cgroup: found.get(uid).copied() }))
        });
        IdentityTable {
            pods: pods.collect(),
            holders: holders.collect(),
            kubepods: self.cgroups.as_ref().map_or([0; 2], |cgroups| cgroups.kubepods),
            levels: self.cgroups.as_ref().map_or([0; 2], |cgroups| cgroups.levels),
            local: match (&self.cgroups, host_network) {
                (None, _) => LocalAccess::ByAddress,
                (Some(_), false) => LocalAccess::Pods,
                (Some(_), true) => LocalAccess::Processes,
            },
            is_strict: is_strict && self.cgroups.is_some(),
            keeps_pods: self.cgroups.is_some() && !self.has_update,
        }
    }

    /// Returns how pods are identified, without a reason why cgroups do not identify them. `runs` returns whether a pod must
    /// have a cgroup.
    #[must_use]
    pub fn status(&self, runs: impl Fn(&Uid, &ReportedPod) -> bool) -> IdentityStatus {
        let without = self.without_cgroups().into_iter().map(|uid| (uid, &self.pods[uid]));
        IdentityStatus {
            by_cgroup: self.cgroups.is_some(),
            problem: None,
            can_be_configured: false,
            identified: self.found().len(),
            unidentified: without
                .filter(|(uid, pod)| runs(uid, pod))
                .map(|(_, pod)| pod.name.clone())
                .collect(),
        }
    }
}

#[cfg(test)]
#[path = "identities_tests.rs"]
mod tests;
