//! Thousands of connections to each port that send no whole request, or no other one: memory is bounded, and pods are served.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use lota_tests::{
    bench::resident,
    lab::{
        ADMIN, ADMIN_PORT, Mode, Namespace, PEER_PORT, Style, VIP, node_address,
        raw::{Request, Signing},
        run,
    },
    tour::{MIB, Tour, wait_settled},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Maximum number of bytes by which all connections together may raise the daemon's resident memory, at any time. Their
/// heads alone, without limits, would take 500 MiB; those that the limits admit take 14 MiB. 13 to 25 MiB are usual.
const MAX_MEMORY: u64 = 32 << 20;
/// Duration for which the memory is watched after the last connection was opened, and the interval.
const WATCHED: (Duration, Duration) = (Duration::from_secs(3), Duration::from_millis(100));
/// Latency that other work on the machine may add to reads. A p99 is a few milliseconds: twice the latency is beyond
/// this only where the connections slow down every round.
const NOISE: Duration = Duration::from_millis(20);
/// Reads of a round, whose latency is measured without and with the connections.
const READS: usize = 200;
/// Rounds without the connections, and the maximum number with them: other work on the machine rarely slows down each.
const ROUNDS: usize = 5;
const MAX_ROUNDS: usize = 20;
/// Limit of descriptors that does not suffice for a part of the connections.
const FEW_DESCRIPTORS: &str = "--nofile=3000";

/// Opens connections from a namespace and sends as much of `bytes` on each as its socket takes. Connections that the daemon
/// closes count.
fn open(
    from: &Namespace,
    to: SocketAddr,
    connections: usize,
    bytes: Vec<u8>,
) -> Result<Vec<Option<TcpStream>>> {
    let opened = from.run(move || {
        let open = |_| {
            let mut stream = match TcpStream::connect_timeout(&to, Duration::from_secs(2)) {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Some(None),
                Err(_) => return None,
            };
            stream.set_nonblocking(true).ok()?;
            // Ends once the socket takes no more, or the daemon has closed it.
            let _ = stream.write_all(&bytes);
            Some(Some(stream))
        };
        (0..connections).filter_map(open).collect::<Vec<_>>()
    })?;
    ensure!(opened.len() * 10 >= connections * 9, "{to}: only {} of {connections} connect", opened.len());
    Ok(opened)
}

/// Returns the first `length` bytes of an endless head.
fn head(length: usize) -> Vec<u8> {
    [b"GET /", "k".repeat(length).as_bytes()].concat()
}

/// Reads one cached object over new connections. Returns the 99th percentile of the latencies.
fn read(pod: &Namespace, target: &str) -> Result<Duration> {
    let ask = format!("GET {target} HTTP/1.1\r\nhost: cwlota.com\r\nconnection: close\r\n\r\n");
    pod.run(move || -> Result<Duration> {
        let mut latencies = Vec::new();
        for _ in 0..READS {
            let began = Instant::now();
            let mut stream =
                TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(ask.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            latencies.push(began.elapsed());
            ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
        }
        latencies.sort_unstable();
        Ok(latencies[READS * 99 / 100])
    })?
}

/// Returns the median of the 99th percentiles of several rounds.
fn read_rounds(pod: &Namespace, target: &str) -> Result<Duration> {
    let mut rounds = (0..ROUNDS).map(|_| read(pod, target)).collect::<Result<Vec<_>>>()?;
    rounds.sort_unstable();
    Ok(rounds[ROUNDS / 2])
}

/// Returns the 99th percentile of the first round that is not slower than `expected`, or else of the fastest.
fn fastest_round(pod: &Namespace, target: &str, expected: Duration) -> Result<Duration> {
    let mut fastest = Duration::MAX;
    for _ in 0..MAX_ROUNDS {
        fastest = fastest.min(read(pod, target)?);
        if fastest <= expected {
            break;
        }
    }
    Ok(fastest)
}

/// Returns the maximum resident memory of a process while it is watched, in bytes.
fn watch_memory(pid: u32) -> Result<u64> {
    let (began, mut peak) = (Instant::now(), 0);
    while began.elapsed() < WATCHED.0 {
        peak = peak.max(resident(pid)?);
        sleep(WATCHED.1);
    }
    Ok(peak)
}

pub(crate) fn hostile(tour: &mut Tour) -> Result<()> {
    let (_, hard_limit) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard_limit, hard_limit)?;
    // A fresh daemon, whose memory does not depend on earlier tests.
    tour.restart(Mode::OwnCredential)?;
    let (client, pod, key) = (&tour.client, tour.pod(1, 1), "ports/object");
    client.put_and_hit(&pod, "ports/trial", 20)?;
    client.put(&pod, key, 150, 4 << 10)?;
    wait_settled();
    client.get(&pod, key, Style::Path)?;
    tour.wait_cached(key)?;
    let target = format!("/{}", client.name(key));
    let target = Request::new(Method::GET, "cwlota.com", &target).sign(&ADMIN, Signing::Presigned)?.target;
    let node = &tour.nodes[0];
    let pid = node.pid().context("node 1 does not run")?;
    let alone = read_rounds(&pod, &target)?;
    let before = resident(pid)?;
    let connections = open_all(tour)?;
    let peak = watch_memory(pid)?;
    let beside = fastest_round(&pod, &target, 2 * alone + NOISE)?;
    let grown = peak.max(resident(pid)?).saturating_sub(before);
    println!(
        "    {} connections: {} MiB of {} more; p99 {alone:?} without, {beside:?} with",
        connections.len(),
        grown / MIB,
        before / MIB
    );
    serves(tour, "ports/other")?;
    ensure!(grown <= MAX_MEMORY, "they took {} MiB; the limit is {} MiB", grown / MIB, MAX_MEMORY / MIB);
    drop(connections);
    // Work that began on the machine meanwhile slows down the reads without them, too.
    let alone = match beside <= 2 * alone + NOISE {
        true => alone,
        false => alone.max(read_rounds(&pod, &target)?),
    };
    ensure!(beside <= 2 * alone + NOISE, "reads took {beside:?}, and {alone:?} without them");
    let log = std::fs::read_to_string(node.log())?;
    let refused = log.matches("refused an unauthenticated message on the peer port").count();
    ensure!((1..10).contains(&refused), "{refused} lines about refused messages");
    few_descriptors(tour, &target)
}

