//! Suites whose tests share a lab.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{
    lab::{Lab, Origin, claim, still_wanted},
    tool,
    tour::{Tools, Tour},
};

/// Environment variable with the maximum number of attempts per test, by default 1. Tests of a lab depend on how soon
/// three nodes and their servers get the CPU.
const ATTEMPTS: &str = "LOTA_TEST_ATTEMPTS";
/// Beginning of the line about a test that failed at first. `cargo xtask test` counts these.
const FLAKY: &str = "flaky: ";

/// Number of tests whose durations a suite prints at its end: the longest.
const PRINTED_DURATIONS: usize = 8;

/// Durations of the tests that have ended, with all attempts.
type Durations = Arc<Mutex<Vec<(Duration, String)>>>;
/// Result of a test.
type TestResult = anyhow::Result<()>;
/// A test without its name.
pub type TestFn<T = Tour> = fn(&mut T) -> TestResult;
/// A test with its name.
pub type Test<T = Tour> = (String, Box<dyn Fn(&mut T) -> TestResult + Send>);

/// Returns the tests of a table.
#[must_use]
pub fn tests<T: 'static>(table: &[(&str, TestFn<T>)]) -> Vec<Test<T>> {
    table.iter().map(|(name, test)| ((*name).to_owned(), Box::new(*test) as Box<_>)).collect()
}

/// State that the tests of a suite share.
pub trait Shared: Send + 'static {
    /// Restores what a previous test may have stopped.
    ///
    /// # Errors
    /// If it cannot be restored.
    fn revive(&mut self) -> TestResult;
}

impl Shared for Tour {
    fn revive(&mut self) -> TestResult {
        Self::revive(self)
    }
}

/// A running suite.
#[derive(Debug)]
pub struct Suite {
    lab: &'static str,
    arguments: Arguments,
    durations: Durations,
    failed: bool,
}

impl Suite {
    /// Runs a suite whose labs have this name. SIGINT, SIGTERM and SIGHUP remove the lab.
    pub fn run(lab: &'static str, tests: impl FnOnce(&mut Self)) -> ExitCode {
        if let Err(error) = claim(lab) {
            eprintln!("{lab}: {error:#}");
            return ExitCode::FAILURE;
        }
        // Tests run one at a time because they share the lab.
        let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
        let mut suite = Self { lab, arguments, durations: Durations::default(), failed: false };
        tests(&mut suite);
        suite.print_durations();
        still_wanted();
        if suite.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    /// Runs tests in one lab, which is created before the first test and removed after the last.
    pub fn in_lab<T: Shared>(
        &mut self,
        make: impl Fn() -> anyhow::Result<T> + Send + Clone + 'static,
        tests: Vec<Test<T>>,
    ) {
        let lab: Arc<Mutex<Option<T>>> = Arc::default();
        let trials = tests.into_iter().map(|(name, test)| {
            let (lab, make, durations) = (lab.clone(), make.clone(), self.durations.clone());
            Trial::test(name.clone(), move || {
                let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
                timed(&durations, &name, || {
                    let tested = match &mut *lab {
                        Some(tour) => tour.revive().and_then(|()| test(tour)),
                        none => make().and_then(|tour| test(none.insert(tour))),
                    };
                    if tested.is_err() {
                        // The next test must not inherit its changes.
                        *lab = None;
                    }
                    tested
                })
            })
        });
        let (ended, name) = (lab.clone(), self.lab);
        let gone = Trial::test("the lab is removed completely", move || {
            drop(ended.lock().unwrap_or_else(PoisonError::into_inner).take());
            let left = Lab::leftovers(name);
            if left.is_empty() { Ok(()) } else { Err(format!("left behind: {}", left.join(", ")).into()) }
        });
        let trials = trials.chain([gone]).collect();
        self.failed |= libtest_mimic::run(&self.arguments, trials).has_failed();
    }

    /// Runs one test without a lab.
    pub fn alone(&mut self, name: &str, test: fn() -> TestResult) {
        let (title, durations) = (name.to_owned(), self.durations.clone());
        let trial = Trial::test(name, move || timed(&durations, &title, test));
        self.failed |= libtest_mimic::run(&self.arguments, vec![trial]).has_failed();
    }

    /// Prints the longest tests.
    fn print_durations(&self) {
        let mut durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner);
        durations.sort_unstable();
        for (duration, name) in durations.iter().rev().take(PRINTED_DURATIONS) {
            println!("{:>8.1} s  {name}", duration.as_secs_f64());
        }
    }
}

