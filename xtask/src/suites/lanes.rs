//! Runs suites in parallel, since most of them wait more than they compute. Each runs in its own process, whose output is
//! printed when it ends.
//!
//! All processes are in the terminal's foreground group, so Ctrl-C reaches each of them, and labs remove themselves. If
//! only this process ends, the others get a signal ([`tied`]).

use std::{
    collections::VecDeque,
    env,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{Place, Row, Suite};
use crate::{
    process::{ROOT, tied},
    programs,
};

/// The hidden command that runs a suite in a lane.
pub(crate) const COMMAND: &str = "__suite";
/// Interval at which the running suites are printed.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);
/// Niceness of suites in the background, so that labs get the CPUs first.
const NICENESS: &str = "10";

type Queue = Mutex<VecDeque<&'static Suite>>;

/// Running suites, and results of the suites that have ended.
#[derive(Default)]
struct State {
    running: Vec<(&'static str, Instant)>,
    rows: Vec<Row>,
    is_over: bool,
}

#[derive(Default)]
struct Lanes {
    state: Mutex<State>,
    over: Condvar,
}

/// Runs suites in `lanes` parallel lanes, and those of the background in one more.
pub(super) fn run(suites: &[&'static Suite], lanes: usize) -> Vec<Row> {
    let (background, labs) = suites.iter().partition(|suite| suite.place == Place::Background);
    let (background, labs): (Queue, Queue) = (Mutex::new(background), Mutex::new(labs));
    let all = &Lanes::default();
    thread::scope(|scope| {
        let lanes = [&labs].into_iter().cycle().take(lanes).chain([&background]);
        let lanes: Vec<_> = lanes.map(|queue| scope.spawn(move || all.run(queue))).collect();
        scope.spawn(|| all.tell_progress());
        for lane in lanes {
            let _ = lane.join();
        }
        all.lock().is_over = true;
        all.over.notify_all();
    });
    let mut rows = std::mem::take(&mut all.lock().rows);
    // A lane that panicked reports no result.
    let lost = suites.iter().filter(|suite| rows.iter().all(|row| row.name != suite.name));
    let lost: Vec<Row> =
        lost.map(|suite| Row::failed(suite.name, "it did not complete".to_owned())).collect();
    rows.extend(lost);
    rows
}

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the suites of a queue one after the other.
    fn run(&self, queue: &Queue) {
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        while let Some(suite) = next() {
            let began = Instant::now();
            eprintln!("xtask: {} started", suite.name);
            self.lock().running.push((suite.name, began));
            let mut row = run_suite(suite).unwrap_or_else(|error| Row::failed(suite.name, error));
            row.seconds = began.elapsed().as_secs();
            let summary =
                format!("{}: {} passed, {} failed", suite.name, row.counts.passed, row.counts.failed);
            let mut state = self.lock();
            state.running.retain(|(name, _)| *name != suite.name);
            state.rows.push(row);
            // The lock keeps the output of suites apart. The log has the output as well, so ignore errors.
            let mut stdout = io::stdout().lock();
            let _ = stdout.write_all(&fs::read(file(suite, "log")).unwrap_or_default());
            let _ = writeln!(stdout, "{summary}");
        }
    }

    fn tell_progress(&self) {
        let mut state = self.lock();
        while !state.is_over {
            let (locked, waited) =
                self.over.wait_timeout(state, PROGRESS_INTERVAL).unwrap_or_else(PoisonError::into_inner);
            state = locked;
            let running = state.running.iter();
            let running: Vec<String> =
                running.map(|(name, began)| format!("{name} {} s", began.elapsed().as_secs())).collect();
            if waited.timed_out() && !running.is_empty() {
                eprintln!("xtask: running {}", running.join(", "));
            }
        }
    }
}

/// Runs a suite in its own process.
fn run_suite(suite: &Suite) -> Result<Row, String> {
    let (log, result) = (file(suite, "log"), file(suite, "result"));
    let failed = |error: io::Error| format!("cannot run it: {error}");
    // Remove the result of an earlier run.
    let _ = fs::remove_file(&result);
    let log = File::create(log).map_err(failed)?;
    let own = env::current_exe().map_err(failed)?;
    let mut command = tied("nice");
    command.args(["-n", if suite.place == Place::Background { NICENESS } else { "0" }]).arg(own);
    command.args([COMMAND, suite.name]).stdin(Stdio::null());
    let status = command.stdout(log.try_clone().map_err(failed)?).stderr(log).status().map_err(failed)?;
    Row::load(suite.name, &result)
        .filter(|_| status.success())
        .ok_or_else(|| format!("it ended with {status}"))
}

/// Runs one suite in this process for [`run_suite`]; its programs are already built.
pub(crate) fn run_here(name: &str) -> Result<(), String> {
    programs::are_built();
    let suite = super::find(name)?;
    Row::of(suite).save(&file(suite, "result"))
}

fn file(suite: &Suite, extension: &str) -> PathBuf {
    Path::new(ROOT).join(format!("target/suites/{}.{extension}", suite.name))
}
