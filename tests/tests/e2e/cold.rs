//! Cold objects with a slow backend: requested ranges are fetched first.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, GATEWAY, GATEWAY_PORT, Mode, Namespace, Relay, Style, VIP,
        raw::{Request, Signing, content},
    },
    tour::{MIB, Tour, wait_settled, wait_until},
};
use serde_json::json;

const SIZE: u64 = 64 * MIB;
/// Rate of each connection to the backend, in bytes per second, so that a whole object takes seconds.
const SLOW: u64 = MIB / 4;
/// Maximum number of bytes in socket buffers when a connection is dropped.
const SOCKET_BUFFERS: u64 = 10 * MIB;

pub(crate) fn far_ranges(tour: &mut Tour) -> Result<()> {
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    // Reads are proxied until the gateway has been verified.
    client.put_and_hit(&pod, "cold-trial", 40)?;
    client.put(&pod, "cold", 151, SIZE)?;
    wait_settled();
    let before = tour.fetched();
    tour.backend.set_rate(SLOW);
    let measured = (|| {
        // Ranges at the end, in the middle, and where nothing has been read: none waits for earlier bytes.
        for first in [60 * MIB + 5, 30 * MIB, 45 * MIB] {
            let range = format!("bytes={first}-{}", first + 999);
            let got = client.get_with(&pod, "cold", json!({ "range": range }))?;
            let expected = client.digest(&pod, 151, SIZE, first, first + 1000)?;
            ensure!(got.status == 206 && got.sha256 == expected, "{range}: {} or other bytes", got.status);
            ensure!(tour.holders("cold")?.is_empty(), "{range} came only after the whole object");
        }
        Ok(())
    })();
    tour.backend.set_rate(0);
    measured?;
    tour.wait_cached("cold")?;
    let fetched = tour.fetched() - before;
    ensure!((SIZE..=SIZE + SOCKET_BUFFERS).contains(&fetched), "{fetched} bytes were fetched of {SIZE}");
    Ok(())
}

/// Verifies that a reader does not notice interrupted connections of a fill.
pub(crate) fn broken_sources(tour: &mut Tour) -> Result<()> {
    breaking_off(tour, "cut/stream", "")?;
    // A fill that starts with a range fetches parts.
    breaking_off(tour, "cut/parts", "bytes=0-0")
}

fn breaking_off(tour: &Tour, key: &str, first: &str) -> Result<()> {
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    let put = client.put(&pod, key, 152, SIZE)?;
    let before = broken(tour)?;
    let relays = [&tour.gateway, &tour.backend];
    relays.into_iter().for_each(|relay| relay.set_rate(3 * MIB));
    let read = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            if !first.is_empty() {
                client.get_with(&tour.pod(2, 1), key, json!({ "range": first }))?;
            }
            client.get(&tour.pod(2, 1), key, Style::Path)
        });
        let began = wait_until("the fill to begin", || fills(tour).map(|fills| fills > 0.0));
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(700));
            relays.into_iter().for_each(Relay::cut);
        }
        relays.into_iter().for_each(|relay| relay.set_rate(0));
        let read = reader.join().map_err(|_| anyhow!("the reader panicked"))?;
        began.and(read)
    })?;
    ensure!(read.status == 200 && read.sha256 == put.sha256, "{key}: {}, or other bytes", read.status);
    tour.wait_cached(key)?;
    ensure!(broken(tour)? == before, "{key}: the fill was abandoned, and the object fetched again");
    Ok(())
}

/// Verifies that many readers of parts of a cold object cause one fetch.
pub(crate) fn hot_objects(tour: &mut Tour) -> Result<()> {
    if !tour.origin.speaks_lota() {
        return many_readers(tour, "many-readers/own", 256 << 20);
    }
    many_readers(tour, "many-readers/own", 1 << 30)?;
    tour.restart(Mode::Direct)?;
    many_readers(tour, "many-readers/direct", 1 << 30)?;
    tour.restart(Mode::OwnCredential)
}

