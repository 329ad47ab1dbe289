//! One connection through the real hooks, which test runs cannot exercise: TC where this kernel has it, and socket
//! lookup. By the daemon's own kernel side, without the daemon.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lota_common::{Source, Verdict};
use lota_daemon::{
    access::{Entry, Table},
    config,
    datapath::{AttachMode, Datapath, Interface, Interfaces},
};
use lota_tests::lab::Namespace;
use nix::net::if_::if_nametoindex;

use super::cases::{VIP, settings};

const NODE: &str = "lota-packet-n";
const POD: &str = "lota-packet-p";
const ALLOWED: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const DENIED: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 9);
/// On a kernel with tcx; else clsact.
const TCX: (u32, u32) = (6, 6);

pub(crate) fn by_tc() -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let expected = if kernel >= TCX { AttachMode::Tcx } else { AttachMode::Clsact };
    in_namespaces(config::Mode::Tc, config::Attach::Auto, expected)
}

pub(crate) fn by_clsact() -> Result<()> {
    in_namespaces(config::Mode::Tc, config::Attach::Clsact, AttachMode::Clsact)
}

pub(crate) fn by_lookup() -> Result<()> {
    in_namespaces(config::Mode::Lookup, config::Attach::Auto, AttachMode::SkLookup)
}

fn in_namespaces(mode: config::Mode, attach: config::Attach, expected: AttachMode) -> Result<()> {
    let (node, pod) = (Namespace::named(NODE), Namespace::named(POD));
    let pins = Path::new("/sys/fs/bpf/lota-packet");
    let clean = || -> Result<()> {
        let _ = std::fs::remove_dir_all(pins);
        node.delete()?;
        pod.delete()
    };
    clean()?;
    let steered =
        make(&node, &pod).and_then(|()| steer(&node, &pod, pins.to_owned(), mode, attach, expected));
    clean()?;
    steered
}

fn make(node: &Namespace, pod: &Namespace) -> Result<()> {
    node.create()?;
    pod.create()?;
    node.ip(&format!("link add pod type veth peer name eth0 netns {}", pod.name()))?;
    node.ip("addr add 10.1.0.1/24 dev pod")?;
    node.ip("link set pod up")?;
    node.ip(&format!("addr add {VIP}/32 dev lo"))?;
    for address in [ALLOWED, DENIED] {
        pod.ip(&format!("addr add {address}/24 dev eth0"))?;
    }
    pod.ip("link set eth0 up")?;
    pod.ip("route add default via 10.1.0.1")
}

fn steer(
    node: &Namespace,
    pod: &Namespace,
    pins: PathBuf,
    mode: config::Mode,
    attach: config::Attach,
    expected: AttachMode,
) -> Result<()> {
    let config = config::Datapath {
        pins,
        mode,
        attach,
        pod_interfaces: vec!["pod".to_owned()],
        ..config::Datapath::default()
    };
    let (listener, datapath) = node.run(move || -> Result<_> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let mut datapath = Datapath::load(&config, settings(), None, None)?;
        let index = if_nametoindex("pod")?;
        let interface = Interface { name: "pod".to_owned(), kind: "veth".to_owned(), controller: None };
        let interfaces = Interfaces([(index, interface)].into());
        let reports = datapath.set_interfaces(&interfaces, &interfaces.plan(&config, false));
        let [(_, attached)] = &reports[..] else { anyhow::bail!("attached {reports:?}") };
        let attached = attached.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        ensure!(*attached == expected, "attached by {attached}, not by {expected}");
        let entry = Entry { allow: true, ifindex: index, source: Source::Config };
        datapath
            .set_access(&Table { addresses: [(IpAddr::from(ALLOWED), entry)].into(), ..Table::default() })?;
        datapath.set_listener(&listener)?;
        Ok((listener, datapath))
    })??;
    let knock = |from: Ipv4Addr| -> Result<Result<(), ErrorKind>> {
        let connected = pod.run(move || connect(from))?;
        Ok(connected.map(drop).map_err(|error| error.kind()))
    };
    ensure!(
        knock(DENIED)? == Err(ErrorKind::ConnectionRefused),
        "the denied address got {:?}",
        knock(DENIED)?
    );
    ensure!(knock(ALLOWED)? == Ok(()), "the allowed address got {:?}", knock(ALLOWED)?);
    let mut accepted = listener.accept();
    // The handshake's last segment may be on its way still.
    for _ in 0..100 {
        if accepted.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        accepted = listener.accept();
    }
    let (accepted, client) = accepted.context("nothing reached the listener")?;
    ensure!(accepted.local_addr()? == SocketAddr::from((VIP, 80)), "it came for {}", accepted.local_addr()?);
    ensure!(client.ip() == ALLOWED, "it came from {client}");
    let counts = datapath.verdicts();
    let packets = |verdict: Verdict| counts[verdict as usize].packets;
    ensure!(packets(Verdict::Steered) >= 1 && packets(Verdict::Denied) >= 1, "counted {counts:?}");
    // With the listener gone, it is as with the daemon gone.
    drop((accepted, listener));
    ensure!(
        knock(ALLOWED)? == Err(ErrorKind::ConnectionRefused),
        "without a listener: {:?}",
        knock(ALLOWED)?
    );
    Ok(())
}

fn connect(from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&SocketAddr::from((VIP, 80)).into(), Duration::from_secs(10))?;
    Ok(socket.into())
}
