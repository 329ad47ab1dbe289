//! The loaded programs, with the addresses of the cases in their maps.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions, VerifierLogLevel,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, SockMap, lpm_trie::Key},
    programs::{Program, ProgramError, SchedClassifier, Xdp},
};
use lota_common::{
    Address4, Address6, Count, Denial, FIRST_STAND_IN, Heartbeat, LISTENER4, NameKey, RawAccess,
    RawAddressAccess, RawInterface, RawName, RawNode, RawTarget, Settings, Source, StandIn, Verdict, map,
    program,
};
use lota_datapath::{EndpointName, WhenDown};
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};

use super::{
    cases::{Action, BANNED, ELSEWHERE, EXCEPTED, PEER, PEER6, POD, POD6, RULED6, SELF, SELF6, settings},
    daemon,
};

/// Size of the output buffer in bytes, more than any response.
const OUTPUT_SIZE: usize = 2048;
/// Offset of the interface index in `struct __sk_buff` (`include/uapi/linux/bpf.h`).
const IFINDEX: usize = 40;
/// Timeout for the clock to advance.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Kernel {
    pub(crate) ebpf: Ebpf,
    /// `struct __sk_buff` up to the index of the interface from which packets seem to come.
    pub(crate) context: [u8; IFINDEX + 4],
    /// Number of instructions that the verifier processed, by program.
    verified: BTreeMap<String, u32>,
    /// Age of the daemon's last heartbeat whenever a program runs: emulated machines are slow.
    heartbeat_age: Option<Duration>,
}

/// Programs that older kernels refuse, with the first version that loads them.
const SINCE: [(&str, (u32, u32)); 2] = [(program::GUARD, (5, 18)), (program::LOOKUP, (5, 17))];

/// Returns whether this kernel can load a program.
pub(crate) fn can_load(program: &str) -> Result<bool> {
    let version = version()?;
    Ok(SINCE.iter().all(|(name, since)| *name != program || version >= *since))
}

/// Returns the version of the kernel.
pub(crate) fn version() -> Result<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    Ok((numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)))
}

/// Result of a program run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) action: Action,
    pub(crate) verdict: Verdict,
    /// The packet after the run.
    pub(crate) packet: Vec<u8>,
}

impl Kernel {
    pub(crate) fn load(ifindex: u32) -> Result<Self> {
        let (ebpf, verified) = daemon::as_daemon(load_programs)?;
        let mut context = [0; IFINDEX + 4];
        context[IFINDEX..].copy_from_slice(&ifindex.to_ne_bytes());
        let mut kernel = Self { ebpf, context, verified, heartbeat_age: None };
        kernel.set(settings())?;
        kernel.set_names(&[EndpointName::own("cwlota.com", WhenDown::Refuse).map_err(Error::msg)?])?;
        let entry = RawAddressAccess { source: Source::Config as u32, ..RawAddressAccess::default() };
        let allow = |ifindex| RawAddressAccess { allow: 1, ifindex, ..entry };
        let deny = RawAddressAccess { source: Source::Command as u32, ..entry };
        let rule = |allow| RawAccess { allow, ifindex: 0, source: Source::Config as u32 };
        let mut access: HashMap<_, Address4, RawAddressAccess> = kernel.map(map::ACCESS4)?.try_into()?;
        for (address, entry) in
            [(POD, allow(ifindex)), (ELSEWHERE, allow(ifindex + 1)), (EXCEPTED, allow(0)), (BANNED, deny)]
        {
            access.insert(Address4 { address: address.octets() }, entry, 0)?;
        }
        let mut access6: HashMap<_, Address6, RawAddressAccess> = kernel.map(map::ACCESS6)?.try_into()?;
        access6.insert(Address6 { address: POD6.octets() }, allow(ifindex), 0)?;
        let mut rules: LpmTrie<_, Address4, RawAccess> = kernel.map(map::RULES4)?.try_into()?;
        rules.insert(&Key::new(22, Address4 { address: [10, 1, 4, 0] }), rule(1), 0)?;
        rules.insert(&Key::new(24, Address4 { address: [10, 1, 5, 0] }), rule(0), 0)?;
        let mut rules6: LpmTrie<_, Address6, RawAccess> = kernel.map(map::RULES6)?.try_into()?;
        rules6.insert(&Key::new(64, Address6 { address: RULED6.octets() }), rule(1), 0)?;
        let mut nodes: HashMap<_, Address4, RawNode> = kernel.map(map::NODES4)?.try_into()?;
        nodes.insert(Address4 { address: SELF.octets() }, RawNode { own: 1 }, 0)?;
        nodes.insert(Address4 { address: PEER.octets() }, RawNode { own: 0 }, 0)?;
        let mut nodes6: HashMap<_, Address6, RawNode> = kernel.map(map::NODES6)?.try_into()?;
        nodes6.insert(Address6 { address: SELF6.octets() }, RawNode { own: 1 }, 0)?;
        nodes6.insert(Address6 { address: PEER6.octets() }, RawNode { own: 0 }, 0)?;
        Ok(kernel)
    }

