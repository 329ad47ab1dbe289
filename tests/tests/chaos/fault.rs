//! Faults: what each does, and a schedule in which all of them happen.

use std::{collections::BTreeMap, fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, GATEWAY, NODES, Node, PEER_PORT, Pod, VIP, node_address,
        raw::{Request, Signing},
        run,
    },
    tour::{Tour, wait_within},
};
use nix::sys::signal::Signal;
use rand::{Rng as _, rngs::StdRng, seq::SliceRandom as _};

use super::{CURE, client::BUCKET, disk, outages::Outages};

/// Time for which a fault lasts, in milliseconds.
const LASTS: std::ops::Range<u64> = 1500..5000;
/// Time between two faults, in milliseconds.
const PAUSE: std::ops::Range<u64> = 500..2500;
/// Delay of the gateway's bytes, which is noticed and cures itself.
const DELAY: Duration = Duration::from_millis(150);
/// Rate of a slow link.
const RATE: &str = "4mbit";
/// Name of the table with a node's rules.
const TABLE: &str = "chaos";

/// A fault, at a node by its position where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// SIGKILL, and a new daemon later.
    Kill,
    /// SIGSTOP, and SIGCONT later.
    Pause,
    /// A new daemon takes over.
    HandOver,
    /// The node receives nothing from another one.
    Deaf,
    /// The node and another one receive nothing from each other.
    Partition,
    /// The node's link loses packets.
    Loss,
    /// The node's link is slow.
    Slow,
    /// The node's link has no carrier.
    Flap,
    /// The node does not reach the gateway.
    NoGateway,
    /// All connections to the gateway break.
    CutGateway,
    /// The gateway's bytes are late.
    LateGateway,
    /// The cache's disk is full. Only the first node has a small one.
    FullDisk,
    /// The node's clock jumps.
    Clock,
    /// A pod is replaced by another one with its address.
    NewPod,
}

const ALL: [Fault; 14] = [
    Fault::Kill,
    Fault::Pause,
    Fault::HandOver,
    Fault::Deaf,
    Fault::Partition,
    Fault::Loss,
    Fault::Slow,
    Fault::Flap,
    Fault::NoGateway,
    Fault::CutGateway,
    Fault::LateGateway,
    Fault::FullDisk,
    Fault::Clock,
    Fault::NewPod,
];

/// Returns the file by which a node's clock jumps, as libfaketime reads it.
pub(crate) fn clock_file(node: &Node) -> PathBuf {
    node.folder().join("clock")
}

/// A schedule of faults. Each fault happens once before any happens again.
#[derive(Debug)]
pub(crate) struct Faults {
    random: StdRng,
    next: Vec<Fault>,
    counts: BTreeMap<Fault, u32>,
}

impl Faults {
    pub(crate) fn new(random: StdRng) -> Self {
        Self { random, next: Vec::new(), counts: BTreeMap::new() }
    }

    /// Returns how often each fault has happened.
    pub(crate) fn summary(&self) -> String {
        let counts = self.counts.iter().map(|(fault, count)| format!("{fault:?} {count}"));
        counts.collect::<Vec<_>>().join(", ")
    }

    /// Returns whether each fault has happened.
    pub(crate) fn are_complete(&self) -> bool {
        self.counts.len() == ALL.len()
    }

    /// Causes a fault, or two at different nodes, and ends them.
    pub(crate) fn cause_next(&mut self, tour: &mut Tour, outages: &Outages) -> Result<()> {
        let mut nodes: Vec<usize> = (0..usize::from(NODES)).collect();
        nodes.shuffle(&mut self.random);
        let count = self.random.random_range(1..=2);
        let mut begun = Vec::new();
        for node in nodes.into_iter().take(count) {
            let fault = self.take();
            let node = match fault {
                Fault::FullDisk => 0,
                // The last pod of the last node has no access.
                Fault::NewPod => node.min(usize::from(NODES) - 2),
                _ => node,
            };
            if begun.iter().any(|(_, other)| *other == node) {
                self.next.push(fault);
                continue;
            }
            *self.counts.entry(fault).or_default() += 1;
            fault
                .begin(tour, node, &mut self.random, outages)
                .with_context(|| format!("{fault:?} of {node}"))?;
            begun.push((fault, node));
        }
        thread::sleep(Duration::from_millis(self.random.random_range(LASTS)));
        for (fault, node) in begun {
            fault.end(tour, node, outages).with_context(|| format!("the end of {fault:?} of {node}"))?;
        }
        thread::sleep(Duration::from_millis(self.random.random_range(PAUSE)));
        Ok(())
    }

    fn take(&mut self) -> Fault {
        if self.next.is_empty() {
            self.next = ALL.to_vec();
            self.next.shuffle(&mut self.random);
        }
        self.next.pop().unwrap_or(Fault::Kill)
    }
}

impl Fault {
    /// Returns whether the clients of the node cannot be served meanwhile.
    fn is_outage(self) -> bool {
        matches!(self, Self::Kill | Self::Pause | Self::Flap | Self::NoGateway)
    }

