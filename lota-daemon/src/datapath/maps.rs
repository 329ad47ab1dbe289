//! Reading and writing the maps.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, MapInfo, MapType, PerCpuArray, SockMap},
};
use lota_common::{
    Access, Address4, Address6, Count, LISTENER4, LISTENERS, MAX_NODES, MAX_PODS, Node, Settings, Verdict,
    map,
};

use super::pins::Pins;

/// What a map must look like. aya opens a pinned map without checking.
pub(super) struct Shape {
    pub(super) name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    entries: usize,
}

pub(super) const SHAPES: [Shape; 7] = [
    shape::<Address4, Access>(map::ACCESS4, MapType::Hash, MAX_PODS),
    shape::<Address6, Access>(map::ACCESS6, MapType::Hash, MAX_PODS),
    shape::<Address4, Node>(map::NODES4, MapType::Hash, MAX_NODES),
    shape::<Address6, Node>(map::NODES6, MapType::Hash, MAX_NODES),
    shape::<u32, Settings>(map::SETTINGS, MapType::Array, 1),
    shape::<u32, u32>(map::LISTENERS, MapType::SockMap, LISTENERS),
    shape::<u32, Count>(map::VERDICTS, MapType::PerCpuArray, Verdict::COUNT),
];

const fn shape<K, V>(name: &'static str, kind: MapType, entries: usize) -> Shape {
    Shape { name, kind, key: size_of::<K>(), value: size_of::<V>(), entries }
}

/// Refuses pinned maps that this build would misread.
pub(super) fn check_shapes(pins: &Pins) -> Result<()> {
    for shape in &SHAPES {
        let path = pins.map(shape.name);
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
    access4: HashMap<MapData, Address4, Access>,
    access6: HashMap<MapData, Address6, Access>,
    nodes4: HashMap<MapData, Address4, Node>,
    nodes6: HashMap<MapData, Address6, Node>,
    settings: Array<MapData, Settings>,
    listeners: SockMap<MapData>,
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut take = |name: &str| ebpf.take_map(name).ok_or_else(|| anyhow!("no map {name} in the object"));
        Ok(Self {
            access4: take(map::ACCESS4)?.try_into()?,
            access6: take(map::ACCESS6)?.try_into()?,
            nodes4: take(map::NODES4)?.try_into()?,
            nodes6: take(map::NODES6)?.try_into()?,
            settings: take(map::SETTINGS)?.try_into()?,
            listeners: take(map::LISTENERS)?.try_into()?,
        })
    }

    pub(super) fn set_settings(&mut self, settings: Settings) -> Result<()> {
        self.settings.set(0, settings, 0).context("writing the settings")
    }

    pub(super) fn set_listener(&mut self, listener: &TcpListener) -> Result<()> {
        self.listeners.set(LISTENER4, listener, 0).context("registering the listener")
    }

    pub(super) fn set_access(&mut self, entries: &BTreeMap<IpAddr, u32>) -> Result<()> {
        let value = |ifindex: &u32| Access { ifindex: *ifindex };
        let (v4, v6) = by_family(entries, value);
        make_equal(&mut self.access4, &v4).context("writing access entries")?;
        make_equal(&mut self.access6, &v6).context("writing access entries")
    }

    pub(super) fn set_nodes(&mut self, nodes: &BTreeMap<IpAddr, bool>) -> Result<()> {
        let (v4, v6) = by_family(nodes, |own| Node { own: u32::from(*own) });
        make_equal(&mut self.nodes4, &v4).context("writing node addresses")?;
        make_equal(&mut self.nodes6, &v6).context("writing node addresses")
    }
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

/// A handle to the verdict counters.
#[derive(Clone)]
pub struct VerdictCounts(Arc<Mutex<PerCpuArray<MapData, Count>>>);

impl VerdictCounts {
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        let data = MapData::from_pin(pins.map(map::VERDICTS))?;
        Ok(Self(Arc::new(Mutex::new(Map::PerCpuArray(data).try_into()?))))
    }

    /// The counters, summed over the CPUs, in verdict order.
    #[must_use]
    pub fn read(&self) -> [Count; Verdict::COUNT] {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
}

impl fmt::Debug for VerdictCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerdictCounts")
    }
}
