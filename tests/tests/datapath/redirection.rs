//! Redirect of packets to the daemon.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{
        ADMIN_PORT, AT_ONCE, DENIED, Mode, Node, PEER_PORT, PODS, Pod, Reached, Style, VIP, VIP6, knock,
        node_address, node_address6, run,
    },
    tour::{MIB, Tour, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::lota_json;

const DENIALS: &str = "lota_datapath_packets_total{verdict=\"denied\"}";

/// A process of the node connects directly to the hidden listener.
pub(crate) fn hidden_listener(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[0];
    let pid = node.pid().context("n1 does not run")?;
    let sockets = run(tour.lab.node(1).command("ss").args(["-Hltnp"]))?;
    let hidden = sockets
        .lines()
        .filter(|line| line.contains(&format!("pid={pid},")))
        .find_map(|line| {
            line.split_whitespace().find_map(|word| word.strip_prefix("127.0.0.1:")?.parse::<u16>().ok())
        })
        .context("no listener on 127.0.0.1")?;
    let came = tour.lab.node(1).run(move || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], hidden)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.read(&mut [0; 100])
    })?;
    let reset = came.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
    ensure!(reset, "the hidden listener gave a process of the node {came:?}, not a reset");
    ensure!(node.metric("lota_unexpected_connections_total")? >= 1.0, "it was not counted");
    Ok(())
}

/// Stops the daemon of a node and removes LOTA from the kernel.
fn detach(node: &mut Node) -> Result<()> {
    node.stop(Signal::SIGTERM)?;
    node.lota(&["datapath", "detach"]).map(drop)
}

pub(crate) fn clsact(tour: &mut Tour) -> Result<()> {
    let (client, pod, key) = (tour.client.clone(), tour.pod(1, 1), "clsact/object");
    let node = &mut tour.nodes[0];
    // Detach everything, then attach with clsact.
    detach(node)?;
    ensure!(!node.map("").exists(), "detach left pins");
    node.edit("attach = \"auto\"", "attach = \"clsact\"");
    node.configure(Mode::OwnCredential)?;
    for _ in 0..2 {
        // Twice, since a restart must replace the existing filter.
        node.start()?;
        let filters =
            run(tour.lab.node(1).command("tc").args(["filter", "show", "dev", "veth-p1", "ingress"]))?;
        ensure!(filters.matches("handle 0x107a lota_pod").count() == 1, "the filters are:\n{filters}");
        let put = client.put(&pod, key, 110, MIB)?;
        let got = client.get(&pod, key, Style::Path)?;
        ensure!(got.sha256 == put.sha256, "{} {}", got.status, got.code);
        node.stop(Signal::SIGKILL)?;
        let refused =
            pod.run(|| TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(1)))?;
        let kind = refused.map(|_| ()).map_err(|error| error.kind());
        ensure!(kind == Err(std::io::ErrorKind::ConnectionRefused), "with the daemon killed: {kind:?}");
    }
    let others = node.cache_folder().join("of-others");
    std::fs::write(&others, "kept")?;
    for _ in 0..2 {
        node.lota(&["uninstall"])?;
    }
    let filters = run(tour.lab.node(1).command("tc").args(["filter", "show", "dev", "veth-p1", "ingress"]))?;
    ensure!(!filters.contains("lota_pod"), "uninstall left the filter:\n{filters}");
    let addresses = run(tour.lab.node(1).command("ip").args(["addr", "show", "dev", "lo"]))?;
    ensure!(!addresses.contains(&VIP.to_string()), "uninstall left the VIP:\n{addresses}");
    let own = node.cache_folder().join("lota-cache");
    ensure!(!node.map("").exists() && !own.exists(), "uninstall left pins or the cache");
    ensure!(others.exists(), "uninstall removed another file");
    std::fs::remove_file(others)?;
    node.forget_edits();
    node.configure(Mode::OwnCredential)?;
    node.start()
}

