//! Exploration of all states.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
};

use super::{cluster::ModelCluster, steps::Step};

/// Result of an exploration.
#[derive(Debug, Default)]
pub(super) struct Explored {
    /// Number of different states.
    pub(super) states: u64,
    /// Number of steps in which a remembered decision served a read.
    pub(super) hits: u64,
    /// The steps that lead to a violation.
    pub(super) violation: Option<Vec<String>>,
}

/// Takes every step in every state that can be reached, until there is a violation.
pub(super) fn explore(first: &ModelCluster) -> Explored {
    // Two hashes of 64 bits stand for a state.
    let hashers = [RandomState::new(), RandomState::new()];
    let identity = |state: &ModelCluster| hashers.each_ref().map(|hasher| hasher.hash_one(state));
    let mut known = HashSet::from([identity(first)]);
    let mut explored = Explored::default();
    let mut path: Vec<(ModelCluster, Vec<Step>, Option<Step>)> = vec![(first.clone(), first.steps(), None)];
    while let Some((state, steps, _)) = path.last_mut() {
        let Some(step) = steps.pop() else {
            path.pop();
            continue;
        };
        let mut next = state.clone();
        match next.take(step) {
            Ok(hits) => explored.hits += hits,
            Err(()) => {
                let taken = path.iter().filter_map(|(_, _, step)| *step).chain([step]);
                explored.violation = Some(taken.map(|step| format!("{step:?}")).collect());
                break;
            }
        }
        let next = next.without_the_irrelevant();
        if known.insert(identity(&next)) {
            let steps = next.steps();
            path.push((next, steps, Some(step)));
        }
    }
    explored.states = known.len() as u64;
    explored
}
