//! The maps and functions to access them.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SockMap, lpm_trie::Key},
    helpers::{bpf_ktime_get_boot_ns, bpf_map_lookup_elem, bpf_sk_release},
    macros::btf_map,
};
use lota_common::{
    Address4, Address6, Count, Denial, FIRST_STAND_IN, Heartbeat, LISTENER4, LISTENER6, LISTENERS,
    MAX_DENIED, MAX_INTERFACES, MAX_NAMES, MAX_NEW_DENIALS, MAX_NODES, MAX_PODS, MAX_RECENT, MAX_RULES,
    MAX_TARGETS, NEW_DENIALS_NS, NameKey, NewDenials, RawAccess, RawAddressAccess, RawAttempts, RawInterface,
    RawName, RawNode, RawTarget, RecentAccess, SCRATCH, Settings, StandIn, Verdict,
};
use lota_ebpf::{dns::FoundName, packet::Address};

/// `BPF_F_NO_PREALLOC`: memory is allocated per entry, not in advance.
pub(crate) const ON_DEMAND: usize = 1;

#[btf_map(name = "lota_access4")]
static ACCESS4: HashMap<Address4, RawAddressAccess, MAX_PODS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_access6")]
static ACCESS6: HashMap<Address6, RawAddressAccess, MAX_PODS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_rules4")]
static RULES4: LpmTrie<Address4, RawAccess, MAX_RULES> = LpmTrie::new();
#[btf_map(name = "lota_rules6")]
static RULES6: LpmTrie<Address6, RawAccess, MAX_RULES> = LpmTrie::new();
#[btf_map(name = "lota_denied4")]
static DENIED4: LruHashMap<Address4, Denial, MAX_DENIED> = LruHashMap::new();
#[btf_map(name = "lota_denied6")]
static DENIED6: LruHashMap<Address6, Denial, MAX_DENIED> = LruHashMap::new();
#[btf_map(name = "lota_new_denied")]
static NEW_DENIALS: LruHashMap<u32, NewDenials, MAX_INTERFACES> = LruHashMap::new();
#[btf_map(name = "lota_attempts4")]
static ATTEMPTS4: LruHashMap<Address4, RawAttempts, MAX_PODS> = LruHashMap::new();
#[btf_map(name = "lota_attempts6")]
static ATTEMPTS6: LruHashMap<Address6, RawAttempts, MAX_PODS> = LruHashMap::new();
#[btf_map(name = "lota_interfaces")]
static INTERFACES: HashMap<u32, RawInterface, MAX_INTERFACES, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_nodes4")]
static NODES4: HashMap<Address4, RawNode, MAX_NODES, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_nodes6")]
static NODES6: HashMap<Address6, RawNode, MAX_NODES, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_names")]
static NAMES: LpmTrie<NameKey, RawName, MAX_NAMES> = LpmTrie::new();
#[btf_map(name = "lota_targets")]
static TARGETS: HashMap<RawTarget, StandIn, MAX_TARGETS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_stand_ins")]
static STAND_INS: Array<RawTarget, MAX_TARGETS> = Array::new();
#[btf_map(name = "lota_heartbeat")]
static HEARTBEAT: Array<Heartbeat, 1> = Array::new();
#[btf_map(name = "lota_settings")]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map(name = "lota_verdicts")]
static VERDICTS: PerCpuArray<Count, { Verdict::COUNT }> = PerCpuArray::new();
#[btf_map(name = "lota_listeners")]
pub(crate) static LISTENER_SOCKETS: SockMap<LISTENERS> = SockMap::new();
#[btf_map(name = "lota_recent")]
static RECENT: PerCpuArray<RecentAccess, MAX_RECENT> = PerCpuArray::new();
#[btf_map(name = "lota_scratch")]
static ROOM: PerCpuArray<[u64; SCRATCH / 8], 1> = PerCpuArray::new();

/// Returns this node's settings. They are all zeros, which match nothing, until the daemon writes them.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Returns the entry of an interface of pods; `None` for any other interface.
#[inline(always)]
pub(crate) fn interface(ifindex: u32) -> Option<RawInterface> {
    // SAFETY: a few bytes, copied out at once.
    unsafe { INTERFACES.get(ifindex).copied() }
}

