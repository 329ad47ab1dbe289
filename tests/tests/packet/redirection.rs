//! One connection through the actual hooks, which test runs cannot exercise: TC and socket lookup. Uses the datapath
//! library of the daemon, without the daemon.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Error, Result, ensure};
use lota_common::{Source, Verdict, program};
use lota_datapath::{
    AccessEntry, AccessTable, AttachMode, Datapath, EndpointNames, InterceptedTarget, Interface, Interfaces,
    Targets,
};
use lota_tests::lab::Namespace;
use nix::net::if_::if_nametoindex;

use super::{
    cases::{PEER_PORT, PORTS, VIP, settings},
    daemon,
    kernel::{can_load, version},
};

const NODE: &str = "lota-packet-n";
const POD: &str = "lota-packet-p";
const PINS: &str = "/sys/fs/bpf/lota-packet";
const SERVER: &str = "lota-packet-s";
const TARGET: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 3, 0, 5), 9000);
/// An address on `lo` that is not in the node map.
const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
const ALLOWED: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const DENIED: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 9);
/// First kernel version with tcx; older ones use clsact.
const TCX: (u32, u32) = (6, 6);

pub(crate) fn by_tc() -> Result<()> {
    let expected = if version()? >= TCX { AttachMode::Tcx } else { AttachMode::Clsact };
    in_namespaces(lota_datapath::RedirectionMode::Tc, lota_datapath::AttachConfig::Auto, expected)
}

pub(crate) fn by_clsact() -> Result<()> {
    in_namespaces(lota_datapath::RedirectionMode::Tc, lota_datapath::AttachConfig::Clsact, AttachMode::Clsact)
}

pub(crate) fn by_lookup() -> Result<()> {
    in_namespaces(
        lota_datapath::RedirectionMode::Lookup,
        lota_datapath::AttachConfig::Auto,
        AttachMode::SkLookup,
    )
}

fn in_namespaces(
    mode: lota_datapath::RedirectionMode,
    attach: lota_datapath::AttachConfig,
    expected: AttachMode,
) -> Result<()> {
    let (node, pod) = (Namespace::named(NODE), Namespace::named(POD));
    let pins = Path::new(PINS);
    let clean = || -> Result<()> {
        let _ = std::fs::remove_dir_all(pins);
        node.delete()?;
        pod.delete()
    };
    clean()?;
    let redirected =
        make(&node, &pod).and_then(|()| redirect(&node, &pod, pins.to_owned(), mode, attach, expected));
    clean()?;
    redirected
}

fn make(node: &Namespace, pod: &Namespace) -> Result<()> {
    node.create()?;
    pod.create()?;
    node.ip(&format!("link add pod type veth peer name eth0 netns {}", pod.name()))?;
    node.ip("addr add 10.1.0.1/24 dev pod")?;
    node.ip("link set pod up")?;
    node.ip(&format!("addr add {VIP}/32 dev lo"))?;
    node.ip(&format!("addr add {NODE_ADDRESS}/32 dev lo"))?;
    for address in [ALLOWED, DENIED] {
        pod.ip(&format!("addr add {address}/24 dev eth0"))?;
    }
    pod.ip("link set eth0 up")?;
    pod.ip("route add default via 10.1.0.1")
}

