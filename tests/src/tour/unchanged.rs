//! Step 10: a pod that uses the gateway's own address reads through LOTA while the daemon lives, and from the gateway
//! otherwise.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{Line, MIB, Tour, same, wait_until};
use crate::lab::{DENIED, GATEWAY, GATEWAY_PORT, Got, Mode, NODES, Namespace};

const KEY: &str = "unchanged/object";

pub(super) fn pods(tour: &mut Tour) -> Result<Vec<Line>> {
    (1..=NODES).try_for_each(|node| tour.lab.route_to_pods(node))?;
    let mode = if tour.origin.has_users() { Mode::OwnCredential } else { Mode::ClientOnly };
    tour.restart_with(mode, "[gateway]\n", &format!("[gateway]\naddresses = [\"{GATEWAY}\"]\n"))?;
    let lines = reads(tour);
    tour.restart(mode)?;
    lines
}

fn reads(tour: &mut Tour) -> Result<Vec<Line>> {
    let pod = tour.pod(1, 1);
    let put = tour.client.put_at(&endpoint(), &pod, KEY, 100, 16 * MIB)?;
    wait_until("a hit", || Ok(read(tour, &pod, &put)?.cache() == "hit"))?;
    let mut lines = vec![Line::timed(
        format!("read {}, the gateway's own address", endpoint()),
        &read(tour, &pod, &put)?,
    )];

    let denied = read(tour, &tour.lab.pod(DENIED), &put)?;
    ensure!(denied.cache().is_empty(), "a pod without access was served by LOTA");
    lines.push(Line::timed("a pod without access: from the gateway", &denied));

    tour.nodes[0].stop(Signal::SIGKILL)?;
    // Connections are intercepted until the datapath notices, a second or two.
    wait_until("the gateway to be reached", || Ok(read(tour, &pod, &put).is_ok()))?;
    let without = read(tour, &pod, &put)?;
    ensure!(without.cache().is_empty(), "served by LOTA although the daemon is dead");
    lines.push(Line::timed("daemon killed: from the gateway", &without));

    tour.revive()?;
    wait_until("LOTA to serve again", || Ok(read(tour, &pod, &put)?.cache() == "hit"))?;
    lines.push(Line::timed("daemon started: from LOTA", &read(tour, &pod, &put)?));
    Ok(lines)
}

fn endpoint() -> String {
    format!("http://{GATEWAY}:{GATEWAY_PORT}")
}

/// Reads the object at the gateway's own address.
fn read(tour: &Tour, pod: &Namespace, put: &Got) -> Result<Got> {
    let got = tour.client.get_with(pod, KEY, json!({ "endpoint": endpoint() }))?;
    ensure!(got.status == 200, "{} {}", got.status, got.code);
    same(&got, &put.sha256, "at the gateway's own address")?;
    Ok(got)
}
