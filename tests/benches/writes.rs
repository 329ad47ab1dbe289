//! Uploads through LOTA in each mode of `cache.after_write`: what was written is neither fetched nor kept, fetched, or kept. An
//! upload that begins after the fetch of the one before shows whether the fetch delays the response. Uploads in a row share the
//! machine with fetches; in a cluster, most owners are other nodes. `LOTA_BENCH_ROUNDS` sets the number of rounds.

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use hyper::Method;
use lota_tests::{
    bench::{self, Goal, Report},
    lab::{
        ADMIN, Mode, VIP, claim,
        raw::{Request, Signing, content},
    },
    suite::lab_with,
    tour::{MIB, Tour, wait_until},
};

const NAME: &str = "lota-bench-writes";
const ROUNDS: usize = 10;
/// Pause between uploads.
const PAUSE: Duration = Duration::from_millis(200);
/// Modes of `cache.after_write`.
const MODES: [&str; 3] = ["off", "fetch", "keep"];
/// Results that mean that a written object is cached.
const CACHED: [&str; 2] = ["fetched", "kept"];
/// Uploads of a round.
const UPLOADS: [Uploads; 5] = [
    Uploads { title: "64 MiB", size: 64 * MIB, count: 1, turns: 3, goal: Goal::AtMost(1.05) },
    Uploads { title: "8 MiB", size: 8 * MIB, count: 1, turns: 6, goal: Goal::AtMost(1.05) },
    Uploads { title: "64 KiB", size: MIB / 16, count: 1, turns: 20, goal: Goal::AtMost(1.05) },
    Uploads { title: "64 MiB, four in a row", size: 64 * MIB, count: 4, turns: 1, goal: Goal::None },
    Uploads { title: "64 KiB, 200 in a row", size: MIB / 16, count: 200, turns: 1, goal: Goal::None },
];

struct Uploads {
    title: &'static str,
    /// Size of each object in bytes.
    size: u64,
    /// Number of uploads in a row.
    count: usize,
    /// Number of such rows; each begins after the fetches of the one before.
    turns: usize,
    /// Bound of the ratio.
    goal: Goal,
}

fn main() -> ExitCode {
    bench::ended("writes", measure())
}

/// Seconds per upload of a round, in the order of [`UPLOADS`].
type Took = [f64; UPLOADS.len()];

fn measure() -> Result<bool> {
    claim(NAME)?;
    let mut tour = lab_with(NAME, "seaweedfs")?;
    tour.client.create_bucket(&tour.pod(1, 1))?;
    let rounds = std::env::var("LOTA_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let rounds: usize = rounds.unwrap_or(ROUNDS);
    let mut all: [Vec<Took>; MODES.len()] = Default::default();
    for round in 0..rounds {
        eprint!("\r    round {} of {rounds} ", round + 1);
        for place in 0..MODES.len() {
            let mode = (place + round) % MODES.len();
            all[mode].push(upload(&mut tour, round, MODES[mode])?);
        }
    }
    eprintln!();
    let mut report = Report::new("writes");
    for (place, Uploads { title, goal, .. }) in UPLOADS.iter().enumerate() {
        let of = |mode: usize| all[mode].iter().map(|took: &Took| took[place] * 1e3).collect::<Vec<_>>();
        for (number, mode) in MODES.iter().enumerate() {
            report.add(format!("upload of {title}, {mode}"), "ms", Goal::None, of(number));
        }
        for (number, mode) in MODES.iter().enumerate().skip(1) {
            let ratios = of(number).into_iter().zip(of(0)).map(|(took, off)| took / off).collect();
            report.add(format!("upload of {title}, {mode} / off"), "x", *goal, ratios);
        }
    }
    report.write()
}

/// Restarts the nodes in a mode, and measures one round of uploads.
fn upload(tour: &mut Tour, round: usize, mode: &str) -> Result<Took> {
    let cache = format!("[cache]\nafter_write = \"{mode}\"\n");
    // Uploads in progress may reserve only a small part of the capacity.
    tour.nodes.iter_mut().for_each(|node| node.edit("capacity = \"4GiB\"", "capacity = \"32GiB\""));
    tour.restart_with(Mode::OwnCredential, "[cache]\n", &cache)?;
    let mut took = Took::default();
    let mut written = 0.0;
    for (place, Uploads { size, count, turns, .. }) in UPLOADS.into_iter().enumerate() {
        let body = content(usize::try_from(size)?);
        for turn in 0..turns {
            let put = |number: usize| {
                let key = tour.client.name(&format!("writes/{round}-{mode}-{place}-{turn}-{number}"));
                let put = Request::new(Method::PUT, "cwlota.com", &format!("/{key}")).body(body.clone());
                put.sign(&ADMIN, Signing::Presigned)
            };
            let requests = (0..count).map(put).collect::<Result<Vec<_>>>()?;
            let began = Instant::now();
            let replies = tour.pod(1, 1).send_all((VIP, 80).into(), requests)?;
            took[place] += began.elapsed().as_secs_f64() / (count * turns) as f64;
            let failed = replies.iter().find(|reply| !reply.status.is_success());
            ensure!(failed.is_none(), "{failed:?}");
            written += if mode == "off" { 0.0 } else { count as f64 };
            wait_until("the fetches", || Ok(results(tour, &CACHED)? >= written))?;
            // In each mode, so that the next upload finds the machine in the same state.
            thread::sleep(PAUSE);
        }
    }
    if mode == "keep" {
        let why_not = ["keep-too-slow", "keep-no-room", "keep-differs", "keep-refused", "keep-unavailable"];
        let why_not = why_not.map(|why| Ok((why, results(tour, &[why])?)));
        let why_not = why_not.into_iter().collect::<Result<Vec<_>>>()?;
        eprintln!("{} of {written} kept; {why_not:?}", results(tour, &["kept"])?);
    }
    Ok(took)
}

/// Returns the number of written objects with any of these results, on all nodes.
fn results(tour: &Tour, results: &[&str]) -> Result<f64> {
    let name = |result: &&str| tour.metric(&format!("lota_write_fetches_total{{result=\"{result}\"}}"));
    results.iter().map(name).sum()
}