/// Opens the same connections to a daemon with fewer descriptors than they need.
fn few_descriptors(tour: &mut Tour, target: &str) -> Result<()> {
    tour.nodes[0].set_wrapper(vec!["prlimit", FEW_DESCRIPTORS]);
    let restarted = tour.restart(Mode::OwnCredential);
    tour.nodes[0].set_wrapper(Vec::new());
    restarted?;
    let pid = tour.nodes[0].pid().context("node 1 does not run")?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    ensure!(limit.split_whitespace().next() == Some("3000"), "the daemon has another limit: {limit}");
    let connections = open_all(tour)?;
    read(&tour.pod(1, 1), target)?;
    serves(tour, "ports/few")?;
    drop(connections);
    let log = std::fs::read_to_string(tour.nodes[0].log())?;
    ensure!(!log.contains("panicked"), "the daemon panicked");
    ensure!(
        tour.nodes[0].pid() == Some(pid) && tour.nodes[0].admin("/readyz")?.starts_with("ready"),
        "it ended"
    );
    tour.restart(Mode::OwnCredential)
}

/// Opens thousands of connections to the ports of node 1.
fn open_all(tour: &Tour) -> Result<Vec<Option<TcpStream>>> {
    let hostile = tour.pod(1, 2);
    let (own, peer, address) = (tour.lab.node(1), tour.lab.node(2), node_address(1));
    let mut connections = Vec::new();
    let (silent, answered) = (Vec::new(), b"GET / HTTP/1.1\r\n\r\n".to_vec());
    for (from, to, count, bytes) in [
        // Members may have large heads, and many connections.
        (&peer, (address, PEER_PORT).into(), 300, head(1 << 20)),
        (&peer, (address, PEER_PORT).into(), 1_700, silent.clone()),
        (&own, (address, PEER_PORT).into(), 200, answered.clone()),
        (&own, (address, PEER_PORT).into(), 800, head(60 << 10)),
        (&own, (address, ADMIN_PORT).into(), 1_500, head(60 << 10)),
        (&peer, (address, ADMIN_PORT).into(), 1_500, silent.clone()),
        // The length of a query of 64 KiB, and almost all of it.
        (&hostile, (VIP, 53).into(), 1_500, vec![0xff; 60 << 10]),
        (&hostile, (VIP, 53).into(), 1_500, silent.clone()),
        // Answered without the gateway, whose own connections would take memory.
        (&hostile, (VIP, 80).into(), 1_000, answered),
        (&hostile, (VIP, 80).into(), 1_000, head(60 << 10)),
        (&hostile, (VIP, 80).into(), 500, head(3 << 10)),
        (&hostile, (VIP, 80).into(), 500, silent),
    ] {
        connections.extend(open(from, to, count, bytes.clone())?);
    }
    Ok(connections)
}

/// Verifies that node 1 serves pods, DNS and the admin port.
fn serves(tour: &Tour, key: &str) -> Result<()> {
    let (client, pod, node) = (&tour.client, tour.pod(1, 1), &tour.nodes[0]);
    let dig = ["+tcp", "+short", "+tries=1", "+time=3", "x.cwlota.com"];
    let names = run(pod.pod_command("dig").args(dig))?;
    ensure!(names.trim() == VIP.to_string(), "the DNS responder answers {names:?}");
    ensure!(node.admin("/healthz")?.starts_with("alive"), "the admin port does not answer");
    let put = client.put(&pod, key, 151, MIB)?;
    let got = client.get(&pod, key, Style::Path)?;
    ensure!(got.sha256 == put.sha256, "another object: {} {}", got.status, got.code);
    Ok(())
}
