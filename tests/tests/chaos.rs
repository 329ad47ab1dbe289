//! Faults at random while clients read and write: nodes are killed, paused and restarted, links lose, slow down and
//! break, disks fill, clocks jump, pods come and go. Every read must return a state that was current during it, and a
//! request that fails must succeed within [`CURE`]. `LOTA_SEED` repeats a schedule; `LOTA_CHAOS_MINUTES` sets its length.

use std::{
    env, fs,
    net::SocketAddr,
    process::ExitCode,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper::Method;
use lota_tests::{
    history,
    lab::{
        ADMIN, DENIED, GATEWAY, GATEWAY_PORT, Mode, NODES, Node, knock_in_vain,
        raw::{Request, Signing},
    },
    suite::{Suite, lab_with},
    tour::{Tour, wait_within},
};
use rand::{SeedableRng as _, rngs::StdRng};

#[path = "chaos/client.rs"]
mod client;
#[path = "chaos/disk.rs"]
mod disk;
#[path = "chaos/fault.rs"]
mod fault;
#[path = "chaos/outages.rs"]
mod outages;

use client::{BUCKET, Client, Common};
use fault::Faults;

/// Name of the suite's lab.
const NAME: &str = "lota-chaos";
/// Clients in one pod of each node.
const CLIENTS: u64 = 5;
/// Minimum length of a run, which goes on until each fault has happened.
const LENGTH: Duration = Duration::from_secs(60);
/// Time within which a request that has failed must succeed, if the client's node and the gateway can be reached.
const CURE: Duration = Duration::from_secs(10);
/// Time for which no fault happens at the start and at the end.
const CALM: Duration = Duration::from_secs(3);
/// Time after which sockets, threads and memory must be back at their level.
const SETTLE: Duration = Duration::from_secs(40);
/// Growth that counts as the same level.
const GROWTH: Level = Level { sockets: 80, threads: 40, memory: 160 << 10 };
/// Objects in stripes, and uploads that are kept, so that both meet faults.
const CONFIG: &str =
    "[placement]\nstripe_above = \"1MiB\"\nstripe = \"1MiB\"\n[cache]\nafter_write = \"keep\"\n";

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        let test = |tour: &mut Tour| test(tour);
        suite.in_lab(make, vec![("reads are current under faults".to_owned(), Box::new(test) as Box<_>)]);
    })
}

/// Makes the lab, whose first node has a small disk of its own, and whose nodes have clocks that can jump.
fn make() -> Result<Tour> {
    let mut tour = lab_with(NAME, "embedded")?;
    let library = env::var_os("LOTA_FAKETIME").context("LOTA_FAKETIME is not set")?;
    for node in &mut tour.nodes {
        let clock = fault::clock_file(node);
        fs::write(&clock, "+0")?;
        let preload = [("LD_PRELOAD", library.clone().into()), ("FAKETIME_TIMESTAMP_FILE", clock)];
        let options = [("FAKETIME_NO_CACHE", "1".into()), ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into())];
        node.set_environment(preload.into_iter().chain(options).collect());
    }
    Ok(tour)
}

/// Resources that a daemon uses. Files are not counted: those of cached objects may be open.
#[derive(Clone, Copy, Debug)]
struct Level {
    /// Sockets and pipes.
    sockets: usize,
    threads: u64,
    /// In KiB.
    memory: u64,
}

impl Level {
    fn of(node: &Node) -> Result<Self> {
        let process = format!("/proc/{}", node.pid().context("it does not run")?);
        let status = fs::read_to_string(format!("{process}/status"))?;
        let value = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            Ok(line.and_then(|line| line.split_whitespace().next()).context("no value")?.parse()?)
        };
        let targets =
            fs::read_dir(format!("{process}/fd"))?.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        let sockets = targets.filter(|target| !target.has_root()).count();
        Ok(Self { sockets, threads: value("Threads:")?, memory: value("VmRSS:")? })
    }

    /// Returns whether this is at most [`GROWTH`] above another level.
    fn is_level(self, before: Self) -> bool {
        self.sockets <= before.sockets + GROWTH.sockets
            && self.threads <= before.threads + GROWTH.threads
            && self.memory <= before.memory + GROWTH.memory
    }
}

