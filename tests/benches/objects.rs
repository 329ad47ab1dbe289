//! One large object, read on three nodes at once whose links are limited: cached as a whole by one owner, and in
//! stripes by all. Each reader sends one request, or reads parts over several connections as S3 clients do.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
const SIZE: u64 = 2048 * MIB;
const STRIPES: f64 = 128.0;
const STRIPED: &str = "[placement]\nstripe_above = \"64MiB\"\n[cache]\n";
const WHOLE: &str = "[placement]\nstripe_above = \"0\"\n[cache]\n";
/// Rate of each node's link in both directions, as `tc` takes it: what two cores can forward on three nodes at once with time to
/// spare.
const RATE: &str = "500mbit";
const LONGEST: Duration = Duration::from_secs(120);
/// Connections of a reader in parts, and the length of a part in bytes: defaults of the AWS CLI, boto3 and others.
const CONNECTIONS: u64 = 10;
const PART: u64 = 8 * MIB;

/// Reads the object in a namespace.
type Read = fn(&Namespace, &Request) -> Result<()>;
/// Ways to read the object.
const WAYS: [(&str, Read); 2] = [("one request each", read), ("10 connections each", read_parts)];

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
    let (mut rates, mut shares) = ([const { [Vec::new(), Vec::new()] }; 2], Vec::new());
    for round in 0..ROUNDS {
        for is_striped in [false, true] {
            eprint!("\r    round {} of {ROUNDS} ", round + 1);
            fill(&mut tour, is_striped)?;
            for ((_, read), rates) in WAYS.iter().zip(&mut rates) {
                let seconds = read_at_once(&tour, *read)?;
                rates[usize::from(is_striped)].push(3.0 * SIZE as f64 / seconds / 1e9);
            }
            if is_striped {
                let held = tour.nodes.iter().map(|node| node.metric("lota_cache_stripes"));
                let most = held.collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max);
                shares.push(most / (STRIPES / 3.0));
            }
        }
    }
    eprintln!();
    let mut report = Report::new("objects");
    for ((way, _), [whole, striped]) in WAYS.iter().zip(rates) {
        let ratios = striped.iter().zip(&whole).map(|(striped, whole)| striped / whole).collect();
        report.add(format!("three readers, {way}, cached as a whole"), "GB/s", Goal::None, whole);
        report.add(format!("three readers, {way}, in stripes"), "GB/s", Goal::None, striped);
        report.add(format!("{way}: in stripes / as a whole"), "x", Goal::AtLeast(2.5), ratios);
    }
    report.add("stripes of the fullest node, relative to the mean", "x", Goal::None, shares);
    report.write()
}

fn request(tour: &Tour, method: Method) -> Request {
    Request::new(method, "cwlota.com", &format!("/{}", tour.client.name("objects/large")))
}

/// Fills the caches with the object.
fn fill(tour: &mut Tour, is_striped: bool) -> Result<()> {
    tour.restart_with(Mode::OwnCredential, "[cache]\n", if is_striped { STRIPED } else { WHOLE })?;
    for node in &tour.nodes {
        run(node.command().args(["cache", "evict", "--all", "--config"]).arg(node.config()))?;
    }
    tour.client.put_and_hit(&tour.pod(1, 1), "objects/trial", 40)?;
    read(&tour.pod(1, 1), &request(tour, Method::GET).sign(&ADMIN, Signing::Presigned)?)?;
    wait_within(LONGEST, "the object to be cached", || {
        Ok(match is_striped {
            true => tour.metric("lota_cache_stripes")? >= STRIPES,
            false => !tour.holders("objects/large")?.is_empty(),
        })
    })
}

/// Limits the links, and reads the object on every node at once. Returns the seconds until all have it.
fn read_at_once(tour: &Tour, read: Read) -> Result<f64> {
    let get = request(tour, Method::GET).sign(&ADMIN, Signing::Presigned)?;
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

/// Reads the object by one request, and drops its bytes.
fn read(pod: &Namespace, get: &Request) -> Result<()> {
    let target = get.target.clone();
    let read = pod.run(move || connect()?.read(&target, 0, SIZE))??;
    ensure!(read == SIZE, "{read} of {SIZE} bytes");
    Ok(())
}

/// Reads the object in parts over several connections, and drops its bytes.
fn read_parts(pod: &Namespace, get: &Request) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (pod, target, next) = (pod.clone(), get.target.clone(), next.clone());
            thread::spawn(move || {
                pod.run(move || -> Result<u64> {
                    let (mut connection, mut read) = (connect()?, 0);
                    loop {
                        let start = next.fetch_add(PART, Ordering::Relaxed);
                        if start >= SIZE {
                            return Ok(read);
                        }
                        read += connection.read(&target, start, PART.min(SIZE - start))?;
                    }
                })?
            })
        })
        .collect();
    let read = connections.into_iter().map(|one| one.join().map_err(|_| anyhow!("panicked"))?);
    let read: u64 = read.sum::<Result<u64>>()?;
    ensure!(read == SIZE, "{read} of {SIZE} bytes");
    Ok(())
}

/// Connection of a client.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

fn connect() -> Result<Connection> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(LONGEST))?;
    Ok(Connection { stream, buffer: vec![0; 1 << 20] })
}

impl Connection {
    /// Reads `length` bytes of the object from `start` on. Returns the number of bytes in the response's body.
    fn read(&mut self, target: &str, start: u64, length: u64) -> Result<u64> {
        let end = start + length - 1;
        let request =
            format!("GET {target} HTTP/1.1\r\nhost: cwlota.com\r\nrange: bytes={start}-{end}\r\n\r\n");
        self.stream.write_all(request.as_bytes())?;
        let (mut head, mut body) = (Vec::new(), 0);
        while body < length {
            let more = self.stream.read(&mut self.buffer)?;
            ensure!(more > 0, "the response ends after {body} of {length} bytes");
            if body > 0 {
                body += more as u64;
                continue;
            }
            head.extend_from_slice(&self.buffer[..more]);
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                ensure!(head.starts_with(b"HTTP/1.1 206"), "{}", String::from_utf8_lossy(&head[..end]));
                body = (head.len() - end - 4) as u64;
            }
        }
        Ok(body)
    }
}
