//! Step 7: pods without access are refused in the kernel, whether the daemon runs or not.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lota_common::map;
use nix::sys::signal::Signal;

use super::{Line, Tour};
use crate::lab::{
    ADMIN_PORT, AT_ONCE, DENIED, LONG_ENOUGH, NODES, PEER_PORT, PODS, Pod, Reached, VIP, dump_map, knock,
    node_address,
};

const DENIALS: &str = "lota_datapath_packets_total{verdict=\"denied\"}";
const BACKSTOPPED: &str = "lota_datapath_packets_total{verdict=\"backstop\"}";

pub(super) fn refusals(tour: &mut Tour) -> Result<Vec<Line>> {
    let mut lines = vec![denied(tour)?, borrowed_address(tour)?];
    lines.push(daemon_down(tour)?);
    lines.extend(hidden_ports(tour)?);
    lines.push(entries(tour)?);
    Ok(lines)
}

/// Verifies that a pod without access is refused while the daemon runs.
fn denied(tour: &Tour) -> Result<Line> {
    let node = &tour.nodes[usize::from(DENIED.0) - 1];
    let before = node.metric(DENIALS)?;
    let (reached, after) = knock(&tour.lab.pod(DENIED), VIP, 80)?;
    ensure!(reached == Reached::Refused && after < AT_ONCE, "the denied pod got {reached:?} after {after:?}");
    let refusals = node.metric(DENIALS)? - before;
    ensure!(refusals >= 1.0, "the refusal was not counted");
    let (reached, _) = knock(&tour.lab.pod(Pod(DENIED.0, 1)), VIP, 80)?;
    ensure!(reached == Reached::Open, "its allowed neighbor got {reached:?}");
    Ok(Line::new("a pod without an access entry connects", format!("refused in {}, counted", micros(after))))
}

/// Verifies that a pod without access is refused when it sends from its neighbor's address.
fn borrowed_address(tour: &Tour) -> Result<Line> {
    let (pod, neighbour) = (tour.lab.pod(DENIED), Pod(DENIED.0, 1).address());
    let node = &tour.nodes[usize::from(DENIED.0) - 1];
    let before = node.metric(DENIALS)?;
    pod.ip(&format!("addr add {neighbour}/32 dev eth0"))?;
    let sent = pod.run(move || -> std::io::Result<()> {
        // The response would go to the neighbor, so only the SYN can be observed here.
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        use std::os::fd::AsRawFd as _;
        let from = nix::sys::socket::SockaddrIn::from(std::net::SocketAddrV4::new(neighbour, 0));
        nix::sys::socket::bind(socket.as_raw_fd(), &from)?;
        let to = nix::sys::socket::SockaddrIn::from(std::net::SocketAddrV4::new(VIP, 80));
        match nix::sys::socket::connect(socket.as_raw_fd(), &to) {
            Err(nix::errno::Errno::EINPROGRESS) => std::thread::sleep(LONG_ENOUGH),
            other => other?,
        }
        Ok(())
    });
    pod.ip(&format!("addr del {neighbour}/32 dev eth0"))?;
    let denied = node.metric(DENIALS)? - before;
    ensure!(denied >= 1.0, "a SYN from the neighbor's address was not denied ({sent:?})");
    Ok(Line::new(
        "it sends from the address of its allowed neighbor",
        "refused: the entry is bound to another interface",
    ))
}

/// Verifies that no pod, with access or without, reaches a process that listens on 0.0.0.0:80 while the daemon is
/// down.
fn daemon_down(tour: &mut Tour) -> Result<Line> {
    let number = DENIED.0;
    let index = usize::from(number) - 1;
    let before = (tour.nodes[index].metric(DENIALS)?, tour.nodes[index].metric(BACKSTOPPED)?);
    tour.nodes[index].stop(Signal::SIGKILL)?;
    let foreign = tour.lab.node(number).run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)))??;
    foreign.set_nonblocking(true)?;
    let mut slowest = Duration::ZERO;
    for pod in 1..=PODS {
        let (reached, after) = knock(&tour.lab.pod(Pod(number, pod)), VIP, 80)?;
        ensure!(
            reached == Reached::Refused && after < AT_ONCE,
            "with the daemon down: {reached:?} after {after:?}"
        );
        slowest = slowest.max(after);
    }
    let (control, _) = knock(&tour.lab.pod(Pod(number, 1)), node_address(number), 80)?;
    ensure!(control == Reached::Open, "the foreign listener does not listen, so the test is void");
    // Only the connection of the control may have arrived.
    let mut accepted = 0;
    while foreign.accept().is_ok() {
        accepted += 1;
    }
    ensure!(accepted == 1, "the foreign listener accepted {accepted} connections");
    tour.nodes[index].start().context("starting beside a foreign listener on 0.0.0.0:80")?;
    // The counters are pinned, so they counted while the daemon was down.
    let after = (tour.nodes[index].metric(DENIALS)?, tour.nodes[index].metric(BACKSTOPPED)?);
    ensure!(after.0 > before.0, "the denied pod's attempt was not counted");
    ensure!(after.1 >= before.1 + 2.0, "the backstop counted {} of two attempts", after.1 - before.1);
    let (reached, _) = knock(&tour.lab.pod(Pod(number, 1)), VIP, 80)?;
    ensure!(reached == Reached::Open && foreign.accept().is_err(), "beside a foreign listener: {reached:?}");
    Ok(Line::new(
        "daemon killed, another process listens on 0.0.0.0:80",
        format!("refused in {}, counted", micros(slowest)),
    ))
}

