//! Costs of the eBPF programs, compared with an empty program and a plain listener in the same run:
//! `cargo xtask bench datapath`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    EbpfLoader, TestRun as _, TestRunOptions,
    programs::{SchedClassifier, TcAttachType, Xdp, loaded_programs},
    sys::{Stats, enable_stats},
};
use cases::{PEER, POD, SELF, STRANGER, VIP, settings};
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use kernel::Kernel;
use lota_common::{MAX_NAMES, Source, program};
use lota_datapath::{
    AccessEntry, AccessTable, AddressHolder, CgroupHierarchy, Datapath, EndpointName, EndpointNames,
    IdentifiedPod, IdentityTable, Interface, Interfaces, Targets, WhenDown,
};
use lota_tests::{
    bench::{self, Goal, Report},
    lab::{CgroupRoot, Lab, Namespace, Origin, Pod, PodClass, claim},
    tool,
    tour::{Tools, Tour},
};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns},
};
use packets::{Packet, Transport};
use socket2::{Domain, Socket, Type};

#[path = "../tests/packet/cases.rs"]
#[expect(dead_code, reason = "the packet suite uses the rest")]
mod cases;
#[path = "../tests/packet/daemon.rs"]
mod daemon;
#[path = "../tests/packet/kernel.rs"]
#[expect(dead_code, reason = "the packet suite uses the rest")]
mod kernel;
#[path = "../tests/packet/packets.rs"]
#[expect(dead_code, reason = "the packet suite uses the rest")]
mod packets;

const NAME: &str = "lota-bench";
const ROUNDS: usize = 9;
/// Runs of a program per round.
const REPEAT: u32 = 200_000;
/// Runs per round of a program that changes its packet: each run needs a new packet.
const SINGLE: u32 = 10_000;
/// Connections per round.
const CONNECTIONS: u32 = 1_000;
/// UID of the pod whose cgroup the clients have.
const UID: &str = "3f2c9a1e-0b6d-4a57-9f55-2d1f0c7b8a90";
/// Port on which the node listens without redirection, for comparison.
const PLAIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1)), 8080);

fn main() -> ExitCode {
    let run = || -> Result<bool> {
        claim(NAME)?;
        let mut report = Report::new("datapath");
        packets_alone(&mut report).context("packets")?;
        connections(&mut report).context("connections")?;
        first_connection(&mut report).context("the first connection")?;
        report.write()
    };
    bench::ended("datapath", run())
}

/// Measures nanoseconds per packet by `BPF_PROG_TEST_RUN`, less those of an empty program.
fn packets_alone(report: &mut Report) -> Result<()> {
    let place = Namespace::named("lota-bench-packets");
    let home = std::fs::File::open("/proc/self/ns/net")?;
    place.delete()?;
    place.create()?;
    place.ip("link add pod type veth peer name other")?;
    place.enter()?;
    let measured = measure_packets(report);
    setns(home, CloneFlags::CLONE_NEWNET)?;
    place.delete()?;
    measured
}

