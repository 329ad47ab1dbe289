//! Steps that the cluster can take next.

use super::{
    cluster::{ChangeKind, ChangeProgress, ModelCluster, cell},
    read::{FenceOnWire, ModelQuestion, ModelRead, RememberedDecision},
    rules::BrokenRule,
};
use crate::{Basis, FenceAnswer};

/// A step, by the places of what takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ModelStep {
    /// A change goes on.
    Change(usize),
    /// The gateway restarts.
    Restart,
    /// A client begins a read.
    Begin { node: usize, read: usize },
    /// A read joins a fence that is on its way.
    JoinLate { node: usize, read: usize },
    /// A node sends a fence.
    Send { node: usize },
    /// The gateway answers a fence.
    Answer { node: usize, fence: usize },
    /// The answer arrives.
    Arrive { node: usize, fence: usize },
    /// The node waits no longer.
    GiveUp { node: usize, fence: usize },
    /// The question of a read goes on.
    Ask { node: usize, read: usize },
    /// The answer to a question is lost, and the node asks again.
    Lose { node: usize, read: usize },
}

impl ModelCluster {
    /// Returns the steps that are possible now.
    pub(super) fn steps(&self) -> Vec<ModelStep> {
        let mut steps = Vec::new();
        if self.is_over() {
            return steps;
        }
        // The two writers are alike: they begin in order.
        let may_begin = |change: usize| change != 1 || self.changes[0].progress != ChangeProgress(0);
        let is_open =
            |change: &usize| self.changes[*change].progress != ChangeProgress::COMPLETE && may_begin(*change);
        steps.extend((0..self.changes.len()).filter(is_open).map(ModelStep::Change));
        if self.may_restart {
            steps.push(ModelStep::Restart);
        }
        for (place, node) in self.nodes.iter().enumerate() {
            // Reads of a node are alike: they begin in order.
            if let Some(read) = node.reads.iter().position(|read| *read == ModelRead::Idle) {
                steps.push(ModelStep::Begin { node: place, read });
                if self.is_broken(BrokenRule::JoinedBeforeSent)
                    && node.remembered.is_some()
                    && !node.fences.is_empty()
                {
                    steps.push(ModelStep::JoinLate { node: place, read });
                }
            }
            if node.queue.clone().send().is_some() {
                steps.push(ModelStep::Send { node: place });
            }
            for (fence, sent) in node.fences.iter().enumerate() {
                steps.push(match sent.answer {
                    None => ModelStep::Answer { node: place, fence },
                    Some(_) => ModelStep::Arrive { node: place, fence },
                });
                if self.losses > 0 {
                    steps.push(ModelStep::GiveUp { node: place, fence });
                }
            }
            for (read, state) in node.reads.iter().enumerate() {
                if let ModelRead::Asking(question) = state {
                    steps.push(ModelStep::Ask { node: place, read });
                    if self.losses > 0 && matches!(question, ModelQuestion::Answered(..)) {
                        steps.push(ModelStep::Lose { node: place, read });
                    }
                }
            }
        }
        steps
    }

    /// Takes a step. Returns the number of reads that it serves by a decision that was remembered.
    ///
    /// # Errors
    /// If a read is served what the gateway would not have served it.
    pub(super) fn take(&mut self, step: ModelStep) -> Result<u64, ()> {
        match step {
            ModelStep::Change(change) => self.go_on(change),
            ModelStep::Restart => self.restart(),
            ModelStep::Begin { node, read } => {
                let (now, node) = (self.truth, &mut self.nodes[node]);
                node.reads[read] = match node.remembered.clone() {
                    Some(decision) => {
                        node.queue.join(&decision.basis, read);
                        ModelRead::waiting(decision, now)
                    }
                    None => ModelRead::Asking(ModelQuestion::Sent),
                };
            }
            ModelStep::JoinLate { node, read } => {
                let (now, node) = (self.truth, &mut self.nodes[node]);
                if let (Some(decision), Some(fence)) = (node.remembered.clone(), node.fences.first()) {
                    node.joined_late.push((fence.id, read));
                    node.reads[read] = ModelRead::waiting(decision, now);
                }
            }
            ModelStep::Send { node } => {
                let node = &mut self.nodes[node];
                let sent = node.queue.send();
                node.fences.extend(sent.map(|sent| FenceOnWire {
                    id: sent.id,
                    cells: sent.cells,
                    answer: None,
                }));
            }
            ModelStep::Answer { node, fence } => {
                let fence = &mut self.nodes[node].fences[fence];
                fence.answer = Some(self.cells.answer(&fence.cells));
            }
            ModelStep::Arrive { node, fence } => return self.arrive(node, fence),
            ModelStep::GiveUp { node, fence } => {
                self.losses -= 1;
                let serves = self.is_broken(BrokenRule::NothingWithoutAnswer);
                let node = &mut self.nodes[node];
                // The message stays on its way.
                let waited = node.end(node.fences[fence].id);
                return node.conclude(waited, |_| serves);
            }
            ModelStep::Ask { node, read } => self.ask(node, read),
            ModelStep::Lose { node, read } => {
                self.losses -= 1;
                if let ModelRead::Asking(question) = &mut self.nodes[node].reads[read] {
                    *question = ModelQuestion::Sent;
                }
            }
        }
        Ok(0)
    }

