//! Simulation of placement with LOTA's own code: balance, objects that move when nodes join and leave, cost of a
//! decision, hit ratio compared with a single cache of the same total size, and scans.
//!
//! Object sizes are uniformly distributed from 8 to 64 MiB. There is no network and no disk. `placement/stripes.rs` simulates
//! stripes of large objects.

#[path = "placement/stripes.rs"]
mod stripes;

use std::{
    collections::{BTreeMap, HashMap},
    process::ExitCode,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};
use lota_cache::placement::{NodeName, Placement};
use lota_s3::ObjectName;
use lota_tests::bench::{self, Goal, Report};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

const MIB: u64 = 1 << 20;
/// Objects per node.
const OBJECTS_PER_NODE: usize = 1000;
/// Number of objects whose owners are compared when nodes join or leave.
const CHURNED: usize = 100_000;
const READS: usize = 1_000_000;
/// Number of candidate nodes per decision.
const OWNERS: usize = 5;
/// Ratio of the data set's size to the total size of the caches.
const DATA_TO_CACHE: u64 = 10;

fn main() -> ExitCode {
    let run = || -> Result<bool> {
        let mut report = Report::new("placement");
        for nodes in [10, 100, 1000] {
            let objects = objects(nodes * OBJECTS_PER_NODE)?;
            let owners = owners(&cluster(0..nodes), &objects);
            balance(&mut report, nodes, &objects, &owners);
            churn(&mut report, nodes, &objects, &owners);
            decisions(&mut report, nodes, &objects);
        }
        hits(&mut report)?;
        stripes::simulate(&mut report)?;
        report.write()
    };
    bench::ended("placement", run())
}

struct Object {
    name: ObjectName,
    bytes: u64,
}

fn objects(count: usize) -> Result<Vec<Object>> {
    let mut random = StdRng::seed_from_u64(1);
    (0..count)
        .map(|number| {
            let name =
                ObjectName::from_parts("http://gateway", "bucket", &format!("shards/{number:07}.tar"), None);
            let bytes = random.random_range(8 * MIB..=64 * MIB);
            Ok(Object { name: name.context("no name")?, bytes })
        })
        .collect()
}

fn cluster(nodes: impl Iterator<Item = usize>) -> Placement {
    Placement::new(nodes.map(|node| (NodeName(format!("node-{node}")), 1 << 40)))
}

fn spread(bytes: &BTreeMap<NodeName, u64>, nodes: usize) -> f64 {
    let largest = bytes.values().max().copied().unwrap_or_default() as f64;
    largest / (bytes.values().sum::<u64>() as f64 / nodes as f64)
}

