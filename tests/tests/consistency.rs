//! Consistency of reads after writes: clients write the same objects, metadata and versions through LOTA and directly
//! to the gateway, and others read them on every node. Each read must return a state that was current at some time
//! during that read. The control runs the same operations at the gateway only.

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Result, anyhow, ensure};
use hyper::Method;
use lota_tests::{
    history::{self, Event, What},
    lab::{
        ADMIN, GATEWAY, GATEWAY_PORT, Mode, Namespace, VIP,
        raw::{Request, Signing},
    },
    suite::{Suite, gateways, lab_with},
    tour::Tour,
};
use rand::Rng as _;

#[path = "consistency/client.rs"]
mod client;
#[path = "consistency/writers.rs"]
mod writers;

use client::{Client, Common, OWNED_KEYS, SHARED_KEYS, Versioning};

/// Name of the suite's lab.
const NAME: &str = "lota-consistency";
/// Contenders and readers at each place, beside its owner.
const CONTENDERS: u64 = 1;
const READERS: u64 = 3;
/// Minimum number of reads of each reader, at the gateway and through LOTA.
const CONTROL_READS: usize = 150;
const READS: usize = 850;
/// Minimum number of operations of a test, at the gateway and through LOTA; a part of the latter with RGW.
const CONTROL_OPERATIONS: usize = 2_000;
const OPERATIONS: usize = 10_000;
/// Minimum number of hits, so that the history says something about hits. Their part of the reads depends on the
/// machine's speed: objects that were just written are not served from the cache.
const HITS: usize = 500;
/// At most one of this number of reads from RGW may fail: it returns 500 to some if the object is replaced during the
/// read.
const READS_PER_ERROR: usize = 50;
/// At most one of this number of responses through LOTA may end early: those of objects in stripes that are overwritten during the
/// read.
const READS_PER_BREAK: usize = 100;
/// Bursts of each owner, at the gateway and through LOTA.
const CONTROL_BURSTS: u32 = 9;
const BURSTS: u32 = 24;
/// Placement of objects of over a mebibyte in stripes.
const STRIPED: &str = "[placement]\nstripe_above = \"1MiB\"\nstripe = \"1MiB\"\n";
/// Divisor of the required reads, operations, bursts and hits through LOTA with RGW, which is slower than the others: with
/// it, at least 5,000 operations instead of 10,000.
const RGW_PART: u8 = 2;

/// Role of a client.
#[derive(Clone, Copy, Debug)]
enum Role {
    Owner,
    Contender,
    Reader,
}

/// Way of the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Control,
    Lota,
    /// Through LOTA, which keeps the bytes of uploads.
    Kept,
    /// Through LOTA, which keeps the ranges that clients read.
    WithoutCredential,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Control => "control, at the gateway only",
            Self::Lota => "through LOTA and at the gateway",
            Self::Kept => "through LOTA, which keeps uploads",
            Self::WithoutCredential => "through LOTA without a credential",
        }
    }
}

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        suite.alone("the checker detects inconsistent reads", history::finds_what_is_wrong);
        for origin in gateways() {
            let mut ways = vec![Way::Control, Way::Lota];
            // One gateway is enough for uploads and partial objects that are kept, which are as current as others.
            if origin == "seaweedfs" {
                ways.extend([Way::Kept, Way::WithoutCredential]);
            }
            let tests = ways.into_iter().map(|way| {
                let test = move |tour: &mut Tour| test(tour, way, origin);
                (format!("{origin}: {}", way.name()), Box::new(test) as Box<_>)
            });
            suite.in_lab(move || lab_with(NAME, origin), tests.collect());
        }
    })
}

