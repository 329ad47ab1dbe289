//! Faults: what each does, and a schedule in which all of them happen.

use std::{collections::BTreeMap, fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{BadLink, GATEWAY, Harm, NODES, Node, PEER_PORT, Pod, node_address, run},
    load::LoadState,
    tour::{Tour, wait_within},
};
use nix::sys::signal::Signal;
use rand::{Rng as _, rngs::StdRng, seq::SliceRandom as _};

use super::disk::{self, FailingDisk};

/// Time for which a fault lasts, in milliseconds.
const LASTS: std::ops::Range<u64> = 1500..4000;
/// Time between two faults, in milliseconds.
const PAUSE: std::ops::Range<u64> = 500..2000;
/// Delay of the gateway's bytes, which is noticed and cures itself.
const DELAY: Duration = Duration::from_millis(150);
/// Delay of each frame of a link, in milliseconds.
const FRAME_DELAY: std::ops::Range<u64> = 20..200;
/// Delay of the frames that others overtake, in milliseconds.
const OVERTAKEN: std::ops::Range<u64> = 2..20;
/// Share of the frames that are overtaken, duplicated or corrupted, in percent.
const HARMED: std::ops::Range<u32> = 2..15;
/// Node with a disk that can fail, by its position.
pub(crate) const FAILING: usize = 1;
/// Time within which a daemon under load must notice that its disk fails.
const NOTICED: Duration = Duration::from_secs(10);
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
    /// Each frame of the node's link is late.
    Delay,
    /// Some frames of the node's link overtake others.
    Reorder,
    /// Some frames of the node's link arrive twice.
    Duplicate,
    /// Some frames of the node's link arrive with a flipped bit. TCP discards them: this is loss at the receiver.
    Corrupt,
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
    /// The cache's disk fails: its writes, or all of it. A new disk is mounted later, and a new daemon uses it. Only the second
    /// node has a disk that can fail.
    FailingDisk,
    /// The node's clock jumps.
    Clock,
    /// A pod is replaced by another one with its address.
    NewPod,
}

const ALL: [Fault; 19] = [
    Fault::Kill,
    Fault::Pause,
    Fault::HandOver,
    Fault::Deaf,
    Fault::Partition,
    Fault::Loss,
    Fault::Slow,
    Fault::Delay,
    Fault::Reorder,
    Fault::Duplicate,
    Fault::Corrupt,
    Fault::Flap,
    Fault::NoGateway,
    Fault::CutGateway,
    Fault::LateGateway,
    Fault::FullDisk,
    Fault::FailingDisk,
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
    disk: FailingDisk,
    /// Bad links, by the positions of their nodes.
    links: BTreeMap<usize, BadLink>,
    next: Vec<Fault>,
    counts: BTreeMap<Fault, u32>,
}

