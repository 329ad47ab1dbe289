//! Disturbances on a node: sysctls, other programs, NAT rules, crashes.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    EbpfLoader,
    maps::Array,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use lota_common::{Settings, map, program};
use lota_tests::{
    lab::{AT_ONCE, DENIED, Namespace, Reached, VIP, knock, node_address, run},
    tour::{Tour, wait_until},
};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use super::lota_json;

/// Reconnects with various sysctls, on the node with the denied pod.
pub(crate) fn sysctls(tour: &mut Tour) -> Result<()> {
    let node = tour.lab.node(3);
    let settings = [
        ("/proc/sys/net/ipv4/conf/all/rp_filter", "1", "0"),
        ("/proc/sys/net/ipv4/conf/all/route_localnet", "1", "0"),
        ("/proc/sys/net/ipv4/conf/all/src_valid_mark", "1", "0"),
        ("/proc/sys/net/ipv4/tcp_syncookies", "2", "1"),
    ];
    let at = |what: &str| -> Result<()> {
        let pod = tour.pod(3, 1);
        let slowest = reconnect(&pod).with_context(|| format!("with {what}"))?;
        let waiting = run(node.command("ss").args(["-Htan", "state", "time-wait", "sport = :80"]))?;
        ensure!(
            waiting.contains(":45678"),
            "with {what}, no socket is in TIME_WAIT, so the test is void\n{waiting}"
        );
        ensure!(slowest < AT_ONCE, "with {what}, a reconnect took {slowest:?}");
        let (reached, after) = knock(&tour.lab.pod(DENIED), VIP, 80)?;
        ensure!(
            reached == Reached::Refused && after < AT_ONCE,
            "with {what}, denied: {reached:?}, {after:?}"
        );
        Ok(())
    };
    at("the defaults")?;
    for (file, value, _) in settings {
        node.write(file, value)?;
        at(&format!("{file} = {value} and the previous ones"))?;
    }
    for (file, _, value) in settings {
        node.write(file, value)?;
    }
    Ok(())
}

/// A hostPort 80: port 80 of any local address is translated to another server.
pub(crate) fn host_port(tour: &mut Tour) -> Result<()> {
    let place = tour.lab.node(3);
    let (pod, denied) = (tour.pod(3, 1), tour.lab.pod(DENIED));
    let nft = |script: &str| run(place.command("nft").arg(script));
    let to = node_address(3);
    nft(&format!(
        "table ip hostport {{ chain prerouting {{ type nat hook prerouting priority dstnat; \
         fib daddr type local tcp dport 80 dnat to {to}:8099; }}; }}"
    ))?;
    let listener = place.run(move || TcpListener::bind((to, 8099)))??;
    listener.set_nonblocking(true)?;
    let untracked = nft("list table inet lota")?;
    let holds = || -> Result<()> {
        let (open, _) = knock(&pod, VIP, 80)?;
        let (refused, after) = knock(&denied, VIP, 80)?;
        ensure!(open == Reached::Open, "an allowed pod got {open:?}");
        ensure!(refused == Reached::Refused && after < AT_ONCE, "a denied pod got {refused:?}, {after:?}");
        ensure!(listener.accept().is_err(), "the other server got a connection");
        Ok(())
    };
    // The node tracks connections from now on.
    let pinned = wait_until("the VIP's connections to be tracked", || {
        Ok(nft("list table inet lota")?.contains("dnat ip to ip daddr"))
    });
    let held = pinned.and_then(|()| holds());
    // A reload of a firewall may flush all tables.
    nft("delete table inet lota")?;
    let (_, _) = knock(&pod, VIP, 80)?;
    let strays = listener.accept().is_ok();
    let again = wait_until("the table to be restored", || Ok(nft("list table inet lota").is_ok()));
    let held_again = again.and_then(|()| holds());
    nft("delete table ip hostport")?;
    held?;
    ensure!(untracked.contains(&format!("ip daddr {VIP} ")), "{untracked}");
    ensure!(strays, "LOTA got the connection even without the table, so the test is void");
    held_again
}