/// Other software removes LOTA's clsact filter or the whole qdisc, or adds a filter that runs before LOTA's.
pub(crate) fn clsact_disturbed(tour: &mut Tour) -> Result<()> {
    let pod = tour.pod(1, 1);
    let node = &mut tour.nodes[0];
    detach(node)?;
    node.edit("attach = \"auto\"", "attach = \"clsact\"");
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    let tc = |arguments: &str| {
        let (arguments, program) = arguments.split_once(" bytecode ").unwrap_or((arguments, ""));
        let mut tc = tour.lab.node(1).command("tc");
        tc.args(arguments.split(' '));
        if !program.is_empty() {
            tc.args(["bytecode", program]);
        }
        run(&mut tc)
    };
    let is_first = || -> Result<bool> {
        let filters = tc("filter show dev veth-p1 ingress")?;
        Ok(filters
            .lines()
            .find(|line| line.contains("handle"))
            .is_some_and(|line| line.contains("0x107a lota_pod")))
    };
    ensure!(is_first()?, "initially");
    for disturb in [
        "filter del dev veth-p1 ingress protocol all prio 1 handle 0x107a bpf",
        "qdisc del dev veth-p1 clsact",
        "filter add dev veth-p1 ingress protocol all prio 1 handle 1 bpf direct-action bytecode 1,6 0 0 0,",
    ] {
        tc(disturb)?;
        ensure!(!is_first()?, "`tc {disturb}` did nothing");
        wait_until(&format!("LOTA's filter to be first again after `tc {disturb}`"), is_first)?;
        let (reached, _) = knock(&pod, VIP, 80)?;
        let (admin, _) = knock(&pod, node_address(1), ADMIN_PORT)?;
        ensure!(reached == Reached::Open && admin == Reached::Nothing, "{disturb}: {reached:?} {admin:?}");
    }
    detach(node)?;
    node.forget_edits();
    node.configure(Mode::OwnCredential)?;
    node.start()
}

/// A pod's interface is removed and created again under the same name, and needs a new entry.
pub(crate) fn interfaces(tour: &mut Tour) -> Result<()> {
    let pod = Pod(2, 2);
    ensure!(pod != DENIED, "this pod has access");
    let (namespace, node) = (tour.lab.pod(pod), tour.lab.node(2));
    let denied = || -> Result<bool> {
        let tried = namespace
            .run(|| TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_millis(300)))?;
        Ok(tried.is_err())
    };
    ensure!(!denied()?, "it cannot connect initially");
    let entries = || -> Result<usize> {
        let map = tour.nodes[1].map(lota_common::map::ACCESS4);
        let dump = run(Command::new("bpftool").args(["--json", "map", "dump", "pinned"]).arg(map))?;
        Ok(serde_json::from_str::<Vec<Value>>(&dump)?.len())
    };
    ensure!(entries()? == 2, "{} entries initially", entries()?);
    node.ip(&format!("link del {}", pod.interface()))?;
    wait_until("the entry to go with its interface", || Ok(entries()? == 1))?;
    tour.lab.connect_pod(pod)?;
    wait_until("the new interface to be attached and allowed", || Ok(entries()? == 2 && !denied()?))?;
    let got = tour.client.put(&namespace, "interfaces/object", 111, 1000)?;
    ensure!(got.status == 200, "{} {}", got.status, got.code);
    Ok(())
}

/// Writes, reads and refusals after all other tests.
pub(crate) fn works(tour: &mut Tour) -> Result<()> {
    let key = "works/object";
    let put = tour.client.put(&tour.pod(1, 1), key, 120, MIB)?;
    for (node, pod) in tour.one_pod_per_node() {
        let got = tour.client.get(&pod, key, Style::Path)?;
        ensure!(got.sha256 == put.sha256, "from n{node}: {} {}", got.status, got.code);
    }
    let (reached, after) = knock(&tour.lab.pod(DENIED), VIP, 80)?;
    ensure!(reached == Reached::Refused && after < AT_ONCE, "the denied pod got {reached:?} after {after:?}");
    Ok(())
}

