//! Reading and writing the maps.

use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpListener},
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapInfo, MapType, PerCpuArray, SockMap, lpm_trie::Key},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lota_common::{
    Access, Address4, Address6, Count, Denial, Interface, LISTENER4, LISTENER6, LISTENERS, MAX_DENIED,
    MAX_INTERFACES, MAX_NODES, MAX_PODS, MAX_RULES, Node, SCRATCH, Settings, Source, Verdict, map,
};

use super::AttachMode;
use crate::access::{Entry, Table};

/// What a map must look like. aya opens a pinned map without checking.
pub(super) struct Shape {
    pub(super) name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    entries: usize,
}

pub(super) const SHAPES: [Shape; map::ALL.len()] = [
    shape::<Address4, Access>(map::ACCESS4, MapType::Hash, MAX_PODS),
    shape::<Address6, Access>(map::ACCESS6, MapType::Hash, MAX_PODS),
    shape::<Key<Address4>, Access>(map::RULES4, MapType::LpmTrie, MAX_RULES),
    shape::<Key<Address6>, Access>(map::RULES6, MapType::LpmTrie, MAX_RULES),
    shape::<Address4, Denial>(map::DENIED4, MapType::LruHash, MAX_DENIED),
    shape::<Address6, Denial>(map::DENIED6, MapType::LruHash, MAX_DENIED),
    shape::<u32, Interface>(map::INTERFACES, MapType::Hash, MAX_INTERFACES),
    shape::<Address4, Node>(map::NODES4, MapType::Hash, MAX_NODES),
    shape::<Address6, Node>(map::NODES6, MapType::Hash, MAX_NODES),
    shape::<u32, Settings>(map::SETTINGS, MapType::Array, 1),
    shape::<u32, u32>(map::LISTENERS, MapType::SockMap, LISTENERS),
    shape::<u32, Count>(map::VERDICTS, MapType::PerCpuArray, Verdict::COUNT),
    shape::<u32, [u8; SCRATCH]>(map::SCRATCH, MapType::PerCpuArray, 1),
];

const fn shape<K, V>(name: &'static str, kind: MapType, entries: usize) -> Shape {
    Shape { name, kind, key: size_of::<K>(), value: size_of::<V>(), entries }
}

/// Refuses pinned maps that this build would misread.
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
                "{} has another shape than this build expects; `lota datapath detach` removes it",
                path.display()
            );
        }
    }
    Ok(())
}

pub(super) struct Maps {
    entries: Entries,
    interfaces: HashMap<MapData, u32, Interface>,
    nodes4: HashMap<MapData, Address4, Node>,
    nodes6: HashMap<MapData, Address6, Node>,
    settings: Array<MapData, Settings>,
    listeners: SockMap<MapData>,
    verdicts: PerCpuArray<MapData, Count>,
}

/// The maps that say who has access.
struct Entries {
    access4: HashMap<MapData, Address4, Access>,
    access6: HashMap<MapData, Address6, Access>,
    rules4: LpmTrie<MapData, Address4, Access>,
    rules6: LpmTrie<MapData, Address6, Access>,
}