fn many_readers(tour: &Tour, key: &str, size: usize) -> Result<()> {
    const READERS: usize = 64;
    // Reads are proxied until the gateway has been verified.
    tour.client.put_and_hit(&tour.pod(1, 1), &format!("{key}-trial"), 40)?;
    let all = content(size);
    let target = format!("/{}", tour.client.name(key));
    let put = Request::new(Method::PUT, "cwlota.com", &target).body(all.clone());
    let put = put.sign(&ADMIN, Signing::Header)?;
    let gateway = SocketAddr::from((GATEWAY, GATEWAY_PORT));
    let reply = tour.lab.switch().send_all(gateway, vec![put])?.pop().context("no answer")?;
    ensure!(reply.status.is_success(), "the upload was answered {} {}", reply.status, reply.code());
    wait_settled();
    let before = tour.fetched();
    let pods: Vec<Namespace> = tour.one_pod_per_node().map(|(_, pod)| pod).collect();
    std::thread::scope(|scope| -> Result<()> {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (pod, target, all) = (&pods[reader % pods.len()], &target, &all);
                scope.spawn(move || -> Result<()> {
                    for _ in 0..4 {
                        let first = rand::random_range(0..size - (1 << 20));
                        let end = first + rand::random_range(1..1 << 20);
                        let get = Request::new(Method::GET, "cwlota.com", target)
                            .header("range", &format!("bytes={first}-{}", end - 1))
                            .sign(&ADMIN, Signing::Header)?;
                        let got = pod.send_all((VIP, 80).into(), vec![get])?.pop().context("no answer")?;
                        ensure!(got.status == 206, "{first}..{end}: {} {}", got.status, got.code());
                        ensure!(got.body == all[first..end], "{first}..{end}: other bytes");
                    }
                    Ok(())
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?)
    })?;
    tour.wait_cached(key)?;
    let (fetched, size) = (tour.fetched() - before, size as u64);
    ensure!((size..=size + SOCKET_BUFFERS).contains(&fetched), "{fetched} bytes were fetched of {size}");
    Ok(())
}

/// Verifies that an object larger than any cache is relayed and counted.
pub(crate) fn too_large(tour: &mut Tour) -> Result<()> {
    tour.restart_with(Mode::OwnCredential, "capacity = \"4GiB\"", "capacity = \"48MiB\"")?;
    let seen = look_past(tour);
    tour.restart(Mode::OwnCredential).context("afterwards")?;
    seen
}

fn look_past(tour: &Tour) -> Result<()> {
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    client.put_and_hit(&pod, "too-large/trial", 40)?;
    let put = client.put(&pod, "too-large/object", 153, SIZE)?;
    let before = no_room(tour)?;
    for node in 1..=3 {
        let got = client.get(&tour.pod(node, 1), "too-large/object", Style::Path)?;
        ensure!(got.status == 200 && got.sha256 == put.sha256, "{}, or other bytes", got.status);
        let range = json!({ "range": "bytes=50000000-50000999" });
        let got = client.get_with(&tour.pod(node, 1), "too-large/object", range)?;
        let expected = client.digest(&pod, 153, SIZE, 50_000_000, 50_001_000)?;
        ensure!(got.status == 206 && got.sha256 == expected, "a range: {}, or other bytes", got.status);
    }
    ensure!(tour.holders("too-large/object")?.is_empty(), "a node has cached it");
    let counted = no_room(tour)? - before;
    ensure!(counted >= 6.0, "of six reads, {counted} were counted");
    // A smaller object is still cached.
    client.put_and_hit(&pod, "too-large/small", 41)
}

/// Returns the number of objects that passed through for lack of space.
fn no_room(tour: &Tour) -> Result<f64> {
    sum(tour, |line| line.starts_with("lota_uncached") && line.contains("no-room"))
}

/// Returns the number of fills that ended without their object.
fn broken(tour: &Tour) -> Result<f64> {
    sum(tour, |line| line.starts_with("lota_fills") && line.contains("broken"))
}

/// Returns the sum of matching metrics over all nodes.
pub(crate) fn sum(tour: &Tour, is_meant: impl Fn(&str) -> bool) -> Result<f64> {
    let mut sum = 0.0;
    for node in &tour.nodes {
        let metrics = node.admin("/metrics")?;
        let counts = metrics.lines().filter(|line| is_meant(line));
        sum += counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
    }
    Ok(sum)
}

fn fills(tour: &Tour) -> Result<f64> {
    tour.metric("lota_fills_in_progress")
}