/// Returns the longest name of the endpoint that the key begins with.
#[inline(always)]
pub(crate) fn name(key: &Key<NameKey>) -> Option<FoundName> {
    NAMES.get(key).map(FoundName::of)
}

/// Returns the port of the VIP that stands for a target.
#[inline(always)]
pub(crate) fn stand_in(address: [u8; 4], port: u16) -> Option<StandIn> {
    // SAFETY: four bytes, copied out at once.
    unsafe { TARGETS.get(RawTarget { address, port, reserved: 0 }).copied() }
}

/// Returns the target that a port of the VIP stands for.
#[inline(always)]
pub(crate) fn target(stand_in: u16) -> Option<RawTarget> {
    let index = stand_in.checked_sub(FIRST_STAND_IN)?;
    STAND_INS.get(index.into()).copied().filter(|target| target.address != [0; 4])
}

/// Returns whether the daemon lives: it has a listener, and its last heartbeat is recent.
#[inline(always)]
pub(crate) fn daemon_lives() -> bool {
    // SAFETY: reads a clock.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    HEARTBEAT.get(0).is_some_and(|heartbeat| heartbeat.is_recent(now)) && has_listener()
}

#[inline(always)]
fn has_listener() -> bool {
    let slot = LISTENER4;
    // SAFETY: the lookup takes a reference to the socket, which is released.
    unsafe {
        let listeners = (&raw const LISTENER_SOCKETS).cast_mut();
        let socket = bpf_map_lookup_elem(listeners.cast(), (&raw const slot).cast());
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
        true
    }
}

/// Returns a buffer that belongs to this CPU while the program runs.
#[inline(always)]
pub(crate) fn scratch() -> Option<*mut u64> {
    ROOM.get_ptr_mut(0).map(<*mut [u64; SCRATCH / 8]>::cast)
}

/// Map lookups for an address of one family.
pub(crate) trait AddressMaps: Address {
    /// This family's slot in the sockmap.
    const LISTENER: u32;

    /// Returns the access entry of a pod's address.
    fn access(self) -> Option<RawAddressAccess>;

    /// Like [`AddressMaps::access`], but does not read an entry again that this CPU has read since the last change.
    fn recent_access(self, settings: &Settings) -> Option<RawAddressAccess>;

    /// Returns the access rule with the longest prefix that contains the address.
    fn rule(self) -> Option<RawAccess>;

    /// Records a refusal.
    fn refused(self, verdict: Verdict, ifindex: u32);

    /// Counts an attempt to open a connection.
    fn attempted(self, ifindex: u32);

    /// Returns the node with this address.
    fn node(self) -> Option<RawNode>;
}

impl AddressMaps for [u8; 4] {
    const LISTENER: u32 = LISTENER4;

    #[inline(always)]
    fn access(self) -> Option<RawAddressAccess> {
        // SAFETY: the entry is copied at once; a slot that is reused meanwhile holds another valid entry of the same
        // type, as in any lookup that races with an update.
        unsafe { ACCESS4.get(Address4 { address: self }).copied() }
    }

    #[inline(always)]
    fn recent_access(self, settings: &Settings) -> Option<RawAddressAccess> {
        // SAFETY: a field of a value that lives as long as the program. Volatile, since it must be read before the entry:
        // an entry that is read after it has at least the changes before this epoch.
        let epoch = unsafe { (&raw const settings.epoch).read_volatile() };
        let address = Address4 { address: self };
        // Pods of a node mostly differ in the last octet.
        let slot = u32::from_be_bytes(self) & (MAX_RECENT as u32 - 1);
        let recent = RECENT.get_ptr_mut(slot)?;
        // SAFETY: a per-CPU slot, which nothing else on this CPU accesses while the program runs: it is not preempted, except
        // by kernels with PREEMPT_RT, which the daemon refuses.
        unsafe {
            if (*recent).epoch == epoch && (*recent).address == address {
                return Some((*recent).access);
            }
            // A CPU may read in another order, such as one of arm64, unless the place of a read depends on what was read
            // before. So the key depends on the epoch: by zeros, which the compiler does not know.
            let zeros = (&raw const (*recent).padding).read_volatile();
            let after_epoch = u32::from_ne_bytes(self) ^ (epoch as u32 & zeros);
            let access = after_epoch.to_ne_bytes().access()?;
            *recent = RecentAccess { epoch, address, padding: 0, access };
            Some(access)
        }
    }

