//! The state of a node, as commands, the status page and support bundles show it: made in one place, from what each
//! part knows.

mod judge;
mod maker;
mod reach;
pub mod text;

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

pub use judge::{Finding, Mark};
pub use maker::{INSTANCE, Reporter};

#[cfg(test)]
pub(crate) use judge::healthy;

use crate::{
    config::Protocol,
    datapath::{self, Denied},
    gateway::Server,
    top::Ranked,
};

/// The state of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// This node, and its daemon.
    pub node: Node,
    /// Who authorizes.
    pub gateway: Gateway,
    /// Where whole objects may be read, if anywhere is configured.
    pub backend: Option<Backend>,
    /// The kernel side, if it could be asked.
    pub datapath: Option<datapath::Status>,
    /// Who may talk to LOTA, and who tried, if the kernel side could be asked.
    pub access: Option<Access>,
    /// The cluster's API server, if it is to tell of pods and nodes.
    pub kubernetes: Option<Kubernetes>,
    /// What is kept.
    pub cache: Cache,
    /// The other nodes, if there are to be any.
    pub peers: Option<Vec<Peer>>,
    /// What was sent since the daemon began.
    pub traffic: Traffic,
    /// What is asked for most, and by whom.
    pub top: Top,
    /// What all this means, part by part.
    pub findings: Vec<Finding>,
}

/// A node, and its daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its address in the cluster.
    pub address: IpAddr,
    /// Its zone, if it has one.
    pub zone: String,
    /// The daemon's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// What its environment calls this daemon: [`INSTANCE`].
    pub instance: Option<String>,
    /// For how long it has run.
    pub uptime_seconds: f64,
    /// Is the datapath up, and are requests served?
    pub ready: bool,
}

/// Is the daemon ready, and which is it?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Is the datapath up, and are requests served?
    pub ready: bool,
    /// What its environment calls this daemon: [`INSTANCE`].
    pub instance: Option<String>,
    /// The daemon's process.
    pub pid: u32,
}

/// The gateway, and how far it is trusted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gateway {
    /// Its address.
    pub endpoint: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// Are requests signed anew for it?
    pub resigned: bool,
    /// Why it cannot be connected to, if so.
    pub unreachable: Option<String>,
    /// For how long it has not answered any request, if so,
    pub silent_seconds: Option<f64>,
    /// and why.
    pub silent_why: Option<String>,
    /// What its trial has shown, if there was one.
    pub trusted: Option<bool>,
    /// Why it is not trusted.
    pub why: Option<String>,
    /// Each server that has answered.
    pub servers: Vec<Server>,
}

/// Where whole objects may be read by LOTA itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backend {
    /// Its servers.
    pub endpoints: Vec<Endpoint>,
    /// Has LOTA a credential of its own for them?
    pub credential: bool,
}

/// One server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its address.
    pub address: String,
    /// Why it cannot be connected to, if so.
    pub unreachable: Option<String>,
}

/// Who may talk to LOTA, and who tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Access {
    /// Have addresses access that nothing is said about?
    pub default_allow: bool,
    /// Entries in the kernel, by who says so.
    pub entries: BTreeMap<String, Entries>,
    /// Who was refused lately, last first; not all of them.
    pub denied: Vec<Refused>,
}

/// The cluster's API server.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Kubernetes {
    /// Has it told everything, and goes on?
    pub up: bool,
}

/// Entries of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entries {
    /// Those that give access.
    pub allow: usize,
    /// Those that deny it.
    pub deny: usize,
}

/// An address that was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// Whose.
    pub address: IpAddr,
    /// Its refused packets so far.
    pub packets: u64,
    /// How long ago the last one came.
    pub seconds_ago: f64,
    /// The interface it came from.
    pub interface: Option<String>,
    /// What was decided about it.
    pub verdict: Option<String>,
}

/// What is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cache {
    /// Complete objects.
    pub objects: usize,
    /// Their bytes, and those reserved by fills.
    pub bytes: u64,
    /// Most bytes of disks that work.
    pub capacity: u64,
    /// Fills under way.
    pub fills: usize,
    /// Each disk.
    pub disks: Vec<Disk>,
}

/// A disk of the cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Disk {
    /// Its folder.
    pub folder: String,
    /// Does it work?
    pub works: bool,
    /// Is what it holds encrypted?
    pub encrypted: bool,
    /// Complete objects.
    pub objects: usize,
    /// Their bytes, and those reserved by fills.
    pub bytes: u64,
    /// Most bytes of objects.
    pub capacity: u64,
    /// Objects that went for others, since the daemon began.
    pub evictions: u64,
    /// Objects whose bytes were found to be others, likewise.
    pub corrupt: u64,
}

/// Another node, as this one sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Where it answers.
    pub address: String,
    /// Its cache's capacity, if it is known.
    pub capacity: Option<u64>,
    /// For how long it has not answered, if it does not.
    pub lost_seconds: Option<f64>,
    /// Bytes that it had to send when it answered last.
    pub load_bytes: Option<u64>,
    /// How long ago that was.
    pub heard_seconds: Option<f64>,
}

/// What was sent since the daemon began.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Requests of pods that were answered.
    pub requests: Vec<Requests>,
    /// Bytes that went to pods.
    pub sent: Sent,
    /// Bytes that fills brought.
    pub filled: u64,
}

/// Requests that were answered alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// What the cache did: `hit`, `miss`, `fill` or `bypass`.
    pub cache: String,
    /// The status given.
    pub status: u16,
    /// How many.
    pub count: u64,
}

/// Bytes, by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// A complete file of this node.
    pub local: u64,
    /// Another node.
    pub remote: u64,
    /// A file of this node that is growing.
    pub fill: u64,
    /// The gateway, past the cache.
    pub gateway: u64,
}

/// What is asked for most, and by whom, in the last minute or so.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Top {
    /// Objects. Only who asks by the admin socket is told: they are others' names.
    pub objects: Option<Vec<Ranked>>,
    /// Pods.
    pub pods: Vec<Ranked>,
}

impl Traffic {
    /// Requests that were answered, with these outcomes, or any.
    #[must_use]
    pub fn count(&self, outcomes: &[&str]) -> u64 {
        let of = |requests: &&Requests| outcomes.is_empty() || outcomes.contains(&requests.cache.as_str());
        self.requests.iter().filter(of).map(|requests| requests.count).sum()
    }

    /// Requests that LOTA or the gateway failed at.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.requests.iter().filter(|requests| requests.status >= 500).map(|requests| requests.count).sum()
    }
}

impl Sent {
    /// All of it.
    #[must_use]
    pub fn all(self) -> u64 {
        self.local + self.remote + self.fill + self.gateway
    }
}

impl Report {
    /// The worst of what was found.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.findings.iter().map(|finding| finding.mark).max().unwrap_or(Mark::Ok)
    }
}

impl Refused {
    fn of(denied: &Denied, interface: Option<String>) -> Self {
        Self {
            address: denied.address,
            packets: denied.count,
            seconds_ago: denied.last.elapsed().unwrap_or_default().as_secs_f64(),
            interface,
            verdict: denied.verdict.map(|verdict| verdict.label().to_owned()),
        }
    }
}