/// Verifies that a pod with access does not reach peer and admin ports of any node.
fn hidden_ports(tour: &Tour) -> Result<Vec<Line>> {
    let pod = tour.pod(1, 1);
    for node in 1..=NODES {
        for port in [PEER_PORT, ADMIN_PORT] {
            let (reached, _) = knock(&pod, node_address(node), port)?;
            ensure!(reached == Reached::Nothing, "a pod got {reached:?} at port {port} of n{node}");
            let (control, _) = knock(&tour.lab.node(node), node_address(node), port)?;
            ensure!(control == Reached::Open, "port {port} of n{node} is not open to the node itself either");
        }
        let (control, _) = knock(&pod, node_address(node), 9)?;
        ensure!(control == Reached::Refused, "other ports of n{node} are not reached either: {control:?}");
    }
    // Peers are authenticated, too: another process of a node gets no response.
    let answer = tour.lab.node(1).run(|| talk(SocketAddr::from((node_address(2), PEER_PORT))))?;
    ensure!(
        answer.is_ok_and(|answer| answer.is_empty()),
        "the peer port answered a process that is not a peer"
    );
    // From the network of the nodes, with an address that is not a node's.
    let (stranger, _) = knock(&tour.lab.switch(), node_address(2), PEER_PORT)?;
    ensure!(stranger == Reached::Nothing, "a host that is not a peer got {stranger:?} at the peer port");
    let switch = tour.lab.switch();
    switch.ip(&format!("route add {VIP}/32 via {}", node_address(2)))?;
    let (outside, _) = knock(&switch, VIP, 80)?;
    let (names, _) = knock(&switch, VIP, 53)?;
    switch.ip(&format!("route del {VIP}/32"))?;
    ensure!(
        outside == Reached::Nothing && names == Reached::Nothing,
        "from outside, the VIP gave {outside:?}, {names:?}"
    );
    Ok(vec![
        Line::new("a pod connects to peer and admin ports of all nodes", "dropped at its own interface"),
        Line::new("a host on the nodes' network connects to a peer port", "dropped at the uplink"),
        Line::new("the same host connects to the VIP", "dropped at the uplink"),
    ])
}

/// Verifies that the access map of each node contains the configured entries, with field names.
fn entries(tour: &Tour) -> Result<Line> {
    let mut shown = String::new();
    for node in 1..=NODES {
        let entries = dump_map(&tour.nodes[usize::from(node) - 1].map(map::ACCESS4))?;
        let allowed: Vec<Pod> = (1..=PODS).map(|pod| Pod(node, pod)).filter(|pod| *pod != DENIED).collect();
        ensure!(
            entries.len() == allowed.len(),
            "n{node} has {} entries, not {}",
            entries.len(),
            allowed.len()
        );
        for entry in entries {
            let octets: Vec<u8> = serde_json::from_value(entry["key"]["address"].clone())
                .with_context(|| format!("no field `address` in {entry}"))?;
            ensure!(entry["value"]["ifindex"].is_u64(), "no field `ifindex` in {entry}");
            let known = allowed.iter().any(|pod| pod.address().octets() == octets[..]);
            ensure!(known, "n{node} allows {octets:?}");
            shown = entry.to_string();
        }
    }
    Ok(Line::new("bpftool map dump pinned …/lota_access4", shown))
}

fn talk(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, LONG_ENOUGH)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /b/k HTTP/1.1\r\nhost: cwlota.com\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn micros(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
