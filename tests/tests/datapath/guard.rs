//! The guard where native XDP is not available.

use anyhow::{Context as _, Result, ensure};
use aya::{
    EbpfLoader,
    programs::{Xdp, XdpMode},
};
use lota_common::program;
use lota_tests::{
    lab::{Mode, PEER_PORT, Reached, Style, VIP, knock, node_address},
    tour::{MIB, Tour},
};
use nix::sys::signal::Signal;

use super::lota_json;

/// Another XDP program is attached to the uplink.
pub(crate) fn taken(tour: &mut Tour) -> Result<()> {
    let node = &mut tour.nodes[1];
    node.stop(Signal::SIGTERM)?;
    node.lota(&["datapath", "detach"])?;
    // The other program is LOTA's own, which passes everything without settings.
    let theirs = tour.lab.node(2).run(|| -> Result<aya::Ebpf> {
        let mut theirs = EbpfLoader::new().load(lota_datapath::OBJECT)?;
        let program: &mut Xdp = theirs.program_mut(program::GUARD).context("no program")?.try_into()?;
        program.load()?;
        program.attach("uplink", XdpMode::Driver)?;
        Ok(theirs)
    })??;
    for attach in ["tcx", "clsact"] {
        let node = &mut tour.nodes[1];
        node.edit("attach = \"auto\"", &format!("attach = \"{attach}\""));
        node.configure(Mode::OwnCredential)?;
        node.start()?;
        node.forget_edits();
        holds(tour, attach)?;
    }
    drop(theirs);
    let node = &mut tour.nodes[1];
    node.stop(Signal::SIGTERM)?;
    node.lota(&["datapath", "detach"])?;
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    holds(tour, "native")
}

/// A bridge has no native XDP.
pub(crate) fn generic(tour: &mut Tour) -> Result<()> {
    let place = tour.lab.node(2);
    tour.nodes[1].stop(Signal::SIGTERM)?;
    tour.nodes[1].lota(&["datapath", "detach"])?;
    place.ip("link add br-up type bridge")?;
    place.ip("link set br-up up")?;
    place.ip("link set uplink master br-up")?;
    place.ip("addr flush dev uplink")?;
    place.ip(&format!("addr add {}/24 dev br-up", node_address(2)))?;
    let routes = |device: &str| -> Result<()> {
        for other in [1, 3] {
            place.ip(&format!(
                "route replace 10.77.{}.0/24 via {} dev {device}",
                10 + other,
                node_address(other)
            ))?;
        }
        Ok(())
    };
    routes("br-up")?;
    let node = &mut tour.nodes[1];
    node.edit("uplink = \"uplink\"", "uplink = \"br-up\"");
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    node.forget_edits();
    let held = holds(tour, "generic");
    let node = &mut tour.nodes[1];
    node.stop(Signal::SIGTERM)?;
    place.ip("link del br-up")?;
    place.ip(&format!("addr add {}/24 dev uplink", node_address(2)))?;
    place.ip(&format!("addr add {}/64 dev uplink nodad", lota_tests::lab::node_address6(2)))?;
    routes("uplink")?;
    for other in [1, 3] {
        let via = lota_tests::lab::node_address6(other);
        place.ip(&format!("route replace fd77:{:x}::/32 via {via}", 10 + other))?;
    }
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    held
}

/// Verifies that node 2's uplink drops other hosts but not peers, and that status reports the mode.
fn holds(tour: &Tour, mode: &str) -> Result<()> {
    let status = &lota_json(&tour.nodes[1], &["datapath", "status"])?[0];
    ensure!(status["guard"]["mode"] == mode, "{} instead of {mode}", status["guard"]);
    let switch = tour.lab.switch();
    let (stranger, _) = knock(&switch, node_address(2), PEER_PORT)?;
    switch.ip(&format!("route add {VIP}/32 via {}", node_address(2)))?;
    let outside = [knock(&switch, VIP, 80), knock(&switch, VIP, 53)];
    switch.ip(&format!("route del {VIP}/32"))?;
    ensure!(
        stranger == Reached::Nothing,
        "{mode}: a host that is not a peer got {stranger:?} at the peer port"
    );
    for outside in outside {
        ensure!(outside?.0 == Reached::Nothing, "{mode}: from outside, the VIP answered");
    }
    let (other, _) = knock(&switch, node_address(2), 9)?;
    ensure!(other == Reached::Refused, "{mode}: other ports gave {other:?}");
    let key = "guard/object";
    let put = tour.client.put(&tour.pod(2, 1), key, 131, MIB)?;
    let mut served = std::collections::HashSet::new();
    for (node, pod) in tour.one_pod_per_node() {
        let got = tour.client.get(&pod, key, Style::Path)?;
        ensure!(got.sha256 == put.sha256, "{mode}: from n{node}: {} {}", got.status, got.code);
        served.insert(got.node().to_owned());
    }
    ensure!(served.len() == 1, "{mode}: peers do not reach each other: served by {served:?}");
    Ok(())
}