fn measure_packets(report: &mut Report) -> Result<()> {
    let mut kernel = Kernel::load(if_nametoindex("pod")?)?;
    let syn = |port| Transport::Tcp { port, flags: 0x02 };
    let query = |name: &str| -> Result<Transport> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
        Ok(Transport::Payload { port: 53, bytes: message.to_vec()? })
    };
    let elsewhere = Packet::v4(POD, STRANGER, syn(443)).bytes();
    for (what, program, packet) in [
        ("a packet to elsewhere", program::POD, elsewhere.clone()),
        ("a denied pod's SYN", program::POD, Packet::v4(STRANGER, VIP, syn(80)).bytes()),
        (
            "a query for another name",
            program::POD,
            Packet::v4(POD, STRANGER, query("www.example.com.")?).bytes(),
        ),
        ("the guard, a packet to elsewhere (XDP)", program::GUARD, Packet::v4(PEER, SELF, syn(22)).bytes()),
    ] {
        let mut beyond = Vec::new();
        for _ in 0..ROUNDS {
            let empty = time(&kernel, program::NOTHING, &packet, REPEAT)?;
            beyond.push(time(&kernel, program, &packet, REPEAT)? - empty);
        }
        report.add(format!("{what}, beyond an empty program"), "ns", Goal::None, beyond);
    }
    let ours = Packet::v4(POD, STRANGER, query("bucket.cwlota.com.")?).bytes();
    let beyond = answered(&kernel, &ours)?;
    report.add("a query for LOTA's name, answered, beyond an empty program", "ns", Goal::None, beyond);

    let many = many_names()?;
    let own = many[..1].to_vec();
    let _listener = kernel.open_listener()?;
    for name in ["www.example.com.", "sts.eu-central-1.amazonaws.com."] {
        let packet = Packet::v4(POD, STRANGER, query(name)?).bytes();
        let (mut beyond, mut more) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            // The heartbeat stays valid during a round.
            kernel.set_heartbeat(Some(Duration::ZERO))?;
            let empty = time(&kernel, program::NOTHING, &packet, REPEAT)?;
            kernel.set_names(&own)?;
            let without = time(&kernel, program::POD, &packet, REPEAT)?;
            kernel.set_names(&many)?;
            let with = time(&kernel, program::POD, &packet, REPEAT)?;
            beyond.push(with - empty);
            more.push(with - without);
        }
        report.add(
            format!("64 names: a query for {name}, beyond an empty program"),
            "ns",
            Goal::None,
            beyond,
        );
        report.add("… beyond the same without intercepted names", "ns", Goal::AtMost(50.0), more);
    }
    kernel.set_heartbeat(Some(Duration::ZERO))?;
    let beyond = answered(&kernel, &ours)?;
    report.add("64 names: a query for LOTA's name, answered", "ns", Goal::None, beyond);
    let intercepted = query("bucket.s3.eu-central-1.amazonaws.com.")?;
    let intercepted = Packet::v4(POD, STRANGER, intercepted).bytes();
    let mut beyond = Vec::new();
    for _ in 0..ROUNDS {
        kernel.set_heartbeat(Some(Duration::ZERO))?;
        beyond.extend(answered_in_rounds(&kernel, &intercepted, 1)?);
    }
    report.add("64 names: a query for a name of the gateway, answered", "ns", Goal::None, beyond);
    Ok(())
}

/// Returns the maximum number of names: LOTA's own, and those of S3 in many regions.
fn many_names() -> Result<Vec<EndpointName>> {
    let regions = (1..).flat_map(|number| {
        ["us-east", "us-west", "eu-central", "eu-west", "ap-south"].map(|area| format!("{area}-{number}"))
    });
    let names = regions.map(|region| EndpointName::intercepted(&format!("s3.{region}.amazonaws.com")));
    let names = [EndpointName::own("cwlota.com", WhenDown::Refuse)].into_iter().chain(names);
    names.take(MAX_NAMES).collect::<Result<_, _>>().map_err(anyhow::Error::msg)
}

/// Measures nanoseconds for an answered query, less those of an empty program.
fn answered(kernel: &Kernel, packet: &[u8]) -> Result<Vec<f64>> {
    answered_in_rounds(kernel, packet, ROUNDS)
}

fn answered_in_rounds(kernel: &Kernel, packet: &[u8], rounds: usize) -> Result<Vec<f64>> {
    let mut beyond = Vec::new();
    for _ in 0..rounds {
        let mut sums = [0.0; 2];
        for (sum, program) in sums.iter_mut().zip([program::NOTHING, program::POD]) {
            for _ in 0..SINGLE {
                *sum += time(kernel, program, packet, 1)?;
            }
        }
        beyond.push((sums[1] - sums[0]) / f64::from(SINGLE));
    }
    Ok(beyond)
}

/// Measures a program's nanoseconds per run: the mean of `repeat` runs.
fn time(kernel: &Kernel, program: &str, packet: &[u8], repeat: u32) -> Result<f64> {
    let mut options = TestRunOptions::new();
    options.data_in = Some(packet);
    options.repeat = repeat;
    let loaded = kernel.ebpf.program(program).context("no such program")?;
    let result = if program == program::GUARD {
        <&Xdp>::try_from(loaded)?.test_run(options)?
    } else {
        options.ctx_in = Some(&kernel.context);
        <&SchedClassifier>::try_from(loaded)?.test_run(options)?
    };
    Ok(result.duration.as_nanos() as f64)
}

