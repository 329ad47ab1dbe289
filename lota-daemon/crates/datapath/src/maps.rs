//! Reads and writes the eBPF maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, TcpListener},
    path::Path,
    sync::atomic::{Ordering, fence},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapInfo, MapType, PerCpuArray, SockMap, lpm_trie::Key},
};
use lota_common::{
    Address4, Address6, Count, Denial, FIRST_STAND_IN, Heartbeat, LISTENER4, LISTENER6, LISTENERS,
    LocalConnection, MAX_ADMITTED, MAX_DENIED, MAX_INTERFACES, MAX_NAMES, MAX_NODES, MAX_PODS, MAX_RECENT,
    MAX_RULES, MAX_TARGETS, NameKey, NewDenials, RawAccess, RawAddressAccess, RawAdmission, RawAttempts,
    RawHolder, RawIdentity, RawInterface, RawName, RawNode, RawPod, RawTarget, RecentAccess, SCRATCH,
    Settings, StandIn, Verdict, map,
};
use nix::time::{ClockId, clock_gettime};

use super::{
    AccessTable, EndpointName, EndpointNames, InterceptedTarget,
    access_maps::AccessMaps,
    entries::{by_family, replace},
    identity::{IdentityMaps, IdentityTable},
    targets,
};

/// Expected layout of a map. aya opens a pinned map without verifying it.
pub(super) struct MapShape {
    pub(super) name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    entries: usize,
}

pub(super) const SHAPES: [MapShape; map::ALL.len()] = [
    shape::<Address4, RawAddressAccess>(map::ACCESS4, MapType::Hash, MAX_PODS),
    shape::<Address6, RawAddressAccess>(map::ACCESS6, MapType::Hash, MAX_PODS),
    shape::<Key<Address4>, RawAccess>(map::RULES4, MapType::LpmTrie, MAX_RULES),
    shape::<Key<Address6>, RawAccess>(map::RULES6, MapType::LpmTrie, MAX_RULES),
    shape::<Address4, Denial>(map::DENIED4, MapType::LruHash, MAX_DENIED),
    shape::<Address6, Denial>(map::DENIED6, MapType::LruHash, MAX_DENIED),
    shape::<u32, NewDenials>(map::NEW_DENIALS, MapType::LruHash, MAX_INTERFACES),
    shape::<Address4, RawAttempts>(map::ATTEMPTS4, MapType::LruHash, MAX_PODS),
    shape::<Address6, RawAttempts>(map::ATTEMPTS6, MapType::LruHash, MAX_PODS),
    shape::<u32, RawInterface>(map::INTERFACES, MapType::Hash, MAX_INTERFACES),
    shape::<Address4, RawNode>(map::NODES4, MapType::Hash, MAX_NODES),
    shape::<Address6, RawNode>(map::NODES6, MapType::Hash, MAX_NODES),
    shape::<Key<NameKey>, RawName>(map::NAMES, MapType::LpmTrie, MAX_NAMES),
    shape::<RawTarget, StandIn>(map::TARGETS, MapType::Hash, MAX_TARGETS),
    shape::<u32, RawTarget>(map::STAND_INS, MapType::Array, MAX_TARGETS),
    shape::<u32, Heartbeat>(map::HEARTBEAT, MapType::Array, 1),
    shape::<u32, Settings>(map::SETTINGS, MapType::Array, 1),
    shape::<u32, u32>(map::LISTENERS, MapType::SockMap, LISTENERS),
    shape::<u32, Count>(map::VERDICTS, MapType::PerCpuArray, Verdict::COUNT),
    shape::<u32, RecentAccess>(map::RECENT, MapType::PerCpuArray, MAX_RECENT),
    shape::<u32, [u8; SCRATCH]>(map::SCRATCH, MapType::PerCpuArray, 1),
    shape::<u64, RawPod>(map::CGROUPS, MapType::Hash, MAX_PODS),
    shape::<Address4, RawHolder>(map::HOLDERS4, MapType::Hash, MAX_PODS),
    shape::<Address6, RawHolder>(map::HOLDERS6, MapType::Hash, MAX_PODS),
    shape::<u32, RawIdentity>(map::IDENTITY, MapType::Array, 1),
    shape::<LocalConnection, RawAdmission>(map::ADMITTED, MapType::LruHash, MAX_ADMITTED),
];

const fn shape<K, V>(name: &'static str, kind: MapType, entries: usize) -> MapShape {
    MapShape { name, kind, key: size_of::<K>(), value: size_of::<V>(), entries }
}

