//! The suites, by name, and the table at their end.

mod bench;
mod code;
mod counts;
mod labs;
mod lanes;
mod row;

use std::{env, num::NonZero, thread};

pub(crate) use self::{
    bench::bench,
    code::docs,
    counts::Counts,
    lanes::{COMMAND as IN_LANE, run_here},
};
use self::{labs::Tools, row::Row};
use crate::{
    image, kernels, programs,
    setup::{self, ahead},
};

/// A suite.
struct Suite {
    name: &'static str,
    place: Place,
    work: Work,
}

/// The work of a suite.
#[derive(Clone, Copy)]
enum Work {
    /// Runs tests of `lota-tests`.
    Tests(Tests),
    /// Runs a function. `prepare` gets what it needs of others' programs, which it does itself as well.
    Function { prepare: fn() -> Result<(), String>, run: fn(&mut Counts) -> Result<(), String> },
}

/// Tests of `lota-tests`.
#[derive(Clone, Copy)]
struct Tests {
    /// Name of their program.
    program: &'static str,
    /// Gateways that they run with, unless the environment states others; `None`: all.
    gateways: Option<&'static str>,
    tools: fn() -> Tools,
}

impl Suite {
    /// Gets what the suite needs, which [`Suite::run`] does as well.
    fn prepare(&self) -> Result<(), String> {
        match self.work {
            Work::Tests(tests) => (tests.tools)().map(drop),
            Work::Function { prepare, .. } => prepare(),
        }
    }

    fn run(&self, counts: &mut Counts) -> Result<(), String> {
        match self.work {
            Work::Tests(tests) => labs::tests(counts, self.name, tests),
            Work::Function { run, .. } => run(counts),
        }
    }
}

/// Time and place of a suite if several are run.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Before all others, since it needs every CPU.
    First,
    /// Beside one other.
    Lane,
    /// In the lane of those that compile or emulate, at a lower priority.
    Background,
    /// Nowhere, unless it is named.
    OnDemand,
}

/// In the order in which they begin: the longest early, and `kubernetes`, whose server is built meanwhile, late.
const SUITES: [Suite; 21] = [
    suite("lint", Place::First, setup::to_build, code::lint),
    suite("unit", Place::First, setup::to_build, code::unit),
    tests("packet", labs::none),
    with_gateways("e2e", "embedded", labs::embedded),
    with_gateways("e2e-gateways", "seaweedfs,rgw", labs::gateways),
    tests("datapath", labs::resolvers),
    tests("parity", labs::gateways),
    tests("consistency", labs::gateways),
    tests("chaos", labs::clocks),
    // Not ahead of the other suites, since their builds would wait for its own.
    suite("upgrade", Place::Lane, || setup::client().map(drop), labs::upgrade),
    tests("clients", labs::other_clients),
    tests("storage", labs::none),
    tests("deploy", labs::renderers),
    tests("monitoring", labs::promtool),
    tests("page", labs::browser),
    tests("kubernetes", labs::api_server),
    suite("image", Place::Background, || setup::image_tools().map(drop), image::suite),
    suite("fuzz", Place::Background, || setup::to_fuzz().map(drop), code::fuzz),
    suite("kernels", Place::Background, kernels::prepare, labs::kernels),
    suite("arm64", Place::OnDemand, kernels::prepare_arm64, labs::arm64),
    suite("cluster", Place::OnDemand, || labs::node().map(drop), labs::cluster),
];

const fn tests(name: &'static str, tools: fn() -> Tools) -> Suite {
    Suite { name, place: Place::Lane, work: Work::Tests(Tests { program: name, gateways: None, tools }) }
}

/// A suite that runs the program `e2e` with some gateways. Each has a lab of its own.
const fn with_gateways(name: &'static str, gateways: &'static str, tools: fn() -> Tools) -> Suite {
    let work = Work::Tests(Tests { program: "e2e", gateways: Some(gateways), tools });
    Suite { name, place: Place::Lane, work }
}

const fn suite(
    name: &'static str,
    place: Place,
    prepare: fn() -> Result<(), String>,
    run: fn(&mut Counts) -> Result<(), String>,
) -> Suite {
    Suite { name, place, work: Work::Function { prepare, run } }
}

/// Maximum number of lines of failures that are repeated at the end.
const MAX_REPEATED_FAILURES: usize = 200;

/// Runs the named suites, or all: one with its output as it comes, several in lanes.
pub(crate) fn test(names: &[&str]) -> Result<(), String> {
    let named = names.iter().map(|name| find(name)).collect::<Result<Vec<_>, _>>()?;
    let selected = |suite: &&Suite| match names {
        [] => suite.place != Place::OnDemand,
        _ => named.iter().any(|named| named.name == suite.name),
    };
    let selected: Vec<&Suite> = SUITES.iter().filter(selected).collect();
    let is_in_lane = |suite: &&&Suite| matches!(suite.place, Place::Lane | Place::Background);
    let (mut in_lanes, mut first): (Vec<&Suite>, Vec<&Suite>) = selected.iter().partition(is_in_lane);
    let lanes = lanes()?;
    if lanes < 2 || in_lanes.len() < 2 {
        first.append(&mut in_lanes);
    }
    if selected.len() > 1 {
        setup::to_build()?;
        ahead::begin(selected.iter().map(|suite| suite.name));
    }
    let mut rows: Vec<Row> = first.into_iter().map(Row::of).collect();
    if !in_lanes.is_empty() {
        let build = |_: &mut Counts| programs::build_all();
        let build = Row::of(&suite("build", Place::First, setup::to_build, build));
        let is_built = build.counts.failed == 0;
        rows.push(build);
        if is_built {
            rows.extend(lanes::run(&in_lanes, lanes));
        }
    }
    row::print_summary(&rows)
}

/// Installs what the suites need, one after the other. A suite whose preparation fails here reports the error when it
/// runs.
pub(crate) fn prepare(names: &[&str]) -> Result<(), String> {
    let (last, first): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| **name == "kubernetes");
    for name in first.into_iter().chain(last) {
        let suite = find(name)?;
        if name == "kubernetes" {
            // Building its server takes minutes.
            ahead::give_way();
        }
        if let Err(error) = suite.prepare() {
            eprintln!("xtask: {}: {error}", suite.name);
        }
    }
    Ok(())
}

fn find(name: &str) -> Result<&'static Suite, String> {
    SUITES.iter().find(|suite| suite.name == name).ok_or_else(|| {
        let known: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
        format!("there is no suite `{name}`; there are {}", known.join(", "))
    })
}

/// Returns the number of suites that run at the same time: `LOTA_LANES`, or else 2 on a machine with several CPUs.
fn lanes() -> Result<usize, String> {
    match env::var("LOTA_LANES") {
        Ok(lanes) => lanes.parse().map_err(|_| "LOTA_LANES is not a number".to_owned()),
        Err(_) => Ok(thread::available_parallelism().map_or(1, NonZero::get).min(2)),
    }
}
