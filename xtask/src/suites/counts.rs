//! Number of checks that passed and failed, with the failures' messages.

use std::process::Command;

use crate::process::watch;

/// Results of checks.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Tests that failed at first and passed when repeated.
    pub(super) flaky: u64,
    /// Messages of the failures.
    pub(super) failures: Vec<String>,
}

impl Counts {
    /// Counts a check; records its name if it failed.
    pub(super) fn one(&mut self, what: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.fail(format!("{what} failed"));
        }
    }

    /// Counts a failure.
    pub(super) fn fail(&mut self, error: String) {
        self.failed += 1;
        self.failures.push(error);
    }

    /// Counts a check of xtask's own, and prints its result.
    pub(crate) fn check(&mut self, what: &str, result: Result<(), String>) {
        let passed = result.is_ok();
        match result {
            Ok(()) => println!("ok      {what}"),
            Err(error) => {
                println!("FAILED  {what}: {error}");
                self.failures.push(error);
            }
        }
        self.one(what, passed);
    }

    /// Runs a command, and counts it as one check.
    pub(super) fn run(&mut self, what: &str, command: &mut Command) -> Result<(), String> {
        let succeeded = watch(what, command, |_| ())?;
        self.one(what, succeeded);
        Ok(())
    }

    /// Runs a test runner, and adds the numbers of its result lines and its failures. A runner that fails without a
    /// result counts as one failure.
    pub(super) fn tests(&mut self, what: &str, command: &mut Command) -> Result<(), String> {
        let (mut result, mut in_failures) = ((0, 0), false);
        let succeeded = watch(what, command, |line| {
            result = add_result(line, result);
            // As `lota_tests::suite` prints it.
            if let Some((_, failure)) = line.split_once("flaky: ") {
                self.flaky += 1;
                self.failures.push(format!("flaky: {failure}"));
            }
            // The failures follow, up to the result line.
            in_failures = line == "failures:" || in_failures && !line.starts_with("test result: ");
            if in_failures && !line.is_empty() && line != "failures:" {
                self.failures.push(line.to_owned());
            }
        })?;
        let (passed, failed) = result;
        self.passed += passed;
        self.failed += failed;
        match (succeeded, passed, failed) {
            (false, _, 0) => self.fail(format!("{what} failed")),
            (true, 0, _) => return Err("no test ran".into()),
            _ => {}
        }
        Ok(())
    }
}

/// Adds the numbers of a test runner's result line.
pub(super) fn add_result(line: &str, (passed, failed): (u64, u64)) -> (u64, u64) {
    match line.starts_with("test result: ") {
        true => (passed + number_before(line, " passed"), failed + number_before(line, " failed")),
        false => (passed, failed),
    }
}

fn number_before(line: &str, label: &str) -> u64 {
    let digits = line.split(label).next().unwrap_or_default();
    digits
        .rsplit(|character: char| !character.is_ascii_digit())
        .next()
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}