/// Connects repeatedly from one port while the server's socket of the previous connection is in TIME_WAIT; returns the
/// longest time.
fn reconnect(pod: &Namespace) -> Result<Duration> {
    pod.run(|| -> Result<Duration> {
        let mut slowest = Duration::ZERO;
        for round in 0..5 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 45_678)).into())?;
            let started = Instant::now();
            socket.connect_timeout(&SocketAddr::from((VIP, 80)).into(), Duration::from_secs(5))?;
            if round > 0 {
                slowest = slowest.max(started.elapsed());
            }
            let mut stream = std::net::TcpStream::from(socket);
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: cwlota.com\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            // Read to the end, so that the server closes first and its socket is in TIME_WAIT.
            stream.read_to_string(&mut answer)?;
            ensure!(answer.starts_with("HTTP/1.1 "), "the answer was {answer:?}");
        }
        Ok(slowest)
    })?
}

/// Other programs on a pod's interface.
pub(crate) fn neighbours(tour: &mut Tour) -> Result<()> {
    let (node, pod) = (tour.lab.node(1), tour.pod(1, 1));
    let open = || -> Result<bool> { Ok(knock(&pod, VIP, 80)?.0 == Reached::Open) };
    ensure!(open()?, "initially");
    for (what, first) in [("after LOTA's", false), ("before LOTA's", true)] {
        // It ends the chain for packets to the VIP, like Cilium's program: it is LOTA's own, without access entries.
        let attached = node.run(move || -> Result<aya::Ebpf> {
            let mut other = EbpfLoader::new().load(lota_datapath::OBJECT)?;
            let mut settings: Array<_, Settings> =
                other.map_mut(map::SETTINGS).context("no settings")?.try_into()?;
            let theirs = Settings {
                vip4: VIP.octets(),
                vip6: [0; 16],
                ports: [80, 0, 0, 0, 0, 0, 0, 0],
                dns_port: 0,
                peer_port: 0,
                admin_port: 0,
                longest_name: 0,
                answer_dns: 0,
                default_allow: 0,
                lookups: 0,
                targets: 0,
                epoch: 1,
            };
            settings.set(0, theirs, 0)?;
            let program: &mut SchedClassifier =
                other.program_mut(program::POD).context("no program")?.try_into()?;
            program.load()?;
            let order = if first { LinkOrder::first() } else { LinkOrder::last() };
            program.attach_with_options(
                "veth-p1",
                TcAttachType::Ingress,
                TcAttachOptions::TcxOrder(order),
            )?;
            Ok(other)
        })??;
        wait_until(&format!("LOTA's program to be first again, with another program {what}"), || {
            let status = &lota_json(&tour.nodes[0], &["datapath", "status"])?[0];
            let interface = &status["interfaces"][0];
            ensure!(interface["name"] == "veth-p1", "{interface}");
            Ok(interface["programs_ahead"] == 0 && open()?)
        })?;
        drop(attached);
        ensure!(open()?, "after the program {what} was removed");
    }
    Ok(())
}

pub(crate) fn killed(tour: &mut Tour) -> Result<()> {
    let node = &mut tour.nodes[0];
    let pins = |node: &lota_tests::lab::Node| -> Result<Vec<std::ffi::OsString>> {
        let mut names = Vec::new();
        for folder in ["", "links"] {
            for pin in std::fs::read_dir(node.map(folder))? {
                names.push(pin?.file_name());
            }
        }
        names.sort();
        Ok(names)
    };
    let before = pins(node)?;
    for _ in 0..3 {
        node.stop(Signal::SIGKILL)?;
        let (reached, after) = knock(&tour.lab.pod(lota_tests::lab::Pod(1, 1)), VIP, 80)?;
        ensure!(reached == Reached::Refused && after < AT_ONCE, "killed: {reached:?} after {after:?}");
        node.start()?;
    }
    ensure!(pins(node)? == before, "from {before:?} to {:?}", pins(node)?);
    let (reached, _) = knock(&tour.lab.pod(lota_tests::lab::Pod(1, 1)), VIP, 80)?;
    ensure!(reached == Reached::Open, "started again: {reached:?}");
    Ok(())
}
