//! Warm reads from LOTA, nginx as an S3 cache without and with authorization, and a bare sendfile loop. All servers are
//! on node 1, and the client is in a pod of node 1. The gateway has a negligible cost.

use std::{fs, net::SocketAddr, path::Path, process::ExitCode, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use hyper::Method;
use lota_tests::{
    bench::{
        self, BUCKET, Goal, Objects, Report,
        nginx::{self, Nginx},
    },
    lab::{
        ADMIN, GATEWAY, GATEWAY_PORT, Lab, Mode, NODES, Namespace, Node, Origin, Pod, Program, Style, VIP,
        claim, node_address,
        raw::{Request, Signing},
    },
    tool,
    tour::{Tools, Tour},
};

#[path = "serving/bare.rs"]
mod bare;
#[path = "serving/fairness.rs"]
mod fairness;
#[path = "serving/open.rs"]
mod open;
#[path = "serving/tls.rs"]
mod tls;

use bare::Bare;

const NAME: &str = "lota-bench";
/// Measurements per server and figure, and the duration of each.
const ROUNDS: usize = 10;
const TURN: Duration = Duration::from_secs(2);
/// Sizes of the objects in bytes.
const LARGE: u64 = 64 << 20;
const SMALL: [(&str, u64); 2] = [("4 KiB", 4 << 10), ("100 KiB", 100 << 10)];
/// Ports of the other servers on node 1, and of the gateway.
const OPEN: u16 = 8080;
const AUTHORIZING: u16 = 8081;
const BARE: u16 = 8082;
const FORWARD: u16 = 8083;
const STUB: u16 = 9100;

fn main() -> ExitCode {
    if let Err(error) = bare::serve_if_spawned() {
        eprintln!("the bare loop: {error:#}");
        return ExitCode::FAILURE;
    }
    bench::ended("serving", measure())
}

/// A server under test.
struct Server {
    name: &'static str,
    /// Network namespace of the client.
    client: Namespace,
    url: String,
    pids: Vec<u32>,
}

/// Result of one measurement.
#[derive(Clone, Copy, Debug)]
struct Turn {
    requests_per_second: f64,
    bytes_per_second: f64,
    /// CPU time of the server's processes.
    cpu_seconds_per_gib: f64,
    /// CPU time of all processes on this machine: the kernel's work for a receiver counts for the process that it interrupts.
    all_cpu_seconds_per_gib: f64,
    p99_milliseconds: f64,
}

/// The running servers. Fields are dropped in order: a server before those that it depends on.
struct Stage {
    nodes: Vec<Node>,
    bare: Bare,
    forward: Nginx,
    cache: Nginx,
    _gateway: Nginx,
    /// URL of the object of each size.
    urls: Vec<(u64, String)>,
    lab: Lab,
}

impl Stage {
    /// Starts the servers; `limits` is a further part of the nodes' configuration.
    fn set(limits: &str) -> Result<Self> {
        let lab = Lab::up(NAME)?;
        let mut objects = Objects::new(lab.folder(), &format!("http://{}", stub()))?;
        let sizes = SMALL.iter().map(|(_, size)| *size).chain([LARGE]);
        let urls = sizes.map(|size| Ok((size, objects.make(size)?.target))).collect::<Result<_>>()?;
        let gateway = nginx::gateway(stub(), objects.root(), &objects.urls);
        let place = nginx::folder(lab.folder(), "gateway");
        let gateway = Nginx::start(Some(&lab.switch()), &place, stub(), &gateway)?;
        let place = nginx::folder(lab.folder(), "cache");
        let caches = nginx::caches(here(OPEN), here(AUTHORIZING), stub(), &place);
        let cache = Nginx::start(Some(&lab.node(1)), &place, here(OPEN), &caches)?;
        let place = nginx::folder(lab.folder(), "forward");
        let passes_on = nginx::forward(before(), here(OPEN));
        let forward = Nginx::start(Some(&lab.node(2)), &place, before(), &passes_on)?;
        let bare = Bare::start(&lab.node(1), here(BARE), &objects.root().join(BUCKET))?;
        let program = Program(tool("LOTA_BIN")?);
        let mut nodes: Vec<Node> = (1..=NODES).map(|number| Node::new(&lab, number, &program)).collect();
        for node in &mut nodes {
            // XDP on a veth disables GRO, for nginx too; a network card aggregates packets after XDP.
            node.edit("uplink = \"uplink\"\n", "");
            node.edit("[cache]\n", &format!("{limits}[cache]\n"));
            node.configure_gateway(Mode::ClientOnly, &format!("http://{}", stub()))?;
            node.start()?;
        }
        Ok(Self { nodes, bare, forward, cache, _gateway: gateway, urls, lab })
    }

    /// Returns all servers, with a client on node 1.
    fn local(&self, object: u64) -> Result<Vec<Server>> {
        let nginx = self.cache.pids()?;
        let from = Pod(1, 1);
        Ok(vec![
            self.server(from, "LOTA", (VIP, 80).into(), &[self.lota(0)?], object),
            self.server(from, "nginx, anyone", here(OPEN), &nginx, object),
            self.server(from, "nginx, authorizing", here(AUTHORIZING), &nginx, object),
            self.server(from, "bare sendfile", here(BARE), &[self.bare.pid()], object),
        ])
    }

    /// Returns the servers for a client on node 2.
    fn remote(&self, object: u64) -> Result<Vec<Server>> {
        let nginx = [self.cache.pids()?, self.forward.pids()?].concat();
        let from = Pod(2, 1);
        Ok(vec![
            self.server(from, "LOTA", (VIP, 80).into(), &[self.lota(0)?, self.lota(1)?], object),
            self.server(from, "nginx before nginx", before(), &nginx, object),
        ])
    }

    fn server(
        &self,
        from: Pod,
        name: &'static str,
        address: SocketAddr,
        pids: &[u32],
        object: u64,
    ) -> Server {
        let url = format!("http://{address}{}", self.url(object));
        Server { name, client: self.lab.pod(from), url, pids: pids.to_vec() }
    }

    fn url(&self, object: u64) -> &str {
        self.urls.iter().find(|(size, _)| *size == object).map_or("", |(_, url)| url)
    }

    fn lota(&self, node: usize) -> Result<u32> {
        self.nodes[node].pid().context("the node does not run")
    }
}

fn stub() -> SocketAddr {
    (GATEWAY, STUB).into()
}

fn here(port: u16) -> SocketAddr {
    (node_address(1), port).into()
}

fn before() -> SocketAddr {
    (node_address(2), FORWARD).into()
}

fn measure() -> Result<bool> {
    claim(NAME)?;
    let mut stage = Stage::set("")?;
    let mut report = Report::new("serving");
    // `cargo bench … -- small latency` runs only these parts.
    let named: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let is_wanted = |name: &str| named.is_empty() || named.iter().any(|named| named == name);
    for (_, part) in PARTS.iter().filter(|(name, _)| is_wanted(name)) {
        part(&stage, &mut report)?;
    }
    if is_wanted("tls") {
        tls::between_nodes(&mut stage, &mut report)?;
    }
    drop(stage);
    if is_wanted("fairness") {
        fairness::limited(&mut report)?;
    }
    if is_wanted("gateway") {
        gateway(&mut report)?;
    }
    report.write()
}

/// A part of the benchmark.
type Part = fn(&Stage, &mut Report) -> Result<()>;
const PARTS: [(&str, Part); 5] = [
    ("large", large),
    ("small", small),
    ("latency", latency),
    ("remote", remote),
    ("fairness", fairness::shares),
];

fn large(stage: &Stage, report: &mut Report) -> Result<()> {
    for connections in [1, 8, 64] {
        let turns = take_turns(&stage.local(LARGE)?, connections)?;
        let title = format!("64 MiB, {connections} connections");
        let (speed, cpu) = (|turn: &Turn| turn.bytes_per_second, |turn: &Turn| turn.cpu_seconds_per_gib);
        let all_cpu = |turn: &Turn| turn.all_cpu_seconds_per_gib;
        show(report, &title, "GB/s", &turns, |turn| turn.bytes_per_second / 1e9);
        for (what, goal, ratios) in [
            ("LOTA / nginx, anyone", Goal::AtLeast(1.0), ratios(&turns, 0, 1, speed)),
            ("LOTA / bare sendfile", Goal::AtLeast(0.9), ratios(&turns, 0, 3, speed)),
            ("CPU per GiB / bare sendfile", Goal::AtMost(1.1), ratios(&turns, 0, 3, cpu)),
            ("CPU per GiB / nginx, anyone", Goal::None, ratios(&turns, 0, 1, cpu)),
            ("the machine's CPU per GiB / bare sendfile", Goal::AtMost(1.1), ratios(&turns, 0, 3, all_cpu)),
        ] {
            report.add(format!("{title}: {what}"), "x", goal, ratios);
        }
    }
    Ok(())
}

fn small(stage: &Stage, report: &mut Report) -> Result<()> {
    for (title, object) in SMALL {
        let title = format!("{title}, 64 connections");
        let turns = take_turns(&stage.local(object)?, 64)?;
        let rate = |turn: &Turn| turn.requests_per_second;
        show(report, &title, "k/s", &turns, |turn| turn.requests_per_second / 1e3);
        show(report, &format!("{title}, p99"), "ms", &turns, |turn| turn.p99_milliseconds);
        let goal = Goal::AtLeast(1.5);
        report.add(format!("{title}: LOTA / nginx, authorizing"), "x", goal, ratios(&turns, 0, 2, rate));
    }
    Ok(())
}

/// Measures latency at half of LOTA's maximum rate with an open-loop load, compared with the gateway's own `304`.
fn latency(stage: &Stage, report: &mut Report) -> Result<()> {
    // Pods have no route to the gateway.
    let (pod, node) = (stage.lab.pod(Pod(1, 1)), stage.lab.node(1));
    for (title, object) in SMALL {
        let lota = stage.server(Pod(1, 1), "LOTA", (VIP, 80).into(), &[stage.lota(0)?], object);
        let capacity = turn(&lota, 64, TURN)?.requests_per_second;
        let load = |to: SocketAddr, status, etag: &str| open::Load {
            to,
            target: stage.url(object).to_owned(),
            etag: etag.to_owned(),
            status,
            per_second: capacity / 2.0,
            time: TURN,
        };
        let etag = open::etag(&node, load(stub(), 200, ""))?;
        let mut added = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            eprint!("\r    {title}, half of capacity: round {} of {ROUNDS} ", round + 1);
            let mut measured = [None, None];
            for place in [round % 2, 1 - round % 2] {
                measured[place] = Some(match place {
                    0 => open::measure(&pod, load((VIP, 80).into(), 200, ""))?,
                    _ => open::measure(&node, load(stub(), 304, &etag))?,
                });
            }
            let [Some(lota), Some(gateway)] = measured else { continue };
            added[0].push((lota.p50 - gateway.p50) * 1e6);
            added[1].push((lota.p99 - gateway.p99) * 1e6);
        }
        eprintln!();
        let title = format!("{title}, {:.1} k/s, added to the gateway's 304", capacity / 2e3);
        let [p50, p99] = added;
        report.add(format!("{title}: p50"), "us", Goal::AtMost(150.0), p50);
        report.add(format!("{title}: p99"), "us", Goal::AtMost(1000.0), p99);
    }
    Ok(())
}

