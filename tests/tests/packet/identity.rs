//! Identity by cgroup through the actual hooks: sockets in cgroups that are named like those of pods. Uses the datapath
//! library of the daemon, without the daemon.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lota_common::{MAX_PODS, Source, Verdict};
use lota_datapath::{
    AccessEntry, AccessTable, AddressHolder, AttachConfig, CgroupHierarchy, Datapath, DatapathConfig,
    EndpointNames, IdentifiedPod, IdentityTable, Interface, Interfaces, LOOPBACK_INDEX, LocalAccess,
    PodCgroups, RedirectionMode, Targets,
};
use lota_tests::lab::{CgroupRoot, LONG_ENOUGH, Namespace, PodClass, run};
use nix::net::if_::if_nametoindex;

use super::{
    cases::{VIP, settings},
    daemon, forge,
};

const NODE: &str = "lota-packet-n";
const POD: &str = "lota-packet-p";
const CGROUP: &str = "lotapacket";
pub(crate) const PINS: &str = "/sys/fs/bpf/lota-packet";
/// Whether listeners answer with SYN cookies: 1 if the backlog is full, 2 always.
const COOKIES: &str = "/proc/sys/net/ipv4/tcp_syncookies";
/// Addresses of two pods, which are in one network namespace here.
pub(crate) const ONE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
pub(crate) const TWO: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const TARGET: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 3, 0, 5), 9000);
/// An address of a pod in no namespace.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 4);
/// UIDs and classes of the first two.
pub(crate) const ONES: (&str, PodClass) = ("3f2c9a1e-0b6d-4a57-9f55-2d1f0c7b8a90", PodClass::Burstable);
pub(crate) const TWOS: (&str, PodClass) = ("77c0f4c2-5d5c-4a25-8a1b-0a4d0c6f2e11", PodClass::Guaranteed);

pub(crate) fn at_an_interface() -> Result<()> {
    Lab::make(false, AttachConfig::Auto)?.check_pods()
}

pub(crate) fn at_an_interface_by_clsact() -> Result<()> {
    Lab::make(false, AttachConfig::Clsact)?.check_pods()
}

pub(crate) fn at_a_bridge() -> Result<()> {
    Lab::make(true, AttachConfig::Auto)?.check_pods()
}

pub(crate) fn at_a_bridge_by_clsact() -> Result<()> {
    Lab::make(true, AttachConfig::Clsact)?.check_pods()
}

pub(crate) fn at_loopback() -> Result<()> {
    Lab::make(false, AttachConfig::Auto)?.check_local(RedirectionMode::Auto)
}

pub(crate) fn at_loopback_by_clsact() -> Result<()> {
    Lab::make(false, AttachConfig::Clsact)?.check_local(RedirectionMode::Tc)
}

pub(crate) fn at_loopback_by_lookup() -> Result<()> {
    Lab::make(false, AttachConfig::Auto)?.check_local(RedirectionMode::Lookup)
}

/// Verifies that entries which a full map does not hold give no access.
pub(crate) fn full_maps() -> Result<()> {
    Lab::make(false, AttachConfig::Auto)?.check_full_maps()
}

/// A node with an interface to two pods, and their cgroups.
pub(crate) struct Lab {
    pub(crate) node: Namespace,
    pub(crate) pod: Namespace,
    pub(crate) cgroups: CgroupRoot,
    is_bridged: bool,
    attach: AttachConfig,
}

