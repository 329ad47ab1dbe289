//! Exploration of all states.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
};

use super::{cluster::ModelCluster, steps::ModelStep};

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
    // A hash stands for a state: with a million states, two of the same hash have a probability of one in thirty million.
    let hasher = RandomState::new();
    let identity = |state: &ModelCluster| hasher.hash_one(state);
    let mut known = HashSet::from([identity(first)]);
    let mut explored = Explored::default();
    let mut path: Vec<(ModelCluster, Vec<ModelStep>, Option<ModelStep>)> =
        vec![(first.clone(), first.steps(), None)];
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
