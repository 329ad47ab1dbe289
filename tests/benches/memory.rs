//! Memory of a daemon with a million cached objects and a thousand connections, whose clients do not read the rest of
//! their responses.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    bench::{
        self, Goal, Objects, Report,
        nginx::{self, Nginx},
    },
    lab::{GATEWAY, Lab, Mode, Namespace, Node, Pod, Program, VIP, claim},
    tool,
};
use nix::sys::{
    resource::{Resource, setrlimit},
    signal::Signal,
};

const NAME: &str = "lota-bench-memory";
const STUB: u16 = 9100;
const OBJECTS: u64 = 1_000_000;
const CONNECTIONS: u64 = 1000;
/// Size of the object that all connections read.
const SIZE: u64 = 256 << 20;
/// Goal in bytes: a base, plus an amount per connection and per object.
const BASE: u64 = 64 << 20;
const PER_CONNECTION: u64 = 16 << 10;
const PER_OBJECT: u64 = 200;

fn main() -> ExitCode {
    bench::ended("memory", measure())
}

fn measure() -> Result<bool> {
    claim(NAME)?;
    setrlimit(Resource::RLIMIT_NOFILE, 4096, 4096)?;
    let lab = Lab::up(NAME)?;
    let stub = SocketAddr::from((GATEWAY, STUB));
    let mut objects = Objects::new(lab.folder(), &format!("http://{stub}"))?;
    let url = objects.make(SIZE)?.target;
    let gateway = nginx::gateway(stub, objects.root(), &objects.urls);
    let folder = nginx::folder(lab.folder(), "gateway");
    let _gateway = Nginx::start(Some(&lab.switch()), &folder, stub, &gateway)?;
    let mut node = Node::new(&lab, 1, &Program(tool("LOTA_BIN")?));
    // The files are empty, which a scrub would report as corrupt.
    node.edit("min_free = \"64MiB\"", "min_free = \"64MiB\"\nscrub_rate = \"0\"");
    node.configure_gateway(Mode::ClientOnly, &format!("http://{stub}"))?;
    let mut report = Report::new("memory");
    let mut figure = |what: &str, goal, bytes: u64| report.add(what, "MiB", goal, vec![mebibytes(bytes)]);

    node.start()?;
    figure("nothing yet", Goal::None, resident(&node)?);
    let pod = lab.pod(Pod(1, 1));
    for _ in 0..3 {
        drop(hold(&pod, &url, 1)?);
    }
    node.stop(Signal::SIGTERM)?;
    eprintln!("making {OBJECTS} files");
    bench::name_objects(&node.cache_folder(), usize::try_from(OBJECTS)?, 1)?;
    node.start()?;
    let found = node.metric("lota_cache_objects")?;
    ensure!(found >= OBJECTS as f64, "the node has found {found} objects");
    figure("1 M objects", Goal::AtMost(mebibytes(BASE + OBJECTS * PER_OBJECT)), resident(&node)?);
    let held = hold(&pod, &url, CONNECTIONS)?;
    let limit = BASE + CONNECTIONS * PER_CONNECTION + OBJECTS * PER_OBJECT;
    figure("… and 1,000 connections", Goal::AtMost(mebibytes(limit)), resident(&node)?);
    drop(held);
    drop(node);
    report.write()
}

/// Opens connections from a pod that read the beginning of a response, and holds them until the sender is dropped.
fn hold(pod: &Namespace, url: &str, connections: u64) -> Result<mpsc::Sender<()>> {
    let request = format!("GET {url} HTTP/1.1\r\nhost: cwlota.com\r\n\r\n");
    let (held, until) = mpsc::channel::<()>();
    let (ready, is_ready) = mpsc::channel();
    let pod = pod.clone();
    thread::spawn(move || {
        pod.run(move || {
            let open = || -> Result<TcpStream> {
                let mut stream = TcpStream::connect((VIP, 80))?;
                stream.set_read_timeout(Some(Duration::from_secs(30)))?;
                stream.write_all(request.as_bytes())?;
                let mut some = vec![0; 32 << 10];
                stream.read_exact(&mut some)?;
                ensure!(some.starts_with(b"HTTP/1.1 200"), "not answered 200");
                Ok(stream)
            };
            let streams = (0..connections).map(|_| open()).collect::<Result<Vec<_>>>();
            let (streams, error) = match streams {
                Ok(streams) => (streams, None),
                Err(error) => (Vec::new(), Some(error)),
            };
            let _ = ready.send(error);
            let _ = until.recv();
            drop(streams);
        })
    });
    match is_ready.recv().context("the client has ended")? {
        None => Ok(held),
        Some(error) => Err(error),
    }
}

/// Returns the daemon's resident memory in bytes.
fn resident(node: &Node) -> Result<u64> {
    // The allocator returns free memory with a delay.
    thread::sleep(Duration::from_secs(2));
    bench::resident(node.pid().context("the node does not run")?)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
