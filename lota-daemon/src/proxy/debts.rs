//! What fills have brought for each pod beyond what it asked for. One byte asked can cost a whole object, so that a
//! pod that asks for the first byte of everything could keep disks and storage busy for all others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long until a whole limit's debt is forgiven.
const FORGIVEN: Duration = Duration::from_secs(3600);

/// Every pod's debt, in bytes.
#[derive(Debug)]
pub struct Debts {
    limit: u64,
    debts: Mutex<HashMap<IpAddr, Debt>>,
}

/// What a pod is charged with for one fill; taken back when it is dropped.
#[derive(Debug)]
pub struct Charge {
    debts: Arc<Debts>,
    pod: IpAddr,
    bytes: u64,
}

impl Charge {
    /// The fill has brought it all.
    pub fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.debts.credit(self.pod, self.bytes);
    }
}

#[derive(Clone, Copy, Debug)]
struct Debt {
    bytes: u64,
    /// Since when nothing has been forgiven.
    since: Instant,
}

impl Debts {
    /// Pods may owe up to `limit` bytes each; who owes nothing may have one object of any size.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, debts: Mutex::default() }
    }

    /// Charges a pod with a fill that brings `bytes` it does not ask for; `None` if it would owe too much.
    #[must_use]
    pub fn charge(self: &Arc<Self>, pod: IpAddr, bytes: u64) -> Option<Charge> {
        self.charge_at(pod, bytes, Instant::now())
    }

    fn charge_at(self: &Arc<Self>, pod: IpAddr, bytes: u64, now: Instant) -> Option<Charge> {
        let mut debts = self.debts();
        debts.retain(|_, debt| self.forgive(debt, now) > 0);
        let debt = debts.get(&pod).map_or(0, |debt| debt.bytes);
        let after = debt.saturating_add(bytes);
        if debt > 0 && bytes > 0 && after > self.limit {
            return None;
        }
        debts.entry(pod).or_insert(Debt { bytes: 0, since: now }).bytes = after;
        Some(Charge { debts: self.clone(), pod, bytes })
    }

    /// A pod has read what a fill brought before, or the fill was not to be.
    pub fn credit(&self, pod: IpAddr, bytes: u64) {
        if let Some(debt) = self.debts().get_mut(&pod) {
            debt.bytes = debt.bytes.saturating_sub(bytes);
        }
    }

    /// What is left of a debt.
    fn forgive(&self, debt: &mut Debt, now: Instant) -> u64 {
        let share = now.saturating_duration_since(debt.since).as_millis() * u128::from(self.limit);
        let forgiven = u64::try_from(share / FORGIVEN.as_millis()).unwrap_or(u64::MAX);
        if forgiven > 0 {
            *debt = Debt { bytes: debt.bytes.saturating_sub(forgiven), since: now };
        }
        debt.bytes
    }

    fn debts(&self) -> MutexGuard<'_, HashMap<IpAddr, Debt>> {
        self.debts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn who_asks_for_whole_objects_owes_nothing() {
        let debts = Arc::new(Debts::new(100));
        for _ in 0..10 {
            debts.charge(POD, 0).unwrap().keep();
        }
        debts.charge(POD, 1000).unwrap().keep();
        assert!(debts.charge(POD, 1).is_none(), "one object of any size, no more");
        debts.charge(POD, 0).unwrap().keep();
        debts.credit(POD, 1000);
        assert!(debts.charge(POD, 100).is_some(), "read in the end");
    }

    #[test]
    fn who_asks_for_first_bytes_only_is_stopped_until_it_is_forgiven() {
        let (debts, now) = (Arc::new(Debts::new(100)), Instant::now());
        let charge = |pod, bytes, after| debts.charge_at(pod, bytes, now + after).map(Charge::keep).is_some();
        assert!(charge(POD, 60, Duration::ZERO) && !charge(POD, 60, Duration::ZERO));
        assert!(charge([10, 0, 0, 1].into(), 60, Duration::ZERO), "another pod is not to blame");
        assert!(!charge(POD, 60, FORGIVEN / 10), "50 are left");
        assert!(charge(POD, 60, FORGIVEN / 4), "35 were left");
        assert!(charge(POD, 100, FORGIVEN * 2));
    }

    #[test]
    fn a_fill_that_breaks_off_costs_nothing() {
        let debts = Arc::new(Debts::new(100));
        drop(debts.charge(POD, 100).unwrap());
        debts.charge(POD, 100).unwrap().keep();
        assert!(debts.charge(POD, 1).is_none());
    }
}