/// Refuses pinned maps with another layout than this build's.
pub(super) fn check_shapes(folder: &Path) -> Result<()> {
    for shape in &SHAPES {
        let path = folder.join(shape.name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
        let same = info.map_type().ok() == Some(shape.kind)
            && info.key_size() as usize == shape.key
            && info.value_size() as usize == shape.value
            && info.max_entries() as usize == shape.entries;
        if !same {
            bail!(
                "{} has another layout than this build expects; remove it with `lota datapath detach`",
                path.display()
            );
        }
    }
    Ok(())
}

pub(super) struct Maps {
    entries: AccessMaps,
    attempts4: HashMap<MapData, Address4, RawAttempts>,
    attempts6: HashMap<MapData, Address6, RawAttempts>,
    interfaces: HashMap<MapData, u32, RawInterface>,
    nodes4: HashMap<MapData, Address4, RawNode>,
    nodes6: HashMap<MapData, Address6, RawNode>,
    names: LpmTrie<MapData, NameKey, RawName>,
    targets: HashMap<MapData, RawTarget, StandIn>,
    stand_ins: Array<MapData, RawTarget>,
    heartbeat: Array<MapData, Heartbeat>,
    settings: Array<MapData, Settings>,
    listeners: SockMap<MapData>,
    verdicts: PerCpuArray<MapData, Count>,
    pub(super) identity: IdentityMaps,
}

/// An address that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The refused address.
    pub address: IpAddr,
    /// Number of refused packets.
    pub count: u64,
    /// Time of the last refused packet.
    pub last: SystemTime,
    /// Index of the interface that it came from.
    pub ifindex: u32,
    /// Verdict of the last refused packet.
    pub verdict: Option<Verdict>,
}

