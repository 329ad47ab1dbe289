//! The maps, named as `bpftool` shows them, behind functions.

use aya_ebpf::{
    btf_maps::{Array, HashMap, PerCpuArray, SockMap},
    macros::btf_map,
};
use lota_common::{
    Access, Address4, Address6, Count, LISTENER4, LISTENER6, LISTENERS, MAX_NODES, MAX_PODS, Node, Settings,
    Verdict,
};
use lota_ebpf::packet::Address;

/// `BPF_F_NO_PREALLOC`: entries cost memory when they exist, not before.
const ON_DEMAND: usize = 1;

#[btf_map(name = "lota_access4")]
static ACCESS4: HashMap<Address4, Access, MAX_PODS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_access6")]
static ACCESS6: HashMap<Address6, Access, MAX_PODS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_nodes4")]
static NODES4: HashMap<Address4, Node, MAX_NODES, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_nodes6")]
static NODES6: HashMap<Address6, Node, MAX_NODES, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_settings")]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map(name = "lota_verdicts")]
static VERDICTS: PerCpuArray<Count, { Verdict::COUNT }> = PerCpuArray::new();
#[btf_map(name = "lota_listeners")]
pub(crate) static LISTENER_SOCKETS: SockMap<LISTENERS> = SockMap::new();

/// This node's settings; all zeros, which match nothing, until the daemon has written them.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// What the maps know about an address, in its family.
pub(crate) trait Known: Address {
    /// This family's slot in the sockmap.
    const LISTENER: u32;

    /// The access entry of a pod's address.
    fn access(self) -> Option<Access>;

    /// The node that has this address.
    fn node(self) -> Option<Node>;
}

impl Known for [u8; 4] {
    const LISTENER: u32 = LISTENER4;

    #[inline(always)]
    fn access(self) -> Option<Access> {
        // SAFETY: entries are four bytes, copied out at once; a slot reused meanwhile holds another valid
        // entry of the same type, as any lookup racing with an update may see.
        unsafe { ACCESS4.get(Address4 { address: self }).copied() }
    }

    #[inline(always)]
    fn node(self) -> Option<Node> {
        // SAFETY: as above.
        unsafe { NODES4.get(Address4 { address: self }).copied() }
    }
}

impl Known for [u8; 16] {
    const LISTENER: u32 = LISTENER6;

    #[inline(always)]
    fn access(self) -> Option<Access> {
        // SAFETY: as above.
        unsafe { ACCESS6.get(Address6 { address: self }).copied() }
    }

    #[inline(always)]
    fn node(self) -> Option<Node> {
        // SAFETY: as above.
        unsafe { NODES6.get(Address6 { address: self }).copied() }
    }
}

/// Counts a verdict on this CPU.
#[inline(always)]
pub(crate) fn count(verdict: Verdict, bytes: u32) {
    if let Some(count) = VERDICTS.get_ptr_mut(verdict as u32) {
        // SAFETY: a per-CPU slot, which nothing else on this CPU writes while the program runs.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += u64::from(bytes);
        }
    }
}
