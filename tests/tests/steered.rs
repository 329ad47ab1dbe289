//! Reads of pods through the programs and three daemons, for the guests of the suite `arm64`: it needs no client, gateway or tool
//! beside `lota` (`LOTA_BIN`), `ip` and `nsenter`.

use std::{fs, net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hyper::{Method, body::Bytes};
use lota_tests::{
    lab::{
        ADMIN, BACKEND_PORT, DENIED, GATEWAY, GATEWAY_PORT, Lab, Mode, NODES, Node, Origin, Pod, Program,
        Reached, Relay, VIP, knock,
        raw::{Request, Signing, content},
    },
    suite::{Shared, Suite, TestFn, tests},
    tool,
    tour::{wait_settled, wait_within},
};

const LAB: &str = "steered";
const BUCKET: &str = "steered";
/// Size of the object in bytes: two slices and a chunk more, and no multiple of any page.
const SIZE: usize = (9 << 20) + 7;

/// Timeout for a condition. An emulated machine on a busy one takes half a minute for one read, and as long to verify the
/// gateway, until when it answers instead of the cache.
const LONGEST: Duration = Duration::from_secs(300);

const TESTS: [(&str, TestFn<Cluster>); 2] = [
    ("a read is a miss, then reads on each node are hits without the storage", reads),
    ("a pod without access is refused", refusal),
];

fn main() -> ExitCode {
    Suite::run(LAB, |suite| suite.in_lab(Cluster::start, tests(&TESTS)))
}

/// Three nodes and the embedded gateway.
struct Cluster {
    // Fields are dropped in this order: nodes must stop before the lab removes their namespaces.
    nodes: Vec<Node>,
    gateway: Relay,
    backend: Relay,
    _origin: Origin,
    lab: Lab,
}

impl Shared for Cluster {
    fn revive(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Cluster {
    fn start() -> Result<Self> {
        let lab = Lab::up(LAB)?;
        let origin = Origin::embedded(lab.folder())?;
        let (gateway, backend) =
            (lab.relay(GATEWAY_PORT, origin.address())?, lab.relay(BACKEND_PORT, origin.address())?);
        let program = Program(tool("LOTA_BIN")?);
        let mut nodes: Vec<Node> = (1..=NODES).map(|number| Node::new(&lab, number, &program)).collect();
        for node in &mut nodes {
            node.configure(Mode::OwnCredential)?;
            node.start()?;
        }
        let cluster = Self { nodes, gateway, backend, _origin: origin, lab };
        wait_within(LONGEST, "every node to see every other", || {
            let seen = cluster.nodes.iter().map(|node| node.metric("lota_nodes_active"));
            Ok(seen.collect::<Result<Vec<_>>>()?.iter().all(|nodes| *nodes == f64::from(NODES)))
        })?;
        Ok(cluster)
    }

    /// Sends a request of a node's first pod to the VIP; returns the cache status and the body of the response.
    fn read(&self, node: u8, request: &Request) -> Result<(String, Bytes)> {
        let mut replies = self.lab.pod(Pod(node, 1)).send_all((VIP, 80).into(), vec![request.clone()])?;
        let reply = replies.pop().context("no response")?;
        ensure!(reply.status == 200, "node {node}: {} {}", reply.status, reply.code());
        Ok((reply.cache().to_owned(), reply.body))
    }

    /// Returns the sum of a metric over all nodes.
    fn sum(&self, metric: &str) -> Result<f64> {
        self.nodes.iter().map(|node| node.metric(metric)).sum()
    }

    fn fetched(&self) -> u64 {
        self.gateway.received() + self.backend.received()
    }

    /// Prints the status and the log of each node: a guest and its files are gone after the test.
    fn describe(&self) {
        for node in &self.nodes {
            // It fails, but prints, if the status is bad.
            let status = node.command().args(["status", "--json", "--config"]).arg(node.config()).output();
            let status = status.map_or_else(
                |error| error.to_string(),
                |output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            );
            let log = fs::read_to_string(node.log()).unwrap_or_else(|error| error.to_string());
            println!("---- {} ----\n{status}\n{log}", node.name());
        }
    }
}

/// Reads, and describes the nodes if that fails.
fn reads(cluster: &mut Cluster) -> Result<()> {
    let result = read_cached(cluster);
    if result.is_err() {
        cluster.describe();
    }
    result
}

fn read_cached(cluster: &Cluster) -> Result<()> {
    let (body, target) = (Bytes::from(content(SIZE)), format!("/{BUCKET}/object"));
    let sign = |request: Request| request.sign(&ADMIN, Signing::Header);
    let make = sign(Request::new(Method::PUT, "cwlota.com", &format!("/{BUCKET}")))?;
    let put = sign(Request::new(Method::PUT, "cwlota.com", &target).body(body.clone()))?;
    let made = cluster.lab.switch().send_all(SocketAddr::from((GATEWAY, GATEWAY_PORT)), vec![make, put])?;
    ensure!(made.iter().all(|reply| reply.status.is_success()), "{made:?}");
    wait_settled();

    let get = sign(Request::new(Method::GET, "cwlota.com", &target))?;
    let first = cluster.read(1, &get)?;
    ensure!(first.0 == "miss" && first.1 == body, "the first read: {}, {} bytes", first.0, first.1.len());
    wait_within(LONGEST, "the object to be cached", || {
        let cached = cluster.nodes.iter().map(Node::cached).collect::<Result<Vec<_>>>()?;
        Ok(cached.iter().any(|objects| objects.contains_key(&target[1..])))
    })?;
    for node in 1..=NODES {
        // Before the gateway is verified, or if a node answers late, the gateway answers instead of the cache.
        let is_hit = || Ok(cluster.read(node, &get)?.0 == "hit");
        wait_within(LONGEST, &format!("a hit on node {node}"), is_hit)?;
    }
    let fetched = cluster.fetched();
    for node in 1..=NODES {
        let read = cluster.read(node, &get)?;
        ensure!(read.0 == "hit" && read.1 == body, "node {node}: {}, {} bytes", read.0, read.1.len());
    }
    let more = cluster.fetched() - fetched;
    ensure!(more < SIZE as u64, "hits read {more} bytes from the gateway or the storage");
    // One node is the owner; the others pass its bytes on.
    for (metric, times) in [("lota_sendfile_bytes_total", 3), ("lota_splice_bytes_total", 2)] {
        let bytes = cluster.sum(metric)?;
        println!("{metric}: {bytes}");
        // What was read while the other side was not ready, together with a head, is copied.
        ensure!(bytes > (times * SIZE / 2) as f64, "{metric} is {bytes}");
    }
    let steered = ["delivered", "redirected"]
        .map(|verdict| cluster.sum(&format!("lota_datapath_packets_total{{verdict=\"{verdict}\"}}")));
    ensure!(steered.into_iter().sum::<Result<f64>>()? > 0.0, "the programs delivered no packet");
    Ok(())
}

fn refusal(cluster: &mut Cluster) -> Result<()> {
    // An emulated machine may answer late.
    wait_within(LONGEST, "a refusal", || {
        let (reached, _) = knock(&cluster.lab.pod(DENIED), VIP, 80)?;
        ensure!(reached != Reached::Open, "a pod without access has connected");
        Ok(reached == Reached::Refused)
    })
}
