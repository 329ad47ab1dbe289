//! What the kernel side costs, beside an empty program and a plain listener in the same run. `cargo xtask bench
//! datapath`.

use std::{
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
use lota_common::{Source, program};
use lota_daemon::{
    access::{Entry, Table},
    config,
    datapath::{Datapath, Interface, Interfaces},
};
use lota_tests::{
    bench::{self, Goal, Report},
    lab::{Lab, Namespace, Origin, Pod, clean_up_on_signal},
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
/// Runs of a program that changes its packet, which must be given a new one each time.
const SINGLE: u32 = 10_000;
/// Connections per round.
const CONNECTIONS: u32 = 1_000;
/// Where the node listens without any steering, for comparison.
const PLAIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1)), 8080);

fn main() -> ExitCode {
    let run = || -> Result<bool> {
        clean_up_on_signal(NAME)?;
        let mut report = Report::new("datapath");
        packets_alone(&mut report).context("packets")?;
        connections(&mut report).context("connections")?;
        first_connection(&mut report).context("the first connection")?;
        report.write()
    };
    bench::ended("datapath", run())
}

/// By `BPF_PROG_TEST_RUN`: nanoseconds per packet beyond the empty program, each measured beside it.
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
    let kernel = Kernel::load(if_nametoindex("pod")?)?;
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
    let mut beyond = Vec::new();
    for _ in 0..ROUNDS {
        let mut rounds = [0.0; 2];
        for (sum, program) in rounds.iter_mut().zip([program::NOTHING, program::POD]) {
            for _ in 0..SINGLE {
                *sum += time(&kernel, program, &ours, 1)?;
            }
        }
        beyond.push((rounds[1] - rounds[0]) / f64::from(SINGLE));
    }
    report.add("a query for the zone, answered, beyond an empty program", "ns", Goal::None, beyond);
    Ok(())
}

/// Nanoseconds of one run of a program, on average over as many.
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

/// Through the steering, and beside it to a plain listener over an interface with an empty program.
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
    let pins = pins.to_owned();
    let (hidden, plain, _datapath, _empty) = node.run(move || -> Result<_> {
        let hidden = listener((Ipv4Addr::LOCALHOST, 0).into())?;
        let plain = listener(PLAIN)?;
        let config = config::Datapath { pins, ..config::Datapath::default() };
        let config = config::Datapath { pod_interfaces: vec!["pod".to_owned()], ..config };
        let mut datapath = Datapath::load(&config, settings(), None, None)?;
        let index = if_nametoindex("pod")?;
        let interface = Interface { name: "pod".to_owned(), kind: "veth".to_owned(), controller: None };
        let interfaces = Interfaces([(index, interface)].into());
        for (name, attached) in datapath.set_interfaces(&interfaces, &interfaces.plan(&config, false)) {
            attached.with_context(|| format!("attaching to {name}"))?;
        }
        let entry = Entry { allow: true, ifindex: index, source: Source::Config };
        datapath.set_access(&Table { addresses: [(POD.into(), entry)].into(), ..Table::default() })?;
        datapath.set_listener(&hidden)?;
        let mut empty = EbpfLoader::new().load(lota_daemon::datapath::OBJECT)?;
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
    let rate = |to: SocketAddr| -> Result<f64> { pod.run(move || connect_often(to))? };
    let (mut ratios, mut steered, mut beyond, mut looked_up) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    rate(vip)?;
    rate(PLAIN)?;
    for _ in 0..ROUNDS {
        let through = rate(vip)?;
        let beside = rate(PLAIN)?;
        steered.push(through);
        ratios.push(through / beside);
    }
    report.add("connections per second through the steering", "1/s", Goal::None, steered);
    report.add("the same, as a ratio to a plain listener", "x", Goal::AtLeast(0.95), ratios);

    // The kernel's own account of every packet of those connections; it costs a little, so not above.
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
    report.add("an allowed pod's packet, beyond an empty program", "ns", Goal::AtMost(100.0), beyond);
    report.add("a lookup of a listener, steered or not, the program itself", "ns", Goal::None, looked_up);
    stop.store(true, Ordering::Relaxed);
    for accepting in accepting {
        accepting.join().map_err(|_| anyhow::anyhow!("an accepting thread panicked"))?;
    }
    Ok(())
}

fn listener(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Connections per second, one after the other. They end by reset, so that no tuple waits.
fn connect_often(to: SocketAddr) -> Result<f64> {
    let started = Instant::now();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    Ok(f64::from(CONNECTIONS) / started.elapsed().as_secs_f64())
}

/// Nanoseconds and runs of the newest program of this name.
fn run_time(name: &str) -> Result<(u64, u64)> {
    let newest = loaded_programs()
        .flatten()
        .filter(|program| program.name_as_str() == Some(name))
        .max_by_key(aya::programs::ProgramInfo::id)
        .with_context(|| format!("{name} is not loaded"))?;
    Ok((u64::try_from(newest.run_time().as_nanos())?, newest.run_count()))
}

/// From the moment a pod's interface is there to its first connection, with the daemon as it runs.
fn first_connection(report: &mut Report) -> Result<()> {
    let lab = Lab::up(NAME)?;
    let origin = Origin::embedded(lab.folder())?;
    let tour = Tour::start(lab, origin, &Tools { lota: tool("LOTA_BIN")?, python: tool("LOTA_PYTHON")? })?;
    let pod = Pod(1, 2);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        tour.lab.node(1).ip(&format!("link del {}", pod.interface()))?;
        // The old entry must be gone, or it would not be a start.
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
