//! Binds pods to interfaces.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use anyhow::Result;
use lota_datapath::netlink::RemovedInterfaces;

use super::{Control, all_of};
use crate::kubernetes::PodUpdate;

impl Control {
    /// Replaces this node's pods by those that the API server reported.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn set_pods(&mut self, update: PodUpdate) -> Result<()> {
        self.pending = Some(update);
        let before = self.plan();
        let followed = self.follow_pods().await;
        let attached = if self.plan() == before { Ok(()) } else { self.attach() };
        all_of([followed, attached])
    }

    /// Reads the interfaces, binds pods to them, and updates access accordingly, as far as the kernel answers.
    pub(super) async fn follow_pods(&mut self) -> Result<()> {
        self.read_cgroups();
        let bound = self.bind_pods().await;
        all_of([bound, self.apply_access()])
    }

    async fn bind_pods(&mut self) -> Result<()> {
        // An address must not be bound to an interface that is gone.
        self.read_interfaces().await?;
        if let Some(update) = self.pending.take() {
            self.access.kubernetes.set(update.pods, &self.interfaces);
            self.access.identities.set_pods(update.reported);
            self.search.reported(update.at);
            self.found.clear();
        }
        let unbound: BTreeSet<IpAddr> = self.access.kubernetes.unbound().into_iter().collect();
        // Before the claims are read: what appears meanwhile is reported.
        self.netlink.seek(unbound.clone());
        if unbound.is_empty() {
            return Ok(());
        }
        let claims = self.netlink.claims(&self.interfaces, &unbound).await?;
        self.access.kubernetes.locate(&claims, &self.interfaces);
        let unbound: BTreeSet<IpAddr> = self.access.kubernetes.unbound().into_iter().collect();
        self.netlink.seek(unbound.clone());
        let unbound = unbound.into_iter();
        let disputed: BTreeSet<IpAddr> =
            unbound.filter(|address| claims.claimants(*address).len() > 1).collect();
        for address in disputed.difference(&self.disputed) {
            tracing::warn!(
                %address,
                interfaces = self.names(claims.claimants(*address)),
                "several interfaces have a pod's address; the pod has no access until only one has it"
            );
        }
        self.disputed = disputed;
        Ok(())
    }

    pub(super) async fn read_interfaces(&mut self) -> Result<()> {
        let RemovedInterfaces { indices, is_incomplete } = self.netlink.take_removed();
        self.forget_interfaces(&indices);
        if is_incomplete {
            match self.replaced_interfaces().await {
                Ok(replaced) => self.forget_interfaces(&replaced),
                Err(error) => {
                    self.netlink.set_incomplete();
                    return Err(error);
                }
            }
        }
        self.interfaces = self.netlink.interfaces().await?;
        Ok(())
    }

    async fn replaced_interfaces(&self) -> Result<BTreeSet<u32>> {
        self.datapath.replaced_interfaces(&self.netlink, &self.datapath.access()?).await
    }

    fn forget_interfaces(&mut self, removed: &BTreeSet<u32>) {
        self.access.forget_interfaces(removed);
        self.datapath.forget_interfaces(removed);
        self.found.retain(|index| !removed.contains(index));
    }

    pub(super) fn names(&self, interfaces: &[u32]) -> String {
        let names: Vec<&str> = interfaces.iter().filter_map(|index| self.interfaces.name(*index)).collect();
        names.join(", ")
    }

    /// Returns whether a pod has no known interface.
    #[must_use]
    pub fn has_unbound_pods(&self) -> bool {
        !self.access.kubernetes.unbound().is_empty()
    }

    /// Returns whether a pod has no known interface although it may have one by now: the API server reported pods recently, or
    /// interfaces or cgroups have changed.
    #[must_use]
    pub fn awaits_pods(&self) -> bool {
        self.search.is_on(Instant::now()) && self.has_unbound_pods()
    }
}