fn redirect(
    node: &Namespace,
    pod: &Namespace,
    pins: PathBuf,
    mode: lota_datapath::RedirectionMode,
    attach: lota_datapath::AttachConfig,
    expected: AttachMode,
) -> Result<()> {
    let config = lota_datapath::DatapathConfig {
        bpffs_path: pins,
        mode,
        attach,
        pod_interfaces: vec!["pod".to_owned()],
        ..lota_datapath::DatapathConfig::default()
    };
    let (listener, _peer_port, datapath) = node.run(move || -> Result<_> {
        let peer_port = TcpListener::bind((NODE_ADDRESS, PEER_PORT))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let datapath =
            daemon::as_daemon(|| load_and_attach(&config, expected, &listener, &Targets::default()))?;
        Ok((listener, peer_port, datapath))
    })??;
    // TC does not know this address as the node's, as if the packet were translated to it after TC.
    let peers: SocketAddr = (NODE_ADDRESS, PEER_PORT).into();
    for from in [ALLOWED, DENIED] {
        let reached = pod.run(move || connect(from, peers))?.map(drop).map_err(|error| error.kind());
        // Before 5.17, socket lookup does not know from where a packet came.
        let is_refused = reached == Err(ErrorKind::ConnectionRefused);
        ensure!(is_refused == can_load(program::LOOKUP)?, "{from} got {reached:?} at the peer port");
    }
    node.run(move || connect(NODE_ADDRESS, peers))?.context("the node's own processes at the peer port")?;
    let knock = |from: Ipv4Addr, port: u16| -> Result<Result<(), ErrorKind>> {
        let connected = pod.run(move || connect(from, (VIP, port).into()))?;
        Ok(connected.map(drop).map_err(|error| error.kind()))
    };
    for port in PORTS {
        let refused = knock(DENIED, port)?;
        ensure!(
            refused == Err(ErrorKind::ConnectionRefused),
            "port {port}: the denied address got {refused:?}"
        );
        let open = knock(ALLOWED, port)?;
        ensure!(open == Ok(()), "port {port}: the allowed address got {open:?}");
        let (accepted, client) = accept(&listener).with_context(|| format!("port {port}"))?;
        // The listener, which itself is at another address and port, learns the original destination.
        let destination = accepted.local_addr()?;
        ensure!(
            destination == SocketAddr::from((VIP, port)),
            "port {port}: its destination is {destination}"
        );
        ensure!(client.ip() == ALLOWED, "its source is {client}");
    }
    let other = knock(ALLOWED, 444)?;
    ensure!(other == Err(ErrorKind::ConnectionRefused), "another port of the VIP: {other:?}");
    let counts = datapath.verdicts();
    let packets = |verdict: Verdict| counts[verdict as usize].packets;
    ensure!(packets(Verdict::Redirected) >= 1 && packets(Verdict::Denied) >= 1, "counted {counts:?}");
    // Without the listener, as after the end of the daemon.
    drop(listener);
    let refused = knock(ALLOWED, 80)?;
    ensure!(refused == Err(ErrorKind::ConnectionRefused), "without a listener: {refused:?}");
    Ok(())
}

/// Accepts a connection. The last segment of its handshake may still be in flight.
fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    let mut accepted = listener.accept();
    for _ in 0..100 {
        if accepted.is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
        accepted = listener.accept();
    }
    accepted.context("nothing reached the listener")
}

/// Connections to a target, which a server listens at, with the daemon alive, stale and down.
pub(crate) fn by_address_and_tc() -> Result<()> {
    intercept(lota_datapath::AttachConfig::Auto)
}

pub(crate) fn by_address_and_clsact() -> Result<()> {
    intercept(lota_datapath::AttachConfig::Clsact)
}

fn intercept(attach: lota_datapath::AttachConfig) -> Result<()> {
    let expected = match attach {
        lota_datapath::AttachConfig::Auto if version()? >= TCX => AttachMode::Tcx,
        _ => AttachMode::Clsact,
    };
    let (node, pod, server) = (Namespace::named(NODE), Namespace::named(POD), Namespace::named(SERVER));
    let pins = Path::new(PINS);
    let clean = || -> Result<()> {
        let _ = std::fs::remove_dir_all(pins);
        server.delete()?;
        node.delete()?;
        pod.delete()
    };
    clean()?;
    let config = lota_datapath::DatapathConfig {
        bpffs_path: pins.to_owned(),
        mode: lota_datapath::RedirectionMode::Tc,
        attach,
        pod_interfaces: vec!["pod".to_owned()],
        ..lota_datapath::DatapathConfig::default()
    };
    let intercepted = make(&node, &pod)
        .and_then(|()| make_server(&node, &server))
        .and_then(|()| intercept_in(&node, &pod, &server, config, expected));
    clean()?;
    intercepted
}

/// Creates a server's namespace, with routes between it and the pod over the node.
fn make_server(node: &Namespace, server: &Namespace) -> Result<()> {
    server.create()?;
    node.ip(&format!("link add server type veth peer name eth0 netns {}", server.name()))?;
    node.ip("addr add 10.3.0.1/24 dev server")?;
    node.ip("link set server up")?;
    node.write("/proc/sys/net/ipv4/ip_forward", "1")?;
    server.ip(&format!("addr add {}/24 dev eth0", TARGET.ip()))?;
    server.ip("link set eth0 up")?;
    server.ip("route add default via 10.3.0.1")
}

