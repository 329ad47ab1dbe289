//! Pins: set on one node, known to all, kept by all through scans and restarts, and never more than fits.

use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use hyper::{Method, StatusCode};
use lota_tests::{
    lab::{
        ADMIN, Mode, Node, VIP,
        raw::{Reply, Request, Signing, content},
    },
    tour::{MIB, Tour, wait_settled, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Size of the objects in bytes.
const SIZE: u64 = 2 * MIB;
/// Capacity of each node's cache, in objects. 2.28 times that can be pinned in the cluster.
const CAPACITY: u64 = 16;
const PINNED: u64 = 9;

fn request(tour: &Tour, method: Method, node: u8, key: &str, body: Vec<u8>) -> Result<Reply> {
    let request = Request::new(method, "cwlota.com", &format!("/{}", tour.client.name(key))).body(body);
    let request = request.sign(&ADMIN, Signing::Header)?;
    tour.pod(node, 1).send_all((VIP, 80).into(), vec![request])?.pop().context("no response")
}

fn put_some(tour: &Tour, prefix: &str, count: u64) -> Result<()> {
    for number in 0..count {
        let body = content(usize::try_from(SIZE)?);
        let reply = request(tour, Method::PUT, 1, &format!("{prefix}{number}"), body)?;
        ensure!(reply.status == StatusCode::OK, "{}", reply.status);
    }
    Ok(())
}

/// Reads objects on a node. Returns how many of them were hits.
fn hits(tour: &Tour, node: u8, prefix: &str, count: u64) -> Result<u64> {
    let mut hits = 0;
    for number in 0..count {
        let reply = request(tour, Method::GET, node, &format!("{prefix}{number}"), Vec::new())?;
        ensure!(reply.status == StatusCode::OK && reply.body.len() as u64 == SIZE, "{}", reply.status);
        hits += u64::from(reply.cache() == "hit");
    }
    Ok(hits)
}

/// Reads twice as much as the caches of all nodes hold.
fn scan(tour: &Tour) -> Result<()> {
    hits(tour, 2, "pins/others/", 6 * CAPACITY).map(drop)
}

fn lota(node: &Node, arguments: &[&str]) -> Result<Output> {
    Ok(node.command().args(arguments).arg("--config").arg(node.config()).output()?)
}

/// Changes a pin, and returns the output.
fn change(node: &Node, arguments: &[&str]) -> Result<String> {
    let output = lota(node, arguments)?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Returns the bytes of each pin that a node knows, and of what it has of it.
fn pins(node: &Node) -> Result<Vec<(u64, u64)>> {
    let report: Value = serde_json::from_str(&change(node, &["cache", "pins", "--json"])?)?;
    let pins = report["pins"].as_array().context("no pins")?.iter();
    let bytes = |pin: &Value| Some((pin["bytes"].as_u64()?, pin["here"]["cached"].as_u64()?));
    pins.map(bytes).collect::<Option<_>>().with_context(|| report.to_string())
}

pub(crate) fn survive_scans(tour: &mut Tour) -> Result<()> {
    let capacity = format!("capacity = \"{}MiB\"", CAPACITY * SIZE / MIB);
    tour.restart_with(Mode::OwnCredential, "capacity = \"4GiB\"", &capacity)?;
    put_some(tour, "pins/data/", PINNED)?;
    put_some(tour, "pins/others/", 6 * CAPACITY)?;
    wait_settled();
    tour.client.put_and_hit(&tour.pod(1, 1), "pins/trial", 71)?;

    let prefix = format!("s3://{}", tour.client.name("pins/data/"));
    let bytes = 20 * SIZE;
    tour.nodes[2].stop(Signal::SIGTERM)?;
    let pinned = change(&tour.nodes[0], &["cache", "pin", &prefix, "--bytes", &bytes.to_string()])?;
    ensure!(pinned.contains("40.0 MiB") && pinned.contains("not reached: n3"), "{pinned}");
    ensure!(!pinned.contains("n2"), "{pinned}");
    for node in &tour.nodes[..2] {
        ensure!(pins(node)?.iter().map(|pin| pin.0).eq([bytes]), "{} does not know it", node.name());
    }
    let refused = lota(&tour.nodes[1], &["cache", "pin", "s3://other/", "--bytes", "40MiB"])?;
    let why = String::from_utf8_lossy(&refused.stderr);
    // 96 MiB in all; of the 95 % below the low watermark, 80 % can be pinned.
    for number in ["40.0 MiB", "73.0 MiB", "33.0 MiB"] {
        ensure!(!refused.status.success() && why.contains(number), "no {number}: {why}");
    }
    tour.revive()?;
    let node = &tour.nodes[2];
    wait_until("a node that was down to learn of the pin", || Ok(!pins(node)?.is_empty()))?;

    for node in [1, 2, 3] {
        hits(tour, node, "pins/data/", PINNED)?;
    }
    let all = PINNED * SIZE;
    wait_until("the objects to be pinned", || Ok(pins_of_each(tour)?.into_iter().sum::<u64>() >= all))?;
    scan(tour)?;
    all_are_hits(tour, "after a scan")?;
    ensure!(tour.metric("lota_cache_evictions_total")? > 2.0 * CAPACITY as f64, "the scan evicted nothing");
    for (node, is_pinned) in tour.nodes.iter().zip(pins_of_each(tour)?) {
        let folder = format!("lota_cache_pinned_bytes{{folder=\"{}\"}}", node.cache_folder().display());
        ensure!(node.metric(&folder)? == is_pinned as f64, "{}", node.name());
        let status = String::from_utf8(lota(node, &["status"])?.stdout)?;
        ensure!(status.contains("1 pin of 40.0 MiB"), "{status}");
    }

    tour.restart_with(Mode::OwnCredential, "capacity = \"4GiB\"", &capacity)?;
    scan(tour)?;
    all_are_hits(tour, "after a restart and a scan")?;

    let unpinned = change(&tour.nodes[1], &["cache", "unpin", &prefix])?;
    ensure!(!unpinned.contains("not reached"), "{unpinned}");
    for node in &tour.nodes {
        ensure!(pins(node)?.is_empty(), "{} still has the pin", node.name());
    }
    ensure!(!lota(&tour.nodes[1], &["cache", "unpin", &prefix])?.status.success(), "unpinned twice");
    scan(tour)?;
    let left = hits(tour, 1, "pins/data/", PINNED)?;
    ensure!(left == 0, "{left} objects outlived a scan without a pin");
    tour.restart(Mode::OwnCredential)
}

fn all_are_hits(tour: &Tour, when: &str) -> Result<()> {
    for node in [1, 2, 3] {
        let hits = hits(tour, node, "pins/data/", PINNED)?;
        ensure!(hits == PINNED, "{when}, {hits} of {PINNED} are hits at n{node}");
    }
    Ok(())
}

fn pins_of_each(tour: &Tour) -> Result<Vec<u64>> {
    tour.nodes.iter().map(|node| Ok(pins(node)?[0].1)).collect()
}
