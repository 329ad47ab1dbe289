//! Answer to a fence.

use std::collections::BTreeMap;

use crate::{CellName, ChangeNumber, InstanceId};

/// Numbers of cells, all read at one moment after the gateway received the fence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FenceAnswer {
    instance: InstanceId,
    numbers: BTreeMap<CellName, ChangeNumber>,
}

impl FenceAnswer {
    /// Returns the answer with these numbers.
    #[must_use]
    pub fn new(instance: InstanceId, numbers: BTreeMap<CellName, ChangeNumber>) -> Self {
        Self { instance, numbers }
    }

    /// Returns the instance that has answered.
    #[must_use]
    pub fn instance(&self) -> &InstanceId {
        &self.instance
    }

    /// Returns the number of a cell, if it was asked for.
    #[must_use]
    pub fn number(&self, cell: &CellName) -> Option<ChangeNumber> {
        self.numbers.get(cell).copied()
    }
}