fn intercept_in(
    node: &Namespace,
    pod: &Namespace,
    server: &Namespace,
    config: lota_datapath::DatapathConfig,
    expected: AttachMode,
) -> Result<()> {
    let targets = Targets::new(&[TARGET], VIP).map_err(Error::msg)?;
    let first = config.clone();
    let (daemon, mut datapath) = node.run(move || -> Result<_> {
        let daemon = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        daemon.set_nonblocking(true)?;
        let datapath = daemon::as_daemon(|| load_and_attach(&first, expected, &daemon, &targets))?;
        Ok((daemon, datapath))
    })??;
    let gateway = server.run(|| TcpListener::bind(TARGET))??;
    gateway.set_nonblocking(true)?;
    let [assigned] = datapath.targets()[..] else { anyhow::bail!("{:?}", datapath.targets()) };
    ensure!(assigned.target == TARGET, "{assigned:?}");
    let open = |from: Ipv4Addr, when: &'static str| -> Result<TcpStream> {
        let stream = pod.run(move || connect(from, TARGET.into()))?;
        let stream = stream.with_context(|| format!("connecting to the target, {when}"))?;
        ensure!(stream.peer_addr()? == TARGET.into(), "its peer is {}", stream.peer_addr()?);
        Ok(stream)
    };
    // Until the first heartbeat, and without access, connections are the server's.
    let (mut early, (mut early_end, _)) =
        (open(ALLOWED, "before a heartbeat")?, accept(&gateway).context("before a heartbeat")?);
    datapath.beat()?;
    let (mut denied, (mut denied_end, _)) =
        (open(DENIED, "without access")?, accept(&gateway).context("without access")?);

    let (mut ours, (mut ours_end, client)) =
        (open(ALLOWED, "with access")?, accept(&daemon).context("with access")?);
    let local = SocketAddr::from((VIP, assigned.port));
    ensure!(ours_end.local_addr()? == local && client.ip() == ALLOWED, "{ours_end:?}");
    // Connections to both places, at the same time.
    for (pod_end, other_end) in
        [(&mut early, &mut early_end), (&mut denied, &mut denied_end), (&mut ours, &mut ours_end)]
    {
        exchange(pod_end, other_end)?;
    }
    // Each connection is counted once, and searching for sockets of the others counts nothing.
    let counts = datapath.verdicts();
    let count = |verdict: Verdict| counts[verdict as usize].packets;
    let counted = [Verdict::Redirected, Verdict::Backstop].map(count);
    ensure!(counted == [1, 0], "counted {counts:?}");

    // A SYN cookie leaves no socket before the handshake is complete.
    datapath.beat()?;
    node.write("/proc/sys/net/ipv4/tcp_syncookies", "2")?;
    let (mut cookie, (mut cookie_end, _)) =
        (open(ALLOWED, "with SYN cookies")?, accept(&daemon).context("with SYN cookies")?);
    exchange(&mut cookie, &mut cookie_end)?;
    exchange(&mut early, &mut early_end).context("an earlier connection, with SYN cookies")?;
    node.write("/proc/sys/net/ipv4/tcp_syncookies", "1")?;

    // The daemon ends this connection first, so the node's kernel waits for late packets of it.
    datapath.beat()?;
    let (mut waited, (waited_end, _)) = (open(ALLOWED, "to end")?, accept(&daemon).context("to end")?);
    let from = waited.local_addr()?;
    drop(waited_end);
    ensure!(waited.read(&mut [0; 1])? == 0, "the daemon ended the connection, and the pod got bytes");
    drop(waited);

    // Open connections stay where they are, whatever becomes of the daemon.
    datapath.stop_answering()?;
    let again = pod.run(move || connect_from(from, TARGET.into(), Duration::from_secs(10)))?;
    let (mut again, (mut again_end, _)) =
        (again?, accept(&gateway).context("from a port that was used before")?);
    exchange(&mut again, &mut again_end).context("from a port that was used before")?;
    let (mut later, (mut later_end, _)) =
        (open(ALLOWED, "without a heartbeat")?, accept(&gateway).context("without a heartbeat")?);
    exchange(&mut ours, &mut ours_end)?;
    exchange(&mut later, &mut later_end)?;
    datapath.beat()?;
    exchange(&mut later, &mut later_end)?;

    // A successor without targets completes what is open, and intercepts nothing new.
    // The listener stays: 5.10 forgets to remove one that was set twice when it is closed.
    let (lock, next) = (datapath.lock().context("no lock")?.try_clone()?, config.clone());
    let successor = node.run(move || {
        daemon::as_daemon(|| {
            let decisions = (&EndpointNames::default(), &Targets::default());
            let mut successor = Datapath::load(&next, settings(), decisions, Some(&lock), None)?;
            attach(&mut successor, &next, expected)?;
            Ok(successor)
        })
    })??;
    let held = successor.targets();
    ensure!(held == [InterceptedTarget { is_former: true, ..assigned }], "{held:?}");
    exchange(&mut ours, &mut ours_end).context("after a handover")?;
    let (mut new, (mut new_end, _)) =
        (open(ALLOWED, "after a handover")?, accept(&gateway).context("after a handover")?);
    exchange(&mut new, &mut new_end)?;
    drop(successor);
    // It fails, and everything is as before.
    let datapath = node.run(move || {
        daemon::as_daemon(|| {
            datapath.reassert(settings(), &EndpointNames::default())?;
            attach(&mut datapath, &config, expected)?;
            datapath.beat()?;
            Ok(datapath)
        })
    })??;
    let (mut back, (mut back_end, _)) =
        (open(ALLOWED, "after a failed handover")?, accept(&daemon).context("after a failed handover")?);
    for (pod_end, other_end) in
        [(&mut back, &mut back_end), (&mut ours, &mut ours_end), (&mut new, &mut new_end)]
    {
        exchange(pod_end, other_end).context("after a failed handover")?;
    }

    drop((ours_end, daemon));
    let ended = ours.read(&mut [0; 1]);
    ensure!(matches!(ended, Ok(0)) || ended.is_err(), "the daemon's connection is open: {ended:?}");
    let (mut last, (mut last_end, _)) =
        (open(ALLOWED, "without a listener")?, accept(&gateway).context("without a listener")?);
    exchange(&mut last, &mut last_end)?;

    // Ports that stand for targets are not for pods.
    let port = assigned.port;
    let direct = pod.run(move || connect_within(ALLOWED, (VIP, port).into(), Duration::from_secs(1)))?;
    ensure!(direct.is_err(), "a pod reached the port of a target");
    let counts = datapath.verdicts();
    ensure!(counts[Verdict::Bypassed as usize].packets >= 3, "counted {counts:?}");
    Ok(())
}