/// An address that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Whose.
    pub address: IpAddr,
    /// Refused packets so far.
    pub count: u64,
    /// When the last one came.
    pub last: SystemTime,
    /// The index of the interface it came from.
    pub ifindex: u32,
    /// What was decided about it.
    pub verdict: Option<Verdict>,
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut take = |name: &str| ebpf.take_map(name).ok_or_else(|| anyhow!("no map {name} in the object"));
        Ok(Self {
            entries: Entries::from_maps(&mut take)?,
            interfaces: take(map::INTERFACES)?.try_into()?,
            nodes4: take(map::NODES4)?.try_into()?,
            nodes6: take(map::NODES6)?.try_into()?,
            settings: take(map::SETTINGS)?.try_into()?,
            listeners: take(map::LISTENERS)?.try_into()?,
            verdicts: take(map::VERDICTS)?.try_into()?,
        })
    }

    pub(super) fn set_settings(&mut self, settings: Settings) -> Result<()> {
        self.settings.set(0, settings, 0).context("writing the settings")
    }

    pub(super) fn set_listener(&mut self, listener: &TcpListener) -> Result<()> {
        let slot = if listener.local_addr()?.is_ipv4() { LISTENER4 } else { LISTENER6 };
        self.listeners.set(slot, listener, 0).context("registering the listener")
    }

    pub(super) fn access(&self) -> Result<Table> {
        let settings = self.settings.get(&0, 0)?;
        Ok(Table { default_allow: settings.default_allow == 1, ..self.entries.read()? })
    }

    pub(super) fn set_access(&mut self, table: &Table) -> Result<()> {
        self.entries.write(table).context("writing access entries")
    }

    /// The interfaces that pods are behind.
    pub(super) fn set_interfaces(&mut self, interfaces: &BTreeMap<u32, AttachMode>) -> Result<()> {
        let by = |mode: &AttachMode| match mode {
            AttachMode::Tcx | AttachMode::Clsact => Interface { steered: Interface::BY_TC },
            AttachMode::SkLookup => Interface { steered: Interface::BY_LOOKUP },
        };
        let wanted: Vec<_> = interfaces.iter().map(|(index, mode)| (*index, by(mode))).collect();
        make_equal(&mut self.interfaces, &wanted).context("writing interfaces")
    }

    pub(super) fn set_nodes(&mut self, nodes: &BTreeMap<IpAddr, bool>) -> Result<()> {
        let (v4, v6) = by_family(nodes, |own| Node { own: u32::from(*own) });
        make_equal(&mut self.nodes4, &v4).context("writing node addresses")?;
        make_equal(&mut self.nodes6, &v6).context("writing node addresses")
    }

    /// The counters, summed over the CPUs, in verdict order.
    pub(super) fn verdicts(&self) -> VerdictCounts {
        read_verdicts(&self.verdicts)
    }
}

impl Entries {
    fn from_maps(take: &mut impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            access4: take(map::ACCESS4)?.try_into()?,
            access6: take(map::ACCESS6)?.try_into()?,
            rules4: take(map::RULES4)?.try_into()?,
            rules6: take(map::RULES6)?.try_into()?,
        })
    }

    fn read(&self) -> Result<Table> {
        let mut table = Table::default();
        for entry in &self.access4 {
            let (key, access) = entry?;
            table.addresses.insert(key.address.into(), from_kernel(access));
        }
        for entry in &self.access6 {
            let (key, access) = entry?;
            table.addresses.insert(key.address.into(), from_kernel(access));
        }
        for entry in &self.rules4 {
            let (key, access) = entry?;
            let prefix = Ipv4Net::new(key.data().address.into(), u8::try_from(key.prefix_len())?)?;
            table.prefixes.insert(prefix.into(), from_kernel(access));
        }
        for entry in &self.rules6 {
            let (key, access) = entry?;
            let prefix = Ipv6Net::new(key.data().address.into(), u8::try_from(key.prefix_len())?)?;
            table.prefixes.insert(prefix.into(), from_kernel(access));
        }
        Ok(table)
    }

    /// In each map, removals come before additions: an address that moves is not in two places.
    fn write(&mut self, table: &Table) -> Result<()> {
        let (access4, access6) = by_family(&table.addresses, to_kernel);
        let (mut rules4, mut rules6) = (Vec::new(), Vec::new());
        for (prefix, entry) in &table.prefixes {
            let length = u32::from(prefix.prefix_len());
            match prefix {
                IpNet::V4(prefix) => {
                    let address = Address4 { address: prefix.network().octets() };
                    rules4.push((Key::new(length, address), to_kernel(entry)));
                }
                IpNet::V6(prefix) => {
                    let address = Address6 { address: prefix.network().octets() };
                    rules6.push((Key::new(length, address), to_kernel(entry)));
                }
            }
        }
        // A map that is full must not keep the others from what they should hold.
        let access4 = make_equal(&mut self.access4, &access4);
        let access6 = make_equal(&mut self.access6, &access6);
        let rules4 = make_rules_equal(&mut self.rules4, &rules4);
        let rules6 = make_rules_equal(&mut self.rules6, &rules6);
        access4.and(access6).and(rules4).and(rules6)
    }
}

