//! Step 4: a range of a cold object fills the whole object, and the backend receives one request.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Line, MIB, SIZE, Tour, expect, same, wait_settled, wait_until};
use crate::lab::{Mode, Style};

/// Maximum bytes in socket buffers when a connection is dropped, with the defaults of `tcp_rmem` and `tcp_wmem` and a
/// relay in between.
const SOCKET_BUFFERS: u64 = 10 * MIB;

pub(super) fn ranges(tour: &mut Tour) -> Result<Vec<Line>> {
    if !tour.origin.has_users() {
        return Ok(vec![Line::new("skipped", "an external gateway has no credential of LOTA")]);
    }
    let mut lines = range(tour, "own credential", "fill/own", 40)?;
    if tour.origin.speaks_lota() {
        tour.restart(Mode::Direct)?;
        let gateway = tour.gateway.received();
        lines.extend(range(tour, "direct path", "fill/direct", 41)?);
        let through_gateway = tour.gateway.received() - gateway;
        ensure!(
            through_gateway < MIB,
            "{through_gateway} bytes came through the gateway, not the direct path"
        );
        let location = tour.origin.last_node().unwrap_or_default();
        ensure!(
            location.contains("zone=rack-") && location.contains("region=lab"),
            "the gateway received `{location}`"
        );
        lines.push(Line::new("the gateway receives the node's location", location));
        tour.restart(Mode::OwnCredential)?;
    }
    Ok(lines)
}

/// Waits for the gateway verification, which the first hit of a new daemon starts, before bytes are counted.
fn warm_up(tour: &Tour, key: &str) -> Result<()> {
    // With 40 objects, each node almost certainly owns one.
    tour.client.put_and_hit(&tour.pod(1, 1), &format!("{key}-warm-up"), 40)?;
    for node in &tour.nodes {
        ensure!(
            node.metric("lota_gateway_trusted{gateway=\"default\"}")? >= 1.0,
            "{} has not verified the gateway",
            node.name()
        );
    }
    Ok(())
}

fn range(tour: &Tour, authority: &str, key: &str, seed: u64) -> Result<Vec<Line>> {
    warm_up(tour, key)?;
    let (client, pod) = (&tour.client, tour.pod(1, 1));
    let mut lines = Vec::new();
    let put = client.put(&pod, key, seed, SIZE)?;
    wait_settled();
    let before = tour.fetched();
    let what = format!("a cold 1 MiB range of 64 MiB, by {authority}");
    let part = client.get_with(&pod, key, json!({"range": format!("bytes={}-{}", 9 * MIB, 10 * MIB - 1)}))?;
    expect(&part, 206, "miss", &what)?;
    let expected = client.digest(&pod, seed, SIZE, 9 * MIB, 10 * MIB)?;
    ensure!(part.size == MIB && part.sha256 == expected, "{what}: {} bytes, or wrong content", part.size);
    let content_range = part.headers.get("content-range").cloned().unwrap_or_default();
    ensure!(
        content_range == format!("bytes {}-{}/{SIZE}", 9 * MIB, 10 * MIB - 1),
        "Content-Range: {content_range}"
    );
    lines.push(Line::timed(&what, &part));
    tour.wait_cached(key)?;
    let fetched = tour.fetched() - before;
    ensure!(fetched >= SIZE, "{what}: cached whole, but only {fetched} bytes were fetched");
    ensure!(fetched <= SIZE + SOCKET_BUFFERS, "{what}: {fetched} bytes were fetched of an object of {SIZE}");
    lines.push(Line::new("  fetched for it, at the relay", times(fetched)));

    let what = format!("then the whole object, from n2, by {authority}");
    let whole = client.get(&tour.pod(2, 1), key, Style::Path)?;
    same(&whole, &put.sha256, &what)?;
    expect(&whole, 200, "hit", &what)?;
    lines.push(Line::timed(&what, &whole));

    // Concurrent cold reads in ranges on all nodes fetch the object once.
    let many = format!("{key}-many");
    let put = client.put(&pod, &many, seed + 10, SIZE)?;
    wait_settled();
    let before = tour.fetched();
    let reads: Vec<_> = std::thread::scope(|scope| {
        let readers: Vec<_> = tour
            .one_pod_per_node()
            .map(|(_, pod)| {
                let many = &many;
                scope.spawn(move || client.download(&pod, many, Style::Path))
            })
            .collect();
        readers.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    for read in reads {
        let read = read.map_err(|_| anyhow::anyhow!("a reader panicked"))??;
        same(&read, &put.sha256, "one of three cold readers")?;
    }
    wait_until("the object of the concurrent readers to be cached", || Ok(!tour.holders(&many)?.is_empty()))?;
    let fetched = tour.fetched() - before;
    // Each reader may drop one connection; without single-flight they would fetch the object three times.
    ensure!(
        fetched <= SIZE + 3 * SOCKET_BUFFERS,
        "three cold readers in ranges cost {fetched} bytes of {SIZE}"
    );
    lines
        .push(Line::new(format!("fetched for three cold readers in ranges, by {authority}"), times(fetched)));
    Ok(lines)
}

fn times(fetched: u64) -> String {
    format!("{:.2} x its size", fetched as f64 / SIZE as f64)
}