/// Measures connections that are redirected, and for comparison connections to a plain listener over an interface with
/// an empty program.
fn connections(report: &mut Report) -> Result<()> {
    let (node, pod) = (Namespace::named("lota-bench-n"), Namespace::named("lota-bench-p"));
    let pins = PathBuf::from("/sys/fs/bpf/lota-bench");
    let clean = || -> Result<()> {
        let _ = std::fs::remove_dir_all(&pins);
        node.delete()?;
        pod.delete()
    };
    clean()?;
    let measured = measure_connections(report, &node, &pod, &pins);
    clean()?;
    measured
}

fn measure_connections(report: &mut Report, node: &Namespace, pod: &Namespace, pins: &Path) -> Result<()> {
    node.create()?;
    pod.create()?;
    for (interface, network) in [("pod", 1), ("plain", 2)] {
        node.ip(&format!("link add {interface} type veth peer name {interface} netns {}", pod.name()))?;
        node.ip(&format!("addr add 10.{network}.0.1/24 dev {interface}"))?;
        node.ip(&format!("link set {interface} up"))?;
        pod.ip(&format!("addr add 10.{network}.0.2/24 dev {interface}"))?;
        pod.ip(&format!("link set {interface} up"))?;
    }
    node.ip(&format!("addr add {VIP}/32 dev lo"))?;
    pod.ip(&format!("route add {VIP}/32 via 10.1.0.1"))?;
    let cgroups = CgroupRoot::make("lotabench")?;
    cgroups.make_pod(UID, PodClass::Burstable)?;
    let identities = identities(&cgroups)?;
    let pins = pins.to_owned();
    let names = EndpointNames::new(many_names()?).map_err(anyhow::Error::msg)?;
    let (hidden, plain, _datapath, _empty) = node.run(move || -> Result<_> {
        let hidden = listener((Ipv4Addr::LOCALHOST, 0).into())?;
        let plain = listener(PLAIN)?;
        let config =
            lota_datapath::DatapathConfig { bpffs_path: pins, ..lota_datapath::DatapathConfig::default() };
        let config = lota_datapath::DatapathConfig { pod_interfaces: vec!["pod".to_owned()], ..config };
        let mut datapath = Datapath::load(&config, settings(), (&names, &Targets::default()), None, None)?;
        let index = if_nametoindex("pod")?;
        let interface =
            Interface { name: "pod".to_owned(), kind: "veth".to_owned(), controller: None, peer: None };
        let interfaces = Interfaces([(index, interface)].into());
        for (name, attached) in
            datapath.set_interfaces(&interfaces, &interfaces.plan(&config, false, &BTreeSet::new()))
        {
            attached.with_context(|| format!("attaching to {name}"))?;
        }
        let entry = AccessEntry { allow: true, ifindex: index, port: 0, source: Source::Config };
        let access = AccessTable { addresses: [(POD.into(), entry)].into(), ..AccessTable::default() };
        datapath.set_access(&access, Some(&identities))?;
        datapath.set_listener(&hidden)?;
        let mut empty = EbpfLoader::new().load(lota_datapath::OBJECT)?;
        let program: &mut SchedClassifier =
            empty.program_mut(program::NOTHING).context("no program")?.try_into()?;
        program.load()?;
        program.attach("plain", TcAttachType::Ingress)?;
        Ok((hidden, plain, datapath, empty))
    })??;
    let stop = Arc::new(AtomicBool::new(false));
    let accepting = [hidden, plain].map(|listener| {
        let stop = stop.clone();
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => drop(stream),
                    Err(_) => thread::sleep(Duration::from_micros(50)),
                }
            }
        })
    });
    let vip = SocketAddr::from((VIP, 80));
    let rate = |to: SocketAddr| {
        cgroups.within(UID, PodClass::Burstable, || pod.run(move || connect_often(to)))??
    };
    let (mut ratios, mut redirected, mut beyond, mut looked_up) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    rate(vip)?;
    rate(PLAIN)?;
    for _ in 0..ROUNDS {
        let through = rate(vip)?;
        let beside = rate(PLAIN)?;
        redirected.push(through);
        ratios.push(through / beside);
    }
    report.add("connections per second, redirected", "1/s", Goal::None, redirected);
    report.add("the same, as a ratio to a plain listener", "x", Goal::AtLeast(0.95), ratios);

    // The kernel's statistics of each run; they have a cost, and therefore are off in the measurements above.
    let _stats: OwnedFd = enable_stats(Stats::RunTime)?;
    for _ in 0..ROUNDS {
        let programs = [program::POD, program::NOTHING, program::LOOKUP];
        let times = || programs.map(run_time).into_iter().collect::<Result<Vec<_>>>();
        let before = times()?;
        rate(vip)?;
        rate(PLAIN)?;
        let after = times()?;
        let per_packet = |index: usize| {
            let (time, count) = (after[index].0 - before[index].0, after[index].1 - before[index].1);
            time as f64 / count.max(1) as f64
        };
        beyond.push(per_packet(0) - per_packet(1));
        looked_up.push(per_packet(2));
    }
    report.add(
        "an allowed pod's packet, by cgroup and with 64 names, beyond an empty program",
        "ns",
        Goal::AtMost(100.0),
        beyond,
    );
    report.add("a lookup of a listener, redirected or not, the program itself", "ns", Goal::None, looked_up);
    stop.store(true, Ordering::Relaxed);
    for accepting in accepting {
        accepting.join().map_err(|_| anyhow::anyhow!("an accepting thread panicked"))?;
    }
    Ok(())
}