impl Lab {
    pub(crate) fn make(is_bridged: bool, attach: AttachConfig) -> Result<Self> {
        let (node, pod) = (Namespace::named(NODE), Namespace::named(POD));
        clean(&node, &pod)?;
        let cgroups = CgroupRoot::make(CGROUP)?;
        for (uid, class) in [ONES, TWOS] {
            cgroups.make_pod(uid, class)?;
        }
        let lab = Self { node, pod, cgroups, is_bridged, attach };
        let (node, pod) = (&lab.node, &lab.pod);
        node.create()?;
        pod.create()?;
        node.ip(&format!("link add pod type veth peer name eth0 netns {}", pod.name()))?;
        let gate = if is_bridged { "bridge" } else { "pod" };
        if is_bridged {
            // Where netfilter comes first, nothing is intercepted.
            node.set_bridge_filter(false)?;
            node.ip("link add bridge type bridge")?;
            node.ip("link set pod master bridge")?;
            node.ip("link set bridge up")?;
        }
        node.ip(&format!("addr add 10.1.0.1/24 dev {gate}"))?;
        node.ip("link set pod up")?;
        node.ip(&format!("addr add {VIP}/32 dev lo"))?;
        for address in [ONE, TWO] {
            pod.ip(&format!("addr add {address}/24 dev eth0"))?;
        }
        pod.ip("link set eth0 up")?;
        pod.ip("route add default via 10.1.0.1")?;
        Ok(lab)
    }

