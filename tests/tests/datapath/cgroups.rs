//! Identity of pods by the cgroups of their sockets, with the daemon.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lota_common::{Verdict, map};
use lota_tests::{
    lab::{AT_ONCE, ApiPod, Namespace, PODS, Pod, Reached, Style, VIP, VIP6, knock, run},
    tour::{MIB, Tour, wait_until},
};
use nix::sys::signal::Signal;

use super::{cgroup_cluster::*, dump, forge, lota_json};

/// All packets were refused as spoofed.
fn all_refused(seen: &[(bool, bool)]) -> bool {
    seen.iter().all(|seen| *seen == (true, false))
}

/// All packets were redirected.
fn all_passed(seen: &[(bool, bool)]) -> bool {
    seen.iter().all(|seen| *seen == (false, true))
}

/// At an interface: the address of a pod that has access through any interface.
pub(crate) fn spoofed(tour: &mut Tour) -> Result<()> {
    let mut cluster = Cluster::start(tour, "identity = \"cgroup+address\"\nallow = [\"10.77.13.0/24\"]")?;
    cluster.report("no", "no")?;
    let router = mac(&cluster.tour.lab.node(3), &TWO.0.interface())?;
    for (pod, uid) in [ONE, TWO] {
        let (reached, _) = cluster.knock(uid, &cluster.tour.lab.pod(pod), VIP)?;
        ensure!(reached == Reached::Open, "{pod:?} with its own address got {reached:?}");
    }
    let seen = cluster.forge(TWO.1, ONE.0.address(), &router)?;
    ensure!(all_refused(&seen), "as another pod: {seen:?}");
    let denied = lota_json(cluster.node(), &["access", "denied"])?;
    let address = ONE.0.address().to_string();
    let entry = denied.iter().find(|entry| entry["address"] == address).context("it is not listed")?;
    ensure!(entry["verdict"] == "spoofed" && entry["interface"] == TWO.0.interface(), "{entry}");
    let place = cluster.tour.lab.pod(TWO.0);
    place.write("/proc/sys/net/ipv4/ip_forward", "1")?;
    place.write("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
    place.write("/proc/sys/net/ipv4/conf/lo/rp_filter", "0")?;
    let seen = cluster.forge_by(&["lo"], TWO.1, ONE.0.address(), &router)?;
    ensure!(all_refused(&seen), "without a socket: {seen:?}");
    // Address of no pod: only the address decides.
    let seen = cluster.forge(TWO.1, Ipv4Addr::new(10, 77, 13, 99), &router)?;
    ensure!(all_passed(&seen), "as no pod: {seen:?}");
    // A pod that the API server no longer reports is still in its cgroup.
    cluster.api.remove(TWO.1);
    cluster.wait_for_cgroups(1)?;
    let seen = cluster.forge(TWO.1, ONE.0.address(), &router)?;
    ensure!(all_refused(&seen), "while it is not reported: {seen:?}");
    cluster.report("no", "forwards")?;
    wait_until("the pod to forward", || Ok(all_passed(&cluster.forge(TWO.1, ONE.0.address(), &router)?)))?;
    // With "auto", packets without a socket are judged by their address.
    cluster.reload("identity = \"auto\"\nallow = [\"10.77.13.0/24\"]")?;
    cluster.report("no", "no")?;
    let seen = cluster.forge_by(&["lo"], TWO.1, ONE.0.address(), &router)?;
    ensure!(all_passed(&seen), "without a socket, by \"auto\": {seen:?}");
    let seen = cluster.forge(TWO.1, ONE.0.address(), &router)?;
    ensure!(all_refused(&seen), "by \"auto\": {seen:?}");
    Ok(())
}

/// Behind a bridge: addresses that are valid at the bridge.
pub(crate) fn bridge(tour: &mut Tour) -> Result<()> {
    let made = Bridge::make(tour)?;
    let tested = (|| -> Result<()> {
        // No pattern matches the ports.
        let mut cluster = Cluster::start_at(tour, "cni0", "identity = \"auto\"")?;
        cluster.report("yes", "no")?;
        let router = mac(&cluster.tour.lab.node(3), "cni0")?;
        let checked = || -> Result<bool> {
            let status = &lota_json(cluster.node(), &["datapath", "status"])?[0];
            let interfaces = status["interfaces"].as_array().context("no interfaces")?;
            let is_port = |name: &str| {
                interfaces
                    .iter()
                    .any(|port| port["name"] == name && port["mode"].is_null() && port["checked"] == true)
            };
            // Those of pods that the API server does not report, too.
            Ok((1..=PODS).all(|pod| is_port(&Pod(3, pod).interface())))
        };
        wait_until("senders to be checked at the ports", checked)?;
        let own = |cluster: &Cluster<'_>| -> Result<[Reached; 2]> {
            let reached = |(pod, uid): (Pod, &str)| cluster.knock(uid, &cluster.tour.lab.pod(pod), VIP);
            Ok([reached(ONE)?.0, reached(TWO)?.0])
        };
        wait_until("the first pod to have access, not the second", || {
            Ok(own(&cluster)? == [Reached::Open, Reached::Refused])
        })?;
        ensure!(port(&cluster)? == ONE.0.interface(), "it is bound to the port {}", port(&cluster)?);
        let seen = cluster.forge(TWO.1, ONE.0.address(), &router)?;
        ensure!(all_refused(&seen), "behind a bridge, as the other pod: {seen:?}");
        // Without a socket of the pod's, the port decides.
        for (pod, verdict) in [(ONE.0, Verdict::Redirected), (TWO.0, Verdict::Spoofed)] {
            let before = cluster.packets(verdict)?;
            let (from, vip) = (SocketAddrV4::new(ONE.0.address(), 40_010), SocketAddrV4::new(VIP, 80));
            cluster.tour.lab.pod(pod).run(move || forge::send_syn(from, vip))??;
            wait_until(&format!("a packet of no pod to be {verdict:?}"), || {
                Ok(cluster.packets(verdict)? > before)
            })?;
        }
        cluster.reload("identity = \"address\"")?;
        let seen = cluster.forge(TWO.1, ONE.0.address(), &router)?;
        ensure!(all_refused(&seen), "by address only: {seen:?}");
        // The port is kept when the daemon starts, whatever pods claim meanwhile.
        let second = cluster.tour.lab.pod(TWO.0);
        second.ip(&format!("addr add {}/32 dev eth0", ONE.0.address()))?;
        let restarted = (|| -> Result<_> {
            cluster.node_mut().stop(Signal::SIGKILL)?;
            cluster.node_mut().start()?;
            wait_until("the API server to be asked", || Ok(dump(cluster.node(), map::HOLDERS4)?.len() == 2))?;
            Ok((port(&cluster)?, cluster.forge(TWO.1, ONE.0.address(), &router)?))
        })();
        second.ip(&format!("addr del {}/32 dev eth0", ONE.0.address()))?;
        let (at, seen) = restarted?;
        ensure!(at == ONE.0.interface(), "after a start, it is bound to the port {at}");
        ensure!(all_refused(&seen), "after a start, by address only: {seen:?}");
        cluster.reload("identity = \"cgroup+address\"")?;
        cluster.wait_for_cgroups(2)?;
        let seen = cluster.forge(TWO.1, ONE.0.address(), &router)?;
        ensure!(all_refused(&seen), "by cgroup again: {seen:?}");
        ensure!(own(&cluster)? == [Reached::Open, Reached::Refused], "with their own addresses");
        Ok(())
    })();
    made.remove(tour)?;
    tested?;
    wait_until("the pods' interfaces to be attached again", || {
        Ok(knock(&tour.pod(3, 1), VIP, 80)?.0 == Reached::Open)
    })
}

