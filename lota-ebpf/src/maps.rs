//! The maps, named as `bpftool` shows them, behind functions.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SockMap, lpm_trie::Key},
    helpers::bpf_ktime_get_boot_ns,
    macros::btf_map,
};
use lota_common::{
    Access, Address4, Address6, Count, Denial, Interface, LISTENER4, LISTENER6, LISTENERS, MAX_DENIED,
    MAX_INTERFACES, MAX_NODES, MAX_PODS, MAX_RULES, Node, SCRATCH, Settings, Verdict,
};
use lota_ebpf::packet::Address;

/// `BPF_F_NO_PREALLOC`: entries cost memory when they exist, not before.
const ON_DEMAND: usize = 1;

#[btf_map(name = "lota_access4")]
static ACCESS4: HashMap<Address4, Access, MAX_PODS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_access6")]
static ACCESS6: HashMap<Address6, Access, MAX_PODS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_rules4")]
static RULES4: LpmTrie<Address4, Access, MAX_RULES> = LpmTrie::new();
#[btf_map(name = "lota_rules6")]
static RULES6: LpmTrie<Address6, Access, MAX_RULES> = LpmTrie::new();
#[btf_map(name = "lota_denied4")]
static DENIED4: LruHashMap<Address4, Denial, MAX_DENIED> = LruHashMap::new();
#[btf_map(name = "lota_denied6")]
static DENIED6: LruHashMap<Address6, Denial, MAX_DENIED> = LruHashMap::new();
#[btf_map(name = "lota_interfaces")]
static INTERFACES: HashMap<u32, Interface, MAX_INTERFACES, ON_DEMAND> = HashMap::new();
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
#[btf_map(name = "lota_scratch")]
static ROOM: PerCpuArray<[u64; SCRATCH / 8], 1> = PerCpuArray::new();

/// This node's settings; all zeros, which match nothing, until the daemon has written them.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// How what comes from this interface is steered; `None`: no pod is behind it.
#[inline(always)]
pub(crate) fn interface(ifindex: u32) -> Option<Interface> {
    // SAFETY: four bytes, copied out at once.
    unsafe { INTERFACES.get(ifindex).copied() }
}

/// Room that is this CPU's own while the program runs.
#[inline(always)]
pub(crate) fn scratch() -> Option<*mut [u64; SCRATCH / 8]> {
    ROOM.get_ptr_mut(0)
}

/// What the maps know about an address, in its family.
pub(crate) trait Known: Address {
    /// This family's slot in the sockmap.
    const LISTENER: u32;

    /// The access entry of a pod's address.
    fn access(self) -> Option<Access>;

    /// The access rule for the longest prefix that the address is in.
    fn rule(self) -> Option<Access>;

    /// Remembers a refusal.
    fn refused(self, verdict: Verdict, ifindex: u32);

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
    fn rule(self) -> Option<Access> {
        RULES4.get(&Key::new(32, Address4 { address: self })).copied()
    }

    #[inline(always)]
    fn refused(self, verdict: Verdict, ifindex: u32) {
        let key = Address4 { address: self };
        match DENIED4.get_ptr_mut(key) {
            // SAFETY: a value that the map lends until the program ends.
            Some(denial) => unsafe { note(denial, verdict, ifindex) },
            None => {
                let _ = DENIED4.insert(key, first(verdict, ifindex), 0);
            }
        }
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
    fn rule(self) -> Option<Access> {
        RULES6.get(&Key::new(128, Address6 { address: self })).copied()
    }

    #[inline(always)]
    fn refused(self, verdict: Verdict, ifindex: u32) {
        let key = Address6 { address: self };
        match DENIED6.get_ptr_mut(key) {
            // SAFETY: a value that the map lends until the program ends.
            Some(denial) => unsafe { note(denial, verdict, ifindex) },
            None => {
                let _ = DENIED6.insert(key, first(verdict, ifindex), 0);
            }
        }
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

#[inline(always)]
fn first(verdict: Verdict, ifindex: u32) -> Denial {
    // SAFETY: reads a clock.
    let last_ns = unsafe { bpf_ktime_get_boot_ns() };
    Denial { count: 1, last_ns, ifindex, verdict: verdict as u32 }
}

/// # Safety
/// `denial` must be a value that the map lent to this run of the program.
#[inline(always)]
unsafe fn note(denial: *mut Denial, verdict: Verdict, ifindex: u32) {
    // SAFETY: as the caller promised. Of two CPUs that note a refusal of one address in the same nanoseconds, one
    // may be lost: BPF has atomics, its Rust target has not yet.
    unsafe {
        (*denial).count += 1;
        (*denial).last_ns = bpf_ktime_get_boot_ns();
        (*denial).ifindex = ifindex;
        (*denial).verdict = verdict as u32;
    }
}
