//! Reads after writes: many write the same few objects, through LOTA and past it, and many read them on every node; no
//! read may return anything but what was current at some moment while it was under way. The same history at the
//! gateway itself is the control.

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Result, anyhow, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, GATEWAY, GATEWAY_PORT, Namespace, VIP,
        raw::{Reply, Request, Signing, Wire},
    },
    suite::{Suite, lab_with},
    tour::Tour,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

#[path = "consistency/history.rs"]
mod history;

use history::{Event, What};

/// The lab of this suite.
const NAME: &str = "lota-consistency";
const BUCKET: &str = "consistency";
/// So few that they are always being written.
const KEYS: u32 = 6;
/// Who writes and who reads, at each place.
const WRITERS: u64 = 1;
const READERS: u64 = 3;
/// Operations of each.
const OPERATIONS: usize = 900;

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        for origin in ["embedded", "seaweedfs"] {
            let tests = [("the control, at the gateway itself", false), ("through LOTA and past it", true)];
            let tests = tests.map(|(name, through_lota)| {
                let test = move |tour: &mut Tour| test(tour, through_lota);
                (format!("{origin}: {name}"), Box::new(test) as Box<_>)
            });
            suite.in_lab(move || make(origin), tests.into());
        }
        suite.alone("the checker finds what is wrong", history::finds_what_is_wrong);
    })
}

fn make(origin: &str) -> Result<Tour> {
    let tour = lab_with(NAME, origin)?;
    let bucket =
        Request::new(Method::PUT, "cwlota.com", &format!("/{BUCKET}")).sign(&ADMIN, Signing::Header)?;
    let made = tour.lab.switch().send_all(SocketAddr::from((GATEWAY, GATEWAY_PORT)), vec![bucket])?;
    ensure!(made[0].status.is_success(), "making the bucket was answered {}", made[0].status);
    Ok(tour)
}

fn test(tour: &mut Tour, through_lota: bool) -> Result<()> {
    let seed: u64 =
        std::env::var("LOTA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let gateway = (tour.lab.switch(), SocketAddr::from((GATEWAY, GATEWAY_PORT)));
    let mut places = vec![gateway.clone()];
    for (_, pod) in tour.one_pod_per_node() {
        places.push(if through_lota { (pod, (VIP, 80).into()) } else { gateway.clone() });
    }
    let (values, began) = (AtomicU64::new(1), Instant::now());
    // Each test has objects of its own, which no one has written yet.
    let prefix = format!("{}-{seed}", if through_lota { "lota" } else { "control" });
    let told = thread::scope(|scope| {
        let workers: Vec<_> = places
            .iter()
            .flat_map(|place| (0..WRITERS + READERS).map(move |worker| (place, worker < WRITERS)))
            .enumerate()
            .map(|(number, ((namespace, address), writes))| {
                let (values, prefix) = (&values, &prefix);
                scope.spawn(move || {
                    let random = StdRng::seed_from_u64(seed ^ (number as u64) << 32);
                    let worker = Worker { values, prefix, began, random };
                    worker.run(namespace, *address, writes)
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let events: Vec<Event> = told.iter().flat_map(|(events, _)| events.iter().copied()).collect();
    let hits: usize = told.iter().map(|(_, hits)| hits).sum();
    ensure!(events.len() >= 10_000, "only {} operations", events.len());
    let reads = events.iter().filter(|event| matches!(event.what, What::Read(_))).count();
    if through_lota {
        ensure!(hits > reads / 50, "only {hits} of {reads} reads came from a cache");
    }
    history::check(&events).map_err(|wrong| anyhow!("LOTA_SEED={seed}: {wrong}"))
}

/// One client.
struct Worker<'a> {
    /// The value that is written next, by anyone.
    values: &'a AtomicU64,
    prefix: &'a str,
    began: Instant,
    random: StdRng,
}

impl Worker<'_> {
    /// Does its operations; what happened, and how many of its reads came from a cache.
    fn run(mut self, from: &Namespace, to: SocketAddr, writes: bool) -> Result<(Vec<Event>, usize)> {
        from.enter()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (mut wire, mut events, mut hits) = (Wire::to(to), Vec::with_capacity(OPERATIONS), 0);
            for _ in 0..OPERATIONS {
                let key = self.random.random_range(0..KEYS);
                let (request, written) = if writes { self.write(key)? } else { (self.read(key)?, None) };
                let start = self.began.elapsed();
                let reply = wire.send(&request).await?;
                let end = self.began.elapsed();
                hits += usize::from(reply.cache() == "hit");
                let what = match written {
                    Some(value) => {
                        ensure!(reply.status.is_success(), "a write was answered {}", reply.status);
                        What::Write(value)
                    }
                    None => What::Read(value(&reply)?),
                };
                events.push(Event { key, start, end, what });
            }
            Ok((events, hits))
        })
    }

    fn write(&mut self, key: u32) -> Result<(Request, Option<u64>)> {
        if self.random.random_ratio(1, 8) {
            return Ok((self.request(Method::DELETE, key).sign(&ADMIN, Signing::Header)?, Some(0)));
        }
        let value = self.values.fetch_add(1, Ordering::Relaxed);
        // So that a mixture of two values shows; over a mebibyte, what is cached comes in several chunks.
        let times = if self.random.random_ratio(1, 40) { 100_000 } else { self.random.random_range(1..2000) };
        let body = format!("{value:016}").repeat(times);
        Ok((self.request(Method::PUT, key).body(body).sign(&ADMIN, Signing::Header)?, Some(value)))
    }

    fn read(&mut self, key: u32) -> Result<Request> {
        let request = self.request(Method::GET, key);
        match self.random.random_range(0..3) {
            0 => request.header("range", "bytes=0-15").sign(&ADMIN, Signing::Header),
            1 => request.sign(&ADMIN, Signing::Presigned),
            _ => request.sign(&ADMIN, Signing::Header),
        }
    }

    fn request(&self, method: Method, key: u32) -> Request {
        Request::new(method, "cwlota.com", &format!("/{BUCKET}/{}-{key}", self.prefix))
    }
}

/// The value that was read; 0 where there was no object.
fn value(reply: &Reply) -> Result<u64> {
    if reply.status.as_u16() == 404 {
        return Ok(0);
    }
    ensure!(reply.status.is_success(), "a read was answered {} {}", reply.status, reply.code());
    let first = reply.body.get(..16).unwrap_or_default();
    ensure!(reply.body.chunks(16).all(|piece| piece == first), "an answer has bytes of several values");
    Ok(std::str::from_utf8(first)?.parse()?)
}