impl Faults {
    pub(crate) fn new(random: StdRng, disk: FailingDisk) -> Self {
        Self { random, disk, links: BTreeMap::new(), next: Vec::new(), counts: BTreeMap::new() }
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
    pub(crate) fn cause_next(&mut self, tour: &mut Tour, load: &LoadState) -> Result<()> {
        let mut nodes: Vec<usize> = (0..usize::from(NODES)).collect();
        nodes.shuffle(&mut self.random);
        let count = self.random.random_range(1..=2);
        let mut begun = Vec::new();
        for node in nodes.into_iter().take(count) {
            let fault = self.take();
            let node = match fault {
                Fault::FullDisk => 0,
                Fault::FailingDisk => FAILING,
                // The last pod of the last node has no access.
                Fault::NewPod => node.min(usize::from(NODES) - 2),
                _ => node,
            };
            if begun.iter().any(|(_, other)| *other == node) {
                self.next.push(fault);
                continue;
            }
            *self.counts.entry(fault).or_default() += 1;
            self.begin(fault, tour, node, load).with_context(|| format!("{fault:?} of {node}"))?;
            begun.push((fault, node));
        }
        thread::sleep(Duration::from_millis(self.random.random_range(LASTS)));
        for (fault, node) in begun {
            self.end(fault, tour, node, load).with_context(|| format!("the end of {fault:?} of {node}"))?;
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

    fn begin(&mut self, fault: Fault, tour: &mut Tour, node: usize, load: &LoadState) -> Result<()> {
        if fault.is_outage() {
            load.outages.begin(node);
        }
        let number = u8::try_from(node + 1)?;
        let other = node_address(number % NODES + 1);
        match fault {
            Fault::Kill => tour.nodes[node].stop(Signal::SIGKILL),
            Fault::Pause => tour.nodes[node].signal(Signal::SIGSTOP),
            Fault::HandOver => tour.nodes[node].start(),
            Fault::Deaf => {
                filter(tour, number, &[("input", &format!("ip saddr {other} tcp dport {PEER_PORT} drop"))])
            }
            Fault::Partition => {
                let rules = [
                    ("input", format!("ip saddr {other} drop")),
                    ("output", format!("ip daddr {other} drop")),
                ];
                filter(tour, number, &rules.each_ref().map(|(hook, rule)| (*hook, rule.as_str())))
            }
            Fault::Loss => {
                let percent = self.random.random_range(3..15);
                let rule = format!("iifname uplink numgen random mod 100 < {percent} drop");
                filter(tour, number, &[("input", &rule)])
            }
            Fault::Slow => {
                let tbf = format!("qdisc replace dev uplink root tbf rate {RATE} burst 64kb latency 100ms");
                tc(tour, number, &tbf)
            }
            Fault::Delay | Fault::Reorder | Fault::Duplicate | Fault::Corrupt => {
                let harm = self.harm(fault);
                let link = BadLink::insert(&tour.lab, number, harm, self.random.random())?;
                self.links.insert(node, link);
                Ok(())
            }
            Fault::Flap => tour.lab.switch().ip(&format!("link set to-n{number} down")),
            Fault::NoGateway => filter(tour, number, &[("output", &format!("ip daddr {GATEWAY} drop"))]),
            Fault::CutGateway => {
                tour.gateway.cut();
                tour.backend.cut();
                Ok(())
            }
            Fault::LateGateway => {
                tour.gateway.set_delay(DELAY);
                tour.backend.set_delay(DELAY);
                tour.gateway.cut();
                Ok(())
            }
            Fault::FullDisk => disk::fill(&tour.nodes[node]),
            Fault::FailingDisk => self.disk.fail(self.random.random()),
            Fault::Clock => {
                let jump = ["+20", "+40", "-20", "-40"][self.random.random_range(0..4)];
                Ok(fs::write(clock_file(&tour.nodes[node]), jump)?)
            }
            Fault::NewPod => load.replace_pod(tour, Pod(number, 2)),
        }
    }

    fn end(&mut self, fault: Fault, tour: &mut Tour, node: usize, load: &LoadState) -> Result<()> {
        let number = u8::try_from(node + 1)?;
        match fault {
            Fault::Kill => tour.nodes[node].start()?,
            Fault::Pause => tour.nodes[node].signal(Signal::SIGCONT)?,
            Fault::Deaf | Fault::Partition | Fault::Loss | Fault::NoGateway => {
                run(tour.lab.node(number).command("nft").args(["delete", "table", "ip", TABLE]))?;
            }
            Fault::Slow => tc(tour, number, "qdisc delete dev uplink root")?,
            Fault::Delay | Fault::Reorder | Fault::Duplicate | Fault::Corrupt => {
                self.links.remove(&node).context("the link is not bad")?.remove()?;
            }
            Fault::Flap => tour.lab.switch().ip(&format!("link set to-n{number} up"))?,
            Fault::LateGateway => {
                tour.gateway.set_delay(Duration::ZERO);
                tour.backend.set_delay(Duration::ZERO);
                tour.gateway.cut();
            }
            Fault::FullDisk => disk::empty(&tour.nodes[node])?,
            Fault::FailingDisk => self.replace_disk(tour, node, load)?,
            Fault::Clock => fs::write(clock_file(&tour.nodes[node]), "+0")?,
            Fault::HandOver | Fault::CutGateway | Fault::NewPod => {}
        }
        if fault.is_outage() {
            load.outages.end(node);
        }
        Ok(())
    }

    fn harm(&mut self, fault: Fault) -> Harm {
        let percent = self.random.random_range(HARMED);
        match fault {
            Fault::Delay => Harm::Delay(Duration::from_millis(self.random.random_range(FRAME_DELAY))),
            Fault::Reorder => {
                Harm::Reorder(percent, Duration::from_millis(self.random.random_range(OVERTAKEN)))
            }
            Fault::Duplicate => Harm::Duplicate(percent),
            _ => Harm::Corrupt(percent),
        }
    }

    /// Mounts a new disk, and has it used by a new daemon: one that takes over, or one that starts after the end of the other.
    fn replace_disk(&mut self, tour: &mut Tour, node: usize, load: &LoadState) -> Result<()> {
        let name = format!("lota_cache_disk_up{{folder=\"{}\"}}", tour.nodes[node].cache_folder().display());
        wait_within(NOTICED, "the daemon to notice that its disk fails", || {
            Ok(tour.nodes[node].metric(&name)? == 0.0)
        })?;
        let takes_over: bool = self.random.random();
        if !takes_over {
            load.outages.begin(node);
            tour.nodes[node].stop(Signal::SIGTERM)?;
        }
        self.disk.renew()?;
        tour.nodes[node].start()?;
        if !takes_over {
            load.outages.end(node);
        }
        let is_up = tour.nodes[node].metric(&name)?;
        ensure!(is_up == 1.0, "the new daemon does not use the new disk: {name} is {is_up}");
        Ok(())
    }
}

impl Fault {
    /// Returns whether the clients of the node cannot be served meanwhile.
    fn is_outage(self) -> bool {
        matches!(self, Self::Kill | Self::Pause | Self::Flap | Self::NoGateway)
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
