//! The loaded programs, with the cases' addresses in their maps.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::{Program, SchedClassifier, Xdp},
};
use lota_common::{Access, Address4, Address6, Count, Denial, Node, Settings, Source, Verdict, map, program};

use super::cases::{
    Action, BANNED, ELSEWHERE, EXCEPTED, PEER, PEER6, POD, POD6, RULED6, SELF, SELF6, settings,
};

/// More than any answer.
const MOST: usize = 2048;
/// Where `struct __sk_buff` (`include/uapi/linux/bpf.h`) has the interface's index.
const IFINDEX: usize = 40;

pub(crate) struct Kernel {
    pub(crate) ebpf: Ebpf,
    /// `struct __sk_buff` up to the interface that packets seem to come from.
    pub(crate) context: [u8; IFINDEX + 4],
}

/// What became of a packet.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) action: Action,
    pub(crate) verdict: Verdict,
    /// The packet afterwards.
    pub(crate) packet: Vec<u8>,
}

impl Kernel {
    pub(crate) fn load(ifindex: u32) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(lota_daemon::datapath::OBJECT)?;
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::SchedClassifier(program) => program.load(),
                Program::Xdp(program) => program.load(),
                Program::SkLookup(program) => program.load(),
                _ => bail!("{name} is of no expected type"),
            }
            .with_context(|| format!("loading {name}"))?;
        }
        let mut context = [0; IFINDEX + 4];
        context[IFINDEX..].copy_from_slice(&ifindex.to_ne_bytes());
        let mut kernel = Self { ebpf, context };
        kernel.set(settings())?;
        let allow = |ifindex| Access { allow: 1, ifindex, source: Source::Config as u32 };
        let deny = Access { allow: 0, ifindex: 0, source: Source::Command as u32 };
        let mut access: HashMap<_, Address4, Access> = kernel.map(map::ACCESS4)?.try_into()?;
        for (address, entry) in
            [(POD, allow(ifindex)), (ELSEWHERE, allow(ifindex + 1)), (EXCEPTED, allow(0)), (BANNED, deny)]
        {
            access.insert(Address4 { address: address.octets() }, entry, 0)?;
        }
        let mut access6: HashMap<_, Address6, Access> = kernel.map(map::ACCESS6)?.try_into()?;
        access6.insert(Address6 { address: POD6.octets() }, allow(ifindex), 0)?;
        let mut rules: LpmTrie<_, Address4, Access> = kernel.map(map::RULES4)?.try_into()?;
        rules.insert(&Key::new(22, Address4 { address: [10, 1, 4, 0] }), allow(0), 0)?;
        rules.insert(&Key::new(24, Address4 { address: [10, 1, 5, 0] }), deny, 0)?;
        let mut rules6: LpmTrie<_, Address6, Access> = kernel.map(map::RULES6)?.try_into()?;
        rules6.insert(&Key::new(64, Address6 { address: RULED6.octets() }), allow(0), 0)?;
        let mut nodes: HashMap<_, Address4, Node> = kernel.map(map::NODES4)?.try_into()?;
        nodes.insert(Address4 { address: SELF.octets() }, Node { own: 1 }, 0)?;
        nodes.insert(Address4 { address: PEER.octets() }, Node { own: 0 }, 0)?;
        let mut nodes6: HashMap<_, Address6, Node> = kernel.map(map::NODES6)?.try_into()?;
        nodes6.insert(Address6 { address: SELF6.octets() }, Node { own: 1 }, 0)?;
        nodes6.insert(Address6 { address: PEER6.octets() }, Node { own: 0 }, 0)?;
        Ok(kernel)
    }

    pub(crate) fn set(&mut self, settings: Settings) -> Result<()> {
        let mut map: Array<_, Settings> = self.map(map::SETTINGS)?.try_into()?;
        Ok(map.set(0, settings, 0)?)
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

    /// Runs a program on a packet; it counts one verdict.
    pub(crate) fn run(&mut self, program: &str, packet: &[u8]) -> Result<Ran> {
        let before = self.counts()?;
        let mut after_it = vec![0; MOST];
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
        let [verdict] = counted[..] else { bail!("counted {counted:?}, not one verdict") };
        after_it.truncate(result.data_size_out as usize);
        Ok(Ran { action, verdict, packet: after_it })
    }

    /// What is remembered of an address' refusals.
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

    /// Instructions of each program, and those that the verifier went through.
    pub(crate) fn sizes(&self) -> Result<Vec<(String, u32, u32)>> {
        let sizes = self.ebpf.programs().map(|(name, program)| {
            let info = program.info()?;
            let translated = info.size_translated().context("no size")? / 8;
            Ok((name.to_owned(), translated, info.verified_instruction_count().unwrap_or(0)))
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
