//! Memory budget for request headers, shared by the connections of a port, with a limit per address.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};

/// Headers up to this size, in bytes, are not charged. Most requests are smaller, so they are served even when large
/// headers exhaust the budget.
const UNCHARGED_SIZE: usize = 4 << 10;

/// Memory budget of a port.
#[derive(Clone, Debug)]
pub struct HeadBudget(Arc<BudgetState>);

#[derive(Debug)]
struct BudgetState {
    max: usize,
    max_per_address: usize,
    spent: Mutex<Spent>,
}

#[derive(Debug, Default)]
struct Spent {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// Charge of one connection to the budget, released on drop.
#[derive(Debug)]
pub struct HeadCharge {
    budget: HeadBudget,
    source: IpAddr,
    held: Mutex<HeldHeads>,
}

/// Charged bytes of a connection.
#[derive(Debug, Default)]
struct HeldHeads {
    /// Headers that are incomplete.
    partial: usize,
    /// Headers of requests without a response yet, in order.
    whole: VecDeque<usize>,
    total: usize,
}

impl HeadBudget {
    /// Returns a budget of `max` bytes, of which each address gets at most `max_per_address`.
    #[must_use]
    pub fn new(max: usize, max_per_address: usize) -> Self {
        Self(Arc::new(BudgetState { max, max_per_address, spent: Mutex::default() }))
    }

    /// Returns an empty charge for a connection from `source`.
    #[must_use]
    pub fn charge(&self, source: IpAddr) -> HeadCharge {
        HeadCharge { budget: self.clone(), source, held: Mutex::default() }
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.0.spent.lock()
    }
}

impl HeadCharge {
    /// Sets the charge for incomplete headers to `bytes`. Returns false, and changes nothing, if this exceeds the budget or
    /// the limit of the address.
    #[must_use]
    pub fn set_partial(&self, bytes: usize) -> bool {
        let (mut held, partial) = (self.held(), charged(bytes));
        let total = held.total - held.partial + partial;
        let is_allowed = self.replace(&mut held, total);
        if is_allowed {
            held.partial = partial;
        }
        is_allowed
    }

    /// Replaces the charge for incomplete headers by one of `bytes` for complete ones, until the response. Returns false, and
    /// changes nothing, if this exceeds the budget or the limit of the address.
    #[must_use]
    pub fn add_whole(&self, bytes: usize) -> bool {
        let (mut held, whole) = (self.held(), charged(bytes));
        let total = held.total - held.partial + whole;
        let is_allowed = self.replace(&mut held, total);
        if is_allowed {
            held.partial = 0;
            held.whole.push_back(whole);
        }
        is_allowed
    }

    /// Releases the charge of the oldest request without a response.
    pub fn answered(&self) {
        let mut held = self.held();
        let whole = held.whole.pop_front().unwrap_or_default();
        let total = held.total - whole;
        self.replace(&mut held, total);
    }

    fn held(&self) -> MutexGuard<'_, HeldHeads> {
        self.held.lock()
    }

    /// Sets the charge of the connection to `total`, if that is less than before or within the limits.
    fn replace(&self, held: &mut HeldHeads, total: usize) -> bool {
        let before = held.total;
        if before == total {
            return true;
        }
        let mut spent = self.budget.spent();
        let BudgetState { max, max_per_address, .. } = &*self.budget.0;
        let of_source = spent.by_source.get(&self.source).copied().unwrap_or_default();
        let (all, of_source) = (spent.all - before + total, of_source - before + total);
        if total > before && (all > *max || of_source > *max_per_address) {
            return false;
        }
        spent.all = all;
        match of_source {
            0 => drop(spent.by_source.remove(&self.source)),
            _ => drop(spent.by_source.insert(self.source, of_source)),
        }
        held.total = total;
        true
    }
}

fn charged(bytes: usize) -> usize {
    if bytes > UNCHARGED_SIZE { bytes } else { 0 }
}

impl Drop for HeadCharge {
    fn drop(&mut self) {
        let mut held = self.held();
        self.replace(&mut held, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_share_a_budget_of_which_no_address_gets_all() {
        let budget = HeadBudget::new(30 << 10, 20 << 10);
        let (one, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let (first, second, third) = (budget.charge(one), budget.charge(one), budget.charge(other));
        assert!(first.set_partial(16 << 10));
        assert!(!second.set_partial(8 << 10), "more than the share of an address");
        assert!(second.set_partial(UNCHARGED_SIZE), "small heads are free");
        assert!(!third.set_partial(16 << 10), "more than there is");
        assert!(third.set_partial(8 << 10) && !third.set_partial(16 << 10));
        assert_eq!(budget.spent().all, 24 << 10, "what was refused is not charged");
        drop(first);
        assert!(second.set_partial(16 << 10) && second.set_partial(0) && third.set_partial(0));
        assert!(budget.spent().all == 0 && budget.spent().by_source.is_empty());
    }

    #[test]
    fn each_answer_gives_back_its_own_head() {
        let budget = HeadBudget::new(64 << 10, 64 << 10);
        let charge = budget.charge([10, 0, 0, 1].into());
        assert!(charge.set_partial(8 << 10) && charge.add_whole(10 << 10) && charge.add_whole(100));
        assert!(charge.add_whole(20 << 10) && charge.set_partial(30 << 10));
        assert_eq!(budget.spent().all, 60 << 10);
        assert!(!charge.set_partial(40 << 10));
        for left in [50 << 10, 50 << 10, 30 << 10, 30 << 10] {
            charge.answered();
            assert_eq!(budget.spent().all, left);
        }
        drop(charge);
        assert_eq!(budget.spent().all, 0);
    }
}