/// Returns the port of a bridge that the entry of the first pod is bound to.
fn port(cluster: &Cluster<'_>) -> Result<String> {
    let (entries, address) = (lota_json(cluster.node(), &["access", "list"])?, ONE.0.address().to_string());
    let entry = entries.into_iter().find(|entry| entry["subject"] == address).context("no entry")?;
    Ok(entry["port"].as_str().unwrap_or("(any)").to_owned())
}

/// The second pod gets the address of the first one, behind the same bridge.
pub(crate) fn reused_address(tour: &mut Tour) -> Result<()> {
    let made = Bridge::make(tour)?;
    let address = ONE.0.address();
    let tested = (|| -> Result<()> {
        let cluster = Cluster::start_at(tour, "cni0", "identity = \"cgroup+address\"")?;
        let pod =
            |uid: &str, address, label, started| ApiPod { started, ..ApiPod::new(uid, uid, address, label) };
        cluster.api.apply(&pod(ONE.1, Some(address), "yes", 1));
        // The API server has reported the next pod, but not its address.
        cluster.api.apply(&pod(TWO.1, None, "yes", 2));
        cluster.wait_for_cgroups(2)?;
        let first = cluster.tour.lab.pod(ONE.0);
        wait_until("the first pod to have access", || {
            Ok(cluster.knock(ONE.1, &first, VIP)?.0 == Reached::Open)
        })?;
        let second = cluster.tour.lab.pod(TWO.0);
        let exchanged = (|| -> Result<()> {
            first.ip(&format!("addr del {address}/32 dev eth0"))?;
            second.ip(&format!("addr del {}/32 dev eth0", TWO.0.address()))?;
            second.ip(&format!("addr add {address}/32 dev eth0"))?;
            second.ip("route replace 10.77.13.1 dev eth0")?;
            second.ip("route replace default via 10.77.13.1")?;
            cluster.tour.lab.node(3).ip("neigh flush dev cni0")?;
            let (reached, _) = cluster.knock(TWO.1, &second, VIP)?;
            ensure!(reached == Reached::Nothing, "before it is reported, the next pod got {reached:?}");
            cluster.api.remove(ONE.1);
            cluster.api.apply(&pod(TWO.1, Some(address), "yes", 2));
            wait_until("the next pod to have access", || {
                Ok(cluster.knock(TWO.1, &second, VIP)?.0 == Reached::Open)
            })?;
            Ok(())
        })();
        first.ip(&format!("addr replace {address}/32 dev eth0"))?;
        second.ip(&format!("addr del {address}/32 dev eth0"))?;
        second.ip(&format!("addr replace {}/32 dev eth0", TWO.0.address()))?;
        for place in [&first, &second] {
            place.ip("route replace 10.77.13.1 dev eth0")?;
            place.ip("route replace default via 10.77.13.1")?;
        }
        exchanged
    })();
    made.remove(tour)?;
    tested
}