/// Attempts a test, and records how long that took.
fn timed(durations: &Durations, name: &str, test: impl FnMut() -> TestResult) -> Result<(), Failed> {
    let began = Instant::now();
    let attempted = attempt(name, attempts(), test);
    durations.lock().unwrap_or_else(PoisonError::into_inner).push((began.elapsed(), name.to_owned()));
    attempted
}

fn attempts() -> usize {
    std::env::var(ATTEMPTS).ok().and_then(|number| number.parse().ok()).unwrap_or(1)
}

fn attempt(name: &str, attempts: usize, test: impl FnMut() -> TestResult) -> Result<(), Failed> {
    repeat(name, attempts, test).map_err(Failed::from)
}

/// Runs a test until it passes, at most `attempts` times. The failures of one that passes later are printed behind
/// [`FLAKY`].
///
/// # Errors
/// If it fails each time: all failures.
pub fn repeat(name: &str, attempts: usize, mut test: impl FnMut() -> TestResult) -> Result<(), String> {
    let mut failures = Vec::new();
    while failures.len() < attempts {
        match test() {
            Ok(()) => {
                failures.iter().for_each(|failure| println!("\n{FLAKY}{name}: {failure}"));
                return Ok(());
            }
            Err(error) => failures.push(format!("{error:#}").replace('\n', " ")),
        }
    }
    Err(failures.join("\nand again: "))
}

/// Creates a lab with running nodes and the gateway `embedded`, `rgw` or `seaweedfs`.
///
/// # Errors
/// If the lab, the gateway or a node does not start.
pub fn lab_with(name: &str, origin: &str) -> anyhow::Result<Tour> {
    let lab = Lab::up(name)?;
    let origin = match origin {
        "embedded" => Origin::embedded(lab.folder())?,
        "rgw" => Origin::rgw(&tool("LOTA_RGW")?, lab.folder())?,
        _ => Origin::seaweed(&tool("LOTA_WEED")?, lab.folder())?,
    };
    Tour::start(lab, origin, &Tools { lota: tool("LOTA_BIN")?, python: tool("LOTA_PYTHON")? })
}

/// Returns the gateways that a suite runs with: those in `LOTA_GATEWAYS` (`embedded,seaweedfs,rgw`); by default all.
///
/// # Panics
/// If `LOTA_GATEWAYS` names another one.
#[must_use]
pub fn gateways() -> Vec<&'static str> {
    let mut all = vec!["embedded", "seaweedfs", "rgw"];
    if let Ok(named) = std::env::var("LOTA_GATEWAYS") {
        let named: Vec<&str> = named.split(',').map(str::trim).collect();
        let unknown = named.iter().find(|named| !all.contains(named));
        assert!(unknown.is_none(), "LOTA_GATEWAYS: {unknown:?} is not one of {}", all.join(", "));
        all.retain(|gateway| named.contains(gateway));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_repeated_until_it_passes_or_attempts_are_used_up() {
        let run = |attempts, failures| {
            let mut runs = 0;
            let result = attempt("it", attempts, || {
                runs += 1;
                anyhow::ensure!(runs > failures, "run {runs}");
                Ok(())
            });
            (runs, result.map_err(|failed| failed.message().unwrap_or_default().to_owned()))
        };
        assert_eq!(run(1, 0), (1, Ok(())));
        assert_eq!(run(2, 1), (2, Ok(())));
        assert_eq!(run(1, 1), (1, Err("run 1".to_owned())));
        assert_eq!(run(2, 2), (2, Err("run 1\nand again: run 2".to_owned())));
    }
}
