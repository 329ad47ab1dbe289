//! Stripes of objects of 16 GiB: balance over many objects and of a single one, and bytes that move when a node joins.

use std::{collections::BTreeMap, thread, time::Instant};

use anyhow::{Context as _, Result};
use lota_cache::{
    Stripe, StripeLength,
    placement::{NodeName, Placement},
};
use lota_s3::ObjectName;
use lota_tests::bench::{Goal, Report};

use super::{MIB, cluster};

/// Size of each object.
const SIZE: u64 = 16 << 30;
/// Number of objects.
const OBJECTS: usize = 200;
/// Objects per node of caches that are a third full, if each node has a terabyte. Chance matters less then: each node has 5,120
/// stripes of 64 MiB.
const OBJECTS_PER_NODE: usize = 20;
/// Largest number of nodes.
const NODES: usize = 1000;

pub(super) fn simulate(report: &mut Report) -> Result<()> {
    let names: Option<Vec<ObjectName>> = (0..NODES * OBJECTS_PER_NODE)
        .map(|number| {
            ObjectName::from_parts("http://gateway", "bucket", &format!("models/{number:05}.bin"), None)
        })
        .collect();
    let names = names.context("no names")?;
    for nodes in [3, 10, 100, NODES] {
        for length in [64, 128, 256] {
            let length = StripeLength::new(length * MIB).context("no length")?;
            one(report, nodes, length, &names[..OBJECTS]);
        }
    }
    let length = StripeLength::new(64 * MIB).context("no length")?;
    for nodes in [100, NODES] {
        let objects = nodes * OBJECTS_PER_NODE;
        let owners = owners(&cluster(0..nodes), length, &names[..objects]);
        let what = format!("{nodes} nodes, stripes of 64 MiB of {objects} objects");
        let all = spread(owners.iter().flatten(), length, nodes);
        report.add(what, "x mean", Goal::AtMost(1.05), vec![all]);
    }
    Ok(())
}

fn one(report: &mut Report, nodes: usize, length: StripeLength, names: &[ObjectName]) {
    let (before, with) = (cluster(0..nodes), cluster(0..=nodes));
    let since = Instant::now();
    let (owners, after) = (owners(&before, length, names), owners(&with, length, names));
    let placed = owners.iter().chain(&after).map(Vec::len).sum::<usize>() as f64;
    let cost = since.elapsed().as_secs_f64() * 1e6 / placed;
    let what = format!("{nodes} nodes, stripes of {} MiB: ", length.bytes() / MIB);
    let all = spread(owners.iter().flatten(), length, nodes);
    let single = owners.iter().map(|owners| spread(owners.iter(), length, nodes)).collect();
    let new = NodeName(format!("node-{nodes}"));
    let (mut moved, mut least) = (0, 0);
    for (old, new_owner) in owners.iter().flatten().zip(after.iter().flatten()) {
        moved += usize::from(old != new_owner);
        least += usize::from(*new_owner == new);
    }
    let moved = moved as f64 / least.max(1) as f64;
    report.add(format!("{what}bytes at the fullest"), "x mean", Goal::AtMost(1.05), vec![all]);
    report.add("  of a single object", "x mean", Goal::None, single);
    report.add("  moved when a node comes", "x least", Goal::AtMost(1.05), vec![moved]);
    report.add("  time to place a stripe, on all CPUs", "us", Goal::None, vec![cost]);
}

/// Returns the owner of each stripe of each object.
fn owners(placement: &Placement, length: StripeLength, names: &[ObjectName]) -> Vec<Vec<NodeName>> {
    let of = &|name: &ObjectName| -> Vec<NodeName> {
        let stripes = (0..length.count(SIZE)).filter_map(|index| Stripe::new(index, length));
        stripes.map(|stripe| placement.first_of_stripe(name, stripe, SIZE, 1)[0].clone()).collect()
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let parts: Vec<_> = names
            .chunks(names.len().div_ceil(threads))
            .map(|names| scope.spawn(move || names.iter().map(of).collect::<Vec<Vec<NodeName>>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
    })
}

/// Returns the ratio of the fullest node's bytes to the mean. All stripes have the same length, which divides the size.
fn spread<'a>(owners: impl Iterator<Item = &'a NodeName>, length: StripeLength, nodes: usize) -> f64 {
    let mut bytes = BTreeMap::new();
    for owner in owners {
        *bytes.entry(owner.clone()).or_default() += length.bytes();
    }
    super::spread(&bytes, nodes)
}