fn remote(stage: &Stage, report: &mut Report) -> Result<()> {
    for connections in [1, 8] {
        let turns = take_turns(&stage.remote(LARGE)?, connections)?;
        let title = format!("64 MiB, {connections} connections, a remote owner");
        let (speed, cpu) = (|turn: &Turn| turn.bytes_per_second, |turn: &Turn| turn.cpu_seconds_per_gib);
        show(report, &title, "GB/s", &turns, |turn| turn.bytes_per_second / 1e9);
        let goal = Goal::AtLeast(0.8);
        report.add(format!("{title}: LOTA / nginx before nginx"), "x", goal, ratios(&turns, 0, 1, speed));
        report.add(format!("{title}: CPU per GiB"), "x", Goal::None, ratios(&turns, 0, 1, cpu));
    }
    Ok(())
}

/// Compares hits, each authorized by SeaweedFS, with SeaweedFS's own responses to the same requests.
fn gateway(report: &mut Report) -> Result<()> {
    let lab = Lab::up(NAME)?;
    let origin = Origin::seaweed(&tool("LOTA_WEED")?, lab.folder())?;
    let tools = Tools { lota: tool("LOTA_BIN")?, python: tool("LOTA_PYTHON")? };
    let tour = Tour::start(lab, origin, &tools)?;
    tour.client.create_bucket(&tour.pod(1, 1))?;
    tour.client.put_and_hit(&tour.pod(1, 1), "trial", 1)?;
    for (title, size) in SMALL.into_iter().chain([("64 MiB", LARGE)]) {
        tour.client.put(&tour.pod(1, 1), title, 2, size)?;
        tour.client.get(&tour.pod(1, 1), title, Style::Path)?;
        let owner: u8 = tour.wait_cached(title)?.trim_start_matches('n').parse()?;
        let key = tour.client.name(title).replace(' ', "%20");
        let get = Request::new(Method::GET, "cwlota.com", &format!("/{key}"));
        let target = get.sign(&ADMIN, Signing::Presigned)?.target;
        let server = |name, client, address: SocketAddr| Server {
            name,
            client,
            url: format!("http://{address}{target}"),
            pids: Vec::new(),
        };
        let servers = [
            server("LOTA", tour.pod(owner, 1), (VIP, 80).into()),
            // Pods have no route to the gateway.
            server("the gateway", tour.lab.node(owner), (GATEWAY, GATEWAY_PORT).into()),
        ];
        let connections = if size == LARGE { 8 } else { 64 };
        let turns = take_turns(&servers, connections)?;
        let what = format!("{title}, {connections} connections, SeaweedFS: LOTA / the gateway itself");
        report.add(what, "x", Goal::None, ratios(&turns, 0, 1, |turn| turn.bytes_per_second));
    }
    Ok(())
}

