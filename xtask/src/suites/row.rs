//! Result of a suite: a row of the final table, and the failures.

use std::{fs, path::Path, time::Instant};

use super::{Counts, MAX_REPEATED_FAILURES, Suite};

/// Clock ticks per second in `/proc`.
const TICKS: u64 = 100;

/// Result of a suite.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) counts: Counts,
    pub(super) seconds: u64,
    /// CPU time of the suite's processes that have ended, in seconds.
    pub(super) cpu: u64,
}

impl Row {
    /// Runs a suite in this process.
    pub(super) fn of(suite: &Suite) -> Self {
        println!("\n===== {} =====", suite.name);
        let (began, cpu, mut counts) = (Instant::now(), cpu_seconds(), Counts::default());
        if let Err(error) = suite.run(&mut counts) {
            eprintln!("xtask: {}: {error}", suite.name);
            counts.fail(error);
        }
        let (seconds, cpu) = (began.elapsed().as_secs(), cpu_seconds().saturating_sub(cpu));
        Self { name: suite.name, counts, seconds, cpu }
    }

    /// Returns the result of a suite that could not be run.
    pub(super) fn failed(name: &'static str, error: String) -> Self {
        let mut counts = Counts::default();
        counts.fail(error);
        Self { name, counts, seconds: 0, cpu: 0 }
    }

    /// Writes the result to a file, for [`Row::load`] in another process.
    pub(super) fn save(&self, file: &Path) -> Result<(), String> {
        let Self { counts: Counts { passed, failed, flaky, failures }, seconds, cpu, .. } = self;
        let text = format!("{passed} {failed} {flaky} {seconds} {cpu}\n{}", failures.join("\n"));
        fs::write(file, text).map_err(|error| format!("cannot write {}: {error}", file.display()))
    }

    /// Reads what [`Row::save`] wrote.
    pub(super) fn load(name: &'static str, file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let (numbers, failures) = text.split_once('\n')?;
        let numbers: Vec<u64> = numbers.split(' ').filter_map(|number| number.parse().ok()).collect();
        let [passed, failed, flaky, seconds, cpu] = numbers[..] else { return None };
        let failures = failures.lines().map(str::to_owned).collect();
        Some(Self { name, counts: Counts { passed, failed, flaky, failures }, seconds, cpu })
    }
}

/// Prints the table and the failures.
///
/// # Errors
/// If a test failed.
pub(super) fn print_summary(rows: &[Row]) -> Result<(), String> {
    println!("\n{:<16}{:>8}{:>8}{:>8}{:>9}{:>9}", "suite", "passed", "failed", "flaky", "seconds", "of CPU");
    for Row { name, counts: Counts { passed, failed, flaky, .. }, seconds, cpu } in rows {
        println!("{name:<16}{passed:>8}{failed:>8}{flaky:>8}{seconds:>9}{cpu:>9}");
    }
    // Repeat the failures: earlier output may have scrolled away.
    let failures = rows.iter().flat_map(|row| row.counts.failures.iter().map(move |line| (row.name, line)));
    for (name, line) in failures.take(MAX_REPEATED_FAILURES) {
        println!("{name}: {line}");
    }
    let passed: u64 = rows.iter().map(|row| row.counts.passed).sum();
    let failed: u64 = rows.iter().map(|row| row.counts.failed).sum();
    let flaky: u64 = rows.iter().map(|row| row.counts.flaky).sum();
    println!("\n{passed} passed, {failed} failed; {flaky} of those that passed failed at first");
    if failed == 0 { Ok(()) } else { Err(format!("{failed} failed")) }
}

/// CPU time of this process and of its children that ended: `utime` to `cstime` of proc_pid_stat(5).
fn cpu_seconds() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().skip(11).take(4).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>()
        / TICKS
}
