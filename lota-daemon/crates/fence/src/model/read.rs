//! Reads of a client at a node, and what the node knows.

use std::collections::BTreeSet;

use super::cluster::Truth;
use crate::{Basis, CellName, FenceAnswer, FenceId, FenceQueue};

/// A decision that a node remembers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RememberedDecision {
    pub(super) version: u8,
    pub(super) basis: Basis,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ModelNode {
    pub(super) remembered: Option<RememberedDecision>,
    /// Requests that wait, by their place in `reads`.
    pub(super) queue: FenceQueue<usize>,
    /// Requests that have joined a fence on its way, which only a broken rule allows.
    pub(super) joined_late: Vec<(FenceId, usize)>,
    pub(super) fences: Vec<FenceOnWire>,
    pub(super) reads: Vec<ModelRead>,
}

/// A fence, and the answer once the gateway has sent it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FenceOnWire {
    pub(super) id: FenceId,
    pub(super) cells: BTreeSet<CellName>,
    pub(super) answer: Option<FenceAnswer>,
}

/// A client's read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum ModelRead {
    Idle,
    /// It waits for a fence, to be served by a decision that is remembered. The gateway would have served the same at some moment
    /// since the read began, if `is_right`.
    Waiting {
        decision: RememberedDecision,
        is_right: bool,
    },
    /// The gateway is asked, whose answer is right by itself.
    Asking(ModelQuestion),
    Done,
}

/// A question for a decision, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum ModelQuestion {
    Sent,
    /// The gateway has read the numbers.
    Counted(Option<Basis>),
    /// The gateway has decided before it reads the numbers, which only a broken rule allows.
    DecidedFirst(Truth),
    /// The answer is on its way.
    Answered(Truth, Option<Basis>),
}

impl ModelRead {
    /// Makes a read wait from now on.
    pub(super) fn waiting(decision: RememberedDecision, now: Truth) -> Self {
        let mut read = Self::Waiting { decision, is_right: false };
        read.see(now);
        read
    }

    /// Notes a state of the gateway during the read.
    pub(super) fn see(&mut self, now: Truth) {
        if let Self::Waiting { decision, is_right } = self {
            *is_right |= now == Truth { version: decision.version, is_allowed: true };
        }
    }
}

impl ModelNode {
    pub(super) fn new(reads: usize) -> Self {
        Self {
            remembered: None,
            queue: FenceQueue::new(),
            joined_late: Vec::new(),
            fences: Vec::new(),
            reads: vec![ModelRead::Idle; reads],
        }
    }

    /// Ends a fence. Returns the requests that have waited for it.
    pub(super) fn end(&mut self, fence: FenceId) -> Vec<usize> {
        let mut waited = self.queue.end(fence);
        waited.extend(self.joined_late.extract_if(.., |(joined, _)| *joined == fence).map(|(_, read)| read));
        waited
    }

    /// Serves the requests that have waited for a fence, or has the gateway asked.
    ///
    /// # Errors
    /// If a request is served what the gateway would not have served it.
    pub(super) fn conclude(&mut self, waited: Vec<usize>, holds: impl Fn(&Basis) -> bool) -> Result<u64, ()> {
        let mut hits = 0;
        for read in waited {
            let ModelRead::Waiting { decision, is_right } = &self.reads[read] else { continue };
            if !holds(&decision.basis) {
                self.reads[read] = ModelRead::Asking(ModelQuestion::Sent);
                continue;
            }
            if !is_right {
                return Err(());
            }
            hits += 1;
            self.reads[read] = ModelRead::Done;
        }
        Ok(hits)
    }
}