/// Measures the servers in turn, [`ROUNDS`] times; returns the results of each.
fn take_turns(servers: &[Server], connections: usize) -> Result<Vec<(&'static str, Vec<Turn>)>> {
    let mut turns: Vec<_> = servers.iter().map(|server| (server.name, Vec::new())).collect();
    for server in servers {
        // The first read fills the cache; LOTA verifies the gateway with the second.
        for _ in 0..3 {
            turn(server, connections.min(4), Duration::from_secs(1))?;
            thread::sleep(Duration::from_millis(200));
        }
    }
    for round in 0..ROUNDS {
        eprint!("\r    {connections} connections: round {} of {ROUNDS} ", round + 1);
        for place in 0..servers.len() {
            // The order rotates, so that no server always follows the same one.
            let place = (place + round) % servers.len();
            turns[place].1.push(turn(&servers[place], connections, TURN)?);
        }
    }
    eprintln!();
    Ok(turns)
}

fn turn(server: &Server, connections: usize, time: Duration) -> Result<Turn> {
    let before: Vec<_> = server.pids.iter().map(|pid| cpu_seconds(*pid)).collect();
    let all_before = all_cpu_seconds()?;
    let mut wrk = server.client.command("wrk");
    let threads = connections.min(2);
    wrk.args([format!("-t{threads}"), format!("-c{connections}"), format!("-d{}s", time.as_secs())]);
    wrk.args(["--latency", "--timeout", "20s", "-H", "Host: cwlota.com", &server.url]);
    let output = lota_tests::lab::run(&mut wrk)?;
    // Processes that ended meanwhile (nginx has one) do not serve.
    let used = |(pid, before): (&u32, &Option<f64>)| Some(cpu_seconds(*pid)? - (*before)?);
    let cpu: f64 = server.pids.iter().zip(&before).filter_map(used).sum();
    let all_cpu = all_cpu_seconds()? - all_before;
    if output.contains("Non-2xx") || output.contains("Socket errors") {
        bail!("{} does not serve:\n{output}", server.name);
    }
    let value = |label: &str| -> Result<&str> {
        let line = output.lines().find_map(|line| line.trim().strip_prefix(label));
        line.map(str::trim).with_context(|| format!("no `{label}` in wrk's output:\n{output}"))
    };
    // `1234 requests in 2.01s, 3.45GB read`
    let total = output.lines().find(|line| line.contains(" requests in ")).context("no total")?;
    let read =
        total.rsplit(", ").next().and_then(|read| bytes(read.strip_suffix(" read")?)).context("no bytes")?;
    let gib = read / f64::from(1 << 30);
    Ok(Turn {
        requests_per_second: value("Requests/sec:")?.parse()?,
        bytes_per_second: bytes(value("Transfer/sec:")?).context("no rate")?,
        cpu_seconds_per_gib: cpu / gib,
        all_cpu_seconds_per_gib: all_cpu / gib,
        p99_milliseconds: milliseconds(value("99%")?).context("no p99")?,
    })
}

