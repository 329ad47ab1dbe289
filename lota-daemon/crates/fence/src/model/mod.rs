//! Exhaustive check of the rules: every interleaving of a small cluster, with messages that are late or lost, two writers, a change
//! of policy and a restart of the gateway.
//!
//! A read is right if at some moment between its beginning and its end the gateway would have given the same response: this
//! version, to this client. Each broken rule must lead to a read that is not.

mod cluster;
mod explore;
mod read;
mod rules;
mod steps;

use self::{
    cluster::{ModelCluster, ModelSize},
    explore::explore,
    rules::BrokenRule,
};

/// With three reads at a node, one can begin while the fence of another is on its way, by the decision of a third.
const THREE_READS: ModelSize = ModelSize { reads: [3, 0], losses: 0, restarts: false };
const RESTART: ModelSize = ModelSize { reads: [2, 0], losses: 1, restarts: true };
/// Nodes change nothing at the gateway, so two are as one, unless a rule is missing.
const TWO_NODES: ModelSize = ModelSize { reads: [2, 1], ..THREE_READS };
const SIZES: [ModelSize; 3] = [THREE_READS, RESTART, TWO_NODES];
/// Sizes that take minutes.
const LARGE: [ModelSize; 2] =
    [ModelSize { losses: 1, restarts: true, ..THREE_READS }, ModelSize { reads: [2, 2], ..THREE_READS }];

fn expect_no_violation(sizes: &[ModelSize]) {
    for size in sizes {
        let explored = explore(&ModelCluster::new(*size, None));
        assert_eq!(explored.violation, None, "{size:?}");
        println!("{size:?}: {} states, {} hits", explored.states, explored.hits);
        assert!(explored.hits > 100, "the model does too little: {size:?}: {explored:?}");
    }
}

#[test]
fn no_interleaving_serves_what_the_gateway_would_not() {
    expect_no_violation(&SIZES);
}

#[test]
#[ignore = "takes minutes: run it after a change of the rules"]
fn no_interleaving_of_a_larger_model_does_either() {
    expect_no_violation(&LARGE);
}

#[test]
fn each_broken_rule_is_found() {
    for rule in BrokenRule::ALL {
        // Some take three reads and a lost message.
        let sizes = [ModelSize { losses: 1, ..THREE_READS }, RESTART];
        let explored = sizes.iter().find_map(|size| explore(&ModelCluster::new(*size, Some(rule))).violation);
        let violation = explored.unwrap_or_else(|| panic!("{rule:?} broken: nothing was found"));
        println!("{rule:?}: {}", violation.join(", "));
    }
}
