//! The main job, step by step. `cargo xtask demo` shows it; the `e2e` suite fails where a step does.

mod access;
mod cache_control;
mod fill;
mod freshness;
mod recovery;
mod road;

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

/// One megabyte, as S3's tools count them.
pub const MIB: u64 = 1 << 20;
/// The size of the tour's objects.
pub const SIZE: u64 = 64 * MIB;

/// Longest wait for what must come about: machines may be slow, and their disks.
const LONGEST: Duration = Duration::from_secs(30);

/// What the tour needs that was built or installed before.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The built `lota`.
    pub lota: PathBuf,
    /// A Python with boto3.
    pub python: PathBuf,
}

/// A lab with a gateway and running nodes.
#[derive(Debug)]
pub struct Tour {
    // Nodes before the lab: they end before their namespaces go.
    /// The nodes, first to last.
    pub nodes: Vec<Node>,
    /// What came from the gateway.
    pub gateway: Relay,
    /// What came from the backend.
    pub backend: Relay,
    /// The gateway itself.
    pub origin: Origin,
    /// An S3 client that may do everything.
    pub client: Client,
    /// The built `lota`.
    pub program: Program,
    /// The namespaces.
    pub lab: Lab,
}

/// A line of the tour's table.
#[derive(Clone, Debug)]
pub struct Line {
    /// What was done.
    pub what: String,
    /// What was seen.
    pub seen: String,
    /// How long the transfer itself took, if there was one.
    pub seconds: Option<f64>,
}

/// A step of the tour.
#[derive(Clone, Copy)]
pub struct Step {
    /// Its number, as in the issue that asked for it.
    pub number: u8,
    /// What it shows.
    pub title: &'static str,
    /// Does it and says what was seen, or what was wrong.
    pub run: fn(&mut Tour) -> Result<Vec<Line>>,
}

/// Every step but the last, which is the lab's end.
pub const STEPS: [Step; 8] = [
    Step { number: 2, title: "nodes run: steered, guarded, named", run: road::nodes },
    Step { number: 3, title: "an unmodified client writes and reads", run: road::client },
    Step { number: 4, title: "a range of a cold object fills the whole, once", run: fill::ranges },
    Step { number: 5, title: "overwritten anywhere, current everywhere", run: freshness::overwrites },
    Step { number: 6, title: "the gateway's no is final, cached or not", run: freshness::refusals },
    Step { number: 7, title: "who may not talk is refused in the kernel", run: access::refusals },
    Step { number: 8, title: "no-store and no-cache", run: cache_control::directives },
    Step { number: 9, title: "an owner dies and comes back", run: recovery::owner },
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
    /// Makes the lab, puts `origin` behind it, and starts the nodes.
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
            node.start()?;
        }
        Ok(tour)
    }

    /// Starts every node again, in another mode.
    ///
    /// # Errors
    /// If one does not end or start.
    pub fn restart(&mut self, mode: Mode) -> Result<()> {
        for node in &mut self.nodes {
            node.stop(Signal::SIGTERM)?;
            node.configure(mode)?;
            node.start()?;
        }
        // A node that is taken for lost would have its objects filled elsewhere.
        self.revive()
    }

    /// The same, with something else in this one's configuration in place of `from`.
    ///
    /// # Errors
    /// Likewise.
    pub fn restart_with(&mut self, mode: Mode, from: &str, to: &str) -> Result<()> {
        self.nodes.iter_mut().for_each(|node| node.edit(from, to));
        let restarted = self.restart(mode);
        self.nodes.iter_mut().for_each(Node::forget_edits);
        restarted
    }

    /// Starts the nodes that do not run, and waits until all know of each other.
    ///
    /// # Errors
    /// If one does not start, or is not seen.
    pub fn revive(&mut self) -> Result<()> {
        self.nodes.iter_mut().filter(|node| node.pid().is_none()).try_for_each(Node::start)?;
        wait_until("every node to see every other", || {
            let seen = self.nodes.iter().map(|node| node.metric("lota_nodes_active"));
            Ok(seen.collect::<Result<Vec<_>>>()?.iter().all(|nodes| *nodes == f64::from(NODES)))
        })
    }

    /// The namespace of a pod.
    #[must_use]
    pub fn pod(&self, node: u8, pod: u8) -> Namespace {
        self.lab.pod(Pod(node, pod))
    }

    /// The first pod of each node.
    pub fn one_pod_per_node(&self) -> impl Iterator<Item = (u8, Namespace)> {
        (1..=NODES).map(|node| (node, self.pod(node, 1)))
    }

    /// Waits until some node's cache holds the whole object; which node.
    ///
    /// # Errors
    /// If none does within a few seconds.
    pub fn wait_cached(&self, key: &str) -> Result<String> {
        let name = self.client.name(key);
        let mut holder = None;
        wait_until(&format!("{name} to be cached"), || {
            holder = self.holders(key)?.into_iter().next();
            Ok(holder.is_some())
        })?;
        Ok(holder.unwrap_or_default())
    }

    /// The nodes whose caches hold the object.
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

    /// Bytes that came from gateway and backend so far.
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

/// Asks again and again, for half a minute at most: whoever must be quicker is timed where it matters.
///
/// # Errors
/// The condition's own, or that it never held.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LONGEST;
    while !condition()? {
        ensure!(Instant::now() < deadline, "waited {LONGEST:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
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
    ensure!(got.sha256 == sha256, "{what}: other bytes ({} of them) than were written", got.size);
    Ok(())
}