    /// Does the next of a change's three steps: count, apply, end.
    fn go_on(&mut self, change: usize) {
        let kind = self.changes[change].kind;
        let ChangeProgress(done) = self.changes[change].progress;
        self.changes[change].progress = ChangeProgress(done + 1);
        let order = match self.broken {
            Some(BrokenRule::CountedBeforeVisible) => [1, 0, 2],
            Some(BrokenRule::InProgressUntilComplete) => [0, 2, 1],
            _ => [0, 1, 2],
        };
        let is_counted = kind != ChangeKind::Revoke || !self.is_broken(BrokenRule::PolicyIsCounted);
        match order[usize::from(done)] {
            0 if is_counted => self.changes[change].open = Some(self.cells.begin(cell(kind))),
            1 => self.apply(kind),
            2 => self.changes[change].open.take().into_iter().for_each(|open| self.cells.end(open)),
            _ => {}
        }
    }

    /// Delivers the answer to a fence.
    fn arrive(&mut self, node: usize, fence: usize) -> Result<u64, ()> {
        let is_of_any = self.is_broken(BrokenRule::AnswerOfItsFence);
        let node = &mut self.nodes[node];
        let FenceOnWire { id, answer, .. } = node.fences.remove(fence);
        let Some(answer) = answer else { return Ok(0) };
        let mut waited = node.end(id);
        if is_of_any && waited.is_empty() {
            // It is late: taken for the answer to another.
            let others: Vec<_> = node.fences.iter().map(|fence| fence.id).collect();
            waited = others.into_iter().flat_map(|other| node.end(other)).collect();
        }
        node.conclude(waited, |basis| basis.holds(&answer))
    }

    /// Does the next step of a question: read the numbers, decide, deliver the answer.
    fn ask(&mut self, node: usize, read: usize) {
        let ModelRead::Asking(question) = self.nodes[node].reads[read].clone() else { return };
        let next = match question {
            ModelQuestion::Sent if self.is_broken(BrokenRule::BasisBeforeDecision) => {
                ModelQuestion::DecidedFirst(self.truth)
            }
            ModelQuestion::Sent => ModelQuestion::Counted(self.basis()),
            ModelQuestion::Counted(basis) => ModelQuestion::Answered(self.truth, basis),
            ModelQuestion::DecidedFirst(truth) => ModelQuestion::Answered(truth, self.basis()),
            ModelQuestion::Answered(truth, basis) => {
                let node = &mut self.nodes[node];
                if let Some(basis) = basis.filter(|_| truth.is_allowed) {
                    node.remembered = Some(RememberedDecision { version: truth.version, basis });
                }
                node.reads[read] = ModelRead::Done;
                return;
            }
        };
        self.nodes[node].reads[read] = ModelRead::Asking(next);
    }

    fn basis(&self) -> Option<Basis> {
        let cells = self.cells_of_decision();
        let proper = self.cells.basis(&cells);
        if proper.is_some() || !self.is_broken(BrokenRule::NotRememberedDuringChange) {
            return proper;
        }
        let answer: FenceAnswer = self.cells.answer(&cells);
        let numbers = cells.iter().filter_map(|cell| Some((cell.clone(), answer.number(cell)?)));
        Basis::new(answer.instance().clone(), numbers.collect()).ok()
    }
}