/// Attempts of an allowed pod to open connections, of which the daemon may know nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// Number of SYNs.
    pub count: u64,
    /// Index of the interface that it came from.
    pub ifindex: u32,
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let identity = IdentityMaps::take(ebpf)?;
        let mut take =
            |name: &str| ebpf.take_map(name).ok_or_else(|| anyhow!("the eBPF object has no map {name}"));
        Ok(Self {
            entries: AccessMaps::from_maps(&mut take)?,
            attempts4: take(map::ATTEMPTS4)?.try_into()?,
            attempts6: take(map::ATTEMPTS6)?.try_into()?,
            interfaces: take(map::INTERFACES)?.try_into()?,
            nodes4: take(map::NODES4)?.try_into()?,
            nodes6: take(map::NODES6)?.try_into()?,
            names: take(map::NAMES)?.try_into()?,
            targets: take(map::TARGETS)?.try_into()?,
            stand_ins: take(map::STAND_INS)?.try_into()?,
            heartbeat: take(map::HEARTBEAT)?.try_into()?,
            settings: take(map::SETTINGS)?.try_into()?,
            listeners: take(map::LISTENERS)?.try_into()?,
            verdicts: take(map::VERDICTS)?.try_into()?,
            identity,
        })
    }

    /// Writes the settings, in a new epoch: the time, which is later than every epoch before, also than those of a pin that was
    /// removed while the recent entries were kept.
    pub(super) fn set_settings(&mut self, settings: Settings) -> Result<()> {
        let epoch = nanoseconds_since_boot()?.max(self.settings()?.epoch + 1);
        // CPUs see what this thread has written to other maps before they see the epoch, also those of arm64.
        fence(Ordering::SeqCst);
        self.settings.set(0, Settings { epoch, ..settings }, 0).context("cannot write the settings")
    }

    /// Makes the programs read access entries again.
    fn start_epoch(&mut self) -> Result<()> {
        self.set_settings(self.settings()?)
    }

    pub(super) fn settings(&self) -> Result<Settings> {
        self.settings.get(&0, 0).context("cannot read the settings")
    }

    pub(super) fn set_names(&mut self, names: &EndpointNames) -> Result<()> {
        let desired = names.iter().map(EndpointName::raw);
        let desired: Vec<_> = desired.map(|(key, raw)| ((key.prefix_len(), key.data()), raw)).collect();
        replace(&mut self.names, &desired).context("cannot write the endpoint's names")
    }

    /// Returns the names, by their text.
    pub(super) fn names(&self) -> Result<Vec<EndpointName>> {
        let names = self.names.iter().map(|entry| entry.map(|(_, raw)| EndpointName::from_raw(&raw)));
        let mut names = names.collect::<Result<Vec<_>, _>>().context("cannot read the endpoint's names")?;
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(names)
    }

    pub(super) fn set_targets(&mut self, assigned: &[InterceptedTarget]) -> Result<()> {
        let mut stand_ins = [RawTarget::default(); MAX_TARGETS];
        for InterceptedTarget { target, port, .. } in assigned {
            stand_ins[usize::from(port - FIRST_STAND_IN)] = targets::raw(*target);
        }
        // Replies must be restored before connections are intercepted.
        for (index, target) in (0..).zip(stand_ins) {
            self.stand_ins.set(index, target, 0).context("cannot write targets")?;
        }
        let stand_in = |assigned: &InterceptedTarget| StandIn {
            port: assigned.port,
            former: u16::from(assigned.is_former),
        };
        let desired: Vec<_> =
            assigned.iter().map(|assigned| (targets::raw(assigned.target), stand_in(assigned))).collect();
        replace(&mut self.targets, &desired).context("cannot write targets")
    }

    pub(super) fn targets(&self) -> Result<Vec<InterceptedTarget>> {
        let held = self.targets.iter().collect::<Result<Vec<_>, _>>().context("cannot read targets")?;
        let target = |(target, stand_in): &(RawTarget, StandIn)| InterceptedTarget {
            target: targets::from_raw(target),
            port: stand_in.port,
            is_former: stand_in.former == 1,
        };
        let mut targets: Vec<_> = held.iter().map(target).collect();
        targets.sort_by_key(|target| target.port);
        Ok(targets)
    }

    /// Records that the daemon lives, or that it is about to end.
    pub(super) fn set_heartbeat(&mut self, lives: bool) -> Result<()> {
        let at_ns = if lives { nanoseconds_since_boot()? } else { 0 };
        self.heartbeat.set(0, Heartbeat { at_ns }, 0).context("cannot write the heartbeat")
    }

    /// Returns the age of the last heartbeat; `None` if there was none.
    pub(super) fn heartbeat_age(&self) -> Result<Option<Duration>> {
        let Heartbeat { at_ns } = self.heartbeat.get(&0, 0).context("cannot read the heartbeat")?;
        Ok(if at_ns == 0 { None } else { Some(since_boot()?.saturating_sub(Duration::from_nanos(at_ns))) })
    }

    pub(super) fn set_listener(&mut self, listener: &TcpListener) -> Result<()> {
        let slot = if listener.local_addr()?.is_ipv4() { LISTENER4 } else { LISTENER6 };
        self.listeners.set(slot, listener, 0).context("cannot register the listener")
    }

    pub(super) fn access(&self) -> Result<AccessTable> {
        let settings = self.settings.get(&0, 0)?;
        Ok(AccessTable { default_allow: settings.default_allow == 1, ..self.entries.read()? })
    }

    /// Replaces access entries and identities; without `identities`, those in the maps remain. No address has more access
    /// meanwhile, or after an error, than before or by `table`: what ends access comes first, and nothing gives access before
    /// the maps say whose address it is. Settings under which processes in the node's network namespace need more than an
    /// address come before an entry with that address, others after it.
    pub(super) fn set_access(
        &mut self,
        table: &AccessTable,
        identities: Option<&IdentityTable>,
    ) -> Result<()> {
        let Self { entries, identity, .. } = self;
        let changes = entries.changes(table, |address| identity.holder(identities, address))?;
        let no_default = if table.default_allow { Ok(()) } else { self.set_default_allow(false) };
        let narrowed = no_default.and(self.entries.narrow(&changes));
        // Also after an error: entries may have been removed.
        let narrowed = narrowed.and(self.start_epoch());
        let identities = identities.filter(|identities| !self.identity.has(identities));
        let held = match identities {
            Some(identities) => self.identity.write_holders(identities),
            None => Ok(()),
        };
        let given = match narrowed.is_ok() && held.is_ok() {
            true => {
                let widened = self.entries.widen(&changes);
                widened.and(self.start_epoch()).and_then(|()| match table.default_allow {
                    true => self.set_default_allow(true),
                    false => Ok(()),
                })
            }
            false => Ok(()),
        };
        // A pod's cgroup comes after its addresses, which would be those of another pod without it.
        let known = match identities {
            Some(identities) => self.identity.write_cgroups(identities, narrowed.is_ok()),
            None => Ok(()),
        };
        let written = narrowed.and(held).and(given).and(known).context("cannot write access entries");
        if let Some(identities) = identities.filter(|_| written.is_ok()) {
            self.identity.set_written(identities);
        }
        written
    }

    fn set_default_allow(&mut self, is_allowed: bool) -> Result<()> {
        let (held, default_allow) = (self.settings()?, u8::from(is_allowed));
        match held.default_allow == default_allow {
            true => Ok(()),
            false => self.set_settings(Settings { default_allow, ..held }),
        }
    }

    /// Sets the interfaces that pods are behind.
    pub(super) fn set_interfaces(&mut self, interfaces: &[(u32, RawInterface)]) -> Result<()> {
        replace(&mut self.interfaces, interfaces).context("cannot write interfaces")
    }

    /// Returns the interfaces that `selects` selects.
    pub(super) fn interfaces(&self, selects: impl Fn(RawInterface) -> bool) -> Result<BTreeSet<u32>> {
        let all = self.interfaces.iter().collect::<Result<Vec<_>, _>>().context("cannot read interfaces")?;
        Ok(all.into_iter().filter(|(_, interface)| selects(*interface)).map(|(index, _)| index).collect())
    }

    pub(super) fn set_nodes(&mut self, nodes: &BTreeMap<IpAddr, bool>) -> Result<()> {
        let (v4, v6) = by_family(nodes, |own| RawNode { own: u32::from(*own) });
        replace(&mut self.nodes4, &v4).context("cannot write node addresses")?;
        replace(&mut self.nodes6, &v6).context("cannot write node addresses")
    }

    /// Returns the attempts of each pod to open connections.
    pub(super) fn attempts(&self) -> Result<BTreeMap<IpAddr, Attempts>> {
        let attempts = |RawAttempts { count, ifindex, .. }: RawAttempts| Attempts { count, ifindex };
        // The least recently used entries may be evicted meanwhile.
        let v4 = self.attempts4.iter().flatten().map(|(key, raw)| (key.address.into(), attempts(raw)));
        let v6 = self.attempts6.iter().flatten().map(|(key, raw)| (key.address.into(), attempts(raw)));
        Ok(v4.chain(v6).collect())
    }

    /// Returns the counters, summed over the CPUs, in verdict order.
    pub(super) fn verdicts(&self) -> VerdictCounts {
        read_verdicts(&self.verdicts)
    }
}

