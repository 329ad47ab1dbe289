//! Redirects interfaces: attaches the program for pods, keeps it first, and writes the map of interfaces.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use lota_common::RawInterface;

use crate::{
    AccessTable, AttachMode, Attached, Datapath, GuardMode, Interfaces, Redirection, RedirectionPlan,
    SkipReason,
    attach::{self, Hook},
    netlink::Netlink,
    query,
};

impl Datapath {
    /// Forgets what is attached to interfaces that were removed, by index, since others may have their indices now.
    pub fn forget_interfaces(&mut self, removed: &BTreeSet<u32>) {
        self.redirected.retain(|index, _| !removed.contains(index));
        self.beside.retain(|(_, index), _| !removed.contains(index));
        self.guard = self.guard.filter(|(index, _)| !removed.contains(index));
    }

    /// Redirects exactly the interfaces of this plan. Returns the result for each new one.
    pub fn set_interfaces(
        &mut self,
        interfaces: &Interfaces,
        plan: &RedirectionPlan,
    ) -> Vec<(String, Result<AttachMode>)> {
        let is = |index: &u32, redirection| plan.redirected.get(index) == Some(&redirection);
        self.redirected.retain(|index, attached| match attached.mode {
            AttachMode::SkLookup => is(index, Redirection::Lookup),
            AttachMode::Tcx | AttachMode::Clsact => is(index, Redirection::Tc),
        });
        // An interface to which attaching fails keeps the program of the previous daemon.
        let by_tc = plan.redirected.iter().filter(|(_, redirection)| **redirection == Redirection::Tc);
        Hook::Pod.keep_only_links(&self.pins, by_tc.map(|(index, _)| *index));
        let mut reports = Vec::new();
        self.skipped = plan.skipped.clone();
        for (index, redirection) in &plan.redirected {
            let name = interfaces.name(*index).unwrap_or_default().to_owned();
            if self.redirected.contains_key(index) {
                continue;
            }
            let attached = match redirection {
                Redirection::Lookup if !self.lookups => {
                    Err(anyhow!("this kernel cannot redirect at socket lookup: use Linux 5.17 or later"))
                }
                Redirection::Lookup => {
                    attach::remove_clsact(&name, Hook::Pod.direction());
                    Ok(Attached { mode: AttachMode::SkLookup, program: 0 })
                }
                Redirection::Tc => self.attach(Hook::Pod, &name, *index),
            };
            match &attached {
                Ok(attached) => {
                    self.redirected.insert(*index, *attached);
                }
                Err(error) => {
                    self.skipped.insert(*index, SkipReason::NotAttached { error: format!("{error:#}") });
                }
            }
            reports.push((name, attached.map(|attached| attached.mode)));
        }
        self.set_beside(interfaces, plan, &mut reports);
        // Only attached interfaces: socket lookup must not redirect where a TC program is missing.
        let redirected = self.redirected.iter();
        let raw: Vec<_> =
            redirected.map(|(index, attached)| (*index, self.raw(interfaces, *index, *attached))).collect();
        if let Err(error) = self.maps.set_interfaces(&raw) {
            reports.push(("every interface".to_owned(), Err(error)));
        }
        reports
    }

    fn raw(&self, interfaces: &Interfaces, index: u32, attached: Attached) -> RawInterface {
        RawInterface {
            redirected: match attached.mode {
                AttachMode::Tcx | AttachMode::Clsact => RawInterface::BY_TC,
                AttachMode::SkLookup => RawInterface::BY_LOOKUP,
            },
            intercepts: u32::from(self.beside.contains_key(&(Hook::Restore, index))),
            has_senders: u32::from(!interfaces.is_bridge(index)),
        }
    }

