//! Binding of addresses to interfaces, and attempts of pods to use other pods' addresses.

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{DENIED, Namespace, Pod, Reached, VIP, knock, run},
    tour::{Tour, wait_until},
};
use nix::sys::signal::Signal;

use super::lota_json;

/// Routes to pods as Cilium makes them by default: one prefix for all pods, toward another interface. Replies of this
/// node go to the pod by a table of their own.
struct CoveringRoute {
    node: Namespace,
}

impl CoveringRoute {
    fn make(tour: &Tour) -> Result<Self> {
        let node = tour.lab.node(DENIED.0);
        let (address, interface) = (DENIED.address(), DENIED.interface());
        node.ip(&format!("route del {address}/32 dev {interface}"))?;
        let made = Self { node };
        made.node.ip("link add cilium_host type veth peer name cilium_net")?;
        made.node.ip("link set cilium_host up")?;
        made.node.ip("route add 10.77.13.0/24 dev cilium_host")?;
        made.node.ip(&format!("rule add from {VIP} to {address} lookup 77"))?;
        made.node.ip(&format!("route add {address} dev {interface} table 77"))?;
        Ok(made)
    }
}

impl Drop for CoveringRoute {
    fn drop(&mut self) {
        let (address, interface) = (DENIED.address(), DENIED.interface());
        for undo in [
            "link del cilium_host".to_owned(),
            format!("rule del from {VIP} to {address} lookup 77"),
            "route flush table 77".to_owned(),
            format!("route replace {address}/32 dev {interface}"),
        ] {
            if let Err(error) = self.node.ip(&undo) {
                eprintln!("cannot undo a route: {error:#}");
            }
        }
    }
}

/// Verifies that an address is bound to the interface that has it at its other end, whatever the routes are.
pub(crate) fn covering_route(tour: &mut Tour) -> Result<()> {
    let _route = CoveringRoute::make(tour)?;
    let (node, pod) = (&tour.nodes[2], tour.lab.pod(DENIED));
    let address = DENIED.address().to_string();
    let output = node.lota(&["access", "allow", &address])?;
    let reached = knock(&pod, VIP, 80)?.0;
    node.lota(&["access", "forget", &address])?;
    ensure!(output.contains(&DENIED.interface()), "it was bound to another interface: {output}");
    ensure!(reached == Reached::Open, "{output}, but it reached {reached:?}");
    Ok(())
}

/// Verifies that an address which several pods have is bound to none, and that a binding is kept.
pub(crate) fn claimed_twice(tour: &mut Tour) -> Result<()> {
    let _route = CoveringRoute::make(tour)?;
    let node = &tour.nodes[2];
    let (address, other) = (DENIED.address().to_string(), tour.lab.pod(Pod(3, 1)));
    let allow =
        || node.command().args(["access", "allow", &address]).arg("--config").arg(node.config()).output();
    other.ip(&format!("addr add {address}/32 dev eth0"))?;
    let refused = allow();
    other.ip(&format!("addr del {address}/32 dev eth0"))?;
    let refused = refused?;
    let output = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success(), "it was bound although two pods have it");
    for name in [DENIED.interface(), Pod(3, 1).interface()] {
        ensure!(output.contains(&name), "no `{name}` in: {output}");
    }
    ensure!(allow()?.status.success());
    other.ip(&format!("addr add {address}/32 dev eth0"))?;
    let entries = lota_json(node, &["access", "list"]);
    let reached = knock(&tour.lab.pod(DENIED), VIP, 80);
    other.ip(&format!("addr del {address}/32 dev eth0"))?;
    node.lota(&["access", "forget", &address])?;
    let entry = entries?.into_iter().find(|entry| entry["subject"] == *address).context("no entry")?;
    ensure!(entry["interface"] == DENIED.interface(), "a later claim changed the binding: {entry}");
    ensure!(reached?.0 == Reached::Open);
    Ok(())
}