    pub(crate) fn set(&mut self, settings: Settings) -> Result<()> {
        let mut map: Array<_, Settings> = self.map(map::SETTINGS)?.try_into()?;
        Ok(map.set(0, settings, 0)?)
    }

    /// Replaces the endpoint's names.
    pub(crate) fn set_names(&mut self, names: &[EndpointName]) -> Result<()> {
        let mut map: LpmTrie<_, NameKey, RawName> = self.map(map::NAMES)?.try_into()?;
        let held: Vec<_> = map.keys().collect::<Result<_, _>>()?;
        held.iter().try_for_each(|key| map.remove(key))?;
        for name in names {
            let (key, entry) = name.raw();
            map.insert(&key, entry, 0)?;
        }
        Ok(())
    }

    /// Sets how long ago the daemon wrote its last heartbeat; `None`: never.
    pub(crate) fn set_heartbeat(&mut self, age: Option<Duration>) -> Result<()> {
        self.heartbeat_age = age;
        self.write_heartbeat()
    }

    fn write_heartbeat(&mut self) -> Result<()> {
        let age = self.heartbeat_age;
        let now = boot_time()?;
        let at_ns = age.map_or(0, |age| now.saturating_sub(age).as_nanos()).try_into()?;
        let mut map: Array<_, Heartbeat> = self.map(map::HEARTBEAT)?.try_into()?;
        Ok(map.set(0, Heartbeat { at_ns }, 0)?)
    }

    /// Replaces the targets. Ports of the VIP stand for them in their order.
    pub(crate) fn set_targets(&mut self, targets: &[(Ipv4Addr, u16)]) -> Result<()> {
        let target = |(address, port): &(Ipv4Addr, u16)| RawTarget {
            address: address.octets(),
            port: *port,
            reserved: 0,
        };
        let targets: Vec<RawTarget> = targets.iter().map(target).collect();
        let mut map: HashMap<_, RawTarget, StandIn> = self.map(map::TARGETS)?.try_into()?;
        let held: Vec<_> = map.keys().collect::<Result<_, _>>()?;
        held.iter().try_for_each(|target| map.remove(target))?;
        for (port, target) in (FIRST_STAND_IN..).zip(&targets) {
            map.insert(target, StandIn { port, former: 0 }, 0)?;
        }
        let mut map: Array<_, RawTarget> = self.map(map::STAND_INS)?.try_into()?;
        let unused = std::iter::repeat(RawTarget::default());
        for (index, target) in (0..map.len()).zip(targets.into_iter().chain(unused)) {
            map.set(index, target, 0)?;
        }
        Ok(())
    }

    /// Sets whether the interface of the packets intercepts connections to targets.
    pub(crate) fn set_intercepts(&mut self, intercepts: bool) -> Result<()> {
        let ifindex = u32::from_ne_bytes(*self.context.last_chunk().context("no index")?);
        let mut map: HashMap<_, u32, RawInterface> = self.map(map::INTERFACES)?.try_into()?;
        let interface = RawInterface {
            redirected: RawInterface::BY_TC,
            intercepts: u32::from(intercepts),
            has_senders: 1,
        };
        Ok(map.insert(ifindex, interface, 0)?)
    }

