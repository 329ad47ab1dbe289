//! Suites whose tests share a lab.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{
    lab::{Lab, Origin, clean_up_on_signal, still_wanted},
    tool,
    tour::{Tools, Tour},
};

/// What a test says.
type Said = anyhow::Result<()>;
/// A test, and its name.
pub type Test = (String, Box<dyn Fn(&mut Tour) -> Said + Send>);

/// A suite that runs.
#[derive(Debug)]
pub struct Suite {
    lab: &'static str,
    arguments: Arguments,
    failed: bool,
}

impl Suite {
    /// Runs a suite whose labs have this name; a signal takes them down.
    pub fn run(lab: &'static str, tests: impl FnOnce(&mut Self)) -> ExitCode {
        if let Err(error) = clean_up_on_signal(lab) {
            eprintln!("{lab}: {error:#}");
            return ExitCode::FAILURE;
        }
        // One at a time: they share the lab.
        let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
        let mut suite = Self { lab, arguments, failed: false };
        tests(&mut suite);
        still_wanted();
        if suite.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    /// Runs tests in one lab, which the first of them makes and which is gone after the last.
    pub fn in_lab(
        &mut self,
        make: impl Fn() -> anyhow::Result<Tour> + Send + Clone + 'static,
        tests: Vec<Test>,
    ) {
        let lab: Arc<Mutex<Option<Tour>>> = Arc::default();
        let trials = tests.into_iter().map(|(name, test)| {
            let (lab, make) = (lab.clone(), make.clone());
            Trial::test(name, move || {
                let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
                let tested = match &mut *lab {
                    // Tests before may have ended a node.
                    Some(tour) => tour.revive().and_then(|()| test(tour)),
                    none => make().and_then(|tour| test(none.insert(tour))),
                };
                if tested.is_err() {
                    // Whatever it left half-changed is not the next one's.
                    *lab = None;
                }
                tested.map_err(|error| Failed::from(format!("{error:#}")))
            })
        });
        let (ended, name) = (lab.clone(), self.lab);
        let gone = Trial::test("everything it made is gone afterwards", move || {
            drop(ended.lock().unwrap_or_else(PoisonError::into_inner).take());
            let left = Lab::leftovers(name);
            if left.is_empty() { Ok(()) } else { Err(format!("left behind: {}", left.join(", ")).into()) }
        });
        let trials = trials.chain([gone]).collect();
        self.failed |= libtest_mimic::run(&self.arguments, trials).has_failed();
    }

    /// Runs one test that needs no lab.
    pub fn alone(&mut self, name: &str, test: fn() -> Said) {
        let test = move || test().map_err(|error| Failed::from(format!("{error:#}")));
        self.failed |= libtest_mimic::run(&self.arguments, vec![Trial::test(name, test)]).has_failed();
    }
}

/// A lab of this name with running nodes, and the named gateway behind them: `embedded` or `seaweedfs`.
///
/// # Errors
/// If any of it fails.
pub fn lab_with(name: &str, origin: &str) -> anyhow::Result<Tour> {
    let lab = Lab::up(name)?;
    let origin = match origin {
        "embedded" => Origin::embedded(lab.folder())?,
        _ => Origin::seaweed(&tool("LOTA_WEED")?, lab.folder())?,
    };
    Tour::start(lab, origin, &Tools { lota: tool("LOTA_BIN")?, python: tool("LOTA_PYTHON")? })
}
