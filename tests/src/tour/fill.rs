//! Step 4: a range of a cold object fills the whole, and the backend is asked once.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Line, MIB, SIZE, Tour, expect, same, wait_until};
use crate::lab::{Mode, Style};

/// What may have been under way in sockets when a connection was dropped: with default `tcp_rmem` and
/// `tcp_wmem`, and a relay between.
const SOCKET_BUFFERS: u64 = 10 * MIB;

pub(super) fn ranges(tour: &mut Tour) -> Result<Vec<Line>> {
    if !tour.origin.has_users() {
        return Ok(vec![Line::new("skipped", "a given gateway has no credential of LOTA's own")]);
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
        let told = tour.origin.last_node().unwrap_or_default();
        ensure!(told.contains("zone=rack-") && told.contains("region=lab"), "the gateway was told `{told}`");
        lines.push(Line::new("the gateway was told where the node is", told));
        tour.restart(Mode::OwnCredential)?;
    }
    Ok(lines)
}

/// The first hit of a fresh daemon costs the gateway's trial: let it pass before bytes are counted.
fn warm_up(tour: &Tour, key: &str) -> Result<()> {
    // Each node owns one of these, all but surely.
    tour.client.put_and_hit(&tour.pod(1, 1), &format!("{key}-trial"), 40)?;
    for node in &tour.nodes {
        ensure!(node.metric("lota_gateway_trusted")? >= 1.0, "{} has not tried the gateway", node.name());
    }
    Ok(())
}

fn range(tour: &Tour, authority: &str, key: &str, seed: u64) -> Result<Vec<Line>> {
    warm_up(tour, key)?;
    let (client, pod) = (&tour.client, tour.pod(1, 1));
    let mut lines = Vec::new();
    let put = client.put(&pod, key, seed, SIZE)?;
    let before = tour.fetched();
    let what = format!("a cold 1 MiB range of 64 MiB, by {authority}");
    let part = client.get_with(&pod, key, json!({"range": format!("bytes={}-{}", 9 * MIB, 10 * MIB - 1)}))?;
    expect(&part, 206, "miss", &what)?;
    let expected = client.digest(&pod, seed, SIZE, 9 * MIB, 10 * MIB)?;
    ensure!(part.size == MIB && part.sha256 == expected, "{what}: {} bytes came, or other ones", part.size);
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
    lines.push(Line::new("  fetched for it, at the counting relay", times(fetched)));

    let what = format!("then the whole of it, from n2, by {authority}");
    let whole = client.get(&tour.pod(2, 1), key, Style::Path)?;
    same(&whole, &put.sha256, &what)?;
    expect(&whole, 200, "hit", &what)?;
    lines.push(Line::timed(&what, &whole));

    // Nobody has it, everybody wants it, in ranges: still once.
    let crowd = format!("{key}-crowd");
    let put = client.put(&pod, &crowd, seed + 10, SIZE)?;
    let before = tour.fetched();
    let reads: Vec<_> = std::thread::scope(|scope| {
        let readers: Vec<_> = tour
            .one_pod_per_node()
            .map(|(_, pod)| {
                let crowd = &crowd;
                scope.spawn(move || client.download(&pod, crowd, Style::Path))
            })
            .collect();
        readers.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    for read in reads {
        let read = read.map_err(|_| anyhow::anyhow!("a reader panicked"))??;
        same(&read, &put.sha256, "one of three cold readers")?;
    }
    wait_until("the crowd's object to be cached", || Ok(!tour.holders(&crowd)?.is_empty()))?;
    let fetched = tour.fetched() - before;
    ensure!(fetched <= SIZE + SOCKET_BUFFERS, "three cold readers in ranges cost {fetched} bytes of {SIZE}");
    lines
        .push(Line::new(format!("fetched for three cold readers in ranges, by {authority}"), times(fetched)));
    Ok(lines)
}

fn times(fetched: u64) -> String {
    format!("{:.2} x its size", fetched as f64 / SIZE as f64)
}
