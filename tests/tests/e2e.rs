//! The road from the pod to the byte, on real parts: one test per step of the tour, and per kind of bad input,
//! against the embedded gateway and against SeaweedFS. Needs root and what `cargo xtask test e2e` installs.

use std::{
    process::{Command, ExitCode},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use lota_tests::{
    lab::{Lab, Origin, clean_up_on_signal, still_wanted},
    tool,
    tour::{STEPS, Tools, Tour},
};

#[path = "e2e/bad_input.rs"]
mod bad_input;
#[path = "e2e/cold.rs"]
mod cold;
#[path = "e2e/commands.rs"]
mod commands;
#[path = "e2e/connection.rs"]
mod connection;
#[path = "e2e/failover.rs"]
mod failover;
#[path = "e2e/hot.rs"]
mod hot;
#[path = "e2e/http.rs"]
mod http;
#[path = "e2e/logs.rs"]
mod logs;
#[path = "e2e/requests.rs"]
mod requests;
#[path = "e2e/resign.rs"]
mod resign;
#[path = "e2e/start.rs"]
mod start;
#[path = "e2e/status.rs"]
mod status;
#[path = "e2e/tls.rs"]
mod tls;
#[path = "e2e/trial.rs"]
mod trial;

/// The lab of this suite.
const NAME: &str = "lota-e2e";

type Test = fn(&mut Tour) -> Result<()>;
/// A test with a lab of its own.
type OwnLab = fn() -> Result<()>;
type MakeOrigin = fn(&Lab) -> Result<Origin>;

/// Beyond the tour, with each gateway. The last ones restart nodes in other ways.
const MORE: [(&str, Test); 22] = [
    ("odd keys are stored and read, and stay in the cache folder", bad_input::odd_keys),
    ("impossible ranges are 416 in S3's form, cold and cached", bad_input::impossible_ranges),
    ("malformed HTTP is answered or closed, never worse", http::malformed),
    ("a far range of a cold object does not wait for what is before it", cold::far_ranges),
    ("64 readers of a big cold object cost its bytes once", cold::crowds),
    ("a source that breaks off is asked for the rest", cold::broken_sources),
    ("an object that no cache can hold passes through, and is counted", cold::too_large),
    ("an owner that is killed in the middle of an answer is not missed", failover::killed),
    ("nor is one that hangs", failover::hanging),
    ("what a crowd wants gets more owners, which fill from the first", hot::crowd),
    ("requests sent all at once are answered in order", connection::pipelined),
    ("a client's Lota-* headers are its own business", http::stripped_headers),
    ("parallel multipart uploads pass byte-exact", bad_input::multipart),
    ("100-continue is the gateway's to say", requests::expectations),
    ("an early error reaches a client that is still sending", requests::early_errors),
    ("a HEAD of the first byte stages the whole object", requests::staging),
    ("what is prefetched is there, and is not asked for twice", requests::prefetch),
    ("requests signed anew, for who may", resign::signed_anew),
    ("chunks signed anew, and none that is wrong", resign::chunks),
    ("damaged cache files are misses", bad_input::damaged_cache),
    ("a gateway that 304s anyone is distrusted and proxied", trial::cache_in_front),
    ("a gateway behind TLS, with a certificate that is trusted and one that is not", tls::gateway),
];

/// What is LOTA's own, whichever gateway is behind it: with one of them.
const OWN: [(&str, Test); 17] = [
    ("who stands still is let go, who is slow is not", connection::slow),
    ("one connection too many is told to slow down", requests::connections),
    ("one byte of everything is not a weapon", requests::first_bytes_only),
    ("5 GiB go up in constant memory", requests::endless_uploads),
    ("status tells a healthy node", status::healthy),
    ("top shows a node without a terminal", status::top),
    ("a probe hears about its own daemon", status::ready),
    ("status tells that the gateway is gone", status::gateway_gone),
    ("a support bundle has everything but secrets", status::support_bundle),
    ("no gateway, no bytes", bad_input::gateway_down),
    ("each request has one line in the log, if that is asked for", logs::requests),
    ("no signature, token or secret is ever logged", logs::secrets),
    ("a configuration is checked, line by line", commands::check),
    ("the cache is measured, emptied and mended by commands", commands::cache),
    ("bad configuration names the key and the nearest valid one", start::bad_configuration),
    ("missing privileges are named", start::missing_privileges),
    ("a second daemon on the same cache folder is refused", start::second_daemon),
];

fn main() -> ExitCode {
    if let Err(error) = clean_up_on_signal(NAME) {
        eprintln!("e2e: {error:#}");
        return ExitCode::FAILURE;
    }
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let embedded: MakeOrigin = |lab| Origin::embedded(lab.folder());
    let seaweedfs: MakeOrigin = |lab| Origin::seaweed(&tool("LOTA_WEED")?, lab.folder());
    let mut failed = run(&arguments, "embedded", embedded, MORE.iter().chain(&OWN));
    failed |= run(&arguments, "seaweedfs", seaweedfs, MORE.iter());
    let last: [(&str, OwnLab); 2] =
        [("10 Ctrl-C takes everything down", start::interrupted), ("10 lab up, exec, down", start::kept_lab)];
    let trials = last.map(|(name, test)| {
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
    });
    failed |= libtest_mimic::run(&arguments, trials.into()).has_failed();
    still_wanted();
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// One origin's tests, in one lab that is gone afterwards.
fn run(
    arguments: &Arguments,
    name: &str,
    origin: MakeOrigin,
    tests: impl Iterator<Item = &'static (&'static str, Test)>,
) -> bool {
    let lab: Arc<Mutex<Option<Tour>>> = Arc::default();
    let mut trials = Vec::new();
    let made = lab.clone();
    trials.push(Trial::test(format!("{name}: 1 the lab comes up"), move || {
        *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(make(origin)?);
        Ok(())
    }));
    let steps = STEPS.iter().map(|step| {
        let run = step.run;
        let run = move |tour: &mut Tour| run(tour).map(|_| ());
        (
            format!("{} {}", step.number, step.title),
            Box::new(run) as Box<dyn Fn(&mut Tour) -> Result<()> + Send>,
        )
    });
    let more = tests.map(|(title, test)| {
        ((*title).to_owned(), Box::new(*test) as Box<dyn Fn(&mut Tour) -> Result<()> + Send>)
    });
    for (title, test) in steps.chain(more) {
        let lab = lab.clone();
        trials.push(Trial::test(format!("{name}: {title}"), move || {
            let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
            // Made here if only some tests are run.
            if lab.is_none() {
                let tour = make(origin)?;
                tour.client.create_bucket(&tour.pod(1, 1))?;
                *lab = Some(tour);
            }
            let tour = lab.as_mut().ok_or("there is no lab")?;
            // Tests before may have ended a node and failed.
            tour.revive()?;
            test(tour).map_err(|error| Failed::from(format!("{error:#}")))
        }));
    }
    let ended = lab.clone();
    trials.push(Trial::test(format!("{name}: 10 everything it made is gone afterwards"), move || {
        drop(ended.lock().unwrap_or_else(PoisonError::into_inner).take());
        let left = Lab::leftovers(NAME);
        if left.is_empty() { Ok(()) } else { Err(format!("left behind: {}", left.join(", ")).into()) }
    }));
    libtest_mimic::run(arguments, trials).has_failed()
}

fn make(origin: MakeOrigin) -> Result<Tour> {
    let lab = Lab::up(NAME)?;
    let origin = origin(&lab)?;
    let tour = Tour::start(lab, origin, &Tools { lota: tool("LOTA_BIN")?, python: tool("LOTA_PYTHON")? })?;
    ensure!(tour.nodes.len() == 3, "{} nodes", tour.nodes.len());
    Ok(tour)
}

/// The `lota-lab` that was built with this suite.
fn lota_lab() -> Command {
    Command::new(env!("CARGO_BIN_EXE_lota-lab"))
}