/// Node 3, which has the denied pod, without programs on pod interfaces.
pub(crate) fn lookup(tour: &mut Tour) -> Result<()> {
    let (client, pod, key) = (tour.client.clone(), tour.pod(3, 1), "lookup/object");
    let node = &mut tour.nodes[2];
    node.edit("mode = \"auto\"", "mode = \"sk_lookup\"");
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    let links = run(Command::new("bpftool").args(["--json", "link", "list"]))?;
    ensure!(!node.map("links/pod-3").exists(), "a pod's interface still has a program: {links}");
    let status = &lota_json(node, &["datapath", "status"])?[0];
    for interface in status["interfaces"].as_array().context("no interfaces")? {
        ensure!(interface["mode"] == "sk_lookup", "{interface}");
    }
    let put = client.put(&pod, key, 121, MIB)?;
    let got = client.get(&pod, key, Style::Path)?;
    ensure!(got.sha256 == put.sha256, "{} {}", got.status, got.code);
    let before = node.metric(DENIALS)?;
    let foreign = tour.lab.node(3).run(|| std::net::TcpListener::bind("0.0.0.0:80"))??;
    foreign.set_nonblocking(true)?;
    for vip in [IpAddr::from(VIP), VIP6.into()] {
        let (reached, after) = knock(&tour.lab.pod(DENIED), vip, 80)?;
        ensure!(
            reached == Reached::Refused && after < AT_ONCE,
            "denied at {vip}: {reached:?} after {after:?}"
        );
        let (reached, _) = knock(&pod, vip, 80)?;
        ensure!(reached == Reached::Open, "allowed at {vip}: {reached:?}");
    }
    ensure!(foreign.accept().is_err(), "the foreign listener got a connection");
    drop(foreign);
    ensure!(node.metric(DENIALS)? >= before + 2.0, "the refusals were not counted");
    for port in [PEER_PORT, ADMIN_PORT] {
        let (reached, _) = knock(&pod, node_address(3), port)?;
        ensure!(reached == Reached::Refused, "a pod got {reached:?} at port {port} of its node");
    }
    let redirected = |status: &Value| -> Result<u64> {
        let verdicts = status["verdicts"].as_array().context("no verdicts")?;
        let redirected = verdicts.iter().find(|verdict| verdict["verdict"] == "redirected");
        redirected.and_then(|verdict| verdict["packets"].as_u64()).context("no count")
    };
    let status = &lota_json(node, &["datapath", "status"])?[0];
    ensure!(redirected(status)? >= 4, "redirects at socket lookup were not counted: {status}");
    node.forget_edits();
    node.configure(Mode::OwnCredential)?;
    node.start()
}

/// Runs a test while a node's pods are behind the bridge `cni0`, as with flannel.
pub(crate) fn with_bridge(
    tour: &mut Tour,
    number: u8,
    test: impl FnOnce(&mut Tour) -> Result<()>,
) -> Result<()> {
    let node = tour.lab.node(number);
    node.ip("link add cni0 type bridge")?;
    node.ip(&format!("addr add 10.77.{}.1/32 dev cni0", 10 + number))?;
    node.ip("link set cni0 up")?;
    for pod in 1..=PODS {
        let pod = Pod(number, pod);
        node.ip(&format!("link set {} master cni0", pod.interface()))?;
        node.ip(&format!("route replace {}/32 dev cni0", pod.address()))?;
    }
    let tested = test(tour);
    node.ip("link del cni0")?;
    for pod in 1..=PODS {
        let pod = Pod(number, pod);
        node.ip(&format!("route replace {}/32 dev {}", pod.address(), pod.interface()))?;
        // The router had the MAC of the bridge, which may have been that of the other port.
        tour.lab.pod(pod).ip("neigh flush dev eth0")?;
    }
    tested?;
    wait_until("the pods' interfaces to be attached again", || {
        Ok(knock(&tour.pod(number, 1), VIP, 80)?.0 == Reached::Open)
    })
}

pub(crate) fn bridge(tour: &mut Tour) -> Result<()> {
    with_bridge(tour, 2, through_bridge)
}

fn through_bridge(tour: &mut Tour) -> Result<()> {
    let redirected = || -> Result<bool> {
        let status = &lota_json(&tour.nodes[1], &["datapath", "status"])?[0];
        let interfaces = status["interfaces"].as_array().context("no interfaces")?;
        let bridge = interfaces.iter().any(|one| one["name"] == "cni0" && one["mode"] == "tcx");
        let port = interfaces.iter().any(|one| {
            one["name"] == "veth-p1" && one["skipped"] == json!({"reason": "bridge_port", "bridge": "cni0"})
        });
        Ok(bridge && port)
    };
    let key = "bridge/object";
    wait_until("the bridge to be attached", redirected)?;
    let put = tour.client.put(&tour.pod(2, 1), key, 122, MIB)?;
    let got = tour.client.get(&tour.pod(2, 2), key, Style::Path)?;
    ensure!(got.sha256 == put.sha256, "{} {}", got.status, got.code);
    tour.nodes[1].lota(&["access", "deny", &Pod(2, 2).address().to_string()])?;
    let (reached, after) = knock(&tour.pod(2, 2), VIP, 80)?;
    tour.nodes[1].lota(&["access", "forget", &Pod(2, 2).address().to_string()])?;
    ensure!(reached == Reached::Refused && after < AT_ONCE, "denied, it got {reached:?} after {after:?}");
    let (reached, _) = knock(&tour.pod(2, 1), node_address(2), PEER_PORT)?;
    ensure!(reached == Reached::Nothing, "a pod got {reached:?} at the peer port");
    Ok(())
}

