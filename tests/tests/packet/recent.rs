//! Access entries that CPUs keep as read recently: every change applies to the next packet, on every CPU.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use lota_common::{Address4, MAX_PODS, MAX_RECENT, RawAddressAccess, RecentAccess, Source, Verdict, map};
use lota_datapath::{
    AccessEntry, AccessTable, AddressHolder, AttachConfig, Datapath, IdentityTable, LocalAccess, PodCgroup,
    RedirectionMode,
};
use lota_tests::lab::PodClass;
use nix::{
    net::if_::if_nametoindex,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    cases::VIP,
    forge,
    identity::{Lab, ONE, ONES, PINS, TWO, TWOS},
};

const STEPS: usize = 40;
/// An address of no pod, with the same last octet as the first pod's.
const SAME_SLOT: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 2);
/// Time after which a packet counts as lost.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Random access entries and owners of addresses. After each change, a packet of each pod from each CPU gets the verdict of a
/// small model.
pub(crate) fn random() -> Result<()> {
    let seed =
        std::env::var("LOTA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    Sender::new()?.walk(seed).with_context(|| format!("with LOTA_SEED={seed}"))
}

/// A change that fails after it has removed an entry ends access, too.
pub(crate) fn after_an_error() -> Result<()> {
    let mut sender = Sender::new()?;
    let entry = AccessEntry { allow: true, ifindex: 0, port: 0, source: Source::Config };
    let table = AccessTable { addresses: [(ONE.into(), entry)].into(), ..AccessTable::default() };
    let (none, many) = (AccessTable::default(), 0..=u32::try_from(MAX_PODS)?);
    let holder = AddressHolder { name: "team/a".to_owned(), uid: "a".to_owned(), cgroup: None };
    let holders = many.clone().map(|number| (Ipv4Addr::from(0x0a00_0000 + number).into(), holder.clone()));
    let too_many = IdentityTable { holders: holders.collect(), ..IdentityTable::default() };
    sender.datapath.set_access(&table, Some(&IdentityTable::default()))?;
    sender.expect(ONES, ONE, sender.allowed)?;
    ensure!(sender.datapath.set_access(&none, Some(&too_many)).is_err(), "the map of holders is full");
    sender.expect(ONES, ONE, Verdict::Denied).context("after an entry was removed")?;
    sender.datapath.set_access(&table, Some(&IdentityTable::default()))?;
    sender.expect(ONES, ONE, sender.allowed)?;
    let many = many.map(|number| (Ipv4Addr::from(0x0b00_0000 + number).into(), entry));
    let too_many = AccessTable { addresses: many.collect(), ..AccessTable::default() };
    ensure!(sender.datapath.set_access(&too_many, None).is_err(), "the map of entries is full");
    sender.expect(ONES, ONE, Verdict::Denied).context("after the map of entries was full")
}

/// The key by which an entry is read depends on the epoch. With that, a CPU that does not keep the order of reads reads the entry
/// after the epoch, so that no entry from before a change is kept as one from after it.
pub(crate) fn after_the_epoch() -> Result<()> {
    let mut sender = Sender::new()?;
    let entry = AccessEntry { allow: true, ifindex: 0, port: 0, source: Source::Config };
    let table = AccessTable { addresses: [(ONE.into(), entry)].into(), ..AccessTable::default() };
    sender.datapath.set_access(&table, Some(&IdentityTable::default()))?;
    // With ones instead of zeros, the key is that of another address.
    set_padding(ONE, u32::MAX)?;
    sender.expect(ONES, ONE, Verdict::Denied).context("the key does not depend on the epoch")?;
    set_padding(ONE, 0)?;
    sender.expect(ONES, ONE, sender.allowed)
}

/// Empties the slot of an address on each CPU, with this value where there are zeros.
fn set_padding(address: Ipv4Addr, padding: u32) -> Result<()> {
    let slot = u32::from(address) & (u32::try_from(MAX_RECENT)? - 1);
    let pin = Path::new(PINS).join(format!("v{}", lota_common::LAYOUT)).join(map::RECENT);
    let mut recent: PerCpuArray<_, RecentAccess> = Map::from_map_data(MapData::from_pin(pin)?)?.try_into()?;
    let (address, access) = (Address4 { address: [0; 4] }, RawAddressAccess::default());
    let empty = RecentAccess { epoch: 0, address, padding, access };
    let values = vec![empty; nr_cpus().map_err(|(_, error)| error)?];
    Ok(recent.set(slot, PerCpuValues::try_from(values)?, 0)?)
}

/// Sends packets of the two pods.
struct Sender {
    lab: Lab,
    datapath: Datapath,
    _listener: std::net::TcpListener,
    /// Verdict on an allowed packet.
    allowed: Verdict,
    cpus: Vec<usize>,
    port: u16,
}

impl Sender {
    fn new() -> Result<Self> {
        let lab = Lab::make(false, AttachConfig::Auto)?;
        let (listener, datapath) = lab.start(RedirectionMode::Auto, false)?;
        let usable = sched_getaffinity(Pid::from_raw(0))?;
        let cpus = (0..CpuSet::count()).filter(|cpu| usable.is_set(*cpu) == Ok(true)).collect();
        let by_lookup = super::kernel::can_load(lota_common::program::LOOKUP)?;
        let allowed = if by_lookup { Verdict::Delivered } else { Verdict::Redirected };
        Ok(Self { lab, datapath, _listener: listener, allowed, cpus, port: 20_000 })
    }

    fn walk(&mut self, seed: u64) -> Result<()> {
        let mut random = StdRng::seed_from_u64(seed);
        let own = self.lab.node.run(|| if_nametoindex("pod"))??;
        let entry = |allow, ifindex| AccessEntry { allow, ifindex, port: 0, source: Source::Config };
        let entries = [
            None,
            Some(entry(true, 0)),
            Some(entry(true, own)),
            Some(entry(true, own + 1)),
            Some(entry(false, 0)),
        ];
        let identities = self.lab.identities(LocalAccess::Pods)?;
        let cgroups: Vec<Option<PodCgroup>> =
            identities.holders.values().map(|holder| holder.cgroup).chain([None]).collect();
        for step in 0..STEPS {
            let (mut table, mut identities) = (AccessTable::default(), identities.clone());
            table.default_allow = random.random_bool(0.2);
            if let Some(rule) = entries.choose(&mut random).copied().flatten() {
                table.prefixes.insert("10.1.0.0/24".parse()?, rule);
            }
            for address in [ONE, TWO] {
                let entry = entries.choose(&mut random).copied().flatten();
                table.addresses.extend(entry.map(|entry| (address.into(), entry)));
                let holder = identities.holders.get_mut(&address.into()).context("a holder")?;
                holder.cgroup = cgroups.choose(&mut random).copied().flatten();
            }
            self.datapath.set_access(&table, Some(&identities))?;
            for ((pod, class), address) in [(ONES, ONE), (TWOS, TWO)] {
                let entry = table.addresses.get(&address.into()).or_else(|| table.prefixes.values().next());
                let has_access = entry.map_or(table.default_allow, |entry| {
                    entry.allow && (entry.ifindex == 0 || entry.ifindex == own)
                });
                let holder = identities.holders[&address.into()].cgroup;
                let is_own = holder.is_some_and(|holder| identities.pods[&holder.id].uid == pod);
                let expected = match (has_access, is_own) {
                    (false, _) => Verdict::Denied,
                    (true, false) => Verdict::Spoofed,
                    (true, true) => self.allowed,
                };
                let sent = self.expect((pod, class), address, expected);
                sent.with_context(|| format!("step {step}: {table:?} {:?}", identities.holders))?;
                if address == ONE {
                    let expected = if table.default_allow { self.allowed } else { Verdict::Denied };
                    self.expect(ONES, SAME_SLOT, expected).context("an address without an entry")?;
                }
            }
        }
        Ok(())
    }

    /// Sends a packet of a pod with this source address from each CPU, twice. The verdict must be the expected one.
    fn expect(&mut self, (uid, class): (&str, PodClass), from: Ipv4Addr, expected: Verdict) -> Result<()> {
        for cpu in self.cpus.iter().flat_map(|cpu| [*cpu; 2]) {
            self.port += 1;
            let (source, vip) = (SocketAddrV4::new(from, self.port), SocketAddrV4::new(VIP, 80));
            let before = self.decided();
            let send = move || -> Result<()> {
                let mut only = CpuSet::new();
                only.set(cpu)?;
                sched_setaffinity(Pid::from_raw(0), &only)?;
                // A reset, since nothing answers it.
                Ok(forge::send(&forge::segment(source, vip, 0x04), vip)?)
            };
            self.lab.cgroups.within(uid, class, || self.lab.pod.run(send))???;
            let (sent, mut after) = (Instant::now(), before);
            while after == before && sent.elapsed() < ARRIVAL_TIMEOUT {
                after = self.decided();
            }
            let verdicts = [self.allowed, Verdict::Denied, Verdict::Spoofed].into_iter();
            let seen: Vec<_> = verdicts.zip(before.iter().zip(after)).filter(|(_, (a, b))| *a < b).collect();
            ensure!(
                matches!(*seen, [(verdict, (before, after))] if verdict == expected && before + 1 == after),
                "{uid} from {from} on CPU {cpu} got {seen:?}, not {expected:?}"
            );
        }
        Ok(())
    }

    /// Returns the counters of packets that the program decided about by access.
    fn decided(&self) -> [u64; 3] {
        let counts = self.datapath.verdicts();
        [self.allowed, Verdict::Denied, Verdict::Spoofed].map(|verdict| counts[verdict as usize].packets)
    }
}
