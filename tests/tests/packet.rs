//! Verdicts on single packets: the programs that the daemon embeds, run by the kernel (`BPF_PROG_TEST_RUN`).
//!
//! Verdicts are read from their counters. A redirected packet counts as `no_listener` here, since the kernel does not
//! allow socket assignment outside of TC ingress; the tests of redirects use connections instead.
//!
//! With `LOTA_HARDENED`, programs are loaded and attached with the capabilities of a hardened installation.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use cases::{STRANGER, STRANGER6, guard_cases, pod_cases, settings};
use kernel::{Kernel, Ran};
use libtest_mimic::{Arguments, Failed, Trial};
use lota_common::{Settings, Verdict, program};
use lota_ebpf::{
    decide::{PodDecision, from_pod},
    packet::{Bytes, Network, network, parse_v4, parse_v6},
};
use lota_tests::lab::Namespace;
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns},
};

#[path = "packet/budget.rs"]
mod budget;
#[path = "packet/cases.rs"]
mod cases;
#[path = "packet/daemon.rs"]
mod daemon;
#[path = "packet/forge.rs"]
mod forge;
#[path = "packet/identity.rs"]
mod identity;
#[path = "packet/kernel.rs"]
mod kernel;
#[path = "packet/names.rs"]
mod names;
#[path = "packet/packets.rs"]
mod packets;
#[path = "packet/recent.rs"]
mod recent;
#[path = "packet/redirection.rs"]
mod redirection;
#[path = "packet/targets.rs"]
mod targets;

/// Namespace with the interface of the packets, which must not be `lo`.
const NAMESPACE: &str = "lota-packet";
/// Maximum difference of the programs' clock from that of system calls, in nanoseconds: programs read it without a lock.
const CLOCK_ERROR_NS: u64 = 100_000;

type Test = fn(&mut Kernel) -> Result<()>;
/// A test that loads the programs itself.
type OwnTest = fn() -> Result<()>;

const MORE: [(&str, Test); 14] = [
    ("pod: packets truncated at every length agree with the model", truncated),
    ("pod: refusals are recorded", refusals),
    ("pod: forged sources do not evict the record of a refused pod", forged_sources),
    ("pod: allow by default", default_allow),
    ("pod: allowed packets pass if socket lookup redirects", lookups),
    ("targets: new connections are intercepted, and replies come from the target", targets::intercepted),
    ("targets: other packets are not changed", targets::others),
    ("DNS: names of each kind, with the daemon alive, stale and dead", names::kinds),
    ("DNS: names of the gateway by address family", names::families),
    ("DNS: 64 names, the longest decides", names::many),
    ("DNS: addresses of the zone", names::addresses),
    ("DNS: no data", names::no_data),
    ("DNS: other queries are not changed", names::others),
    ("DNS: at a bridge's port", names::at_bridge_port),
];