/// Returns the first two nodes of each object.
fn owners(placement: &Placement, objects: &[Object]) -> Vec<[NodeName; 2]> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let first_two = |object: &Object| {
        let order = placement.first(&object.name, 2);
        [order[0].clone(), order[1].clone()]
    };
    thread::scope(|scope| {
        let parts: Vec<_> = objects
            .chunks(objects.len().div_ceil(threads))
            .map(|objects| scope.spawn(move || objects.iter().map(first_two).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
    })
}

/// Reports the ratio of the fullest node's bytes to the mean.
fn balance(report: &mut Report, nodes: usize, objects: &[Object], owners: &[[NodeName; 2]]) {
    let (mut first, mut of_two) = (BTreeMap::new(), BTreeMap::<NodeName, u64>::new());
    for (object, [one, other]) in objects.iter().zip(owners) {
        *first.entry(one.clone()).or_default() += object.bytes;
        let held = |node: &NodeName| of_two.get(node).copied().unwrap_or_default();
        let emptier = if held(other) < held(one) { other } else { one };
        *of_two.entry(emptier.clone()).or_default() += object.bytes;
    }
    let what = format!("{nodes} nodes: bytes at the fullest, one owner");
    report.add(what, "x mean", Goal::AtMost(1.15), vec![spread(&first, nodes)]);
    let what = format!("{nodes} nodes: if the emptier of two were chosen");
    report.add(what, "x mean", Goal::AtMost(1.10), vec![spread(&of_two, nodes)]);
}

/// Reports the ratio of keys that move when a node leaves or joins to the minimum that has to move.
fn churn(report: &mut Report, nodes: usize, objects: &[Object], before: &[[NodeName; 2]]) {
    let objects = &objects[..objects.len().min(CHURNED)];
    let gone = NodeName(format!("node-{}", nodes / 2));
    let (without, with) = (cluster((0..nodes).filter(|node| *node != nodes / 2)), cluster(0..=nodes));
    let new = NodeName(format!("node-{nodes}"));
    let (mut moved, mut must, mut joined, mut to_new) = (0, 0, 0, 0);
    let (without, with) = (owners(&without, objects), owners(&with, objects));
    for ((owner, without), with) in before.iter().zip(&without).zip(&with) {
        must += usize::from(owner[0] == gone);
        moved += usize::from(without[0] != owner[0]);
        joined += usize::from(with[0] != owner[0]);
        to_new += usize::from(with[0] == new);
    }
    let ratio = |moved: usize, least: usize| moved as f64 / least.max(1) as f64;
    let goal = Goal::AtMost(1.05);
    report.add(format!("{nodes} nodes, one goes: keys moved"), "x least", goal, vec![ratio(moved, must)]);
    report.add(format!("{nodes} nodes, one comes: keys moved"), "x least", goal, vec![ratio(joined, to_new)]);
}

fn decisions(report: &mut Report, nodes: usize, objects: &[Object]) {
    let placement = cluster(0..nodes);
    let measured = objects.chunks(2000).take(5).map(|objects| {
        let since = Instant::now();
        let found = objects.iter().filter(|object| !placement.first(&object.name, OWNERS).is_empty()).count();
        since.elapsed().as_secs_f64() * 1e6 / found as f64
    });
    report.add(format!("{nodes} nodes: a decision"), "us", Goal::None, measured.collect());
}

/// Reports the hit ratio of reads with a Zipf distribution: a hundred nodes' caches, and one cache of the same size.
fn hits(report: &mut Report) -> Result<()> {
    const NODES: usize = 100;
    let objects = objects(NODES * OBJECTS_PER_NODE)?;
    let placement = cluster(0..NODES);
    let owners = owners(&placement, &objects);
    let capacity = objects.iter().map(|object| object.bytes).sum::<u64>() / DATA_TO_CACHE;
    let weights = (1..=objects.len()).scan(0.0, |sum, rank| {
        *sum += 1.0 / rank as f64;
        Some(*sum)
    });
    let weights: Vec<f64> = weights.collect();
    let (mut random, all) = (StdRng::seed_from_u64(2), weights.last().copied().unwrap_or_default());
    let (mut ideal, mut spread) = (Lru::new(capacity), HashMap::new());
    let (mut hits, mut ideal_hits) = (0, 0);
    for _ in 0..READS {
        let at = random.random_range(0.0..all);
        let object = weights.partition_point(|sum| *sum < at).min(objects.len() - 1);
        let cache = spread.entry(&owners[object][0]).or_insert_with(|| Lru::new(capacity / NODES as u64));
        hits += usize::from(cache.read(object, objects[object].bytes));
        ideal_hits += usize::from(ideal.read(object, objects[object].bytes));
    }
    let percent = |hits: usize| hits as f64 * 100.0 / READS as f64;
    report.add("Zipf reads of 10x the caches: hits of 100 nodes", "%", Goal::None, vec![percent(hits)]);
    report.add("  the same, of one cache of their size", "%", Goal::None, vec![percent(ideal_hits)]);
    let lost = percent(ideal_hits) - percent(hits);
    report.add("  lost by being spread", "points", Goal::AtMost(1.0), vec![lost]);
    scans(report, &objects, &owners, capacity / NODES as u64);
    Ok(())
}

/// Reports the hit ratio of repeated scans in the same order, the worst case for an LRU, with and without admission.
fn scans(report: &mut Report, objects: &[Object], owners: &[[NodeName; 2]], capacity: u64) {
    for (what, by_frequency) in [
        ("epochs of the same data: hits of 100 nodes", false),
        ("  the same, admission = \"frequent\"", true),
    ] {
        let (mut caches, mut reads) = (HashMap::new(), vec![0u32; objects.len()]);
        let (mut hits, mut counted) = (0, 0);
        for epoch in 0..4 {
            for (object, [owner, _]) in owners.iter().enumerate() {
                reads[object] += 1;
                let cache = caches.entry(owner).or_insert_with(|| Lru::new(capacity));
                let bytes = objects[object].bytes;
                let admitted = !by_frequency
                    || cache.has_room(bytes)
                    || cache.oldest().is_none_or(|oldest| reads[object] > reads[oldest]);
                let hit = if admitted { cache.read(object, bytes) } else { cache.touch(object) };
                // The first epoch fills the caches.
                hits += usize::from(hit && epoch > 0);
                counted += usize::from(epoch > 0);
            }
        }
        report.add(what, "%", Goal::None, vec![hits as f64 * 100.0 / counted as f64]);
    }
}

/// A cache with a capacity in bytes that evicts the least recently used object.
struct Lru {
    left: u64,
    clock: u64,
    held: HashMap<usize, (u64, u64)>,
    by_age: BTreeMap<u64, usize>,
}

impl Lru {
    fn new(capacity: u64) -> Self {
        Self { left: capacity, clock: 0, held: HashMap::new(), by_age: BTreeMap::new() }
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.left >= bytes
    }

    fn oldest(&self) -> Option<usize> {
        self.by_age.first_key_value().map(|(_, object)| *object)
    }

    /// Reads an object if it is cached. Returns whether it is.
    fn touch(&mut self, object: usize) -> bool {
        let bytes = self.held.get(&object).map(|(_, bytes)| *bytes);
        bytes.is_some_and(|bytes| self.read(object, bytes))
    }

    /// Reads an object and caches it. Returns whether it was cached before.
    fn read(&mut self, object: usize, bytes: u64) -> bool {
        self.clock += 1;
        let before = self.held.insert(object, (self.clock, bytes));
        self.by_age.insert(self.clock, object);
        if let Some((age, _)) = before {
            self.by_age.remove(&age);
            return true;
        }
        while self.left < bytes {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            self.left += self.held.remove(&oldest).map_or(0, |(_, bytes)| bytes);
        }
        self.left = self.left.saturating_sub(bytes);
        false
    }
}