/// Sends enough for large segments in both directions.
fn exchange(pod: &mut TcpStream, other: &mut TcpStream) -> Result<()> {
    for stream in [&*pod, &*other] {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    }
    let sent = vec![7; 1 << 20];
    for (from, to) in [(&*pod, &*other), (&*other, &*pod)] {
        let (mut from, mut to) = (from, to);
        thread::scope(|scope| -> Result<()> {
            let sending = scope.spawn(|| from.write_all(&sent));
            let mut received = vec![0; sent.len()];
            to.read_exact(&mut received)?;
            sending.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            ensure!(received == sent, "other bytes arrived");
            Ok(())
        })?;
    }
    Ok(())
}

/// Loads and attaches the programs, as the daemon does.
fn load_and_attach(
    config: &lota_datapath::DatapathConfig,
    expected: AttachMode,
    listener: &TcpListener,
    targets: &Targets,
) -> Result<Datapath> {
    let decisions = (&EndpointNames::default(), targets);
    let mut datapath = Datapath::load(config, settings(), decisions, None, None)?;
    attach(&mut datapath, config, expected)?;
    datapath.set_listener(listener)?;
    Ok(datapath)
}

fn attach(
    datapath: &mut Datapath,
    config: &lota_datapath::DatapathConfig,
    expected: AttachMode,
) -> Result<()> {
    let index = if_nametoindex("pod")?;
    let interface =
        Interface { name: "pod".to_owned(), kind: "veth".to_owned(), controller: None, peer: None };
    let interfaces = Interfaces([(index, interface)].into());
    let reports = datapath.set_interfaces(&interfaces, &interfaces.plan(config, false, &BTreeSet::new()));
    let [(_, attached)] = &reports[..] else { anyhow::bail!("attached {reports:?}") };
    let attached = attached.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
    ensure!(*attached == expected, "attached by {attached}, not by {expected}");
    let entry = AccessEntry { allow: true, ifindex: index, port: 0, source: Source::Config };
    let table = AccessTable { addresses: [(IpAddr::from(ALLOWED), entry)].into(), ..AccessTable::default() };
    datapath.set_access(&table, None)
}

fn connect(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    connect_within(from, to, Duration::from_secs(10))
}

fn connect_within(from: Ipv4Addr, to: SocketAddr, timeout: Duration) -> std::io::Result<TcpStream> {
    connect_from((from, 0).into(), to, timeout)
}

fn connect_from(from: SocketAddr, to: SocketAddr, timeout: Duration) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), timeout)?;
    Ok(socket.into())
}
