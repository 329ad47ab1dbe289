//! Attaches the programs beside those of redirected interfaces: those that restore targets, and those that only check
//! senders, at the ports of bridges and on the way into `lo`.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};

use crate::{
    AttachMode, Datapath, Interfaces, LOOPBACK_INDEX, RedirectionPlan,
    attach::{self, Hook},
    bridge,
};

/// The hooks of these programs, with what is impossible without one.
const HOOKS: [(Hook, &str); 3] = [
    (Hook::Restore, "cannot intercept targets"),
    (Hook::Port, "cannot check senders"),
    (Hook::Local, "cannot check senders"),
];

impl Datapath {
    /// Attaches these programs exactly where the plan and the redirected interfaces need them. Adds each failure to
    /// `reports`.
    pub(super) fn set_beside(
        &mut self,
        interfaces: &Interfaces,
        plan: &RedirectionPlan,
        reports: &mut Vec<(String, Result<AttachMode>)>,
    ) {
        let desired = self.desired_beside(interfaces, plan);
        for (hook, _) in HOOKS {
            let indices = desired.iter().filter(|(desired, _)| *desired == hook).map(|(_, index)| *index);
            hook.keep_only_links(&self.pins, indices);
        }
        for (hook, index) in self.superfluous_beside(&desired) {
            if let Some(name) = interfaces.name(index) {
                attach::remove_clsact(name, hook.direction());
            }
        }
        self.is_cleared = true;
        self.beside.retain(|place, _| desired.contains(place));
        for (hook, what) in HOOKS {
            for (_, index) in desired.iter().filter(|(desired, _)| *desired == hook) {
                if self.beside.contains_key(&(hook, *index)) {
                    continue;
                }
                let name = interfaces.name(*index).unwrap_or_default();
                match self.attach(hook, name, *index).context(what) {
                    Ok(attached) => {
                        self.beside.insert((hook, *index), attached);
                    }
                    Err(error) => reports.push((name.to_owned(), Err(error))),
                }
            }
        }
    }

    /// Returns whether an interface intercepts connections that must not any more, because netfilter handles its packets
    /// first now.
    #[must_use]
    pub fn intercepts_too_much(&self, interfaces: &Interfaces) -> bool {
        let is_at = |index: &u32| self.beside.contains_key(&(Hook::Restore, *index));
        self.redirected.keys().any(|index| is_at(index) && !self.can_intercept(interfaces, *index))
    }

    /// Returns whether connections to the targets can be intercepted at a redirected interface.
    fn can_intercept(&self, interfaces: &Interfaces, index: u32) -> bool {
        let is_by_tc =
            self.redirected.get(&index).is_some_and(|attached| attached.mode != AttachMode::SkLookup);
        let is_filtered =
            || interfaces.is_bridge(index) && interfaces.name(index).is_some_and(bridge::is_filtered);
        // Not at `lo`, where also the daemon's own requests to a target arrive.
        !self.targets.is_empty() && is_by_tc && index != LOOPBACK_INDEX && !is_filtered()
    }

    fn desired_beside(&self, interfaces: &Interfaces, plan: &RedirectionPlan) -> BTreeSet<(Hook, u32)> {
        let restored = self.redirected.keys().filter(|index| self.can_intercept(interfaces, **index));
        let restored = restored.map(|index| (Hook::Restore, *index));
        let ports = plan.ports.iter().map(|port| (Hook::Port, *port));
        restored.chain(ports).chain(plan.local.then_some((Hook::Local, LOOPBACK_INDEX))).collect()
    }

    /// Returns places at which clsact may have a program of this or the previous daemon that must not be there.
    fn superfluous_beside(&self, desired: &BTreeSet<(Hook, u32)>) -> Vec<(Hook, u32)> {
        // A request to the kernel for each is made only once.
        let restored = self.redirected.keys().map(|index| (Hook::Restore, *index));
        let of_others = restored.chain([(Hook::Local, LOOPBACK_INDEX)]).filter(|_| !self.is_cleared);
        let all = self.beside.keys().copied().chain(of_others);
        let is_free = |(hook, index): &(Hook, u32)| {
            // There is one place for all programs, at each interface and in each direction.
            let is_its = |other: Hook| other.direction() == hook.direction();
            let is_redirected = self.redirected.contains_key(index) && is_its(Hook::Pod);
            !is_redirected && !desired.iter().any(|(other, at)| at == index && is_its(*other))
        };
        all.filter(is_free).collect()
    }
}
