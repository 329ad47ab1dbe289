//! State of the model.

use super::{
    read::{ModelNode, ModelRead},
    rules::BrokenRule,
};
use crate::{CellName, ChangeCells, InstanceId, OpenChange};

/// State of the object and of the principal's permission, as the gateway applies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Truth {
    pub(super) version: u8,
    pub(super) is_allowed: bool,
}

/// A change at the gateway: of the object by a writer, or of the permission.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ModelChange {
    pub(super) kind: ChangeKind,
    pub(super) progress: ChangeProgress,
    /// The token of the gateway's process, while the change is counted.
    pub(super) open: Option<OpenChange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ChangeKind {
    Write(u8),
    Revoke,
}

/// Number of the three steps of a change that are done: counted, applied, ended. In this order, unless a rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ChangeProgress(pub(super) u8);

impl ChangeProgress {
    pub(super) const COMPLETE: Self = Self(3);
}

/// Extent of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModelSize {
    /// Number of reads at each node.
    pub(super) reads: [usize; 2],
    /// Number of fences and answers that may be given up or lost.
    pub(super) losses: u8,
    /// Whether the gateway may restart, once.
    pub(super) restarts: bool,
}

/// A gateway and two nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ModelCluster {
    pub(super) broken: Option<BrokenRule>,
    pub(super) truth: Truth,
    pub(super) cells: ChangeCells,
    pub(super) changes: [ModelChange; 3],
    pub(super) may_restart: bool,
    pub(super) nodes: [ModelNode; 2],
    /// Number of fences and answers of all nodes that may still be given up or lost.
    pub(super) losses: u8,
}

impl ModelCluster {
    pub(super) fn new(size: ModelSize, broken: Option<BrokenRule>) -> Self {
        let change = |kind| ModelChange { kind, progress: ChangeProgress(0), open: None };
        Self {
            broken,
            truth: Truth { version: 0, is_allowed: true },
            cells: ChangeCells::new(instance("first")),
            changes: [ChangeKind::Write(1), ChangeKind::Write(2), ChangeKind::Revoke].map(change),
            may_restart: size.restarts,
            nodes: size.reads.map(ModelNode::new),
            losses: size.losses,
        }
    }

    pub(super) fn is_broken(&self, rule: BrokenRule) -> bool {
        self.broken == Some(rule)
    }

    /// Returns the cells that decisions about the object depend on.
    pub(super) fn cells_of_decision(&self) -> Vec<CellName> {
        let policy = (!self.is_broken(BrokenRule::EveryCellIsStated)).then(|| cell(ChangeKind::Revoke));
        [cell(ChangeKind::Write(0))].into_iter().chain(policy).collect()
    }

    /// Applies a change, which every read in progress sees.
    pub(super) fn apply(&mut self, kind: ChangeKind) {
        match kind {
            ChangeKind::Write(version) => self.truth.version = version,
            ChangeKind::Revoke => self.truth.is_allowed = false,
        }
        let now = self.truth;
        let reads = self.nodes.iter_mut().flat_map(|node| &mut node.reads);
        reads.for_each(|read| read.see(now));
    }

    /// Returns the state without what no further step depends on. Of states that differ in this only, one is explored.
    pub(super) fn without_the_irrelevant(mut self) -> Self {
        let is_correct = self.broken.is_none();
        for node in &mut self.nodes {
            if !node.reads.contains(&ModelRead::Idle) {
                node.remembered = None;
            }
            let queue = &node.queue;
            // Nobody waits for them.
            node.fences.retain(|fence| !is_correct || !queue.clone().end(fence.id).is_empty());
        }
        self
    }

    /// Returns whether every read is over.
    pub(super) fn is_over(&self) -> bool {
        self.nodes.iter().flat_map(|node| &node.reads).all(|read| *read == ModelRead::Done)
    }

    /// Restarts the gateway, which loses its counts. Changes in progress are settled as they are, before it answers.
    pub(super) fn restart(&mut self) {
        let same = self.is_broken(BrokenRule::InstancePerLife);
        self.cells = ChangeCells::new(instance(if same { "first" } else { "second" }));
        let settles = !self.is_broken(BrokenRule::SettledBeforeRestart);
        for change in &mut self.changes {
            change.open = None;
            if settles && change.progress != ChangeProgress(0) {
                change.progress = ChangeProgress::COMPLETE;
            }
        }
        self.may_restart = false;
    }
}

/// Returns the cell that counts a kind of change.
pub(super) fn cell(kind: ChangeKind) -> CellName {
    let name = match kind {
        ChangeKind::Write(_) => "key",
        ChangeKind::Revoke => "principal",
    };
    CellName::parse(name).unwrap()
}

fn instance(name: &str) -> InstanceId {
    InstanceId::parse(name).unwrap()
}