pub(crate) fn host_network(tour: &mut Tour) -> Result<()> {
    let place = tour.lab.node(1);
    let (reached, _) = knock(&place, VIP, 80)?;
    ensure!(reached == Reached::Refused, "by default, a process of the node got {reached:?}");
    let node = &mut tour.nodes[0];
    for mode in ["auto", "sk_lookup"] {
        node.edit("[access]\n", "[access]\nhost_network = true\n");
        node.edit("mode = \"auto\"", &format!("mode = \"{mode}\""));
        node.configure(Mode::OwnCredential)?;
        node.start()?;
        for vip in [IpAddr::from(VIP), VIP6.into()] {
            let (reached, _) = knock(&place, vip, 80)?;
            ensure!(reached == Reached::Open, "{mode}: a process of the node got {reached:?} at {vip}");
        }
        // Processes of the node still reach its ports, as kubelet's probes do.
        let (reached, _) = knock(&place, node_address(1), ADMIN_PORT)?;
        ensure!(reached == Reached::Open, "{mode}: at the admin port it got {reached:?}");
        node.forget_edits();
    }
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    let (reached, _) = knock(&place, VIP, 80)?;
    ensure!(reached == Reached::Refused, "without the configuration, it got {reached:?}");
    Ok(())
}

/// IPv6 from pods to LOTA and between nodes.
pub(crate) fn ipv6(tour: &mut Tour) -> Result<()> {
    tour.restart_each(|node| {
        node.use_ipv6(true);
        node.configure(Mode::OwnCredential)
    })?;
    let hosts = format!("127.0.0.1 localhost\n{VIP6} cwlota.com\n");
    let key = "ipv6/object";
    for (_, pod) in tour.one_pod_per_node() {
        pod.set("hosts", &hosts)?;
    }
    let put = tour.client.put(&tour.pod(1, 1), key, 123, MIB)?;
    let mut owners = std::collections::HashSet::new();
    for (node, pod) in tour.one_pod_per_node() {
        for _ in 0..2 {
            let got = tour.client.get(&pod, key, Style::Path)?;
            ensure!(got.sha256 == put.sha256, "from n{node}: {} {}", got.status, got.code);
            owners.insert(got.node().to_owned());
        }
    }
    ensure!(owners.len() == 1, "nodes do not reach each other by IPv6: served by {owners:?}");
    let (reached, after) = knock(&tour.lab.pod(DENIED), VIP6, 80)?;
    ensure!(reached == Reached::Refused && after < AT_ONCE, "the denied pod got {reached:?} after {after:?}");
    for port in [PEER_PORT, ADMIN_PORT] {
        let (reached, _) = knock(&tour.pod(1, 1), node_address6(2), port)?;
        ensure!(reached == Reached::Nothing, "a pod got {reached:?} at port {port} of n2");
    }
    let addresses = run(tour.pod(1, 1).pod_command("getent").args(["ahostsv6", "b.cwlota.com"]))?;
    ensure!(addresses.starts_with(&VIP6.to_string()), "by name it is {addresses}");
    for (_, pod) in tour.one_pod_per_node() {
        pod.set("hosts", "127.0.0.1 localhost\n")?;
    }
    tour.restart_each(|node| {
        node.use_ipv6(false);
        node.configure(Mode::OwnCredential)
    })
}

pub(crate) fn status(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[0];
    let status = &lota_json(node, &["datapath", "status"])?[0];
    let interfaces = status["interfaces"].as_array().context("no interfaces")?;
    ensure!(interfaces.len() == usize::from(PODS), "{interfaces:?}");
    for interface in interfaces {
        ensure!(interface["mode"] == "tcx" && interface["programs_ahead"] == 0, "{interface}");
    }
    ensure!(status["guard"] == serde_json::json!({"interface": "uplink", "mode": "native"}), "{status}");
    ensure!(status["addresses"] == 4 && status["prefixes"] == 0, "{status}");
    let verdicts = status["verdicts"].as_array().context("no verdicts")?;
    ensure!(verdicts.len() == lota_common::Verdict::COUNT, "{} verdicts", verdicts.len());
    let table = node.lota(&["datapath", "status"])?;
    for word in ["veth-p1", "first program", "native at uplink", "redirected", "4 addresses"] {
        ensure!(table.contains(word), "no `{word}` in\n{table}");
    }
    ensure!(node.metric("lota_datapath_interfaces{mode=\"tcx\"}")? == 2.0, "the metric of interfaces");
    ensure!(node.metric("lota_access_entries{subject=\"address\"}")? == 4.0, "the metric of entries");
    let down = run(node.command().args(["datapath", "status", "--config", "/nonexistent"]));
    ensure!(down.is_err(), "without a configuration");
    Ok(())
}