/// Pods on the host network have access by the same rules as others.
pub(crate) fn host_network(tour: &mut Tour) -> Result<()> {
    let mut cluster = Cluster::start(tour, "identity = \"cgroup+address\"")?;
    let place = cluster.tour.lab.node(3);
    let own = lota_tests::lab::node_address(3);
    let pod =
        |uid: &str, label: &str| ApiPod { host_network: true, ..ApiPod::new(uid, uid, Some(own), label) };
    let reached = |cluster: &Cluster<'_>| -> Result<[Reached; 3]> {
        let inside = |uid| -> Result<Reached> { Ok(cluster.knock(uid, &place, VIP)?.0) };
        Ok([inside(ONE.1)?, inside(TWO.1)?, knock(&place, VIP, 80)?.0])
    };
    let becomes = |cluster: &Cluster<'_>, expected: [Reached; 3], why: &str| {
        wait_until(why, || Ok(reached(cluster)? == expected))
    };
    use Reached::{Open, Refused};
    cluster.api.apply(&pod(ONE.1, "no"));
    cluster.api.apply(&pod(TWO.1, "no"));
    cluster.wait_for_cgroups(2)?;
    ensure!(reached(&cluster)? == [Refused; 3], "without a rule: {:?}", reached(&cluster)?);
    cluster.api.apply(&pod(ONE.1, "yes"));
    becomes(&cluster, [Open, Refused, Refused], "the first pod to have access")?;
    for _ in 0..20 {
        ensure!(reached(&cluster)? == [Open, Refused, Refused], "repeatedly: {:?}", reached(&cluster)?);
    }
    let (refused, after) = cluster.knock(TWO.1, &place, VIP)?;
    ensure!(refused == Refused && after < AT_ONCE, "{refused:?} after {after:?}");
    let (six, _) = cluster.knock(ONE.1, &place, VIP6)?;
    ensure!(six == Open, "IPv6: {six:?}");
    ensure!(cluster.knock(TWO.1, &place, VIP6)?.0 == Refused, "IPv6");
    // Whole requests, in both directions.
    let (client, key) = (cluster.tour.client.clone(), "host-network/object");
    place.set("hosts", &format!("127.0.0.1 localhost\n{VIP} cwlota.com\n"))?;
    let put = cluster.cgroups.within(ONE.1, CLASS, || client.put(&place, key, 140, 8 * MIB))??;
    let got = cluster.cgroups.within(ONE.1, CLASS, || client.get(&place, key, Style::Path))??;
    ensure!(got.sha256 == put.sha256, "{} {}", got.status, got.code);
    bypass(&cluster, &place)?;
    // An operator's entry for the VIP overrides rules.
    cluster.node().lota(&["access", "deny", &VIP.to_string()])?;
    becomes(&cluster, [Refused; 3], "an operator's denial")?;
    cluster.node().lota(&["access", "forget", &VIP.to_string()])?;
    becomes(&cluster, [Open, Refused, Refused], "access again")?;
    cluster.reload("identity = \"cgroup+address\"\nhost_network = true")?;
    becomes(&cluster, [Open, Refused, Open], "processes outside of pods to have access")?;
    // By address, they cannot be told apart.
    cluster.reload("identity = \"address\"\nhost_network = true")?;
    becomes(&cluster, [Open; 3], "all processes to have access")?;
    cluster.reload("identity = \"address\"")?;
    becomes(&cluster, [Refused; 3], "no process to have access")?;
    cluster.reload("identity = \"cgroup+address\"")?;
    becomes(&cluster, [Open, Refused, Refused], "the rules to apply again")?;
    // A restart keeps what the API server has reported, also before it reports again.
    cluster.node_mut().stop(Signal::SIGKILL)?;
    ensure!(reached(&cluster)? == [Refused; 3], "without a daemon: {:?}", reached(&cluster)?);
    cluster.node_mut().start()?;
    let (at_once, _) = cluster.knock(ONE.1, &place, VIP)?;
    ensure!(at_once == Open, "after a restart, it got {at_once:?}");
    becomes(&cluster, [Open, Refused, Refused], "the rules to apply after a restart")?;
    cluster.api.apply(&pod(TWO.1, "yes"));
    becomes(&cluster, [Open, Open, Refused], "the second pod to have access")?;
    cluster.api.remove(ONE.1);
    becomes(&cluster, [Refused, Open, Refused], "the removed pod to be refused")?;
    // A static pod's cgroup is named by its hash.
    let hash = "5a3ef0a4a1a6f6f0b0a7b7c8d9e0f1a2";
    cluster.cgroups.make_pod(hash, CLASS)?;
    cluster.api.apply(&ApiPod { static_hash: Some(hash.to_owned()), ..pod("mirror", "yes") });
    wait_until("a static pod to have access", || Ok(cluster.knock(hash, &place, VIP)?.0 == Open))
}