/// Verifies that another interface with the same name, index and address does not inherit an entry, whether the daemon
/// runs, is paused, or is down when the interfaces change.
pub(crate) fn reused_index(tour: &mut Tour) -> Result<()> {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Daemon {
        Runs,
        IsPaused,
        IsDown,
    }
    let address = DENIED.address().to_string();
    let reached = |tour: &Tour| -> Result<Reached> { Ok(knock(&tour.lab.pod(DENIED), VIP, 80)?.0) };
    for daemon in [Daemon::Runs, Daemon::IsPaused, Daemon::IsDown] {
        tour.nodes[2].lota(&["access", "allow", &address])?;
        let before = reached(tour)?;
        match daemon {
            Daemon::Runs => {}
            Daemon::IsPaused => tour.nodes[2].signal(Signal::SIGSTOP)?,
            Daemon::IsDown => tour.nodes[2].stop(Signal::SIGKILL)?,
        }
        let replaced = tour.lab.replace_pod(DENIED);
        match daemon {
            Daemon::Runs => {}
            Daemon::IsPaused => tour.nodes[2].signal(Signal::SIGCONT)?,
            Daemon::IsDown => tour.nodes[2].start()?,
        }
        replaced?;
        ensure!(before == Reached::Open, "{daemon:?}: allowed, it reached {before:?}");
        let node = &tour.nodes[2];
        wait_until(&format!("the entry to end ({daemon:?})"), || {
            Ok(lota_json(node, &["access", "list"])?.iter().all(|entry| entry["subject"] != *address))
        })?;
        wait_until(&format!("the other pod to be refused ({daemon:?})"), || {
            Ok(reached(tour)? == Reached::Refused)
        })?;
    }
    Ok(())
}

/// Verifies that the daemon still follows the kernel after more reports than its socket holds.
pub(crate) fn many_removed(tour: &mut Tour) -> Result<()> {
    let (node, place) = (&tour.nodes[2], tour.lab.node(3));
    let address = DENIED.address().to_string();
    for round in 0..3 {
        for pair in 0..100 {
            place.ip(&format!("link add a{pair} group 77 type veth peer name b{pair} group 77"))?;
            place.ip(&format!("link set a{pair} up"))?;
        }
        place.ip("link del group 77")?;
        // Removed and added again: the daemon must answer and still see changes.
        node.lota(&["access", "allow", &address]).with_context(|| format!("round {round}"))?;
        let reached = knock(&tour.lab.pod(DENIED), VIP, 80)?.0;
        ensure!(reached == Reached::Open, "round {round}: allowed, it reached {reached:?}");
        tour.lab.replace_pod(DENIED)?;
        wait_until("the entry to end with its interface", || {
            Ok(lota_json(node, &["access", "list"])?.iter().all(|entry| entry["subject"] != *address))
        })?;
    }
    Ok(())
}

/// Verifies that a VIP which other software removes from `lo` is added again, and that no packet to it leaves the node
/// meanwhile.
pub(crate) fn vip_removed(tour: &mut Tour) -> Result<()> {
    let (node, pod) = (tour.lab.node(1), Pod(1, 1));
    let has_vip = || -> Result<bool> {
        Ok(run(node.command("ip").args(["-4", "addr", "show", "dev", "lo"]))?.contains(&VIP.to_string()))
    };
    ensure!(has_vip()?, "initially");
    tour.nodes[0].signal(Signal::SIGSTOP)?;
    let interface = pod.interface();
    let route_of_pod = || {
        let from = pod.address().to_string();
        node.command("ip").args(["route", "get", &VIP.to_string(), "from", &from, "iif", &interface]).output()
    };
    let seen = (|| -> Result<_> {
        node.ip(&format!("addr del {VIP}/32 dev lo"))?;
        Ok((has_vip()?, route_of_pod()?, knock(&tour.lab.pod(pod), VIP, 80)?.0))
    })();
    tour.nodes[0].signal(Signal::SIGCONT)?;
    let (still, route, reached) = seen?;
    ensure!(!still, "the VIP is still there");
    ensure!(!route.status.success(), "packets to the VIP leave the node: {route:?}");
    ensure!(reached == Reached::Nothing, "without the VIP, a pod reached {reached:?}");
    wait_until("the VIP to be back", has_vip)?;
    wait_until("a pod to reach it", || Ok(knock(&tour.lab.pod(pod), VIP, 80)?.0 == Reached::Open))
}
