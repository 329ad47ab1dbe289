//! Warm reads, side by side: LOTA, nginx as an S3 cache without authorization and with it, and a bare sendfile loop. All
//! of them on node 1, the client in a pod of it; the gateway is one that costs next to nothing.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use hyper::Method;
use lota_daemon::{
    placement::{NodeName, Placement},
    s3::ObjectName,
};
use lota_tests::{
    bench::{Goal, Report},
    lab::{
        ADMIN, GATEWAY, Lab, Mode, NODES, Namespace, Node, Pod, Program, VIP, clean_up_on_signal,
        node_address,
        raw::{Request, Signing, content},
    },
    tool,
};

#[path = "serving/bare.rs"]
mod bare;
#[path = "serving/nginx.rs"]
mod nginx;

use bare::Bare;
use nginx::Nginx;

const NAME: &str = "lota-bench";
const BUCKET: &str = "bench";
/// Turns that everyone has for each figure, and how long one takes.
const ROUNDS: usize = 10;
const TURN: Duration = Duration::from_secs(2);
const SIZES: [(&str, usize); 3] = [("4k", 4 << 10), ("100k", 100 << 10), ("64m", 64 << 20)];
/// Ports on node 1, and of the gateway.
const OPEN: u16 = 8080;
const AUTHORIZING: u16 = 8081;
const BARE: u16 = 8082;
const FORWARD: u16 = 8083;
const STUB: u16 = 9100;