    /// Opens the daemon's listener. It is open until the returned one is dropped.
    pub(crate) fn open_listener(&mut self) -> Result<TcpListener> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut map: SockMap<_> = self.map(map::LISTENERS)?.try_into()?;
        map.set(LISTENER4, &listener, 0)?;
        Ok(listener)
    }

    pub(crate) fn expect(
        &mut self,
        program: &str,
        packet: &[u8],
        action: Action,
        verdict: Verdict,
    ) -> Result<()> {
        let ran = self.run(program, packet)?;
        ensure!(
            (ran.action, ran.verdict) == (action, verdict),
            "decided {:?} and {:?}, not {verdict:?} and {action:?}",
            ran.verdict,
            ran.action
        );
        Ok(())
    }

    /// Runs a program that counts nothing on this packet. Returns its action and the packet.
    pub(crate) fn run_uncounted(&mut self, program: &str, packet: &[u8]) -> Result<(Action, Vec<u8>)> {
        let (action, counted, packet) = self.execute(program, packet)?;
        ensure!(counted.is_empty(), "{program} counted {counted:?}");
        ensure!(matches!(action, Action::Pass | Action::Next), "{program} decided {action:?}");
        Ok((action, packet))
    }

    /// Runs a program on a packet. The program must count exactly one verdict.
    pub(crate) fn run(&mut self, program: &str, packet: &[u8]) -> Result<Ran> {
        let (action, counted, packet) = self.execute(program, packet)?;
        let [verdict] = counted[..] else { bail!("counted {counted:?}, not one verdict") };
        Ok(Ran { action, verdict, packet })
    }

    /// Runs a program on a packet. Returns its action, the verdicts that it counted, and the packet.
    fn execute(&mut self, program: &str, packet: &[u8]) -> Result<(Action, Vec<Verdict>, Vec<u8>)> {
        self.write_heartbeat()?;
        let before = self.counts()?;
        let mut after_it = vec![0; OUTPUT_SIZE];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut after_it);
        let xdp = program == program::GUARD;
        if !xdp {
            options.ctx_in = Some(&self.context);
        }
        let loaded = self.ebpf.program(program).context("no such program")?;
        let result = if xdp {
            <&Xdp>::try_from(loaded)?.test_run(options)?
        } else {
            <&SchedClassifier>::try_from(loaded)?.test_run(options)?
        };
        let action = match (xdp, result.return_value) {
            (true, 1) | (false, 2) => Action::Drop,
            (true, 2) | (false, 0) => Action::Pass,
            (false, u32::MAX) => Action::Next,
            (false, 7) => Action::Redirect,
            (_, other) => bail!("{program} returned {other}"),
        };
        let after = self.counts()?;
        let counted: Vec<Verdict> = Verdict::ALL
            .iter()
            .copied()
            .filter(|verdict| after[*verdict as usize] > before[*verdict as usize])
            .collect();
        after_it.truncate(result.data_size_out as usize);
        Ok((action, counted, after_it))
    }

    /// Returns the recorded refusals of an address.
    pub(crate) fn denial(&mut self, address: IpAddr) -> Result<Denial> {
        Ok(match address {
            IpAddr::V4(address) => {
                let map: HashMap<_, Address4, Denial> = self.map(map::DENIED4)?.try_into()?;
                map.get(&Address4 { address: address.octets() }, 0)?
            }
            IpAddr::V6(address) => {
                let map: HashMap<_, Address6, Denial> = self.map(map::DENIED6)?.try_into()?;
                map.get(&Address6 { address: address.octets() }, 0)?
            }
        })
    }

    /// Returns the instructions of each program, and the instructions that the verifier processed.
    pub(crate) fn sizes(&self) -> Result<Vec<(String, u32, u32)>> {
        let sizes = self.verified.iter().map(|(name, verified)| {
            let program = self.ebpf.program(name).context("no such program")?;
            let translated = program.info()?.size_translated().context("no size")? / 8;
            Ok((name.clone(), translated, *verified))
        });
        sizes.collect()
    }

    fn counts(&mut self) -> Result<[u64; Verdict::COUNT]> {
        let counters: PerCpuArray<_, Count> = self.map(map::VERDICTS)?.try_into()?;
        let mut counts = [0; Verdict::COUNT];
        for verdict in Verdict::ALL {
            let per_cpu = counters.get(&(*verdict as u32), 0)?;
            counts[*verdict as usize] = per_cpu.iter().map(|count| count.packets).sum();
        }
        Ok(counts)
    }

    fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }
}

fn boot_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into())
}

/// Waits until the time since boot, in nanoseconds, is later than this one; returns it.
pub(crate) fn boot_time_after(time_ns: u64) -> Result<u64> {
    let started = Instant::now();
    loop {
        let now_ns = u64::try_from(boot_time()?.as_nanos())?;
        if now_ns > time_ns {
            return Ok(now_ns);
        }
        ensure!(started.elapsed() < CLOCK_TIMEOUT, "the clock stays at {now_ns}, before {time_ns}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Loads all programs that this kernel can load. Returns also the instructions that the verifier processed for each.
fn load_programs() -> Result<(Ebpf, BTreeMap<String, u32>)> {
    let mut ebpf =
        EbpfLoader::new().verifier_log_level(VerifierLogLevel::STATS).load(lota_datapath::OBJECT)?;
    let mut verified = BTreeMap::new();
    for (name, program) in ebpf.programs_mut() {
        if can_load(name)? {
            let processed = verified_instructions(program).with_context(|| format!("verifying {name}"))?;
            verified.insert(name.to_owned(), processed);
            load(program).with_context(|| format!("loading {name}"))?;
        }
    }
    Ok((ebpf, verified))
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Returns the number of instructions that the verifier processes. Kernels before 5.16 state it only in the verifier's
/// log, which is returned only if loading fails; it fails last if no file descriptor is left.
fn verified_instructions(program: &mut Program) -> Result<u32> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard)?;
    let loaded = load(program);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    let Err(ProgramError::LoadError { verifier_log, .. }) = loaded else {
        bail!("it was loaded without a file descriptor: {loaded:?}")
    };
    let log = verifier_log.to_string();
    let processed = log.lines().find_map(|line| line.strip_prefix("processed ")?.split(' ').next());
    let processed =
        processed.with_context(|| format!("no instruction count in the verifier's log: {log}"))?;
    Ok(processed.parse()?)
}
