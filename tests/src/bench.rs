//! Reports of benchmarks: a JSON file, a plot, and a table on standard output.

pub mod nginx;
mod objects;
mod plot;
mod series;
mod steady;

use std::{fmt, fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use serde::{Serialize, Serializer};

pub use objects::{BUCKET, Objects, name_objects};
pub use series::{Panel, series};
pub use steady::{MAX_RATIO, Windows, quarters};

/// Results of a benchmark.
#[derive(Debug, Serialize)]
pub struct Report {
    bench: &'static str,
    machine: Machine,
    rows: Vec<Row>,
    /// Measurements over time, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    samples: Option<serde_json::Value>,
    /// Whether JSON is printed instead of the table.
    #[serde(skip)]
    prints_json: bool,
}

/// Machine on which it ran.
#[derive(Debug, Serialize)]
struct Machine {
    kernel: String,
    cpu: String,
    cpus: usize,
}

/// One result.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    #[serde(serialize_with = "in_words")]
    goal: Goal,
    value: f64,
    unit: &'static str,
    /// Minimum and maximum.
    spread: [f64; 2],
    /// Confidence interval of the median at 95 %, by order statistics.
    interval: [f64; 2],
    holds: bool,
}

/// Goal of a result.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// Upper bound.
    AtMost(f64),
    /// Lower bound.
    AtLeast(f64),
    /// None; the result is for comparison only.
    None,
}

impl Goal {
    fn bound(self) -> Option<f64> {
        match self {
            Self::AtMost(bound) | Self::AtLeast(bound) => Some(bound),
            Self::None => None,
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(least) => value >= least,
            Self::None => true,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "at most {limit}"),
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::None => Ok(()),
        }
    }
}

fn in_words<S: Serializer>(goal: &Goal, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(goal)
}

/// Returns the resident memory of a process, in bytes.
///
/// # Errors
/// If the process does not exist.
pub fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Returns the exit status of a benchmark.
#[must_use]
pub fn ended(bench: &str, measured: Result<bool>) -> ExitCode {
    match measured {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => eprintln!("a goal was missed"),
        Err(error) => eprintln!("bench {bench}: {error:#}"),
    }
    ExitCode::FAILURE
}

impl Report {
    /// Creates an empty report.
    #[must_use]
    pub fn new(bench: &'static str) -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let machine = Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: model.map_or("?", |(_, model)| model).to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        };
        Self { bench, machine, rows: Vec::new(), samples: None, prints_json: false }
    }

    /// Prints the report as JSON at its end, and no table.
    pub fn print_json(&mut self) {
        self.prints_json = true;
    }

    /// Adds measurements over time, with a plot of them: `target/bench/<name>-over-time.svg`.
    ///
    /// # Errors
    /// If the plot cannot be written.
    pub fn add_series(&mut self, samples: &impl Serialize, minutes: &[f64], panels: &[Panel]) -> Result<()> {
        self.samples = Some(serde_json::to_value(samples)?);
        let path = folder()?.join(format!("{}-over-time.svg", self.bench));
        Ok(fs::write(path, series(&self.title(), minutes, panels))?)
    }

    fn title(&self) -> String {
        format!("{}, {} CPUs, Linux {}", self.bench, self.machine.cpus, self.machine.kernel)
    }

    /// Adds the median and the spread of measurements, and prints them.
    pub fn add(&mut self, what: impl Into<String>, unit: &'static str, goal: Goal, mut measured: Vec<f64>) {
        measured.sort_by(f64::total_cmp);
        let median = measured.get(measured.len() / 2).copied().unwrap_or(f64::NAN);
        let spread = [measured.first(), measured.last()].map(|end| end.copied().unwrap_or(f64::NAN));
        let rounds = measured.len() as f64;
        let tail = (rounds - 1.96 * rounds.sqrt()) / 2.0;
        let outside = (1..=measured.len()).filter(|rank| *rank as f64 <= tail).count();
        let at = |place: usize| measured.get(place).copied().unwrap_or(f64::NAN);
        let interval = [at(outside), at(measured.len().wrapping_sub(outside + 1))];
        let (what, holds) = (what.into(), goal.holds(median));
        let mark = if holds { "" } else { "  MISSED" };
        if !self.prints_json {
            println!(
                "{what:<58} {median:>10.2} {unit:<6} [{:.2} … {:.2}]  {goal}{mark}",
                spread[0], spread[1]
            );
        }
        self.rows.push(Row { what, goal, value: median, unit, spread, interval, holds });
    }

    /// Writes `target/bench/<name>.json` and `.svg`; returns whether every goal was met.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self) -> Result<bool> {
        let path = folder()?.join(format!("{}.json", self.bench));
        let json = serde_json::to_string_pretty(self)?;
        fs::write(&path, &json).with_context(|| format!("writing {}", path.display()))?;
        fs::write(path.with_extension("svg"), plot::svg(&self.title(), &self.rows))?;
        match self.prints_json {
            true => println!("{json}"),
            false => println!("\n{}, and a plot beside it", path.canonicalize()?.display()),
        }
        Ok(self.rows.iter().all(|row| row.holds))
    }
}

/// Returns the folder of the results, which it creates.
fn folder() -> Result<&'static Path> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"));
    fs::create_dir_all(folder)?;
    Ok(folder)
}
