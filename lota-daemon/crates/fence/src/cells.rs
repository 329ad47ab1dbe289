//! The gateway's counters.

use std::collections::BTreeMap;

use crate::{Basis, CellName, ChangeNumber, FenceAnswer, InstanceId};

/// Counters of changes, for as long as none is lost.
///
/// A change of anything that a decision can depend on is enclosed by [`Self::begin`] and [`Self::end`] of its cell: it becomes
/// visible to no one before `begin` and is complete before `end`. A decision is computed after [`Self::basis`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChangeCells {
    instance: InstanceId,
    cells: BTreeMap<CellName, Cell>,
}

/// A change that has begun.
#[derive(Debug, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(Clone))]
#[must_use = "decisions are not remembered before it ends"]
pub struct OpenChange(CellName);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Cell {
    number: ChangeNumber,
    /// Number of changes that have begun and not ended. Parity of the number would not do, since two can be in progress.
    in_progress: u32,
}

impl ChangeCells {
    /// Returns counters without a change. Each start of the gateway needs another instance.
    #[must_use]
    pub fn new(instance: InstanceId) -> Self {
        Self { instance, cells: BTreeMap::new() }
    }

    /// Begins a change: decisions that were computed before do not hold any more.
    pub fn begin(&mut self, name: CellName) -> OpenChange {
        let cell = self.cells.entry(name.clone()).or_default();
        cell.number.0 += 1;
        cell.in_progress += 1;
        OpenChange(name)
    }

    /// Ends a change, whether it was made or not.
    pub fn end(&mut self, OpenChange(name): OpenChange) {
        if let Some(cell) = self.cells.get_mut(&name) {
            cell.in_progress = cell.in_progress.saturating_sub(1);
        }
    }

    /// Returns the basis of a decision that is computed next and depends on these cells. `None` while one of them is changing:
    /// the decision may then see a part of the change, and must not be remembered.
    #[must_use]
    pub fn basis<'c>(&self, cells: impl IntoIterator<Item = &'c CellName>) -> Option<Basis> {
        let stable = |name: &CellName| {
            let cell = self.cell(name);
            (cell.in_progress == 0).then(|| (name.clone(), cell.number))
        };
        let numbers = cells.into_iter().map(stable).collect::<Option<_>>()?;
        Basis::new(self.instance.clone(), numbers).ok()
    }

    /// Answers a fence.
    #[must_use]
    pub fn answer<'c>(&self, cells: impl IntoIterator<Item = &'c CellName>) -> FenceAnswer {
        let numbers = cells.into_iter().map(|name| (name.clone(), self.cell(name).number));
        FenceAnswer::new(self.instance.clone(), numbers.collect())
    }

    fn cell(&self, name: &CellName) -> Cell {
        self.cells.get(name).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_beside_a_change_are_not_remembered() {
        let (key, policy) = (CellName::parse("k").unwrap(), CellName::parse("p").unwrap());
        let of_both = [key.clone(), policy.clone()];
        let both = || &of_both;
        let mut cells = ChangeCells::new(InstanceId::parse("i").unwrap());
        let before = cells.basis(both()).unwrap();
        assert!(before.holds(&cells.answer(both())));

        let changes = [cells.begin(key.clone()), cells.begin(key)];
        assert!(!before.holds(&cells.answer(both())), "the change may be visible");
        assert_eq!(cells.basis(both()), None);
        assert!(cells.basis([&policy]).is_some(), "another cell is not affected");
        let [first, second] = changes;
        cells.end(first);
        assert_eq!(cells.basis(both()), None, "the other change goes on");
        cells.end(second);
        let after = cells.basis(both()).unwrap();
        assert!(after.holds(&cells.answer(both())) && !before.holds(&cells.answer(both())));
        assert_eq!(cells.basis([]), None, "a decision depends on something");
    }
}