    fn begin(self, tour: &mut Tour, node: usize, random: &mut StdRng, outages: &Outages) -> Result<()> {
        if self.is_outage() {
            outages.begin(node);
        }
        let number = u8::try_from(node + 1)?;
        let other = node_address(number % NODES + 1);
        match self {
            Self::Kill => tour.nodes[node].stop(Signal::SIGKILL),
            Self::Pause => tour.nodes[node].signal(Signal::SIGSTOP),
            Self::HandOver => tour.nodes[node].start(),
            Self::Deaf => {
                filter(tour, number, &[("input", &format!("ip saddr {other} tcp dport {PEER_PORT} drop"))])
            }
            Self::Partition => {
                let rules = [
                    ("input", format!("ip saddr {other} drop")),
                    ("output", format!("ip daddr {other} drop")),
                ];
                filter(tour, number, &rules.each_ref().map(|(hook, rule)| (*hook, rule.as_str())))
            }
            Self::Loss => {
                let percent = random.random_range(3..15);
                let rule = format!("iifname uplink numgen random mod 100 < {percent} drop");
                filter(tour, number, &[("input", &rule)])
            }
            Self::Slow => {
                let tbf = format!("qdisc replace dev uplink root tbf rate {RATE} burst 64kb latency 100ms");
                tc(tour, number, &tbf)
            }
            Self::Flap => tour.lab.switch().ip(&format!("link set to-n{number} down")),
            Self::NoGateway => filter(tour, number, &[("output", &format!("ip daddr {GATEWAY} drop"))]),
            Self::CutGateway => {
                tour.gateway.cut();
                tour.backend.cut();
                Ok(())
            }
            Self::LateGateway => {
                tour.gateway.set_delay(DELAY);
                tour.backend.set_delay(DELAY);
                tour.gateway.cut();
                Ok(())
            }
            Self::FullDisk => disk::fill(&tour.nodes[node]),
            Self::Clock => {
                let jump = ["+20", "+40", "-20", "-40"][random.random_range(0..4)];
                Ok(fs::write(clock_file(&tour.nodes[node]), jump)?)
            }
            Self::NewPod => replace_pod(tour, Pod(number, 2)),
        }
    }

    fn end(self, tour: &mut Tour, node: usize, outages: &Outages) -> Result<()> {
        let number = u8::try_from(node + 1)?;
        match self {
            Self::Kill => tour.nodes[node].start()?,
            Self::Pause => tour.nodes[node].signal(Signal::SIGCONT)?,
            Self::Deaf | Self::Partition | Self::Loss | Self::NoGateway => {
                run(tour.lab.node(number).command("nft").args(["delete", "table", "ip", TABLE]))?;
            }
            Self::Slow => tc(tour, number, "qdisc delete dev uplink root")?,
            Self::Flap => tour.lab.switch().ip(&format!("link set to-n{number} up"))?,
            Self::LateGateway => {
                tour.gateway.set_delay(Duration::ZERO);
                tour.backend.set_delay(Duration::ZERO);
                tour.gateway.cut();
            }
            Self::FullDisk => disk::empty(&tour.nodes[node])?,
            Self::Clock => fs::write(clock_file(&tour.nodes[node]), "+0")?,
            Self::HandOver | Self::CutGateway | Self::NewPod => {}
        }
        if self.is_outage() {
            outages.end(node);
        }
        Ok(())
    }
}

/// Adds rules to hooks of a node.
fn filter(tour: &Tour, node: u8, rules: &[(&str, &str)]) -> Result<()> {
    let namespace = tour.lab.node(node);
    let nft = |line: &str| run(namespace.command("nft").arg(line)).map(drop);
    nft(&format!("add table ip {TABLE}"))?;
    for (hook, rule) in rules {
        nft(&format!("add chain ip {TABLE} {hook} {{ type filter hook {hook} priority 0; }}"))?;
        nft(&format!("add rule ip {TABLE} {hook} {rule}"))?;
    }
    Ok(())
}

fn tc(tour: &Tour, node: u8, arguments: &str) -> Result<()> {
    run(tour.lab.node(node).command("tc").args(arguments.split(' '))).map(drop)
}

/// Replaces a pod, and reads from the new one.
fn replace_pod(tour: &Tour, pod: Pod) -> Result<()> {
    tour.lab.replace_pod(pod)?;
    let target = format!("/{BUCKET}/key-0");
    let mut last = String::new();
    let read = wait_within(CURE, "the new pod to be served", || {
        let get = Request::new(Method::HEAD, "cwlota.com", &target).sign(&ADMIN, Signing::Header)?;
        let served = tour.lab.pod(pod).send_all((VIP, 80).into(), vec![get]);
        last = format!("{served:?}");
        Ok(served.is_ok_and(|replies| replies.iter().all(|reply| !reply.status.is_server_error())))
    });
    read.context(last)
}