    /// Loads and attaches the programs, as the daemon does.
    pub(crate) fn start(&self, mode: RedirectionMode, host_network: bool) -> Result<(TcpListener, Datapath)> {
        let config = DatapathConfig {
            bpffs_path: PathBuf::from(PINS),
            mode,
            attach: self.attach,
            // No pattern matches the bridge's port.
            pod_interfaces: vec![if self.is_bridged { "bridge" } else { "pod" }.to_owned()],
            ..DatapathConfig::default()
        };
        let is_bridged = self.is_bridged;
        let targets = Targets::new(&[TARGET], VIP).map_err(anyhow::Error::msg)?;
        self.node.run(move || -> Result<_> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            let datapath = daemon::as_daemon(|| {
                let mut datapath =
                    Datapath::load(&config, settings(), (&EndpointNames::default(), &targets), None, None)?;
                let interfaces = interfaces(is_bridged)?;
                let plan = interfaces.plan(&config, host_network, &BTreeSet::new());
                let plan = plan.checking_senders(&interfaces, None, true).checking_processes();
                for (name, attached) in datapath.set_interfaces(&interfaces, &plan) {
                    attached.with_context(|| format!("attaching to {name}"))?;
                }
                datapath.set_listener(&listener)?;
                Ok(datapath)
            })?;
            Ok((listener, datapath))
        })?
    }

    fn cgroups(&self) -> Result<PodCgroups> {
        Ok(CgroupHierarchy::open(self.cgroups.folder())?.pods()?)
    }

    /// Returns the identities of the two pods.
    pub(crate) fn identities(&self, local: LocalAccess) -> Result<IdentityTable> {
        let cgroups = self.cgroups()?;
        let mut table = IdentityTable {
            kubepods: cgroups.kubepods,
            levels: cgroups.levels,
            local,
            ..IdentityTable::default()
        };
        for ((uid, class), address) in [(ONES, ONE), (TWOS, TWO)] {
            let found =
                *cgroups.by_uid.get(uid).with_context(|| format!("no cgroup of {uid}: {cgroups:?}"))?;
            ensure!(found.id == self.cgroups.id(uid, class)?, "{found:?}");
            let (name, uid) = (format!("team/{address}"), uid.to_owned());
            let pod = IdentifiedPod { name: name.clone(), uid: uid.clone(), allowed: false, forwards: false };
            table.pods.insert(found.id, pod);
            table.holders.insert(address.into(), AddressHolder { name, uid, cgroup: Some(found) });
        }
        Ok(table)
    }

    /// Connects as a process of a pod, or of no pod. Returns the connection or the kind of error.
    fn connect(
        &self,
        pod: Option<(&str, PodClass)>,
        place: &Namespace,
        from: Ipv4Addr,
    ) -> Result<Result<TcpStream, ErrorKind>> {
        let inside = move || connect(from);
        let connected = match pod {
            Some((uid, class)) => self.cgroups.within(uid, class, || place.run(inside))??,
            None => place.run(inside)?,
        };
        Ok(connected.map_err(|error| error.kind()))
    }

    /// A pod uses its own address, and cannot use that of another pod, unless it forwards.
    fn check_pods(&self) -> Result<()> {
        let (_listener, mut datapath) = self.start(RedirectionMode::Auto, false)?;
        // Any interface: only cgroups tell the pods apart.
        let entry = AccessEntry { allow: true, ifindex: 0, port: 0, source: Source::Config };
        let access =
            AccessTable { prefixes: [("10.1.0.0/24".parse()?, entry)].into(), ..AccessTable::default() };
        let mut table = self.identities(LocalAccess::Pods)?;
        datapath.set_access(&access, Some(&table))?;
        let spoofed = |datapath: &Datapath| datapath.verdicts()[Verdict::Spoofed as usize].packets;
        let redirected = |datapath: &Datapath| {
            let counts = datapath.verdicts();
            counts[Verdict::Redirected as usize].packets
        };
        for (pod, from, expected) in [
            (Some(ONES), ONE, Ok(())),
            (Some(TWOS), TWO, Ok(())),
            (None, ONE, Ok(())),
            (Some(TWOS), ONE, Err(ErrorKind::TimedOut)),
            (Some(ONES), TWO, Err(ErrorKind::TimedOut)),
        ] {
            let before = spoofed(&datapath);
            let reached = self.connect(pod, &self.pod, from)?.map(drop);
            let counted = spoofed(&datapath) > before;
            ensure!(reached == expected, "{pod:?} from {from} got {reached:?}");
            ensure!(counted == expected.is_err(), "{pod:?} from {from}: counted {counted}");
        }
        // A raw socket needs no address of the namespace's own.
        for ((uid, class), from, passes) in [(TWOS, ONE, false), (ONES, ONE, true)] {
            let before = (spoofed(&datapath), redirected(&datapath));
            let (source, vip) = (SocketAddrV4::new(from, 40_000), SocketAddrV4::new(VIP, 80));
            self.cgroups.within(uid, class, || self.pod.run(move || forge::send_syn(source, vip)))???;
            std::thread::sleep(Duration::from_millis(100));
            let after = (spoofed(&datapath), redirected(&datapath));
            ensure!(
                (after.0 > before.0, after.1 > before.1) == (!passes, passes),
                "{uid} as {from}: {before:?} {after:?}"
            );
        }
        // The second pod with the address of the first one, by what is known of the two.
        let two = self.cgroups.id(TWOS.0, TWOS.1)?;
        let pod = table.pods.remove(&two).context("a pod")?;
        let holder = IpAddr::from(ONE);
        let cgroup = table.holders[&holder].cgroup;
        for (knows_holder, sender, expected, why) in [
            (false, Some(false), Err(ErrorKind::TimedOut), "the cgroup of the address's pod is not known"),
            (true, None, Err(ErrorKind::TimedOut), "the sender is not known"),
            (false, None, Ok(()), "neither is known, so they may be the same pod"),
            (true, Some(true), Ok(()), "the sender forwards"),
        ] {
            let known = cgroup.filter(|_| knows_holder);
            table.holders.entry(holder).and_modify(|holder| holder.cgroup = known);
            match sender {
                Some(forwards) => drop(table.pods.insert(two, IdentifiedPod { forwards, ..pod.clone() })),
                None => drop(table.pods.remove(&two)),
            }
            datapath.set_access(&access, Some(&table))?;
            let reached = self.connect(Some(TWOS), &self.pod, ONE)?.map(drop);
            ensure!(reached == expected, "{why}: {reached:?}");
        }
        self.check_target(&mut datapath, &access)?;
        self.check_without_socket(&mut datapath, &access)?;
        if self.is_bridged { self.check_port(&mut datapath) } else { Ok(()) }
    }

    /// An entry for one port of the bridge is not valid at another one, with or without a cgroup, unless the sender forwards.
    fn check_port(&self, datapath: &mut Datapath) -> Result<()> {
        let [bridge, port] = self.node.run(|| ["bridge", "pod"].map(if_nametoindex))?;
        let (bridge, port) = (bridge?, port?);
        for (at, knows_pods, forwards, expected) in [
            (port, true, false, Ok(())),
            (port + 1, true, false, Err(ErrorKind::TimedOut)),
            (port + 1, true, true, Ok(())),
            (port, false, false, Ok(())),
            (port + 1, false, false, Err(ErrorKind::TimedOut)),
            (0, false, false, Ok(())),
        ] {
            let entry = AccessEntry { allow: true, ifindex: bridge, port: at, source: Source::Config };
            let access = AccessTable { addresses: [(ONE.into(), entry)].into(), ..AccessTable::default() };
            let mut identities =
                if knows_pods { self.identities(LocalAccess::Pods)? } else { IdentityTable::default() };
            identities.pods.values_mut().for_each(|pod| pod.forwards = forwards);
            datapath.set_access(&access, Some(&identities))?;
            ensure!(datapath.access()? == access, "another table is held");
            let sender = knows_pods.then_some(ONES);
            let reached = self.connect(sender, &self.pod, ONE)?.map(drop);
            ensure!(
                reached == expected,
                "bound to {at}, cgroups {knows_pods}, forwards {forwards}: {reached:?}"
            );
        }
        Ok(())
    }

    fn check_full_maps(&self) -> Result<()> {
        let (_listener, mut datapath) = self.start(RedirectionMode::Auto, false)?;
        let entry = |allow| AccessEntry { allow, ifindex: 0, port: 0, source: Source::Config };
        let all = "10.1.0.0/16".parse()?;
        let allowed = AccessTable { prefixes: [(all, entry(true))].into(), ..AccessTable::default() };
        datapath.set_access(&allowed, None)?;
        ensure!(self.connect(None, &self.pod, TWO)?.is_ok(), "before the map is full");
        // More addresses than the map holds, and the denied one is the last.
        let mut desired = allowed.clone();
        let many = (0..u32::try_from(MAX_PODS)?).map(|number| Ipv4Addr::from(0x0a00_0000 + number).into());
        desired.addresses.extend(many.map(|address: IpAddr| (address, entry(true))));
        desired.addresses.insert(TWO.into(), entry(false));
        ensure!(datapath.set_access(&desired, None).is_err(), "the map is full");
        let reached = self.connect(None, &self.pod, TWO)?.map(drop);
        ensure!(reached == Err(ErrorKind::ConnectionRefused), "denied, while the map is full: {reached:?}");
        // What cannot all be denied is not allowed by default.
        let denied = desired.addresses.keys().copied().chain([ELSEWHERE.into()]);
        let by_default = AccessTable {
            addresses: denied.map(|address| (address, entry(false))).collect(),
            default_allow: true,
            ..AccessTable::default()
        };
        ensure!(datapath.set_access(&by_default, None).is_err(), "the map is full");
        let held = datapath.access()?;
        ensure!(!held.default_allow && held.prefixes.is_empty(), "more is allowed than before");
        let none = AccessTable { default_allow: true, ..AccessTable::default() };
        datapath.set_access(&none, None)?;
        ensure!(datapath.access()? == none, "allowed by default");
        // An error is not forgotten.
        let holder = AddressHolder { name: "team/a".to_owned(), uid: "a".to_owned(), cgroup: None };
        let holders = (0..=u32::try_from(MAX_PODS)?).map(|number| {
            let address: IpAddr = Ipv4Addr::from(0x0a00_0000 + number).into();
            (address, holder.clone())
        });
        let identities = IdentityTable { holders: holders.collect(), ..IdentityTable::default() };
        for _ in 0..2 {
            ensure!(datapath.set_access(&none, Some(&identities)).is_err(), "the map of holders is full");
        }
        Ok(())
    }

    /// Connections to a target, which the second pod opens with the address of the first one, are not intercepted.
    fn check_target(&self, datapath: &mut Datapath, access: &AccessTable) -> Result<()> {
        datapath.set_access(access, Some(&self.identities(LocalAccess::Pods)?))?;
        let counts = |datapath: &Datapath| {
            let counts = datapath.verdicts();
            [Verdict::Spoofed, Verdict::Redirected].map(|verdict| counts[verdict as usize].packets)
        };
        for ((uid, class), expected) in [(ONES, [false, true]), (TWOS, [self.is_bridged, false])] {
            datapath.beat()?;
            let before = counts(datapath);
            let send = move || forge::send_syn(SocketAddrV4::new(ONE, 42_000), TARGET);
            self.cgroups.within(uid, class, || self.pod.run(send))???;
            std::thread::sleep(Duration::from_millis(100));
            let after = counts(datapath);
            let grew = [after[0] > before[0], after[1] > before[1]];
            ensure!(grew == expected, "{uid} to a target: {before:?} {after:?}");
        }
        Ok(())
    }

    /// A packet that lost its socket on a way through the pod's `lo`, from the address of a pod that is elsewhere.
    fn check_without_socket(&self, datapath: &mut Datapath, access: &AccessTable) -> Result<()> {
        self.pod.write("/proc/sys/net/ipv4/ip_forward", "1")?;
        self.pod.write("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
        self.pod.write("/proc/sys/net/ipv4/conf/lo/rp_filter", "0")?;
        self.pod.ip("link set lo up")?;
        let mut table = self.identities(LocalAccess::Pods)?;
        let holder = table.holders[&IpAddr::from(ONE)].clone();
        table.holders.insert(ELSEWHERE.into(), holder);
        for (number, is_strict) in [(0, false), (1, true), (2, false)] {
            table.is_strict = is_strict;
            datapath.set_access(access, Some(&table))?;
            let counts = |datapath: &Datapath| {
                let counts = datapath.verdicts();
                [Verdict::Spoofed, Verdict::Redirected].map(|verdict| counts[verdict as usize].packets)
            };
            let before = counts(datapath);
            let packet =
                forge::syn(SocketAddrV4::new(ELSEWHERE, 41_000 + number), SocketAddrV4::new(VIP, 80));
            let (uid, class) = TWOS;
            let send = move || forge::send_at(LOOPBACK_INDEX, &packet);
            self.cgroups.within(uid, class, || self.pod.run(send))???;
            std::thread::sleep(Duration::from_millis(100));
            let after = counts(datapath);
            let grew = [after[0] > before[0], after[1] > before[1]];
            ensure!(grew == [is_strict, !is_strict], "strict {is_strict}: {before:?} {after:?}");
            let reached = self.connect(Some(ONES), &self.pod, ONE)?.map(drop);
            ensure!(reached == Ok(()), "strict {is_strict}: with its own address, it got {reached:?}");
        }
        Ok(())
    }

    /// Processes in the node's own network namespace have access by their pods.
    fn check_local(&self, mode: RedirectionMode) -> Result<()> {
        let (listener, mut datapath) = self.start(mode, true)?;
        let entry = AccessEntry { allow: true, ifindex: LOOPBACK_INDEX, port: 0, source: Source::Config };
        let access = AccessTable { addresses: [(VIP.into(), entry)].into(), ..AccessTable::default() };
        let one = self.cgroups.id(ONES.0, ONES.1)?;
        let refused = Err(ErrorKind::ConnectionRefused);
        for (local, expected) in [
            // By address: those of pods that no rule selects, too.
            (LocalAccess::ByAddress, [Ok(()), Ok(()), Ok(())]),
            (LocalAccess::Pods, [Ok(()), refused, refused]),
            (LocalAccess::Processes, [Ok(()), refused, Ok(())]),
            (LocalAccess::Pods, [Ok(()), refused, refused]),
        ] {
            let mut table = self.identities(local)?;
            table.pods.get_mut(&one).context("a pod")?.allowed = true;
            datapath.set_access(&access, Some(&table))?;
            for (pod, expected) in [Some(ONES), Some(TWOS), None].into_iter().zip(expected) {
                // The last packet of a handshake with a SYN cookie is looked up again.
                for cookies in ["1", "2", "1"] {
                    self.node.write(COOKIES, cookies)?;
                    let reached = self.connect(pod, &self.node, VIP)?.map(drop);
                    ensure!(reached == expected, "{local:?}, {pod:?}, cookies {cookies}: {reached:?}");
                }
            }
        }
        let open = || -> Result<TcpStream> {
            self.connect(Some(ONES), &self.node, VIP)?
                .map_err(|error| anyhow::anyhow!("while it was allowed: {error}"))
        };
        let revoked = |datapath: &Datapath| datapath.verdicts()[Verdict::Revoked as usize].packets;
        reset_all(&listener)?;
        let before = revoked(&datapath);
        end_in_time_wait(&listener, open)?;
        ensure!(revoked(&datapath) == before, "the acknowledgment of a socket in TIME_WAIT was dropped");
        // Packets on an open connection are dropped once its pod has no access.
        let mut stream = open()?;
        stream.write_all(b"before")?;
        datapath.set_access(&access, Some(&self.identities(LocalAccess::Pods)?))?;
        stream.write_all(b"after")?;
        std::thread::sleep(Duration::from_millis(100));
        ensure!(revoked(&datapath) > before, "a packet of a revoked pod was not dropped");
        drop((stream, listener));
        // Without the program at the egress of `lo`, nothing is admitted.
        let mut table = self.identities(LocalAccess::Pods)?;
        table.pods.get_mut(&one).context("a pod")?.allowed = true;
        datapath.set_access(&access, Some(&table))?;
        self.remove_local_program()?;
        let reached = self.connect(Some(ONES), &self.node, VIP)?.map(drop);
        ensure!(reached == refused, "without the program at lo, it got {reached:?}");
        Ok(())
    }

    fn remove_local_program(&self) -> Result<()> {
        let folder = Path::new(PINS).join(format!("v{}", lota_common::LAYOUT)).join("links");
        let pinned = folder.join(format!("local-{LOOPBACK_INDEX}"));
        if pinned.exists() {
            return Ok(std::fs::remove_file(pinned)?);
        }
        run(Command::new("tc").args(["-n", self.node.name(), "filter", "del", "dev", "lo", "egress"]))
            .map(drop)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = clean(&self.node, &self.pod) {
            eprintln!("cannot remove the namespaces: {error:#}");
        }
    }
}