fn main() {
    let namespace = Namespace::named(NAMESPACE);
    let home = File::open("/proc/self/ns/net").expect("a process has a network namespace");
    let kernel = match enter(&namespace).and_then(Kernel::load) {
        Ok(kernel) => Arc::new(Mutex::new(kernel)),
        Err(error) => {
            eprintln!("packet: the programs cannot be loaded (this suite needs root): {error:#}");
            let _ = namespace.delete();
            std::process::exit(1);
        }
    };
    let mut trials = Vec::new();
    let tables = [
        ("pod", program::POD, pod_cases()),
        ("guard", program::GUARD, guard_cases()),
        // A pass at XDP is a continuation with the next program at TC.
        ("guard at TC", program::GUARD_TC, guard_cases()),
    ];
    let can_load = |program| kernel::can_load(program).unwrap_or(true);
    for (title, program, cases) in tables.into_iter().filter(|(_, program, _)| can_load(program)) {
        for (name, packet, action, verdict) in cases {
            let kernel = kernel.clone();
            let next = program == program::GUARD_TC && action == cases::Action::Pass;
            let action = if next { cases::Action::Next } else { action };
            trials.push(Trial::test(format!("{title}: {name}"), move || {
                Ok(lock(&kernel).expect(program, &packet.bytes(), action, verdict)?)
            }));
        }
    }
    for (name, test) in MORE {
        let kernel = kernel.clone();
        trials.push(Trial::test(name, move || outcome(test(&mut lock(&kernel)))));
    }
    trials.push(Trial::test("budget: instructions", move || outcome(budget::instructions(&lock(&kernel)))));
    let redirection: [(&str, &str, OwnTest); 16] = [
        ("redirect: one connection, by TC", program::POD, redirection::by_tc),
        ("redirect: one connection, by clsact", program::POD, redirection::by_clsact),
        ("targets: connections to a server, by TC", program::POD, redirection::by_address_and_tc),
        ("targets: connections to a server, by clsact", program::POD, redirection::by_address_and_clsact),
        ("redirect: one connection, at socket lookup", program::LOOKUP, redirection::by_lookup),
        ("identity: a pod with another pod's address", program::PORT, identity::at_an_interface),
        ("identity: the same, by clsact", program::PORT, identity::at_an_interface_by_clsact),
        ("identity: the same, behind a bridge", program::PORT, identity::at_a_bridge),
        ("identity: the same, behind a bridge, by clsact", program::PORT, identity::at_a_bridge_by_clsact),
        ("identity: pods on the host network", program::LOCAL, identity::at_loopback),
        ("identity: the same, by clsact", program::LOCAL, identity::at_loopback_by_clsact),
        ("identity: the same, at socket lookup", program::LOOKUP, identity::at_loopback_by_lookup),
        ("access: changes apply to the next packet", program::POD, recent::random),
        ("access: changes that fail end access, too", program::POD, recent::after_an_error),
        ("access: entries are read after the epoch", program::POD, recent::after_the_epoch),
        ("access: a full map gives no access", program::POD, identity::full_maps),
    ];
    for (name, _, test) in redirection.into_iter().filter(|(_, program, _)| can_load(program)) {
        trials.push(Trial::test(name, move || outcome(test())));
    }
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Its deletion kills the processes in it, so this one leaves first.
    let left = setns(home, CloneFlags::CLONE_NEWNET).map_err(anyhow::Error::from);
    if let Err(error) = left.and_then(|()| namespace.delete()) {
        eprintln!("packet: {error:#}");
        std::process::exit(1);
    }
    conclusion.exit();
}

/// Creates the namespace and moves this thread into it; returns the index of its interface.
fn enter(namespace: &Namespace) -> Result<u32> {
    namespace.delete()?;
    namespace.create()?;
    namespace.ip("link add pod type veth peer name other")?;
    namespace.enter()?;
    if_nametoindex("pod").context("the new interface does not exist")
}

fn outcome(result: Result<()>) -> Result<(), Failed> {
    result.map_err(|error| format!("{error:#}").into())
}

fn lock(kernel: &Mutex<Kernel>) -> MutexGuard<'_, Kernel> {
    kernel.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refusals are recorded with count, time, verdict and interface.
fn refusals(kernel: &mut Kernel) -> Result<()> {
    let syn = packets::Transport::Tcp { port: 80, flags: 0x02 };
    for (address, packet) in [
        (IpAddr::from(STRANGER), packets::Packet::v4(STRANGER, cases::VIP, syn.clone())),
        (IpAddr::from(STRANGER6), packets::Packet::v6(STRANGER6, cases::VIP6, syn)),
    ] {
        kernel.run(program::POD, &packet.bytes())?;
        let before = kernel.denial(address)?;
        // Without a better clock source, the clock advances with the timer interrupt only, every few milliseconds.
        let started_ns = kernel::boot_time_after(before.last_ns + CLOCK_ERROR_NS)?;
        kernel.run(program::POD, &packet.bytes())?;
        let after = kernel.denial(address)?;
        let ended_ns = kernel::boot_time_after(0)?;
        ensure!(after.count == before.count + 1, "{before:?}, then {after:?}");
        ensure!(
            (started_ns - CLOCK_ERROR_NS..=ended_ns + CLOCK_ERROR_NS).contains(&after.last_ns),
            "{before:?}, then {after:?}, between {started_ns} and {ended_ns}"
        );
        ensure!(after.verdict == Verdict::Denied as u32, "{after:?}");
        ensure!(after.ifindex == if_nametoindex("pod")?, "{after:?}");
    }
    Ok(())
}