/// A packet past the program at the egress of `lo` has no access, even if the connection of an allowed pod had the same
/// port just before.
fn bypass(cluster: &Cluster<'_>, place: &Namespace) -> Result<()> {
    const PORT: u16 = 45_000;
    let connect = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddrV4::new(VIP, PORT).into())?;
        socket.connect(&SocketAddrV4::new(VIP, 80).into())?;
        // Ends by a reset, so that the port is free at once.
        socket.set_linger(Some(Duration::ZERO))
    };
    let before = (cluster.packets(Verdict::Denied)?, cluster.packets(Verdict::Redirected)?);
    cluster.cgroups.within(ONE.1, CLASS, || place.run(connect))???;
    let packet = forge::syn(SocketAddrV4::new(VIP, PORT), SocketAddrV4::new(VIP, 80));
    cluster
        .cgroups
        .within(TWO.1, CLASS, || send_packet(place, "lo", &packet, "00:00:00:00:00:00", "bypass"))??;
    wait_until("the packet to be refused", || Ok(cluster.packets(Verdict::Denied)? > before.0))?;
    let redirected = cluster.packets(Verdict::Redirected)? - before.1;
    ensure!(redirected == 1, "{redirected} connections were redirected");
    Ok(())
}

/// `access.identity`, forced each way.
pub(crate) fn configured(tour: &mut Tour) -> Result<()> {
    let mut cluster = Cluster::start(tour, "identity = \"auto\"")?;
    cluster.report("yes", "no")?;
    let status = |cluster: &Cluster<'_>| -> Result<(String, String)> {
        // It fails if any part has a problem, such as the other nodes, which this API server does not know.
        let short =
            cluster.node().command().args(["status", "--config"]).arg(cluster.node().config()).output()?;
        let short = String::from_utf8_lossy(&short.stdout).into_owned();
        let access = short.lines().find(|line| line.contains("  access")).context("no access")?.to_owned();
        Ok((access, cluster.node().lota(&["datapath", "status"])?))
    };
    let (short, long) = status(&cluster)?;
    ensure!(short.contains("identified by address and cgroup"), "{short}");
    ensure!(long.contains("identity by address and cgroup, 2 pods\n"), "{long}");
    cluster.reload("identity = \"address\"")?;
    let (short, long) = status(&cluster)?;
    ensure!(short.contains("identified by address only") && !short.contains("hierarchy"), "{short}");
    ensure!(long.contains("identity by address only\n"), "{long}");
    cluster.reload("identity = \"auto\"\ncgroup_path = \"/tmp\"")?;
    let (short, _) = status(&cluster)?;
    ensure!(
        short.contains("address only: /tmp (access.cgroup_path): it is not a cgroup v2 hierarchy"),
        "{short}"
    );
    let (reached, _) = knock(&cluster.tour.lab.pod(ONE.0), VIP, 80)?;
    ensure!(reached == Reached::Open, "by address, a pod got {reached:?}");
    let missing = "identity = \"cgroup+address\"\ncgroup_path = \"/tmp\"";
    let refused = cluster.reload(missing).map_err(|error| format!("{error:#}")).err().unwrap_or_default();
    ensure!(refused.contains("cgroup v2 hierarchy"), "a reload printed `{refused}`");
    let Err(error) = cluster.node_mut().start() else { bail!("it started without the hierarchy") };
    let error = format!("{error:#}");
    ensure!(error.contains("access.identity = \"cgroup+address\" needs"), "{error}");
    cluster.configure("identity = \"cgroup+address\"")?;
    cluster.node_mut().start()?;
    cluster.wait_for_cgroups(2)
}

