//! The main features, step by step. `cargo xtask demo` shows the steps; the `e2e` suite runs them as tests.

mod access;
mod cache_control;
mod fill;
mod freshness;
mod recovery;
mod request_path;
mod unchanged;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::lab::{
    ADMIN, BACKEND_PORT, Client, Credential, GATEWAY_PORT, Got, Lab, Mode, NODES, Namespace, Node, Origin,
    Pod, Program, Relay,
};

/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// Size of the tour's objects, in bytes.
pub const SIZE: u64 = 64 * MIB;

/// Age at which an object's date proves that it is unchanged. Reads of younger objects are authorized by full requests.
const SETTLED_AGE: Duration = Duration::from_secs(2);

/// Timeout for a condition; it allows for slow machines and disks.
const LONGEST: Duration = Duration::from_secs(30);

/// Programs that the tour needs.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Path of the built `lota`.
    pub lota: PathBuf,
    /// A Python with boto3.
    pub python: PathBuf,
}

/// A lab with a gateway and running nodes.
#[derive(Debug)]
pub struct Tour {
    // Fields are dropped in this order: nodes must stop before the lab removes their namespaces.
    /// The nodes, in order.
    pub nodes: Vec<Node>,
    /// Counting relay to the gateway.
    pub gateway: Relay,
    /// Counting relay to the backend.
    pub backend: Relay,
    /// The gateway.
    pub origin: Origin,
    /// An S3 client with full permissions.
    pub client: Client,
    /// Path of the built `lota`.
    pub program: Program,
    /// The lab.
    pub lab: Lab,
}

/// A line of the tour's output.
#[derive(Clone, Debug)]
pub struct Line {
    /// Description of the action.
    pub what: String,
    /// Observation.
    pub seen: String,
    /// Duration of the transfer in seconds, if there was one.
    pub seconds: Option<f64>,
}

/// A step of the tour.
#[derive(Clone, Copy)]
pub struct Step {
    /// Number of the step.
    pub number: u8,
    /// Title.
    pub title: &'static str,
    /// Runs the step; returns its observations.
    pub run: fn(&mut Tour) -> Result<Vec<Line>>,
}

/// All steps between the start and the removal of the lab.
pub const STEPS: [Step; 9] = [
    Step { number: 2, title: "nodes run: redirect, guard, DNS", run: request_path::nodes },
    Step { number: 3, title: "an unmodified client writes and reads", run: request_path::client },
    Step { number: 4, title: "a range of a cold object fills the whole object, once", run: fill::ranges },
    Step { number: 5, title: "reads after an overwrite return the new content", run: freshness::overwrites },
    Step { number: 6, title: "refusals of the gateway apply to cached objects", run: freshness::refusals },
    Step { number: 7, title: "pods without access are refused in the kernel", run: access::refusals },
    Step { number: 8, title: "Cache-Control: no-store and no-cache", run: cache_control::directives },
    Step { number: 9, title: "an owner fails and recovers", run: recovery::owner },
    Step { number: 10, title: "a pod that changes nothing reads through LOTA", run: unchanged::pods },
];

impl Line {
    fn new(what: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { what: what.into(), seen: seen.into(), seconds: None }
    }

    fn timed(what: impl Into<String>, got: &Got) -> Self {
        let seen = got.headers.get("lota-cache").cloned().unwrap_or_else(|| got.status.to_string());
        Self { what: what.into(), seen, seconds: Some(got.seconds) }
    }
}

impl Tour {
    /// Starts relays to `origin`, and the nodes.
    ///
    /// # Errors
    /// If any of it fails.
    pub fn start(lab: Lab, origin: Origin, tools: &Tools) -> Result<Self> {
        let gateway = lab.relay(GATEWAY_PORT, origin.address())?;
        let backend = lab.relay(BACKEND_PORT, origin.address())?;
        let credential = if origin.has_users() { ADMIN } else { from_environment()? };
        let bucket = format!("tour-{}", hex::encode(rand::random::<[u8; 4]>()));
        let client = Client::new(&lab, tools.python.clone(), credential, &bucket)?;
        let program = Program(tools.lota.clone());
        let nodes = (1..=NODES).map(|number| Node::new(&lab, number, &program)).collect();
        let mut tour = Self { nodes, gateway, backend, origin, client, program, lab };
        let mode = if tour.origin.has_users() { Mode::OwnCredential } else { Mode::ClientOnly };
        for node in &mut tour.nodes {
            node.configure(mode)?;
        }
        tour.revive()?;
        Ok(tour)
    }

    /// Restarts every node in a mode.
    ///
    /// # Errors
    /// If one does not stop or start.
    pub fn restart(&mut self, mode: Mode) -> Result<()> {
        self.restart_each(|node| node.configure(mode))
    }