/// Parses a size of wrk, such as `1.5GB`; units are powers of 1024.
fn bytes(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "B" => 1.0,
        "KB" => 1024.0,
        "MB" => 1024.0 * 1024.0,
        "GB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    digits.parse::<f64>().ok().map(|number| number * factor)
}

/// Parses a duration of wrk, such as `1.5ms`.
fn milliseconds(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        _ => return None,
    };
    digits.parse::<f64>().ok().map(|number| number * factor)
}

/// Returns the CPU time of a running process in seconds.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
    // utime and stime, in hundredths of a second.
    let ticks: f64 = [11, 12].iter().filter_map(|field| fields.get(*field)?.parse::<f64>().ok()).sum();
    Some(ticks / 100.0)
}

/// Returns the CPU time of the whole machine in seconds, including kernel and interrupts.
fn all_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    // user, nice, system, idle, iowait, irq, softirq, in hundredths of a second.
    let fields: Vec<f64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).flat_map(str::parse).collect();
    let busy: Option<f64> = [0, 1, 2, 5, 6].iter().map(|field| fields.get(*field)).sum();
    Ok(busy.context("no CPUs in /proc/stat")? / 100.0)
}

fn show(
    report: &mut Report,
    title: &str,
    unit: &'static str,
    turns: &[(&str, Vec<Turn>)],
    figure: impl Fn(&Turn) -> f64,
) {
    for (name, turns) in turns {
        report.add(format!("{title}: {name}"), unit, Goal::None, turns.iter().map(&figure).collect());
    }
}

/// Returns the ratio of two servers' figures in each round.
fn ratios(turns: &[(&str, Vec<Turn>)], one: usize, other: usize, figure: impl Fn(&Turn) -> f64) -> Vec<f64> {
    turns[one].1.iter().zip(&turns[other].1).map(|(one, other)| figure(one) / figure(other)).collect()
}
