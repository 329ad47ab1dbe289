//! What fills have brought for each pod beyond what it reads. One byte asked can cost a whole object, so that a pod
//! that asks for the first byte of everything could keep disks and storage busy for all others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
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

#[derive(Clone, Copy, Debug)]
struct Debt {
    bytes: u64,
    /// Since when nothing has been forgiven.
    since: Instant,
}

impl Debts {
    /// Pods may owe up to `limit` bytes each.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, debts: Mutex::default() }
    }

    /// Charges a pod with a fill of `bytes`; false, and nothing charged, if it would owe too much.
    #[must_use]
    pub fn charge(&self, pod: IpAddr, bytes: u64) -> bool {
        self.charge_at(pod, bytes, Instant::now())
    }

    fn charge_at(&self, pod: IpAddr, bytes: u64, now: Instant) -> bool {
        let mut debts = self.debts();
        debts.retain(|_, debt| self.forgive(debt, now) > 0);
        let debt = debts.get(&pod).map_or(0, |debt| debt.bytes);
        let after = debt.saturating_add(bytes);
        if after > self.limit {
            return false;
        }
        debts.entry(pod).or_insert(Debt { bytes: 0, since: now }).bytes = after;
        true
    }

    /// A pod has read what a fill brought, or the fill was not to be.
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
    fn who_reads_what_is_brought_owes_nothing() {
        let debts = Debts::new(100);
        for _ in 0..10 {
            assert!(debts.charge(POD, 100));
            debts.credit(POD, 100);
        }
    }

    #[test]
    fn who_asks_for_first_bytes_only_is_stopped_until_it_is_forgiven() {
        let (debts, now) = (Debts::new(100), Instant::now());
        assert!(!debts.charge_at(POD, 101, now), "more than anyone may owe");
        assert!(debts.charge_at(POD, 60, now) && !debts.charge_at(POD, 60, now));
        assert!(debts.charge_at([10, 0, 0, 1].into(), 60, now), "another pod is not to blame");
        assert!(!debts.charge_at(POD, 60, now + FORGIVEN / 10), "50 are left");
        assert!(debts.charge_at(POD, 60, now + FORGIVEN / 4), "35 are left");
        assert!(debts.charge_at(POD, 100, now + FORGIVEN * 2));
    }
}
