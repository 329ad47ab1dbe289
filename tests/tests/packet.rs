//! Packets in, verdicts out: the very programs the daemon embeds, run by the kernel (`BPF_PROG_TEST_RUN`).
//!
//! What they decide is read from the verdict counters. A steered packet counts as `no_listener` here: the
//! kernel lets no socket be assigned outside of TC ingress, so steering itself is the `e2e` suite's to test.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, PerCpuArray},
    programs::{SchedClassifier, Xdp},
};
use libtest_mimic::{Arguments, Trial};
use lota_common::{Access, Address4, Address6, Count, Node, Settings, Verdict, map, program};
use lota_ebpf::{
    decide::{Pod, from_pod},
    packet::{Bytes, Family, family, parse_v4, parse_v6},
};
use packets::{Packet, Transport};

#[path = "packet/packets.rs"]
mod packets;

const VIP: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 80);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0xface, 0, 0, 0, 0, 0, 0x80);
const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const POD6: Ipv6Addr = Ipv6Addr::new(0xfd10, 1, 0, 0, 0, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 9);
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0xfd10, 1, 0, 0, 0, 0, 0, 9);
/// Has an entry, but for another interface than test packets come from.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const SELF: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const SELF6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 1);
const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 2);
const PEER_PORT: u16 = 7480;
const ADMIN_PORT: u16 = 7481;
/// Test packets come from `lo`, whose index is 1 everywhere.
const LO: u32 = 1;

const SETTINGS: Settings = Settings {
    vip4: VIP.octets(),
    vip6: VIP6.octets(),
    http_port: 80u16.to_be_bytes(),
    dns_port: 53u16.to_be_bytes(),
    peer_port: PEER_PORT.to_be_bytes(),
    admin_port: ADMIN_PORT.to_be_bytes(),
};

/// What TC does with a packet.
const NEXT: u32 = u32::MAX;
const PASS: u32 = 0;
const SHOT: u32 = 2;
/// What XDP does with a packet.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

fn main() {
    let kernel = match Kernel::load() {
        Ok(kernel) => Arc::new(Mutex::new(kernel)),
        Err(error) => {
            eprintln!("packet: the programs cannot be loaded (this suite needs root): {error:#}");
            std::process::exit(1);
        }
    };
    let mut trials = Vec::new();
    for (name, packet, action, verdict) in pod_cases() {
        let kernel = kernel.clone();
        trials.push(Trial::test(format!("pod: {name}"), move || {
            Ok(lock(&kernel).expect(program::POD, &packet.bytes(), action, verdict)?)
        }));
    }
    for (name, packet, action, verdict) in guard_cases() {
        let kernel = kernel.clone();
        trials.push(Trial::test(format!("guard: {name}"), move || {
            Ok(lock(&kernel).expect(program::GUARD, &packet.bytes(), action, verdict)?)
        }));
    }
    trials.push(Trial::test("pod: every packet, cut at every length, as the model says", move || {
        Ok(truncated(&mut lock(&kernel))?)
    }));
    libtest_mimic::run(&Arguments { test_threads: Some(1), ..Arguments::from_args() }, trials).exit();
}

fn lock(kernel: &Mutex<Kernel>) -> std::sync::MutexGuard<'_, Kernel> {
    kernel.lock().unwrap_or_else(PoisonError::into_inner)
}