/// More sources than the map holds, all from one interface.
fn forged_sources(kernel: &mut Kernel) -> Result<()> {
    let syn = packets::Transport::Tcp { port: 80, flags: 0x02 };
    kernel.run(program::POD, &packets::Packet::v4(STRANGER, cases::VIP, syn.clone()).bytes())?;
    for last in 0..6000u16 {
        let [high, low] = last.to_be_bytes();
        let forged = Ipv4Addr::new(10, 9, high, low);
        kernel.run(program::POD, &packets::Packet::v4(forged, cases::VIP, syn.clone()).bytes())?;
    }
    kernel.denial(STRANGER.into()).context("its record was evicted").map(|_| ())
}

/// With redirects at socket lookup, TC only decides about access.
fn lookups(kernel: &mut Kernel) -> Result<()> {
    kernel.set(Settings { lookups: 1, ..settings() })?;
    let mut decide = |address, flags| {
        let packet = packets::Packet::v4(address, cases::VIP, packets::Transport::Tcp { port: 80, flags });
        let ran = kernel.run(program::POD, &packet.bytes())?;
        Ok((ran.action, ran.verdict))
    };
    let decided: Result<Vec<_>> = [(cases::POD, 0x02), (cases::POD, 0x10), (STRANGER, 0x02)]
        .into_iter()
        .map(|(a, f)| decide(a, f))
        .collect();
    kernel.set(settings())?;
    let passed = (cases::Action::Pass, Verdict::Delivered);
    let decided = decided?;
    ensure!(decided == [passed, passed, (cases::Action::Pass, Verdict::Denied)], "{decided:?}");
    Ok(())
}

fn default_allow(kernel: &mut Kernel) -> Result<()> {
    kernel.set(Settings { default_allow: 1, ..settings() })?;
    let syn = packets::Transport::Tcp { port: 80, flags: 0x02 };
    let mut decide = |address| {
        Ok(kernel.run(program::POD, &packets::Packet::v4(address, cases::VIP, syn.clone()).bytes())?.verdict)
    };
    let decided: Result<Vec<Verdict>> =
        [STRANGER, cases::RULED_OUT, cases::ELSEWHERE].into_iter().map(&mut decide).collect();
    kernel.set(settings())?;
    let decided = decided?;
    ensure!(decided == [Verdict::NoListener, Verdict::Denied, Verdict::Denied], "{decided:?}");
    Ok(())
}

/// The kernel rejects test packets shorter than their IP header; property tests on the host cover those.
fn truncated(kernel: &mut Kernel) -> Result<()> {
    for (name, packet, ..) in pod_cases() {
        let whole = packet.bytes();
        for length in packet.shortest()..=whole.len() {
            let bytes = &whole[..length];
            let expected = model(bytes);
            let Ran { action, verdict, .. } = kernel.run(program::POD, bytes)?;
            ensure!(
                expected.contains(&verdict),
                "{name}, truncated to {length} bytes: {verdict:?} and {action:?}; the model expects {expected:?}"
            );
        }
    }
    Ok(())
}

/// Returns the verdicts that are possible by the pure part, before lookups of maps.
fn model(bytes: &[u8]) -> Vec<Verdict> {
    let settings = settings();
    let decision = match network(&Cut(bytes)) {
        (Network::V4, at) => parse_v4(&Cut(bytes), at).map(|packet| from_pod(&settings, &packet)),
        (Network::V6, at) => parse_v6(&Cut(bytes), at).map(|packet| from_pod(&settings, &packet)),
        (Network::Other, _) => None,
        (Network::Hidden, _) => return vec![Verdict::Malformed],
    };
    match decision {
        None => vec![Verdict::NotOurs],
        Some(PodDecision::Settled(verdict)) => vec![verdict],
        Some(PodDecision::Redirect) => vec![Verdict::NoListener, Verdict::Denied],
        // No truncated packet is a valid query.
        Some(PodDecision::Name) => vec![Verdict::NotOurs],
        Some(PodDecision::Forbid | PodDecision::StandIn) => vec![Verdict::Protected],
        Some(PodDecision::Protect) => vec![Verdict::Protected, Verdict::NotOurs],
    }
}

struct Cut<'a>(&'a [u8]);

impl Bytes for Cut<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset + N)?.try_into().ok()
    }
}
