//! Faults at random while clients read and write: nodes are killed, paused and restarted, links lose, delay, reorder,
//! duplicate and corrupt frames, slow down and break, disks fill and fail, clocks jump, pods come and go. Every read must return a state that was current during it, and a
//! request that fails must succeed within [`CURE`]. `LOTA_SEED` repeats a schedule; `LOTA_CHAOS_MINUTES` sets its length.

use std::{
    env, fs,
    process::ExitCode,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use lota_tests::{
    history,
    lab::{DENIED, Mode, NODES, knock_in_vain},
    load::{Footprint, LoadClient, LoadState, Workload},
    suite::{Suite, lab_with},
    tour::{Tour, wait_within},
};
use rand::{SeedableRng as _, rngs::StdRng};

#[path = "chaos/disk.rs"]
mod disk;
#[path = "chaos/fault.rs"]
mod fault;

use disk::FailingDisk;
use fault::{FAILING, Faults};

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
/// Growth that counts as the same level. Not all descriptors are counted: those of cached objects may be open.
const SOCKETS: usize = 80;
const THREADS: u64 = 40;
/// In KiB.
const MEMORY: u64 = 160 << 10;
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

/// Returns the load: few keys, so that clients meet at each of them.
fn workload() -> Workload {
    Workload {
        bucket: "chaos",
        clients: CLIENTS,
        keys: 12,
        keys_per_large: 4,
        draws: 1,
        pause: 5..60,
        cure: CURE,
        writes_first: false,
        reads_last: true,
    }
}

/// Returns whether a daemon's resources are at most as much above an earlier level as counts as the same.
fn is_level(now: Footprint, before: Footprint) -> bool {
    now.sockets <= before.sockets + SOCKETS
        && now.threads <= before.threads + THREADS
        && now.memory <= before.memory + MEMORY
}

fn test(tour: &mut Tour) -> Result<()> {
    let seed = env::var("LOTA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let minutes = env::var("LOTA_CHAOS_MINUTES").ok().and_then(|minutes| minutes.parse::<u64>().ok());
    let length = minutes.map_or(LENGTH, |minutes| Duration::from_secs(60 * minutes));
    disk::own_mounts()?;
    let _disk = disk::give_small_disk(&tour.nodes[0])?;
    let disk = FailingDisk::give(&tour.nodes[FAILING])?;
    tour.restart_with(Mode::OwnCredential, "[cache]\n", CONFIG)?;
    let load = LoadState::new(workload(), seed);
    load.make_bucket(&tour.lab)?;
    let faults = Faults::new(StdRng::seed_from_u64(seed), disk);
    run(tour, &load, faults, length).map_err(|wrong| anyhow!("LOTA_SEED={seed}: {wrong:#}"))
}

fn run(tour: &mut Tour, load: &LoadState, faults: Faults, length: Duration) -> Result<()> {
    let denied = [tour.lab.pod(DENIED)];
    thread::scope(|scope| {
        let knocking = scope.spawn(|| knock_in_vain(&denied, &load.is_over).map(drop));
        let ran = load.run(tour, |tour| cause(tour, load, faults, length));
        load.is_over.store(true, Ordering::Relaxed);
        let kept_out = knocking.join().map_err(|_| anyhow!("the denied pod panicked"))?;
        // What clients saw says more than what became of the nodes.
        ran.and_then(|(clients, caused)| check(load, &clients, length).and(caused)).and(kept_out)
    })
}

/// Causes faults for this time. Verifies that the daemons are back at their level afterwards.
fn cause(tour: &mut Tour, load: &LoadState, mut faults: Faults, length: Duration) -> Result<()> {
    thread::sleep(CALM);
    let before = tour.nodes.iter().map(Footprint::of).collect::<Result<Vec<_>>>()?;
    let ends = Instant::now() + length;
    while (Instant::now() < ends || !faults.are_complete()) && !load.is_over.load(Ordering::Relaxed) {
        faults.cause_next(tour, load)?;
    }
    tour.revive()?;
    thread::sleep(CALM);
    load.is_over.store(true, Ordering::Relaxed);
    println!("{}", faults.summary());
    wait_within(SETTLE, "the daemons to be back at their level", || {
        let now = tour.nodes.iter().map(Footprint::of).collect::<Result<Vec<_>>>()?;
        Ok(now.iter().zip(&before).all(|(now, before)| is_level(*now, *before)))
    })
    .with_context(|| {
        let now = tour.nodes.iter().map(Footprint::of);
        format!("{before:?} before, now {:?}", now.collect::<Vec<_>>())
    })
}

/// Checks the history of all clients.
fn check(load: &LoadState, clients: &[LoadClient<'_>], length: Duration) -> Result<()> {
    let events: Vec<_> = clients.iter().flat_map(|client| client.events.iter().copied()).collect();
    let hits = clients.iter().map(|client| client.hits).sum::<usize>();
    let failed = load.retries.load(Ordering::Relaxed);
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
