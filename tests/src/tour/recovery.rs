//! Step 9: an owner is killed and restarts with its cache.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{Line, MIB, Tour, expect, same};
use crate::lab::{Pod, Style};

pub(super) fn owner(tour: &mut Tour) -> Result<Vec<Line>> {
    let (client, pod, key) = (tour.client.clone(), tour.pod(1, 1), "recovery/object");
    let mut lines = Vec::new();
    let put = client.put(&pod, key, 90, 16 * MIB)?;
    client.get(&pod, key, Style::Path)?;
    let owner = tour.wait_cached(key)?;
    expect(&client.get(&pod, key, Style::Path)?, 200, "hit", "before")?;
    let dead = tour.nodes.iter().position(|node| node.name() == owner).context("no such node")?;
    tour.nodes[dead].stop(Signal::SIGKILL)?;
    lines.push(Line::new("kill the owner's daemon (SIGKILL)", owner.clone()));
    for other in (0..tour.nodes.len()).filter(|node| *node != dead) {
        let pod = tour.lab.pod(Pod(u8::try_from(other + 1)?, 1));
        let what = format!("read through {}", tour.nodes[other].name());
        for _ in 0..2 {
            let got = client.get(&pod, key, Style::Path)?;
            same(&got, &put.sha256, &what)?;
            ensure!(got.status == 200 && got.node() != owner, "{what}: {} from {}", got.status, got.node());
            lines.push(Line::timed(&what, &got));
        }
    }
    tour.nodes[dead].start()?;
    lines.push(Line::new("start it again", owner.clone()));
    let pod = tour.lab.pod(Pod(u8::try_from(dead + 1)?, 1));
    let again = client.get(&pod, key, Style::Path)?;
    same(&again, &put.sha256, "after the restart")?;
    expect(&again, 200, "hit", "after the restart: its cache is preserved")?;
    ensure!(again.node() == owner, "served by {}", again.node());
    lines.push(Line::timed("read through it: its cache is preserved", &again));
    Ok(lines)
}
