//! Packets in, verdicts out: the very programs the daemon embeds, run by the kernel (`BPF_PROG_TEST_RUN`).
//!
//! What they decide is read from the verdict counters. A steered packet counts as `no_listener` here: the
//! kernel lets no socket be assigned outside of TC ingress; the tests of steering make connections instead.

use std::{
    fs::File,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use cases::{STRANGER, STRANGER6, guard_cases, pod_cases, settings};
use kernel::{Kernel, Ran};
use libtest_mimic::{Arguments, Failed, Trial};
use lota_common::{Settings, Verdict, program};
use lota_ebpf::{
    decide::{Pod, from_pod},
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
#[path = "packet/kernel.rs"]
mod kernel;
#[path = "packet/names.rs"]
mod names;
#[path = "packet/packets.rs"]
mod packets;
#[path = "packet/steering.rs"]
mod steering;

/// Packets must come from an interface that is not `lo`: so there is one, in a namespace of its own.
const NAMESPACE: &str = "lota-packet";

type Test = fn(&mut Kernel) -> Result<()>;
/// One that loads the programs itself.
type OwnTest = fn() -> Result<()>;

const MORE: [(&str, Test); 7] = [
    ("pod: every packet, cut at every length, as the model says", truncated),
    ("pod: refusals are remembered", refusals),
    ("pod: by default allowed, if configured so", default_allow),
    ("pod: where socket lookup steers, the allowed pass", lookups),
    ("names: the zone's addresses", names::addresses),
    ("names: no data", names::no_data),
    ("names: what is not the zone's is not touched", names::others),
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
        // The next program's, where XDP passes.
        ("guard at TC", program::GUARD_TC, guard_cases()),
    ];
    for (title, program, cases) in tables {
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
        trials.push(Trial::test(name, move || told(test(&mut lock(&kernel)))));
    }
    trials.push(Trial::test("budget: instructions", move || told(budget::instructions(&lock(&kernel)))));
    let steering: [(&str, OwnTest); 3] = [
        ("steering: one connection, by TC", steering::by_tc),
        ("steering: one connection, by clsact", steering::by_clsact),
        ("steering: one connection, at socket lookup", steering::by_lookup),
    ];
    for (name, test) in steering {
        trials.push(Trial::test(name, move || told(test())));
    }
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Deleting it ends the processes that are in it.
    let left = setns(home, CloneFlags::CLONE_NEWNET).map_err(anyhow::Error::from);
    if let Err(error) = left.and_then(|()| namespace.delete()) {
        eprintln!("packet: {error:#}");
        std::process::exit(1);
    }
    conclusion.exit();
}

/// Makes the namespace and moves this thread into it; the index of its interface.
fn enter(namespace: &Namespace) -> Result<u32> {
    namespace.delete()?;
    namespace.create()?;
    namespace.ip("link add pod type veth peer name other")?;
    namespace.enter()?;
    if_nametoindex("pod").context("the interface just made is gone")
}

fn told(result: Result<()>) -> Result<(), Failed> {
    result.map_err(|error| format!("{error:#}").into())
}

fn lock(kernel: &Mutex<Kernel>) -> MutexGuard<'_, Kernel> {
    kernel.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who was refused, how often, when and where.
fn refusals(kernel: &mut Kernel) -> Result<()> {
    let syn = packets::Transport::Tcp { port: 80, flags: 0x02 };
    for (address, packet) in [
        (IpAddr::from(STRANGER), packets::Packet::v4(STRANGER, cases::VIP, syn.clone())),
        (IpAddr::from(STRANGER6), packets::Packet::v6(STRANGER6, cases::VIP6, syn)),
    ] {
        kernel.run(program::POD, &packet.bytes())?;
        let before = kernel.denial(address)?;
        kernel.run(program::POD, &packet.bytes())?;
        let after = kernel.denial(address)?;
        ensure!(after.count == before.count + 1, "{before:?}, then {after:?}");
        ensure!(after.last_ns > before.last_ns, "{before:?}, then {after:?}");
        ensure!(after.verdict == Verdict::Denied as u32, "{after:?}");
        ensure!(after.ifindex == if_nametoindex("pod")?, "{after:?}");
    }
    Ok(())
}

/// Where socket lookup steers, TC only says who may.
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
    let passed = (cases::Action::Pass, Verdict::Passed);
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

/// The kernel refuses test packets shorter than their IP header; the host's property tests cover those.
fn truncated(kernel: &mut Kernel) -> Result<()> {
    for (name, packet, ..) in pod_cases() {
        let whole = packet.bytes();
        for length in packet.shortest()..=whole.len() {
            let bytes = &whole[..length];
            let expected = model(bytes);
            let Ran { action, verdict, .. } = kernel.run(program::POD, bytes)?;
            ensure!(
                expected.contains(&verdict),
                "{name}, cut to {length} bytes: {verdict:?} and {action:?}, where the model says {expected:?}"
            );
        }
    }
    Ok(())
}

/// The verdicts that the host's half allows, without the lookups that come after it.
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
        Some(Pod::Settled(verdict)) => vec![verdict],
        Some(Pod::Steer) => vec![Verdict::NoListener, Verdict::Denied],
        // Cut short, none is a query.
        Some(Pod::Name) => vec![Verdict::NotOurs],
        Some(Pod::Protect) => vec![Verdict::Protected, Verdict::NotOurs],
    }
}

struct Cut<'a>(&'a [u8]);

impl Bytes for Cut<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset + N)?.try_into().ok()
    }
}