type Case = (&'static str, Packet, u32, Verdict);

fn pod_cases() -> Vec<Case> {
    let v4 = Packet::v4;
    let v6 = Packet::v6;
    let syn = |port| Transport::Tcp { port, flags: 0x02 };
    let ack = |port| Transport::Tcp { port, flags: 0x10 };
    let udp = |port| Transport::Udp { port };
    vec![
        ("an allowed pod's SYN", v4(POD, VIP, syn(80)), PASS, Verdict::NoListener),
        ("an allowed pod's SYN, IPv6", v6(POD6, VIP6, syn(80)), PASS, Verdict::NoListener),
        ("an allowed pod's SYN with IP options", v4(POD, VIP, syn(80)).options(8), PASS, Verdict::NoListener),
        ("an allowed pod's ACK without a socket", v4(POD, VIP, ack(80)), PASS, Verdict::NoListener),
        ("a denied pod's SYN", v4(STRANGER, VIP, syn(80)), PASS, Verdict::Denied),
        ("a denied pod's SYN, IPv6", v6(STRANGER6, VIP6, syn(80)), PASS, Verdict::Denied),
        ("an allowed address at another interface", v4(ELSEWHERE, VIP, syn(80)), PASS, Verdict::Denied),
        ("the VIP as a source", v4(VIP, VIP, syn(80)), PASS, Verdict::Denied),
        ("a name query", v4(STRANGER, VIP, udp(53)), PASS, Verdict::Dns),
        ("a name query over TCP", v4(STRANGER, VIP, syn(53)), PASS, Verdict::Dns),
        ("another port of the VIP", v4(POD, VIP, syn(443)), PASS, Verdict::VipOther),
        ("UDP to the VIP's port 80", v4(POD, VIP, udp(80)), PASS, Verdict::VipOther),
        ("a ping of the VIP", v4(POD, VIP, Transport::Other(1)), PASS, Verdict::VipOther),
        ("a first fragment to the VIP", v4(POD, VIP, syn(80)).fragment(0x2000), SHOT, Verdict::Fragment),
        ("a later fragment to the VIP", v4(POD, VIP, syn(80)).fragment(0x0001), SHOT, Verdict::Fragment),
        ("extension headers to the VIP", v6(POD6, VIP6, syn(80)).extension(60), SHOT, Verdict::Malformed),
        (
            "a fragment header to the VIP, IPv6",
            v6(POD6, VIP6, syn(80)).extension(44),
            SHOT,
            Verdict::Malformed,
        ),
        ("another address", v4(POD, PEER, syn(80)), NEXT, Verdict::NotOurs),
        ("another address, IPv6", v6(POD6, STRANGER6, syn(80)), NEXT, Verdict::NotOurs),
        ("a fragment to another address", v4(POD, STRANGER, udp(9)).fragment(0x0001), NEXT, Verdict::NotOurs),
        ("ARP", v4(POD, VIP, syn(80)).ether_type(0x0806), NEXT, Verdict::NotOurs),
        ("a VLAN tag in the packet", v4(POD, VIP, syn(80)).ether_type(0x8100), NEXT, Verdict::NotOurs),
        ("this node's peer port", v4(POD, SELF, syn(PEER_PORT)), SHOT, Verdict::Protected),
        ("this node's admin port", v4(POD, SELF, syn(ADMIN_PORT)), SHOT, Verdict::Protected),
        ("another node's peer port", v4(POD, PEER, syn(PEER_PORT)), SHOT, Verdict::Protected),
        ("another node's admin port", v4(POD, PEER, ack(ADMIN_PORT)), SHOT, Verdict::Protected),
        (
            "a peer port in a first fragment",
            v4(POD, PEER, syn(PEER_PORT)).fragment(0x2000),
            SHOT,
            Verdict::Protected,
        ),
        (
            "the admin port at 127.0.0.1",
            v4(POD, Ipv4Addr::LOCALHOST, syn(ADMIN_PORT)),
            SHOT,
            Verdict::Protected,
        ),
        ("another node's peer port, IPv6", v6(POD6, PEER6, syn(PEER_PORT)), SHOT, Verdict::Protected),
        (
            "behind extension headers, to a node",
            v6(POD6, PEER6, syn(9)).extension(60),
            SHOT,
            Verdict::Protected,
        ),
        ("the same to no node", v6(POD6, STRANGER6, syn(9)).extension(60), NEXT, Verdict::NotOurs),
        ("the same port of no node", v4(POD, STRANGER, syn(PEER_PORT)), NEXT, Verdict::NotOurs),
        ("UDP to a peer port", v4(POD, PEER, udp(PEER_PORT)), NEXT, Verdict::NotOurs),
    ]
}

fn guard_cases() -> Vec<Case> {
    let v4 = Packet::v4;
    let syn = |port| Transport::Tcp { port, flags: 0x02 };
    vec![
        ("a peer at the peer port", v4(PEER, SELF, syn(PEER_PORT)), XDP_PASS, Verdict::Peer),
        ("a stranger at the peer port", v4(STRANGER, SELF, syn(PEER_PORT)), XDP_DROP, Verdict::Stranger),
        (
            "a stranger's first fragment there",
            v4(STRANGER, SELF, syn(PEER_PORT)).fragment(0x2000),
            XDP_DROP,
            Verdict::Stranger,
        ),
        ("a peer, IPv6", Packet::v6(PEER6, SELF6, syn(PEER_PORT)), XDP_PASS, Verdict::Peer),
        (
            "a stranger behind extension headers",
            Packet::v6(STRANGER6, SELF6, syn(9)).extension(60),
            XDP_DROP,
            Verdict::Stranger,
        ),
        ("a stranger at another port", v4(STRANGER, SELF, syn(22)), XDP_PASS, Verdict::NotOurs),
        (
            "forwarded to another node's peer port",
            v4(STRANGER, PEER, syn(PEER_PORT)),
            XDP_PASS,
            Verdict::NotOurs,
        ),
        ("anyone at the VIP", v4(PEER, VIP, syn(80)), XDP_DROP, Verdict::Outside),
        ("a name query from outside", v4(PEER, VIP, Transport::Udp { port: 53 }), XDP_DROP, Verdict::Outside),
        ("the VIP, IPv6", Packet::v6(POD6, VIP6, syn(80)), XDP_DROP, Verdict::Outside),
        ("anything else", v4(STRANGER, STRANGER, Transport::Other(1)), XDP_PASS, Verdict::NotOurs),
    ]
}

/// The kernel refuses test packets shorter than their IP header; the host's property tests cover those.
fn truncated(kernel: &mut Kernel) -> Result<()> {
    for (name, packet, ..) in pod_cases() {
        let whole = packet.bytes();
        for length in packet.shortest()..=whole.len() {
            let bytes = &whole[..length];
            let expected = model(bytes);
            let (action, verdict) = kernel.run(program::POD, bytes)?;
            ensure!(
                expected.contains(&verdict),
                "{name}, cut to {length} bytes: {verdict:?} and {action}, where the model says {expected:?}"
            );
        }
    }
    Ok(())
}

/// The verdicts that the host's half allows, without the lookups that come after it.
fn model(bytes: &[u8]) -> Vec<Verdict> {
    let decision = match family(&Cut(bytes)) {
        Some(Family::V4) => parse_v4(&Cut(bytes)).map(|packet| from_pod(&SETTINGS, &packet)),
        Some(Family::V6) => parse_v6(&Cut(bytes)).map(|packet| from_pod(&SETTINGS, &packet)),
        None => None,
    };
    match decision {
        None => vec![Verdict::NotOurs],
        Some(Pod::Settled(verdict)) => vec![verdict],
        Some(Pod::Steer) => vec![Verdict::NoListener, Verdict::Denied],
        Some(Pod::Protect) => vec![Verdict::Protected, Verdict::NotOurs],
    }
}

struct Cut<'a>(&'a [u8]);