fn from_kernel(access: Access) -> Entry {
    let source = Source::of(access.source).unwrap_or(Source::Config);
    Entry { allow: access.allow == 1, ifindex: access.ifindex, source }
}

fn to_kernel(entry: &Entry) -> Access {
    Access { allow: u32::from(entry.allow), ifindex: entry.ifindex, source: entry.source as u32 }
}

type ByFamily<V> = (Vec<(Address4, V)>, Vec<(Address6, V)>);

fn by_family<T, V>(entries: &BTreeMap<IpAddr, T>, value: impl Fn(&T) -> V) -> ByFamily<V> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (address, entry) in entries {
        match address {
            IpAddr::V4(address) => v4.push((Address4 { address: address.octets() }, value(entry))),
            IpAddr::V6(address) => v6.push((Address6 { address: address.octets() }, value(entry))),
        }
    }
    (v4, v6)
}

/// Removes what should not be there before it adds what should.
fn make_equal<K, V>(map: &mut HashMap<MapData, K, V>, wanted: &[(K, V)]) -> Result<()>
where
    K: Pod + PartialEq,
    V: Pod + PartialEq,
{
    let held: Vec<(K, V)> = map.iter().collect::<Result<_, _>>()?;
    for (key, _) in held.iter().filter(|(key, _)| !wanted.iter().any(|(other, _)| other == key)) {
        map.remove(key)?;
    }
    for entry in wanted.iter().filter(|entry| !held.contains(entry)) {
        map.insert(entry.0, entry.1, 0)?;
    }
    Ok(())
}

/// The same, by longest prefix.
fn make_rules_equal<K>(map: &mut LpmTrie<MapData, K, Access>, wanted: &[(Key<K>, Access)]) -> Result<()>
where
    K: Pod + PartialEq,
{
    let same = |a: &Key<K>, b: &Key<K>| a.prefix_len() == b.prefix_len() && a.data() == b.data();
    let held: Vec<(Key<K>, Access)> = map.iter().collect::<Result<_, _>>()?;
    for (key, _) in held.iter().filter(|(key, _)| !wanted.iter().any(|(other, _)| same(other, key))) {
        map.remove(key)?;
    }
    for (key, access) in wanted {
        if !held.iter().any(|(other, was)| same(other, key) && was == access) {
            map.insert(key, *access, 0)?;
        }
    }
    Ok(())
}

/// How often each verdict was given, in verdict order.
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

/// The pinned maps, read by someone who need not be the daemon.
pub(super) struct Pinned<'a>(pub(super) &'a Path);

impl Pinned<'_> {
    fn open(&self, name: &str) -> Result<Map> {
        let path = self.0.join(name);
        let data =
            MapData::from_pin(&path).with_context(|| format!("opening {}: is LOTA here?", path.display()))?;
        Ok(Map::from_map_data(data)?)
    }

    pub(super) fn access(&self) -> Result<Table> {
        let entries = Entries::from_maps(&mut |name| self.open(name))?;
        let settings: Array<_, Settings> = self.open(map::SETTINGS)?.try_into()?;
        Ok(Table { default_allow: settings.get(&0, 0)?.default_allow == 1, ..entries.read()? })
    }

    /// Most recent first.
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

/// When the machine started, as `CLOCK_BOOTTIME` counts.
fn started() -> Result<SystemTime> {
    let uptime = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    SystemTime::now().checked_sub(uptime.into()).context("the clock is not set")
}