fn test(tour: &mut Tour, way: Way, origin: &str) -> Result<()> {
    let through_lota = way != Way::Control;
    // With one gateway, each object that a client writes through LOTA is fetched or kept at once, too.
    let after_write = match way {
        Way::Lota if origin == "seaweedfs" => Some(("fetch", "fetched")),
        Way::Kept => Some(("keep", "kept")),
        _ => None,
    };
    match way {
        Way::Control => {}
        Way::Lota | Way::Kept => {
            let mode = after_write.map_or("off", |(mode, _)| mode);
            let placement = if way == Way::Lota { STRIPED } else { "" };
            let config = format!("{placement}[cache]\nafter_write = \"{mode}\"\n");
            tour.restart_with(Mode::OwnCredential, "[cache]\n", &config)?;
        }
        Way::WithoutCredential => tour.restart(Mode::ClientOnly)?,
    }
    let seed: u64 =
        std::env::var("LOTA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let gateway = (tour.lab.switch(), SocketAddr::from((GATEWAY, GATEWAY_PORT)));
    let mut places = vec![gateway.clone()];
    for (_, pod) in tour.one_pod_per_node() {
        places.push(if through_lota { (pod, (VIP, 80).into()) } else { gateway.clone() });
    }
    let part = if origin == "rgw" { RGW_PART } else { 1 };
    // Each test has new buckets.
    let common = Common {
        prefix: format!("consistency-{}", format!("{way:?}").to_lowercase()),
        began: Instant::now(),
        seed,
        values: AtomicU64::new(1),
        owners: u32::try_from(places.len())?,
        ended: AtomicU32::new(0),
        bursts: if through_lota { BURSTS / u32::from(part) } else { CONTROL_BURSTS },
        reads: if through_lota { READS / usize::from(part) } else { CONTROL_READS },
        has_stripes: way == Way::Lota,
        versioning: match origin {
            "embedded" => Versioning::Off,
            "rgw" => Versioning::One,
            _ => Versioning::Midway,
        },
    };
    make_buckets(&common, &gateway)?;
    let clients = thread::scope(|scope| {
        let (common, mut number) = (&common, 0);
        let mut running = Vec::new();
        for ((namespace, address), owner) in places.iter().zip(0..) {
            let contenders = (0..CONTENDERS).map(|_| Role::Contender);
            let readers = (0..READERS).map(|_| Role::Reader);
            for role in [Role::Owner].into_iter().chain(contenders).chain(readers) {
                let client = Client::new(common, number, owner, *address);
                running.push(scope.spawn(move || run(client, namespace, role)));
                number += 1;
            }
        }
        let joined =
            running.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client panicked"))?);
        joined.collect::<Result<Vec<_>>>()
    });
    clients
        .and_then(|clients| check_results(&clients, through_lota, origin == "rgw"))
        .and_then(|()| after_write.map_or(Ok(()), |(_, result)| were_cached(tour, result)))
        .and_then(|()| if way == Way::Lota { was_striped(tour) } else { Ok(()) })
        .map_err(|wrong| anyhow!("LOTA_SEED={seed}: {wrong:#}"))
}

/// Verifies that objects were fetched or kept after writes, so that the history says something about them.
fn were_cached(tour: &Tour, result: &str) -> Result<()> {
    let count = tour.metric(&format!("lota_write_fetches_total{{result=\"{result}\"}}"))?;
    println!("{count} {result} after writes");
    ensure!(count >= 20.0, "only {count} objects were {result} after writes");
    Ok(())
}

/// Verifies that large objects were cached in stripes, so that the history says something about them.
fn was_striped(tour: &Tour) -> Result<()> {
    let stripes = tour.metric("lota_cache_stripes")?;
    println!("{stripes} stripes in the caches");
    ensure!(stripes >= 10.0, "only {stripes} stripes are in the caches");
    Ok(())
}

fn make_buckets(common: &Common, (from, to): &(Namespace, SocketAddr)) -> Result<()> {
    for owner in (0..common.owners).map(Some).chain([None]) {
        let target = format!("/{}", common.bucket(owner));
        let bucket = Request::new(Method::PUT, "cwlota.com", &target).sign(&ADMIN, Signing::Header)?;
        let made = from.send_all(*to, vec![bucket])?;
        ensure!(made[0].status.is_success(), "making a bucket was answered {}", made[0].status);
    }
    Ok(())
}

/// Runs a client to its end.
fn run<'a>(mut client: Client<'a>, from: &Namespace, role: Role) -> Result<Client<'a>> {
    from.enter()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ran = runtime.block_on(async {
        match role {
            Role::Owner => writers::own(&mut client).await,
            Role::Contender => writers::contend(&mut client).await,
            Role::Reader => read(&mut client).await,
        }
    });
    match (&ran, role) {
        // A failure ends all clients.
        (Err(_), _) => client.common.ended.fetch_add(client.common.owners, Ordering::Relaxed),
        (Ok(()), Role::Owner) => client.common.ended.fetch_add(1, Ordering::Relaxed),
        _ => 0,
    };
    ran.map(|()| client)
}

async fn read(client: &mut Client<'_>) -> Result<()> {
    while !client.common.is_done() || client.events.len() < client.common.reads {
        let keys = match client.random.random_ratio(1, 4) {
            true => 0..SHARED_KEYS,
            false => SHARED_KEYS..SHARED_KEYS + client.common.owners * OWNED_KEYS,
        };
        let key = client.random.random_range(keys);
        client.read(key).await?;
        client.rest(0..8).await;
    }
    Ok(())
}

/// Checks that all clients together saw a consistent history, with enough operations and hits, and few errors.
fn check_results(clients: &[Client<'_>], through_lota: bool, is_rgw: bool) -> Result<()> {
    let events: Vec<Event> = clients.iter().flat_map(|client| client.events.iter().copied()).collect();
    let hits: usize = clients.iter().map(|client| client.hits).sum();
    let reads =
        events.iter().filter(|event| !matches!(event.what, What::Write(_) | What::Restore(_))).count();
    let errors: usize = clients.iter().map(|client| client.errors).sum();
    let broken: usize = clients.iter().map(|client| client.broken).sum();
    println!(
        "{} operations, {reads} of them reads, {hits} of these hits; {errors} errors, {broken} ended early",
        events.len()
    );
    history::check(&events).map_err(|wrong| anyhow!(wrong))?;
    let part = if is_rgw { usize::from(RGW_PART) } else { 1 };
    let operations = if through_lota { OPERATIONS / part } else { CONTROL_OPERATIONS };
    ensure!(events.len() >= operations, "only {} operations", events.len());
    let tolerated = if is_rgw { reads / READS_PER_ERROR } else { 0 };
    ensure!(errors <= tolerated, "{errors} of {reads} reads returned 500");
    let tolerated = if through_lota { reads / READS_PER_BREAK } else { 0 };
    ensure!(broken <= tolerated, "{broken} of {reads} responses ended early");
    ensure!(!through_lota || hits >= HITS / part, "only {hits} of {reads} reads were hits");
    Ok(())
}