fn test(tour: &mut Tour) -> Result<()> {
    let seed = env::var("LOTA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let minutes = env::var("LOTA_CHAOS_MINUTES").ok().and_then(|minutes| minutes.parse::<u64>().ok());
    let length = minutes.map_or(LENGTH, |minutes| Duration::from_secs(60 * minutes));
    let _disk = disk::give_small_disk(&tour.nodes[0])?;
    tour.restart_with(Mode::OwnCredential, "[cache]\n", CONFIG)?;
    let bucket = Request::new(Method::PUT, "cwlota.com", &format!("/{BUCKET}"));
    let bucket = bucket.sign(&ADMIN, Signing::Header)?;
    let made = tour.lab.switch().send_all(SocketAddr::from((GATEWAY, GATEWAY_PORT)), vec![bucket])?;
    ensure!(made[0].status.is_success(), "making the bucket was answered {}", made[0].status);
    let common = Common::new(seed);
    run(tour, &common, length).map_err(|wrong| anyhow!("LOTA_SEED={seed}: {wrong:#}"))
}

fn run(tour: &mut Tour, common: &Common, length: Duration) -> Result<()> {
    let pods: Vec<_> = tour.one_pod_per_node().collect();
    let denied = [tour.lab.pod(DENIED)];
    thread::scope(|scope| {
        let mut running = Vec::new();
        for (node, pod) in &pods {
            for number in 0..CLIENTS {
                let client = Client::new(common, *node, u64::from(*node) * CLIENTS + number);
                running.push(scope.spawn(move || client.run(pod)));
            }
        }
        let knocking = scope.spawn(|| knock_in_vain(&denied, &common.is_over).map(drop));
        let caused = cause(tour, common, length);
        // Whatever has happened, no client waits for the end of an outage.
        common.outages.end_all();
        common.is_over.store(true, Ordering::Relaxed);
        let joined =
            running.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client panicked"))?);
        let clients = joined.collect::<Result<Vec<_>>>();
        let kept_out = knocking.join().map_err(|_| anyhow!("the denied pod panicked"))?;
        // What clients saw says more than what became of the nodes.
        clients.and_then(|clients| check(&clients, length)).and(caused).and(kept_out)
    })
}

/// Causes faults for this time. Verifies that the daemons are back at their level afterwards.
fn cause(tour: &mut Tour, common: &Common, length: Duration) -> Result<()> {
    thread::sleep(CALM);
    let before = tour.nodes.iter().map(Level::of).collect::<Result<Vec<_>>>()?;
    let mut faults = Faults::new(StdRng::seed_from_u64(common.seed));
    let ends = Instant::now() + length;
    while (Instant::now() < ends || !faults.are_complete()) && !common.is_over.load(Ordering::Relaxed) {
        faults.cause_next(tour, &common.outages)?;
    }
    tour.revive()?;
    thread::sleep(CALM);
    common.is_over.store(true, Ordering::Relaxed);
    println!("{}", faults.summary());
    wait_within(SETTLE, "the daemons to be back at their level", || {
        let now = tour.nodes.iter().map(Level::of).collect::<Result<Vec<_>>>()?;
        Ok(now.iter().zip(&before).all(|(now, before)| now.is_level(*before)))
    })
    .with_context(|| {
        let now = tour.nodes.iter().map(Level::of);
        format!("{before:?} before, now {:?}", now.collect::<Vec<_>>())
    })
}

/// Checks the history of all clients.
fn check(clients: &[Client<'_>], length: Duration) -> Result<()> {
    let events: Vec<_> = clients.iter().flat_map(|client| client.events.iter().copied()).collect();
    let sum = |count: fn(&Client<'_>) -> usize| clients.iter().map(count).sum::<usize>();
    let (hits, failed) = (sum(|client| client.hits), sum(|client| client.failed));
    let longest = clients.iter().map(|client| client.longest).max().unwrap_or_default();
    println!(
        "{} operations, {hits} of them hits; {failed} failed at first, the longest for {longest:.1?}",
        events.len()
    );
    history::check(&events).map_err(|wrong| anyhow!(wrong))?;
    let least = usize::try_from(length.as_secs())? * usize::from(NODES) * 5;
    ensure!(events.len() >= least, "only {} operations in {length:?}", events.len());
    ensure!(hits >= least / 10, "only {hits} hits");
    Ok(())
}