    /// Moves LOTA's programs to the head of each chain in which another program precedes them, and attaches again those
    /// that others have removed. Returns the interfaces that were changed.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn regain_heads(&mut self, interfaces: &Interfaces, netlink: &Netlink) -> Result<Vec<String>> {
        let (mut regained, mut problems) = (Vec::new(), Vec::new());
        let redirected = self.redirected.iter().map(|(index, attached)| (Hook::Pod, *index, *attached));
        let beside = self.beside.iter().map(|((hook, index), attached)| (*hook, *index, *attached));
        for (hook, index, attached) in redirected.chain(beside).collect::<Vec<_>>() {
            let is_first = match attached.mode {
                AttachMode::SkLookup => continue,
                AttachMode::Clsact => match attach::filters_ahead(netlink, index, hook.direction()).await {
                    Ok(ahead) => ahead == Some(0),
                    Err(_) => continue,
                },
                AttachMode::Tcx => match query::tcx(index, hook.direction()) {
                    Ok(ids) => ids.first() == Some(&attached.program),
                    // The interface was removed.
                    Err(_) => continue,
                },
            };
            let Some(name) = interfaces.name(index).filter(|_| !is_first) else { continue };
            let renewed = match attached.mode {
                AttachMode::Clsact => {
                    attach::remove_clsact(name, hook.direction());
                    self.attach(hook, name, index)
                }
                AttachMode::Tcx | AttachMode::SkLookup => {
                    attach::rehook(&mut self.ebpf, &self.pins, hook, name, index)
                        .map(|program| Attached { mode: AttachMode::Tcx, program })
                }
            };
            match renewed {
                Ok(attached) => {
                    match hook {
                        Hook::Pod => self.redirected.insert(index, attached),
                        Hook::Restore | Hook::Port | Hook::Local => {
                            self.beside.insert((hook, index), attached)
                        }
                    };
                    regained.push(name.to_owned());
                }
                Err(error) => problems.push(format!("{name}: {error:#}")),
            }
        }
        if let Some((index, GuardMode::Clsact)) = self.guard
            && matches!(attach::filters_ahead(netlink, index, Hook::Pod.direction()).await, Ok(None))
            && let Some(name) = interfaces.name(index)
        {
            self.guard = None;
            match self.set_uplink(name, index) {
                Ok(_) => regained.push(name.to_owned()),
                Err(error) => problems.push(format!("{error:#}")),
            }
        }
        if problems.is_empty() { Ok(regained) } else { Err(anyhow!(problems.join("; "))) }
    }

    /// Returns the interfaces in the kernel's map of interfaces whose connections are redirected.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn redirected_interfaces(&self) -> Result<BTreeSet<u32>> {
        self.maps.interfaces(|_| true)
    }

    /// Returns the interfaces that the previous daemon redirected by TC, and the ports of bridges among them with entries in
    /// `access`, whose program is gone: others with their indices have replaced them.
    ///
    /// # Errors
    /// If the map of interfaces cannot be read.
    pub async fn replaced_interfaces(
        &self,
        netlink: &Netlink,
        access: &AccessTable,
    ) -> Result<BTreeSet<u32>> {
        let by_tc = self.maps.interfaces(|interface| interface.redirected == RawInterface::BY_TC)?;
        let ports =
            access.addresses.values().filter(|entry| entry.port != 0 && by_tc.contains(&entry.ifindex));
        let ports: BTreeSet<u32> = ports.map(|entry| entry.port).collect();
        let places = by_tc.into_iter().map(|index| (Hook::Pod, index));
        let mut replaced = BTreeSet::new();
        for (hook, index) in places.chain(ports.into_iter().map(|port| (Hook::Port, port))) {
            let is_attached = match attach::is_linked(&self.pins, hook, index) {
                Some(is_linked) => is_linked,
                None => {
                    let ahead = attach::filters_ahead(netlink, index, hook.direction()).await;
                    !matches!(ahead, Ok(None))
                }
            };
            if !is_attached {
                replaced.insert(index);
            }
        }
        Ok(replaced)
    }

    /// Returns the number of programs that process an interface's packets before LOTA's.
    pub(super) fn programs_ahead(&self, index: u32) -> Option<usize> {
        let ours = self.redirected.get(&index)?.program;
        query::tcx(index, Hook::Pod.direction()).ok()?.iter().position(|id| *id == ours)
    }
}
