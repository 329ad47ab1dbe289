//! Cold reads of a distant origin: directly, and through LOTA with an empty cache.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    bench::{
        self, Goal, Objects, Report,
        nginx::{self, Nginx},
    },
    lab::{GATEWAY, GATEWAY_PORT, Lab, Mode, Namespace, Node, Pod, Program, VIP, claim, raw::Request},
    tool,
};
use nix::sys::signal::Signal;

const NAME: &str = "lota-bench-cold";
const ROUNDS: usize = 10;
const DELAYS: [u64; 3] = [1, 10, 50];
const MIB: u64 = 1 << 20;
/// Names and sizes of the objects that are read completely.
const WHOLE: [(&str, u64); 2] = [("64 MiB", 64 * MIB), ("1 GiB", 1024 * MIB)];
/// Capacity of each node's cache in GiB; the objects of one delay fit.
const CAPACITY: u64 = 12;
const HUGE: u64 = 4096 * MIB;
/// Timeout for bytes to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    bench::ended("cold", measure())
}

/// Duration of a response.
#[derive(Clone, Copy, Debug)]
struct Took {
    first_byte: f64,
    all: f64,
}

/// A read of an object that was not read before.
struct Read {
    request: Request,
    bytes: u64,
}

fn measure() -> Result<bool> {
    claim(NAME)?;
    let lab = Lab::up(NAME)?;
    let relayed = SocketAddr::from((GATEWAY, GATEWAY_PORT));
    let mut objects = Objects::new(lab.folder(), &format!("http://{relayed}"))?;
    let warm_up = Read { request: objects.make(MIB)?, bytes: MIB };
    let mut whole = Vec::new();
    for (title, size) in WHOLE {
        for delay in DELAYS {
            let mut read = || Ok(Read { request: objects.make(size)?, bytes: size });
            let reads = (0..2 * ROUNDS).map(|_| read()).collect::<Result<Vec<_>>>()?;
            whole.push((title, delay, reads));
        }
    }
    let mut parts = Vec::new();
    for delay in DELAYS {
        let middle = format!("bytes={}-{}", HUGE / 2, HUGE / 2 + MIB - 1);
        let mut read = || Ok(Read { request: objects.make(HUGE)?.header("range", &middle), bytes: MIB });
        let reads = (0..2 * ROUNDS).map(|_| read()).collect::<Result<Vec<_>>>()?;
        parts.push((delay, reads));
    }
    // The origin is a process of its own; this one relays.
    let origin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let config = nginx::gateway(origin, objects.root(), &objects.urls);
    let _origin = Nginx::start(None, &nginx::folder(lab.folder(), "origin"), origin, &config)?;
    let relay = lab.relay(GATEWAY_PORT, origin)?;

    let program = Program(tool("LOTA_BIN")?);
    let mut node = Node::new(&lab, 1, &program);
    node.edit("capacity = \"4GiB\"", &format!("capacity = \"{CAPACITY}GiB\""));
    node.configure(Mode::ClientOnly)?;
    let pod = lab.pod(Pod(1, 1));
    // Pods have no route to the origin.
    let direct = (lab.node(1), relayed);
    let mut report = Report::new("cold");
    for (title, delay, reads) in whole {
        relay.set_delay(Duration::from_millis(delay));
        restart(&mut node, &pod, &warm_up)?;
        let title = format!("{title}, origin {delay} ms away");
        let turns = take_turns(&title, &pod, &direct, reads, || Ok(()))?;
        show(&mut report, &title, &turns);
        report.add(
            format!("{title}: throughput, LOTA / direct"),
            "x",
            Goal::AtLeast(0.95),
            turns.iter().map(|(direct, lota)| direct.all / lota.all).collect(),
        );
        report.add(
            format!("{title}: first byte, LOTA - direct"),
            "ms",
            Goal::AtMost(2.0),
            turns.iter().map(|(direct, lota)| (lota.first_byte - direct.first_byte) * 1e3).collect(),
        );
    }
    for (delay, reads) in parts {
        relay.set_delay(Duration::from_millis(delay));
        let title = format!("1 MiB of 4 GiB, origin {delay} ms away");
        // The measurement ends with the range, not with the fill of the whole object.
        let turns = take_turns(&title, &pod, &direct, reads, || restart(&mut node, &pod, &warm_up))?;
        show(&mut report, &title, &turns);
        report.add(
            format!("{title}: first byte, LOTA / direct"),
            "x",
            Goal::AtMost(1.2),
            turns.iter().map(|(direct, lota)| lota.first_byte / direct.first_byte).collect(),
        );
    }
    drop(node);
    report.write()
}

fn show(report: &mut Report, title: &str, turns: &[(Took, Took)]) {
    let direct = turns.iter().map(|(direct, _)| direct.first_byte * 1e3).collect();
    report.add(format!("{title}: first byte, direct"), "ms", Goal::None, direct);
    let lota = turns.iter().map(|(_, lota)| lota.first_byte * 1e3).collect();
    report.add(format!("{title}: first byte, LOTA"), "ms", Goal::None, lota);
}

/// Restarts the node with an empty cache, and waits until it trusts the gateway.
fn restart(node: &mut Node, pod: &Namespace, warm_up: &Read) -> Result<()> {
    if node.pid().is_some() {
        node.stop(Signal::SIGKILL)?;
    }
    match fs::remove_dir_all(node.cache_folder()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    node.start()?;
    for _ in 0..3 {
        read(pod, (VIP, 80).into(), warm_up)?;
    }
    Ok(())
}

/// Reads each object once, directly and through LOTA in turn; returns the pairs.
fn take_turns(
    title: &str,
    pod: &Namespace,
    (beside, origin): &(Namespace, SocketAddr),
    reads: Vec<Read>,
    mut before: impl FnMut() -> Result<()>,
) -> Result<Vec<(Took, Took)>> {
    let (mut reads, mut turns) = (reads.into_iter(), Vec::new());
    while let (Some(one), Some(other)) = (reads.next(), reads.next()) {
        eprint!("\r    {title}: round {} of {ROUNDS} ", turns.len() + 1);
        before()?;
        let direct_first = turns.len().is_multiple_of(2);
        let early = direct_first.then(|| read(beside, *origin, &one)).transpose()?;
        let lota = read(pod, (VIP, 80).into(), &other)?;
        let direct = early.map_or_else(|| read(beside, *origin, &one), Ok)?;
        turns.push((direct, lota));
    }
    eprintln!();
    Ok(turns)
}

fn read(pod: &Namespace, from: SocketAddr, read: &Read) -> Result<Took> {
    let Request { target, host, headers, .. } = &read.request;
    let mut head = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let bytes = read.bytes;
    pod.run(move || {
        let mut stream = TcpStream::connect(from)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        let since = Instant::now();
        stream.write_all(head.as_bytes())?;
        let mut buffer = vec![0; 1 << 20];
        let (mut answer, mut first_byte) = (Vec::new(), None);
        let mut got = 0;
        loop {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            got += read as u64;
            if first_byte.is_none() {
                answer.extend_from_slice(&buffer[..read]);
                let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                ensure!(
                    answer.starts_with(b"HTTP/1.1 20"),
                    "answered {}",
                    String::from_utf8_lossy(&answer[..end])
                );
                if answer.len() == end + 4 {
                    continue;
                }
                got = (answer.len() - end - 4) as u64;
                first_byte = Some(since.elapsed().as_secs_f64());
            }
        }
        ensure!(got == bytes, "{got} bytes of {bytes} came");
        Ok(Took { first_byte: first_byte.context("no byte came")?, all: since.elapsed().as_secs_f64() })
    })?
}