    /// Restarts every node after calling `configure` with it, and waits until all nodes see each other: objects of a
    /// node that is considered lost would be filled elsewhere.
    ///
    /// # Errors
    /// If one does not stop or start, or is not seen by the others.
    pub fn restart_each(&mut self, mut configure: impl FnMut(&mut Node) -> Result<()>) -> Result<()> {
        for node in &mut self.nodes {
            node.stop(Signal::SIGTERM)?;
            configure(node)?;
            node.start()?;
        }
        self.revive()
    }

    /// Restarts every node with `from` in its configuration replaced by `to`.
    ///
    /// # Errors
    /// If one does not stop or start.
    pub fn restart_with(&mut self, mode: Mode, from: &str, to: &str) -> Result<()> {
        self.nodes.iter_mut().for_each(|node| node.edit(from, to));
        let restarted = self.restart(mode);
        self.nodes.iter_mut().for_each(Node::forget_edits);
        restarted
    }

    /// Starts the nodes that do not run, and waits until all nodes see each other.
    ///
    /// # Errors
    /// If one does not start or is not seen by the others.
    pub fn revive(&mut self) -> Result<()> {
        self.nodes.iter_mut().filter(|node| node.pid().is_none()).try_for_each(Node::start)?;
        wait_until("every node to see every other", || {
            let seen = self.nodes.iter().map(|node| node.metric("lota_nodes_active"));
            Ok(seen.collect::<Result<Vec<_>>>()?.iter().all(|nodes| *nodes == f64::from(NODES)))
        })
    }

    /// Returns the namespace of a pod.
    #[must_use]
    pub fn pod(&self, node: u8, pod: u8) -> Namespace {
        self.lab.pod(Pod(node, pod))
    }

    /// Returns the first pod of each node, with the number of the node.
    pub fn one_pod_per_node(&self) -> impl Iterator<Item = (u8, Namespace)> {
        (1..=NODES).map(|node| (node, self.pod(node, 1)))
    }

    /// Waits until a node has cached the whole object; returns the name of the node.
    ///
    /// # Errors
    /// After [`LONGEST`].
    pub fn wait_cached(&self, key: &str) -> Result<String> {
        let name = self.client.name(key);
        let mut holder = None;
        wait_until(&format!("{name} to be cached"), || {
            holder = self.holders(key)?.into_iter().next();
            Ok(holder.is_some())
        })?;
        Ok(holder.unwrap_or_default())
    }

    /// Returns the sum of a metric over all nodes, given as `name{labels}`.
    ///
    /// # Errors
    /// If an admin port does not answer.
    pub fn metric(&self, name: &str) -> Result<f64> {
        self.nodes.iter().map(|node| node.metric(name)).sum()
    }

    /// Returns the names of the nodes that have cached the object.
    ///
    /// # Errors
    /// If a cache cannot be listed.
    pub fn holders(&self, key: &str) -> Result<Vec<String>> {
        let name = self.client.name(key);
        let mut holders = Vec::new();
        for node in &self.nodes {
            if node.cached()?.contains_key(&name) {
                holders.push(node.name());
            }
        }
        Ok(holders)
    }

    /// Returns the bytes received from gateway and backend so far.
    #[must_use]
    pub fn fetched(&self) -> u64 {
        self.gateway.received() + self.backend.received()
    }
}

fn from_environment() -> Result<Credential> {
    let variable = |name: &str| std::env::var(name).map(Into::into);
    match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
        (Ok(access_key), Ok(secret_key)) => Ok(Credential { access_key, secret_key }),
        _ => anyhow::bail!("--gateway needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"),
    }
}

/// Polls a condition for up to [`LONGEST`]. Tests with tighter limits measure the time themselves.
///
/// # Errors
/// The error of the condition, or the timeout.
pub fn wait_until(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_within(LONGEST, what, condition)
}

/// Polls a condition, for `longest` at most.
///
/// # Errors
/// The error of the condition, or the timeout.
pub fn wait_within(longest: Duration, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + longest;
    while !condition()? {
        ensure!(Instant::now() < deadline, "waited {longest:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Waits until objects that are stored now have reached [`SETTLED_AGE`].
pub fn wait_settled() {
    std::thread::sleep(SETTLED_AGE);
}

fn expect(got: &Got, status: u16, cache: &str, what: &str) -> Result<()> {
    ensure!(
        got.status == status && got.cache() == cache,
        "{what}: expected {status} and `{cache}`, got {} {} and `{}`",
        got.status,
        got.code,
        got.cache()
    );
    Ok(())
}

fn same(got: &Got, sha256: &str, what: &str) -> Result<()> {
    ensure!(got.sha256 == sha256, "{what}: {} bytes that differ from those written", got.size);
    Ok(())
}