fn main() -> ExitCode {
    if let Err(error) = bare::serve_if_asked() {
        eprintln!("the bare loop: {error:#}");
        return ExitCode::FAILURE;
    }
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("a goal was missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench serving: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Someone who serves.
struct Server {
    name: &'static str,
    url: String,
    pids: Vec<u32>,
}

/// What a turn showed.
#[derive(Clone, Copy, Debug)]
struct Turn {
    requests_per_second: f64,
    bytes_per_second: f64,
    /// Of the server's CPUs.
    cpu_seconds_per_gib: f64,
    p99_milliseconds: f64,
}

fn measure() -> Result<bool> {
    clean_up_on_signal(NAME)?;
    let lab = Lab::up(NAME)?;
    let stub = SocketAddr::from((GATEWAY, STUB));
    let objects = Objects::make(&lab, &format!("http://{stub}"))?;
    let gateway = nginx::gateway(stub, &objects.root, &objects.urls());
    let _gateway =
        Nginx::start(Some(&lab.switch()), &nginx::folder(lab.folder(), "gateway"), stub, &gateway)?;

    let here = |port| SocketAddr::from((node_address(1), port));
    let folder = nginx::folder(lab.folder(), "cache");
    let caches = nginx::caches(here(OPEN), here(AUTHORIZING), stub, &folder);
    let cache = Nginx::start(Some(&lab.node(1)), &folder, here(OPEN), &caches)?;
    let before = SocketAddr::from((node_address(2), FORWARD));
    let folder = nginx::folder(lab.folder(), "forward");
    let forward = Nginx::start(Some(&lab.node(2)), &folder, before, &nginx::forward(before, here(OPEN)))?;
    let bare = Bare::start(&lab.node(1), here(BARE), &objects.root.join(BUCKET))?;

    let program = Program(tool("LOTA_BIN")?);
    let mut nodes: Vec<Node> = (1..=NODES).map(|number| Node::new(&lab, number, &program)).collect();
    for node in &mut nodes {
        node.configure_gateway(Mode::ClientOnly, &format!("http://{stub}"))?;
        node.start()?;
    }
    let lota = nodes[0].pid().context("the node does not run")?;
    let beside = nodes[1].pid().context("the node does not run")?;

    let mut report = Report::new("serving");
    let pod = lab.pod(Pod(1, 1));
    let at = |name, address: SocketAddr, pids: &[u32], object: &str| Server {
        name,
        url: format!("http://{address}{}", objects.url(object)),
        pids: pids.to_vec(),
    };
    let vip = SocketAddr::from((VIP, 80));
    let local = |object: &str| -> Result<Vec<Server>> {
        Ok(vec![
            at("LOTA", vip, &[lota], object),
            at("nginx, anyone", here(OPEN), &cache.pids()?, object),
            at("nginx, authorizing", here(AUTHORIZING), &cache.pids()?, object),
            at("bare sendfile", here(BARE), &[bare.pid()], object),
        ])
    };
    for (object, connections) in [("64m", 1), ("64m", 8), ("64m", 64)] {
        let turns = take_turns(&pod, &local(object)?, connections)?;
        let title = format!("64 MiB, {connections} connections");
        let speed = |turn: &Turn| turn.bytes_per_second;
        let cpu = |turn: &Turn| turn.cpu_seconds_per_gib;
        show(&mut report, &title, "GB/s", &turns, |turn| turn.bytes_per_second / 1e9);
        report.add(
            format!("{title}: LOTA / nginx, anyone"),
            "x",
            Goal::AtLeast(1.0),
            ratios(&turns, 0, 1, speed),
        );
        report.add(
            format!("{title}: LOTA / bare sendfile"),
            "x",
            Goal::AtLeast(0.9),
            ratios(&turns, 0, 3, speed),
        );
        let goal = Goal::AtMost(1.1);
        report.add(format!("{title}: CPU per GiB / bare sendfile"), "x", goal, ratios(&turns, 0, 3, cpu));
    }
    for (object, title) in [("4k", "4 KiB, 64 connections"), ("100k", "100 KiB, 64 connections")] {
        let turns = take_turns(&pod, &local(object)?, 64)?;
        let rate = |turn: &Turn| turn.requests_per_second;
        show(&mut report, title, "k/s", &turns, |turn| turn.requests_per_second / 1e3);
        show(&mut report, &format!("{title}, p99"), "ms", &turns, |turn| turn.p99_milliseconds);
        let goal = Goal::AtLeast(1.5);
        report.add(format!("{title}: LOTA / nginx, authorizing"), "x", goal, ratios(&turns, 0, 2, rate));
    }
    let pod = lab.pod(Pod(2, 1));
    let remote = [
        at("LOTA", vip, &[lota, beside], "64m"),
        at("nginx before nginx", before, &[cache.pids()?, forward.pids()?].concat(), "64m"),
    ];
    let turns = take_turns(&pod, &remote, 8)?;
    let title = "64 MiB, 8 connections, a remote owner";
    show(&mut report, title, "GB/s", &turns, |turn| turn.bytes_per_second / 1e9);
    let speed = |turn: &Turn| turn.bytes_per_second;
    report.add(
        format!("{title}: LOTA / nginx before nginx"),
        "x",
        Goal::AtLeast(0.8),
        ratios(&turns, 0, 1, speed),
    );
    drop(nodes);
    report.write()
}

/// What is read: objects that node 1 owns, and URLs that anyone may read them by.
struct Objects {
    root: PathBuf,
    urls: Vec<(&'static str, String)>,
}

impl Objects {
    fn make(lab: &Lab, gateway: &str) -> Result<Self> {
        let root = lab.folder().join("objects");
        fs::create_dir_all(root.join(BUCKET))?;
        let nodes = (1..=NODES).map(|node| (NodeName(format!("n{node}")), 4 << 30));
        let placement = Placement::new(gateway, nodes);
        let urls = SIZES.map(|(object, size)| {
            // Of such names, one that is node 1's.
            let owned = (0..).map(|number| format!("{object}-{number}")).find(|key| {
                let name = ObjectName::from_parts(BUCKET, key, None);
                name.is_some_and(|name| {
                    placement.first(&name, 1).first().is_some_and(|first| first.0 == "n1")
                })
            });
            let key = owned.context("no such name")?;
            fs::write(root.join(BUCKET).join(&key), content(size))?;
            let get = Request::new(Method::GET, "cwlota.com", &format!("/{BUCKET}/{key}"));
            Ok((object, get.sign(&ADMIN, Signing::Presigned)?.target))
        });
        Ok(Self { root, urls: urls.into_iter().collect::<Result<_>>()? })
    }

    fn url(&self, object: &str) -> &str {
        self.urls.iter().find(|(name, _)| *name == object).map_or("", |(_, url)| url)
    }

    fn urls(&self) -> Vec<String> {
        self.urls.iter().map(|(_, url)| url.clone()).collect()
    }
}

/// Everyone serves in turn, again and again; one list of turns for each.
fn take_turns(
    from: &Namespace,
    servers: &[Server],
    connections: usize,
) -> Result<Vec<(&'static str, Vec<Turn>)>> {
    let mut turns: Vec<_> = servers.iter().map(|server| (server.name, Vec::new())).collect();
    for server in servers {
        // The first brings it into the cache; LOTA has the gateway on trial with the second.
        for _ in 0..3 {
            turn(from, server, connections.min(4), Duration::from_secs(1))?;
            thread::sleep(Duration::from_millis(200));
        }
    }
    for round in 0..ROUNDS {
        eprint!("\r    {connections} connections: round {} of {ROUNDS} ", round + 1);
        for place in 0..servers.len() {
            // Nobody always comes after the same.
            let place = (place + round) % servers.len();
            turns[place].1.push(turn(from, &servers[place], connections, TURN)?);
        }
    }
    eprintln!();
    Ok(turns)
}

fn turn(from: &Namespace, server: &Server, connections: usize, time: Duration) -> Result<Turn> {
    let before: Vec<_> = server.pids.iter().map(|pid| cpu_seconds(*pid)).collect();
    let mut wrk = from.command("wrk");
    let threads = connections.min(2);
    wrk.args([format!("-t{threads}"), format!("-c{connections}"), format!("-d{}s", time.as_secs())]);
    wrk.args(["--latency", "--timeout", "20s", "-H", "Host: cwlota.com", &server.url]);
    let said = lota_tests::lab::run(&mut wrk)?;
    // A process that has ended meanwhile (nginx has one that does) had nothing to do with it.
    let used = |(pid, before): (&u32, &Option<f64>)| Some(cpu_seconds(*pid)? - (*before)?);
    let cpu: f64 = server.pids.iter().zip(&before).filter_map(used).sum();
    if said.contains("Non-2xx") || said.contains("Socket errors") {
        bail!("{} does not serve:\n{said}", server.name);
    }
    let value = |label: &str| -> Result<&str> {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(label));
        line.map(str::trim).with_context(|| format!("wrk says no `{label}`:\n{said}"))
    };
    // `1234 requests in 2.01s, 3.45GB read`
    let total = said.lines().find(|line| line.contains(" requests in ")).context("no total")?;
    let read =
        total.rsplit(", ").next().and_then(|read| bytes(read.strip_suffix(" read")?)).context("no bytes")?;
    Ok(Turn {
        requests_per_second: value("Requests/sec:")?.parse()?,
        bytes_per_second: bytes(value("Transfer/sec:")?).context("no rate")?,
        cpu_seconds_per_gib: cpu / (read / f64::from(1 << 30)),
        p99_milliseconds: milliseconds(value("99%")?).context("no p99")?,
    })
}

/// `1.5GB`, as wrk writes it: by 1024.
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

/// `1.5ms`, as wrk writes it.
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

/// What a process has used so far, if it still runs.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
    // utime and stime, in hundredths.
    let ticks: f64 = [11, 12].iter().filter_map(|field| fields.get(*field)?.parse::<f64>().ok()).sum();
    Some(ticks / 100.0)
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

/// One against another, round by round.
fn ratios(turns: &[(&str, Vec<Turn>)], one: usize, other: usize, figure: impl Fn(&Turn) -> f64) -> Vec<f64> {
    turns[one].1.iter().zip(&turns[other].1).map(|(one, other)| figure(one) / figure(other)).collect()
}