impl Bytes for Cut<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset + N)?.try_into().ok()
    }
}

/// The loaded programs, with this file's addresses in their maps.
struct Kernel {
    ebpf: Ebpf,
}

impl Kernel {
    fn load() -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(lota_daemon::datapath::OBJECT)?;
        let pod: &mut SchedClassifier =
            ebpf.program_mut(program::POD).context("no pod program")?.try_into()?;
        pod.load()?;
        let guard: &mut Xdp = ebpf.program_mut(program::GUARD).context("no guard")?.try_into()?;
        guard.load()?;

        let mut settings: Array<_, Settings> = map_mut(&mut ebpf, map::SETTINGS)?.try_into()?;
        settings.set(0, SETTINGS, 0)?;
        let mut access: HashMap<_, Address4, Access> = map_mut(&mut ebpf, map::ACCESS4)?.try_into()?;
        access.insert(Address4 { address: POD.octets() }, Access { ifindex: LO }, 0)?;
        access.insert(Address4 { address: ELSEWHERE.octets() }, Access { ifindex: LO + 1 }, 0)?;
        let mut access6: HashMap<_, Address6, Access> = map_mut(&mut ebpf, map::ACCESS6)?.try_into()?;
        access6.insert(Address6 { address: POD6.octets() }, Access { ifindex: LO }, 0)?;
        let mut nodes: HashMap<_, Address4, Node> = map_mut(&mut ebpf, map::NODES4)?.try_into()?;
        nodes.insert(Address4 { address: SELF.octets() }, Node { own: 1 }, 0)?;
        nodes.insert(Address4 { address: PEER.octets() }, Node { own: 0 }, 0)?;
        let mut nodes6: HashMap<_, Address6, Node> = map_mut(&mut ebpf, map::NODES6)?.try_into()?;
        nodes6.insert(Address6 { address: SELF6.octets() }, Node { own: 1 }, 0)?;
        nodes6.insert(Address6 { address: PEER6.octets() }, Node { own: 0 }, 0)?;
        Ok(Self { ebpf })
    }

    fn expect(&mut self, program: &str, packet: &[u8], action: u32, verdict: Verdict) -> Result<()> {
        let (done, decided) = self.run(program, packet)?;
        ensure!(
            (done, decided) == (action, verdict),
            "decided {decided:?} and returned {done}, not {verdict:?} and {action}"
        );
        Ok(())
    }

    /// What the program returned, and the one verdict it counted.
    fn run(&mut self, program: &str, packet: &[u8]) -> Result<(u32, Verdict)> {
        let before = self.counts()?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        let loaded = self.ebpf.program(program).context("no such program")?;
        let result = if program == program::POD {
            <&SchedClassifier>::try_from(loaded)?.test_run(options)?
        } else {
            <&Xdp>::try_from(loaded)?.test_run(options)?
        };
        let after = self.counts()?;
        let counted: Vec<Verdict> = Verdict::ALL
            .iter()
            .copied()
            .filter(|verdict| after[*verdict as usize] > before[*verdict as usize])
            .collect();
        let [verdict] = counted[..] else { anyhow::bail!("counted {counted:?}, not one verdict") };
        Ok((result.return_value, verdict))
    }

    fn counts(&mut self) -> Result<[u64; Verdict::COUNT]> {
        let counters: PerCpuArray<_, Count> = map_mut(&mut self.ebpf, map::VERDICTS)?.try_into()?;
        let mut counts = [0; Verdict::COUNT];
        for verdict in Verdict::ALL {
            let per_cpu = counters.get(&(*verdict as u32), 0)?;
            counts[*verdict as usize] = per_cpu.iter().map(|count| count.packets).sum();
        }
        Ok(counts)
    }
}

fn map_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::maps::Map> {
    ebpf.map_mut(name).with_context(|| format!("no map {name}"))
}