/// Returns the identity of the pod whose cgroup the clients have.
fn identities(cgroups: &CgroupRoot) -> Result<IdentityTable> {
    let found = CgroupHierarchy::open(cgroups.folder())?.pods()?;
    let cgroup = *found.by_uid.get(UID).context("the pod has no cgroup")?;
    let (name, uid) = ("bench/pod".to_owned(), UID.to_owned());
    let pod = IdentifiedPod { name: name.clone(), uid: uid.clone(), allowed: true, forwards: false };
    let holder = AddressHolder { name, uid, cgroup: Some(cgroup) };
    Ok(IdentityTable {
        pods: [(cgroup.id, pod)].into(),
        holders: [(POD.into(), holder)].into(),
        kubepods: found.kubepods,
        levels: found.levels,
        ..IdentityTable::default()
    })
}

fn listener(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Measures sequential connections per second. A reset ends each, so that no address pair remains in TIME_WAIT.
fn connect_often(to: SocketAddr) -> Result<f64> {
    let started = Instant::now();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    Ok(f64::from(CONNECTIONS) / started.elapsed().as_secs_f64())
}

/// Returns the total nanoseconds and the number of runs of the newest program of this name.
fn run_time(name: &str) -> Result<(u64, u64)> {
    let newest = loaded_programs()
        .flatten()
        .filter(|program| program.name_as_str() == Some(name))
        .max_by_key(aya::programs::ProgramInfo::id)
        .with_context(|| format!("{name} is not loaded"))?;
    Ok((u64::try_from(newest.run_time().as_nanos())?, newest.run_count()))
}

/// Measures the time from the creation of a pod's interface to its first connection, with a running daemon.
fn first_connection(report: &mut Report) -> Result<()> {
    let lab = Lab::up(NAME)?;
    let origin = Origin::embedded(lab.folder())?;
    let tour = Tour::start(lab, origin, &Tools { lota: tool("LOTA_BIN")?, python: tool("LOTA_PYTHON")? })?;
    let pod = Pod(1, 2);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        tour.lab.node(1).ip(&format!("link del {}", pod.interface()))?;
        // Gives the daemon time to remove the entry of the previous interface.
        thread::sleep(Duration::from_millis(200));
        tour.lab.connect_pod(pod)?;
        let after = tour.lab.pod(pod).run(|| -> Result<Duration> {
            let started = Instant::now();
            while TcpStream::connect_timeout(&(VIP, 80).into(), Duration::from_millis(100)).is_err() {
                ensure!(started.elapsed() < Duration::from_secs(10), "no connection within ten seconds");
            }
            Ok(started.elapsed())
        })??;
        times.push(after.as_secs_f64() * 1000.0);
    }
    report.add(
        "a new pod's first connection, from its network being there",
        "ms",
        Goal::AtMost(100.0),
        times,
    );
    Ok(())
}
