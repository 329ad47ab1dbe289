//! One large object, read on three nodes at once whose links are limited to 1 Gbit/s: cached as a whole by one owner, and in
//! stripes by all.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper::Method;
use lota_tests::{
    bench::{self, Goal, Report},
    lab::{
        ADMIN, Mode, Namespace, VIP, claim,
        raw::{Request, Signing, content},
        run,
    },
    suite::lab_with,
    tour::{MIB, Tour, wait_settled, wait_within},
};

const NAME: &str = "lota-bench-objects";
const ROUNDS: usize = 2;
/// Size of the object, in bytes.
const SIZE: u64 = 3072 * MIB;
const STRIPES: f64 = 48.0;
const STRIPED: &str = "[placement]\nstripe_above = \"64MiB\"\nstripe = \"64MiB\"\n[cache]\n";
const WHOLE: &str = "[placement]\nstripe_above = \"0\"\n[cache]\n";
/// Rate of each node's link in both directions, as `tc` takes it.
const RATE: &str = "1gbit";
const LONGEST: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    bench::ended("objects", measure())
}

fn measure() -> Result<bool> {
    claim(NAME)?;
    let mut tour = lab_with(NAME, "embedded")?;
    tour.client.create_bucket(&tour.pod(1, 1))?;
    let put = request(&tour, Method::PUT).body(content(usize::try_from(SIZE)?));
    let put = put.sign(&ADMIN, Signing::Presigned)?;
    let reply = tour.pod(1, 1).send_all((VIP, 80).into(), vec![put])?.pop().context("no response")?;
    ensure!(reply.status.is_success(), "{} {}", reply.status, reply.code());
    wait_settled();
    let (mut whole, mut striped, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for is_striped in [false, true] {
            eprint!("\r    round {} of {ROUNDS} ", round + 1);
            let seconds = read_at_once(&mut tour, is_striped)?;
            let rate = 3.0 * SIZE as f64 / seconds / 1e9;
            if is_striped { &mut striped } else { &mut whole }.push(rate);
            if is_striped {
                let held = tour.nodes.iter().map(|node| node.metric("lota_cache_stripes"));
                let most = held.collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max);
                shares.push(most / (STRIPES / 3.0));
            }
        }
    }
    eprintln!();
    let ratios = striped.iter().zip(&whole).map(|(striped, whole)| striped / whole).collect();
    let mut report = Report::new("objects");
    report.add("three readers of one object, cached as a whole", "GB/s", Goal::None, whole);
    report.add("three readers of one object, in stripes", "GB/s", Goal::None, striped);
    report.add("in stripes / as a whole", "x", Goal::AtLeast(2.5), ratios);
    report.add("stripes of the fullest node, relative to the mean", "x", Goal::None, shares);
    report.write()
}

fn request(tour: &Tour, method: Method) -> Request {
    Request::new(method, "cwlota.com", &format!("/{}", tour.client.name("objects/large")))
}

/// Fills the caches, limits the links, and reads the object on every node at once. Returns the seconds until all have it.
fn read_at_once(tour: &mut Tour, is_striped: bool) -> Result<f64> {
    tour.restart_with(Mode::OwnCredential, "[cache]\n", if is_striped { STRIPED } else { WHOLE })?;
    for node in &tour.nodes {
        run(node.command().args(["cache", "evict", "--all", "--config"]).arg(node.config()))?;
    }
    tour.client.put_and_hit(&tour.pod(1, 1), "objects/trial", 40)?;
    let get = request(tour, Method::GET).sign(&ADMIN, Signing::Presigned)?;
    read(&tour.pod(1, 1), &get)?;
    wait_within(LONGEST, "the object to be cached", || {
        Ok(match is_striped {
            true => tour.metric("lota_cache_stripes")? >= STRIPES,
            false => !tour.holders("objects/large")?.is_empty(),
        })
    })?;
    limit(tour, true)?;
    let began = Instant::now();
    let readers: Vec<_> = (1..=3)
        .map(|node| {
            let (pod, get) = (tour.pod(node, 1), get.clone());
            thread::spawn(move || read(&pod, &get))
        })
        .collect();
    let read = readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| anyhow!("panicked"))?);
    let seconds = began.elapsed().as_secs_f64();
    limit(tour, false)?;
    read.map(|()| seconds)
}

/// Limits the link of each node in both directions, or ends that.
fn limit(tour: &Tour, is_limited: bool) -> Result<()> {
    let tc = |namespace: &Namespace, interface: &str| {
        let mut tc = namespace.command("tc");
        match is_limited {
            true => tc
                .args(["qdisc", "replace", "dev", interface, "root", "tbf", "rate", RATE])
                .args(["burst", "256kb", "latency", "5ms"]),
            false => tc.args(["qdisc", "delete", "dev", interface, "root"]),
        };
        run(&mut tc).map(drop)
    };
    for node in 1..=3 {
        tc(&tour.lab.node(node), "uplink")?;
        tc(&tour.lab.switch(), &format!("to-n{node}"))?;
    }
    Ok(())
}

/// Reads the object, and drops its bytes.
fn read(pod: &Namespace, get: &Request) -> Result<()> {
    let request = format!("GET {} HTTP/1.1\r\nhost: cwlota.com\r\nconnection: close\r\n\r\n", get.target);
    let read = pod.run(move || -> Result<u64> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(LONGEST))?;
        stream.write_all(request.as_bytes())?;
        let (mut buffer, mut read) = (vec![0; 1 << 20], 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(read),
                more => read += more as u64,
            }
        }
    })??;
    ensure!(read > SIZE, "{read} of {SIZE} bytes");
    Ok(())
}