fn clean(node: &Namespace, pod: &Namespace) -> Result<()> {
    let _ = std::fs::remove_dir_all(PINS);
    node.delete()?;
    pod.delete()
}

fn interfaces(is_bridged: bool) -> Result<Interfaces> {
    let interface = |name: &str, kind: &str, controller| Interface {
        name: name.to_owned(),
        kind: kind.to_owned(),
        controller,
        peer: None,
    };
    let bridge = if is_bridged { Some(if_nametoindex("bridge")?) } else { None };
    let mut interfaces = Interfaces::default();
    interfaces.0.insert(LOOPBACK_INDEX, interface("lo", "", None));
    interfaces.0.insert(if_nametoindex("pod")?, interface("pod", "veth", bridge));
    interfaces.0.extend(bridge.map(|index| (index, interface("bridge", "bridge", None))));
    Ok(interfaces)
}

/// Resets what was accepted, so that no segment of it follows.
fn reset_all(listener: &TcpListener) -> Result<()> {
    while let Ok((stream, _)) = listener.accept() {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    std::thread::sleep(Duration::from_millis(50));
    Ok(())
}

/// Opens a connection and ends it, first at the client, so that the kernel sends the client's last segment.
fn end_in_time_wait(listener: &TcpListener, open: impl FnOnce() -> Result<TcpStream>) -> Result<()> {
    let client = open()?;
    let end = client.local_addr()?;
    std::thread::sleep(Duration::from_millis(50));
    let (mut server, from) = listener.accept()?;
    ensure!(from == end, "accepted {from}, not {end}");
    drop(client);
    server.set_nonblocking(false)?;
    server.read_to_end(&mut Vec::new())?;
    drop(server);
    std::thread::sleep(Duration::from_millis(100));
    Ok(())
}

fn connect(from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&SocketAddr::from((VIP, 80)).into(), LONG_ENOUGH)?;
    Ok(socket.into())
}