    #[inline(always)]
    fn rule(self) -> Option<RawAccess> {
        RULES4.get(&Key::new(32, Address4 { address: self })).copied()
    }

    #[inline(always)]
    fn refused(self, verdict: Verdict, ifindex: u32) {
        let key = Address4 { address: self };
        match DENIED4.get_ptr_mut(key) {
            // SAFETY: a value that the map lends until the program ends.
            Some(denial) => unsafe { note(denial, verdict, ifindex) },
            None if may_note_another(ifindex) => {
                let _ = DENIED4.insert(key, first(verdict, ifindex), 0);
            }
            None => {}
        }
    }

    #[inline(always)]
    fn attempted(self, ifindex: u32) {
        let key = Address4 { address: self };
        match ATTEMPTS4.get_ptr_mut(key) {
            // SAFETY: as above.
            Some(attempts) => unsafe { attempt(attempts, ifindex) },
            None => drop(ATTEMPTS4.insert(key, first_attempt(ifindex), 0)),
        }
    }

    #[inline(always)]
    fn node(self) -> Option<RawNode> {
        // SAFETY: as above.
        unsafe { NODES4.get(Address4 { address: self }).copied() }
    }
}

impl AddressMaps for [u8; 16] {
    const LISTENER: u32 = LISTENER6;

    #[inline(always)]
    fn access(self) -> Option<RawAddressAccess> {
        // SAFETY: as above.
        unsafe { ACCESS6.get(Address6 { address: self }).copied() }
    }

    #[inline(always)]
    fn recent_access(self, _: &Settings) -> Option<RawAddressAccess> {
        self.access()
    }

    #[inline(always)]
    fn rule(self) -> Option<RawAccess> {
        RULES6.get(&Key::new(128, Address6 { address: self })).copied()
    }

    #[inline(always)]
    fn refused(self, verdict: Verdict, ifindex: u32) {
        let key = Address6 { address: self };
        match DENIED6.get_ptr_mut(key) {
            // SAFETY: a value that the map lends until the program ends.
            Some(denial) => unsafe { note(denial, verdict, ifindex) },
            None if may_note_another(ifindex) => {
                let _ = DENIED6.insert(key, first(verdict, ifindex), 0);
            }
            None => {}
        }
    }

    #[inline(always)]
    fn attempted(self, ifindex: u32) {
        let key = Address6 { address: self };
        match ATTEMPTS6.get_ptr_mut(key) {
            // SAFETY: as above.
            Some(attempts) => unsafe { attempt(attempts, ifindex) },
            None => drop(ATTEMPTS6.insert(key, first_attempt(ifindex), 0)),
        }
    }

    #[inline(always)]
    fn node(self) -> Option<RawNode> {
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

/// Counts a newly refused address at this interface; returns whether it may be recorded.
#[inline(always)]
fn may_note_another(ifindex: u32) -> bool {
    // SAFETY: reads a clock.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let Some(new) = NEW_DENIALS.get_ptr_mut(ifindex) else {
        return NEW_DENIALS.insert(ifindex, NewDenials { since_ns: now, count: 1 }, 0).is_ok();
    };
    // SAFETY: a value that the map lends until the program ends. Two CPUs that count at once may let one more in.
    unsafe {
        if now - (*new).since_ns > NEW_DENIALS_NS {
            *new = NewDenials { since_ns: now, count: 0 };
        }
        (*new).count += 1;
        (*new).count <= MAX_NEW_DENIALS
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
    // SAFETY: guaranteed by the caller. Concurrent updates on two CPUs may lose one refusal: Rust's BPF target does not
    // support atomics yet.
    unsafe {
        (*denial).count += 1;
        (*denial).last_ns = bpf_ktime_get_boot_ns();
        (*denial).ifindex = ifindex;
        (*denial).verdict = verdict as u32;
    }
}

#[inline(always)]
fn first_attempt(ifindex: u32) -> RawAttempts {
    RawAttempts { count: 1, ifindex, padding: 0 }
}

/// # Safety
/// `attempts` must be a value that the map lent to this run of the program.
#[inline(always)]
unsafe fn attempt(attempts: *mut RawAttempts, ifindex: u32) {
    // SAFETY: guaranteed by the caller. As above, concurrent updates may lose one.
    unsafe {
        (*attempts).count += 1;
        (*attempts).ifindex = ifindex;
    }
}