/// Number of packets with each verdict, in verdict order.
pub type VerdictCounts = [Count; Verdict::COUNT];

fn read_verdicts(map: &PerCpuArray<MapData, Count>) -> VerdictCounts {
    let mut counts = [Count::default(); Verdict::COUNT];
    for verdict in Verdict::ALL {
        let Ok(per_cpu) = map.get(&(*verdict as u32), 0) else { continue };
        let count = &mut counts[*verdict as usize];
        for cpu in per_cpu.iter() {
            count.packets += cpu.packets;
            count.bytes += cpu.bytes;
        }
    }
    counts
}

/// Reads the pinned maps, also from other processes than the daemon.
pub(super) struct Pinned<'a>(pub(super) &'a Path);

impl Pinned<'_> {
    fn open(&self, name: &str) -> Result<Map> {
        let path = self.0.join(name);
        let data = MapData::from_pin(&path)
            .with_context(|| format!("cannot open {}; check that LOTA runs on this node", path.display()))?;
        Ok(Map::from_map_data(data)?)
    }

    pub(super) fn access(&self) -> Result<AccessTable> {
        let entries = AccessMaps::from_maps(&mut |name| self.open(name))?;
        let settings: Array<_, Settings> = self.open(map::SETTINGS)?.try_into()?;
        Ok(AccessTable { default_allow: settings.get(&0, 0)?.default_allow == 1, ..entries.read()? })
    }

    /// Returns the refused addresses, most recent first.
    pub(super) fn denied(&self) -> Result<Vec<Denied>> {
        let v4: HashMap<_, Address4, Denial> = self.open(map::DENIED4)?.try_into()?;
        let v6: HashMap<_, Address6, Denial> = self.open(map::DENIED6)?.try_into()?;
        let started = started()?;
        let denied = |address: IpAddr, denial: Denial| Denied {
            address,
            count: denial.count,
            last: started + Duration::from_nanos(denial.last_ns),
            ifindex: denial.ifindex,
            verdict: Verdict::ALL.iter().copied().find(|verdict| *verdict as u32 == denial.verdict),
        };
        let v4 = v4.iter().flatten().map(|(key, denial)| denied(key.address.into(), denial));
        let v6 = v6.iter().flatten().map(|(key, denial)| denied(key.address.into(), denial));
        let mut all: Vec<Denied> = v4.chain(v6).collect();
        all.sort_by_key(|denied| std::cmp::Reverse(denied.last));
        Ok(all)
    }
}

/// Returns when the machine started, as `CLOCK_BOOTTIME` counts.
fn started() -> Result<SystemTime> {
    SystemTime::now().checked_sub(since_boot()?).context("the clock is not set")
}

/// Returns the time that the kernel's clock of the eBPF programs shows.
fn since_boot() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into())
}

/// Returns the same as the eBPF programs read it.
fn nanoseconds_since_boot() -> Result<u64> {
    u64::try_from(since_boot()?.as_nanos()).context("the clock is beyond its range")
}
