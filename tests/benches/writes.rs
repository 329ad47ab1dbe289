//! Uploads through LOTA, with and without the fetch of what was written (`cache.after_write`). An upload that begins after the
//! fetch of the one before shows whether the fetch delays the response. Uploads in a row share the machine with fetches; in a
//! cluster, most owners are other nodes.

use std::{process::ExitCode, time::Instant};

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
/// Uploads of a round.
const UPLOADS: [Uploads; 4] = [
    Uploads { title: "64 MiB", size: 64 * MIB, count: 1, turns: 3, goal: Goal::AtMost(1.05) },
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
    let (mut off, mut fetch) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        eprint!("\r    round {} of {ROUNDS} ", round + 1);
        for is_fetch in if round % 2 == 0 { [false, true] } else { [true, false] } {
            let took = upload(&mut tour, round, is_fetch)?;
            if is_fetch { &mut fetch } else { &mut off }.push(took);
        }
    }
    eprintln!();
    let mut report = Report::new("writes");
    for (place, Uploads { title, goal, .. }) in UPLOADS.iter().enumerate() {
        let of = |all: &[Took]| all.iter().map(|took| took[place] * 1e3).collect::<Vec<_>>();
        let ratios = of(&fetch).into_iter().zip(of(&off)).map(|(fetch, off)| fetch / off).collect();
        report.add(format!("upload of {title}, off"), "ms", Goal::None, of(&off));
        report.add(format!("upload of {title}, fetch"), "ms", Goal::None, of(&fetch));
        report.add(format!("upload of {title}, fetch / off"), "x", *goal, ratios);
    }
    report.write()
}

/// Restarts the nodes in a mode, and measures one round of uploads.
fn upload(tour: &mut Tour, round: usize, is_fetch: bool) -> Result<Took> {
    let mode =
        if is_fetch { "[cache]\nafter_write = \"fetch\"\n" } else { "[cache]\nafter_write = \"off\"\n" };
    tour.restart_with(Mode::OwnCredential, "[cache]\n", mode)?;
    let mut took = Took::default();
    let mut written = 0.0;
    for (place, Uploads { size, count, turns, .. }) in UPLOADS.into_iter().enumerate() {
        let body = content(usize::try_from(size)?);
        for turn in 0..turns {
            let put = |number: usize| {
                let key = tour.client.name(&format!("writes/{round}-{is_fetch}-{place}-{turn}-{number}"));
                let put = Request::new(Method::PUT, "cwlota.com", &format!("/{key}")).body(body.clone());
                put.sign(&ADMIN, Signing::Presigned)
            };
            let requests = (0..count).map(put).collect::<Result<Vec<_>>>()?;
            let began = Instant::now();
            let replies = tour.pod(1, 1).send_all((VIP, 80).into(), requests)?;
            took[place] += began.elapsed().as_secs_f64() / (count * turns) as f64;
            let failed = replies.iter().find(|reply| !reply.status.is_success());
            ensure!(failed.is_none(), "{failed:?}");
            written += if is_fetch { count as f64 } else { 0.0 };
            // Also in the other mode, so that the next upload finds the machine in the same state.
            wait_until("the fetches", || {
                Ok(tour.metric("lota_write_fetches_total{result=\"fetched\"}")? >= written)
            })?;
        }
    }
    Ok(took)
}