/// `bpftool` shows which pod a cgroup or an address is.
pub(crate) fn text(tour: &mut Tour) -> Result<()> {
    let cluster = Cluster::start(tour, "identity = \"cgroup+address\"")?;
    cluster.report("yes", "no")?;
    let cgroups = dump(cluster.node(), map::CGROUPS)?;
    for ((_, uid), allow) in [(ONE, 1), (TWO, 0)] {
        let id = cluster.cgroups.id(uid, CLASS)?;
        let entry = cgroups.iter().find(|entry| entry["key"] == id).context("no entry of its cgroup")?;
        let value = &entry["value"];
        let name = format!("team/{uid}");
        ensure!(value["pod"] == *name && value["uid"] == *uid, "{entry}");
        ensure!(value["allow"] == allow && value["source"] == 1 && value["forwards"] == 0, "{entry}");
    }
    let key = serde_json::json!(ONE.0.address().octets());
    let holders = dump(cluster.node(), map::HOLDERS4)?;
    let entry = holders.iter().find(|entry| entry["key"]["address"] == key);
    let value = &entry.context("no holder of its address")?["value"];
    ensure!(value["pod"] == *format!("team/{}", ONE.1) && value["uid"] == *ONE.1, "{value}");
    ensure!(value["cgroup"] == cluster.cgroups.id(ONE.1, CLASS)?, "{value}");
    // As an operator sees it.
    let shown =
        run(Command::new("bpftool").args(["map", "dump", "pinned"]).arg(cluster.node().map(map::CGROUPS)))?;
    ensure!(shown.contains(&format!("\"uid\": \"{}\"", ONE.1)), "{shown}");
    Ok(())
}
