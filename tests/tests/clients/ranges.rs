//! Signed ranges of objects that LOTA may not fetch as a whole: what they cost, and that versions are not mixed.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, GATEWAY, GATEWAY_PORT, Namespace, VIP,
        raw::{Reply, Request, Signing, content},
    },
    suite::TestFn,
    tour::{MIB, Tour, wait_settled, wait_until},
};

use super::BUCKET;

pub(super) const TESTS: [(&str, TestFn); 4] = [
    ("a second reader of other ranges costs nothing", other_ranges),
    ("readers of the same ranges at the same time cost them once", same_ranges),
    ("ranges of two versions are not mixed", two_versions),
    ("a reader continues when the owner is killed", killed_owner),
];

const SIZE: u64 = 40 * MIB + 12_345;
/// Bytes that responses may cost beyond the objects' bytes: heads, and requests that verify the gateway.
const HEADS: u64 = MIB;

/// Reads small ranges until the gateway is verified for them at each node. Reads pass through until then.
pub(super) fn verify_gateway(tour: &Tour) -> Result<()> {
    let keys: Vec<String> = (0..24).map(|number| format!("verified-{number}")).collect();
    for key in &keys {
        upload(tour, key, content(2000))?;
    }
    wait_settled();
    let pod = tour.pod(1, 1);
    for key in &keys {
        wait_until("a range to be a hit", || Ok(range(&pod, key, 5, 105)?.cache() == "hit"))?;
    }
    Ok(())
}

/// Verifies that ranges with other borders are hits once all bytes were read.
fn other_ranges(tour: &mut Tour) -> Result<()> {
    let all = put(tour, "other", 1)?;
    let before = tour.gateway.received();
    read_in(tour, 1, "other", 7 * MIB + 11, &all)?;
    let first = tour.gateway.received() - before;
    ensure!((SIZE..SIZE + HEADS).contains(&first), "the first reader cost {first} bytes of {SIZE}");
    read_in(tour, 2, "other", 3 * MIB - 17, &all)?;
    let both = tour.gateway.received() - before;
    ensure!(both < SIZE + SIZE / 20, "two readers cost {both} bytes of {SIZE}");
    Ok(())
}

fn same_ranges(tour: &mut Tour) -> Result<()> {
    let all = put(tour, "same", 2)?;
    let before = tour.gateway.received();
    std::thread::scope(|scope| -> Result<()> {
        let reader = |reader: u8| {
            let (tour, all) = (&*tour, &all);
            scope.spawn(move || read_in(tour, reader % 3 + 1, "same", 5 * MIB + 1, all))
        };
        let readers: Vec<_> = (0..9).map(reader).collect();
        readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?)
    })?;
    let cost = tour.gateway.received() - before;
    ensure!(cost < SIZE + SIZE / 20, "nine readers cost {cost} bytes of {SIZE}");
    Ok(())
}

fn two_versions(tour: &mut Tour) -> Result<()> {
    let old = put(tour, "versions", 3)?;
    let pod = tour.pod(1, 1);
    let half = (SIZE / 2).next_multiple_of(MIB);
    ensure!(range(&pod, "versions", 0, half)?.body == old[..index(half)], "other bytes of the old version");
    let new = put(tour, "versions", 4)?;
    read_in(tour, 2, "versions", 9 * MIB + 5, &new)?;
    // The first half of the old version and the second of the new one are no object.
    read_in(tour, 3, "versions", 4 * MIB + 5, &new)
}

fn killed_owner(tour: &mut Tour) -> Result<()> {
    let all = put(tour, "killed", 5)?;
    read_in(tour, 1, "killed", 8 * MIB, &all[..index(20 * MIB)])?;
    let owner = range(&tour.pod(1, 1), "killed", 0, MIB)?;
    let owner =
        owner.header("lota-cache").rsplit_once("node=n").context("no owner in `Lota-Cache`")?.1.parse()?;
    let owner: usize = owner;
    let reader = if owner == 1 { 2 } else { 1 };
    tour.gateway.set_rate(8 * MIB);
    let read = std::thread::scope(|scope| {
        let pod = tour.pod(reader, 1);
        // Half of it is stored, the rest must come from the gateway.
        let reading = scope.spawn(move || range(&pod, "killed", 0, SIZE));
        std::thread::sleep(std::time::Duration::from_millis(600));
        let killed = tour.nodes[owner - 1].stop(nix::sys::signal::Signal::SIGKILL);
        tour.gateway.set_rate(0);
        killed.and(reading.join().map_err(|_| anyhow!("the reader panicked"))?)
    });
    tour.revive()?;
    ensure!(read?.body == all, "other bytes, or too few");
    Ok(())
}

/// Writes an object past LOTA. Returns its bytes.
fn put(tour: &Tour, key: &str, seed: u8) -> Result<Vec<u8>> {
    let all: Vec<u8> = content(index(SIZE)).iter().map(|byte| byte ^ seed).collect();
    upload(tour, key, all.clone())?;
    wait_settled();
    Ok(all)
}

fn upload(tour: &Tour, key: &str, all: Vec<u8>) -> Result<()> {
    let put = Request::new(Method::PUT, "cwlota.com", &format!("/{BUCKET}/{key}")).body(all);
    let gateway = SocketAddr::from((GATEWAY, GATEWAY_PORT));
    let reply = tour.lab.switch().send_all(gateway, vec![put.sign(&ADMIN, Signing::Header)?])?.pop();
    let reply = reply.context("no answer")?;
    ensure!(reply.status.is_success(), "the upload was answered {} {}", reply.status, reply.code());
    Ok(())
}

/// Reads an object on a node in ranges of this length, four at a time, and compares the bytes.
fn read_in(tour: &Tour, node: u8, key: &str, length: u64, all: &[u8]) -> Result<()> {
    let pod = tour.pod(node, 1);
    let starts: Vec<u64> = (0..all.len() as u64).step_by(index(length)).collect();
    for starts in starts.chunks(4) {
        std::thread::scope(|scope| -> Result<()> {
            let read = |start: u64| {
                let (pod, end) = (&pod, (start + length).min(all.len() as u64));
                scope.spawn(move || -> Result<()> {
                    let got = range(pod, key, start, end)?;
                    ensure!(got.body == all[index(start)..index(end)], "{start}..{end}: other bytes");
                    Ok(())
                })
            };
            let reads: Vec<_> = starts.iter().map(|start| read(*start)).collect();
            reads.into_iter().try_for_each(|read| read.join().map_err(|_| anyhow!("a reader panicked"))?)
        })?;
    }
    Ok(())
}

/// Reads `start..end` with a signed `Range`.
fn range(pod: &Namespace, key: &str, start: u64, end: u64) -> Result<Reply> {
    let get = Request::new(Method::GET, "cwlota.com", &format!("/{BUCKET}/{key}"))
        .header("range", &format!("bytes={start}-{}", end - 1))
        .sign(&ADMIN, Signing::Header)?;
    let got = pod.send_all((VIP, 80).into(), vec![get])?.pop().context("no answer")?;
    ensure!(got.status == 206, "{start}..{end}: {} {}", got.status, got.code());
    Ok(got)
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
