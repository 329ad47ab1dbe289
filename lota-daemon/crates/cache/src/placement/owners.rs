//! Owners of stripes that were computed recently.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::StripeLength;

/// Maximum number of groups whose owners are kept.
const MAX_GROUPS: usize = 4096;

/// A group of consecutive stripes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StripeGroup {
    /// Digest of the object's name.
    pub(super) object: u64,
    pub(super) length: StripeLength,
    /// Index of the first stripe.
    pub(super) first: u64,
    /// Number of stripes.
    pub(super) count: u64,
}

/// Owners of groups of stripes: for each stripe, the position of its node.
#[derive(Default)]
pub(super) struct StripeOwners(Mutex<HashMap<StripeGroup, Arc<[usize]>>>);

impl StripeOwners {
    /// Returns the owners of a group, which `compute` computes if they are not known.
    pub(super) fn of(&self, group: StripeGroup, compute: impl FnOnce() -> Vec<usize>) -> Arc<[usize]> {
        if let Some(known) = self.0.lock().get(&group) {
            return known.clone();
        }
        let owners: Arc<[usize]> = compute().into();
        let mut known = self.0.lock();
        if known.len() >= MAX_GROUPS {
            known.clear();
        }
        known.insert(group, owners.clone());
        owners
    }
}
