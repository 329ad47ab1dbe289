//! Identifies the senders of packets by the cgroups of their sockets.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap},
    helpers::{bpf_ktime_get_boot_ns, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id},
    macros::btf_map,
    programs::TcContext,
};
use lota_common::{
    ADMISSION_NS, Address4, Address6, LocalConnection, MAX_ADMITTED, MAX_PODS, RawAdmission, RawHolder,
    RawIdentity, RawPod, Settings, Verdict,
};
use lota_ebpf::{
    decide::{PodDecision, from_pod, is_vip},
    packet::{Network, Packet, PacketKind, Ports, network, parse_v4, parse_v6},
    sender::{self, LocalSender, Sender, SendingPod},
};

use crate::{
    access,
    answer::{self, Answerable, Place, QueryPacket},
    kernel_bytes::Skb,
    maps::{self, AddressMaps},
    redirect::{Decision, LOOPBACK, ifindex},
};

/// `BPF_F_NO_PREALLOC`: memory is allocated per entry, not in advance.
const ON_DEMAND: usize = 1;

#[btf_map(name = "lota_cgroups")]
static CGROUPS: HashMap<u64, RawPod, MAX_PODS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_holders4")]
static HOLDERS4: HashMap<Address4, RawHolder, MAX_PODS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_holders6")]
static HOLDERS6: HashMap<Address6, RawHolder, MAX_PODS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_identity")]
static IDENTITY: Array<RawIdentity, 1> = Array::new();
#[btf_map(name = "lota_admitted")]
static ADMITTED: LruHashMap<LocalConnection, RawAdmission, MAX_ADMITTED> = LruHashMap::new();

/// The socket that sent a packet.
struct SkbSender<'a>(&'a TcContext);

impl Sender for SkbSender<'_> {
    #[inline(always)]
    fn ancestor(&self, level: u32) -> u64 {
        // SAFETY: the context the kernel called us with.
        unsafe { bpf_skb_ancestor_cgroup_id(self.0.skb.skb, level.cast_signed()) }
    }

    #[inline(always)]
    fn pod(&self, cgroup: u64) -> Option<SendingPod> {
        // SAFETY: two fields are copied; a slot that is reused meanwhile holds another valid entry.
        let pod = unsafe { CGROUPS.get(cgroup) }?;
        Some(SendingPod { allowed: pod.allow == 1, forwards: pod.forwards == 1 })
    }
}

/// Lookups of the pod that has an address of one family.
pub(crate) trait HeldAddress: AddressMaps {
    /// Returns ID and level of the cgroup of the pod that has the address.
    fn holder(self) -> Option<(u64, u32)>;

    /// Returns the connection of this address with these ports.
    fn connection(self, ports: Ports) -> LocalConnection;

    /// Returns whether this address and port are a target.
    fn is_target(self, port: u16) -> bool;
}

impl HeldAddress for [u8; 4] {
    #[inline(always)]
    fn holder(self) -> Option<(u64, u32)> {
        // SAFETY: as above.
        unsafe { HOLDERS4.get(Address4 { address: self }) }.map(|holder| (holder.cgroup, holder.level))
    }

    #[inline(always)]
    fn connection(self, ports: Ports) -> LocalConnection {
        let [a, b, c, d] = self;
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d].connection(ports)
    }

    #[inline(always)]
    fn is_target(self, port: u16) -> bool {
        maps::stand_in(self, port).is_some()
    }
}

impl HeldAddress for [u8; 16] {
    #[inline(always)]
    fn holder(self) -> Option<(u64, u32)> {
        // SAFETY: as above.
        unsafe { HOLDERS6.get(Address6 { address: self }) }.map(|holder| (holder.cgroup, holder.level))
    }

    #[inline(always)]
    fn connection(self, ports: Ports) -> LocalConnection {
        LocalConnection {
            address: Address6 { address: self },
            port: ports.source,
            vip_port: ports.destination,
        }
    }

    #[inline(always)]
    fn is_target(self, _port: u16) -> bool {
        false
    }
}

#[inline(always)]
fn identity() -> RawIdentity {
    IDENTITY.get(0).copied().unwrap_or_default()
}

/// Decision about the sender of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SenderAccess {
    /// It has access.
    Allowed,
    /// Its address has no access here.
    Denied,
    /// Its address has access, but is that of another pod.
    Spoofed,
}

/// Decides about the sender of a packet that TC sees.
#[inline(always)]
pub(crate) fn decide<A: HeldAddress>(
    ctx: &TcContext,
    settings: &Settings,
    packet: &Packet<A>,
    ifindex: u32,
) -> SenderAccess {
    if !is_local(ifindex) {
        return decide_by_address(ctx, settings, packet, ifindex);
    }
    let Packet { source, payload, .. } = *packet;
    // Packets on connections have passed the program at the egress of `lo`.
    match !payload.flags.opens() || arrive(source.connection(payload.ports)) {
        true => SenderAccess::Allowed,
        false => SenderAccess::Denied,
    }
}

/// Decides about the sender of a packet that TC sees at the interface of a pod.
#[inline(always)]
pub(crate) fn decide_by_address(
    ctx: &TcContext,
    settings: &Settings,
    packet: &Packet<impl HeldAddress>,
    ifindex: u32,
) -> SenderAccess {
    let Packet { source, payload, .. } = *packet;
    // The access entry says which pod has the address, so that most packets need no further lookup.
    let (allowed, holder) = match source.recent_access(settings) {
        Some(access) if access.held == 1 => {
            (access.admits(ifindex), Some((access.cgroup, u32::from(access.level))))
        }
        Some(access) => (access.admits(ifindex), None),
        None => (access::allowed_by_rule(settings, source, ifindex), source.holder()),
    };
    if !allowed {
        SenderAccess::Denied
    } else if is_spoofed(ctx, holder, || {
        payload.flags.opens() && maps::interface(ifindex).is_some_and(|interface| interface.has_senders == 1)
    }) {
        SenderAccess::Spoofed
    } else {
        SenderAccess::Allowed
    }
}

/// Returns whether the sender of a packet that opens a connection has access, as far as socket lookup can know.
#[inline(always)]
pub(crate) fn allows_connection(
    settings: &Settings,
    source: impl HeldAddress,
    ports: Ports,
    ifindex: u32,
) -> bool {
    if !is_local(ifindex) {
        return access::allowed(settings, source, ifindex);
    }
    // There can be several lookups: by other programs, and for the last packet of a handshake with a SYN cookie.
    admission(source.connection(ports)) == Some(ARRIVED)
}

/// Returns whether the program at the egress of `lo` decides about packets from this interface.
#[inline(always)]
fn is_local(ifindex: u32) -> bool {
    ifindex == LOOPBACK && identity().local != RawIdentity::BY_ADDRESS
}

/// Returns whether another pod than the one that has its source address sent a packet; `None`: no pod has it.
#[inline(always)]
fn is_spoofed(ctx: &TcContext, holder: Option<(u64, u32)>, has_sender: impl FnOnce() -> bool) -> bool {
    match holder {
        Some((cgroup, level)) => sender::is_spoofed(&SkbSender(ctx), cgroup, level, identity, has_sender),
        None => false,
    }
}

/// Returns the verdict on a packet at a bridge's port, and answers it if it is a query. A packet that another pod sent than
/// the one that has its source address is dropped here: at the bridge, it has lost its socket. Queries are answered here
/// because netfilter may translate their destination before the bridge sees them.
#[inline(always)]
pub(crate) fn port_verdict(ctx: &TcContext) -> Verdict {
    let Some(settings) = maps::settings() else { return Verdict::NotOurs };
    let bytes = Skb(ctx);
    let decision = match network(&bytes) {
        (Network::V4, at) => parse_v4(&bytes, at).map(|packet| decide_at_port(ctx, settings, &packet)),
        (Network::V6, at) => parse_v6(&bytes, at).map(|packet| decide_at_port(ctx, settings, &packet)),
        (Network::Other | Network::Hidden, _) => None,
    };
    match decision {
        Some(Decision::Settled(verdict)) => verdict,
        Some(Decision::Query(query)) => answer::name(ctx, settings, &query, Place::BridgePort),
        None => Verdict::NotOurs,
    }
}

#[inline(always)]
fn decide_at_port<A: HeldAddress + Answerable>(
    ctx: &TcContext,
    settings: &Settings,
    packet: &Packet<A>,
) -> Decision {
    let Packet { source, destination, payload, .. } = *packet;
    let is_ours = match from_pod(settings, packet) {
        PodDecision::Name => match QueryPacket::of(packet) {
            Some(query) => return Decision::Query(query),
            None => false,
        },
        PodDecision::Redirect => true,
        // The program at the bridge may intercept it.
        PodDecision::Settled(Verdict::NotOurs) => {
            settings.targets != 0
                && payload.kind == PacketKind::Tcp
                && destination.is_target(u16::from_be_bytes(payload.ports.destination))
        }
        _ => false,
    };
    if !is_ours {
        return Decision::Settled(Verdict::NotOurs);
    }
    let port = ifindex(ctx);
    // The program at the bridge sees which bridge a packet is from, not which port.
    let (may_have_access, is_elsewhere) = match source.access() {
        Some(access) => (access.allow == 1, access.is_behind_another_port(port)),
        None => (access::allowed_by_rule(settings, source, port), false),
    };
    let is_spoofed = may_have_access
        && (is_elsewhere && !sender::forwards(&SkbSender(ctx), &identity())
            || is_spoofed(ctx, source.holder(), || payload.flags.opens()));
    if !is_spoofed {
        return Decision::Settled(Verdict::NotOurs);
    }
    source.refused(Verdict::Spoofed, port);
    Decision::Settled(Verdict::Spoofed)
}

/// Returns whether a packet of a process in the node's own network namespace is dropped. A packet without access that
/// opens a connection is not: without an admission, it is refused where it arrives.
#[inline(always)]
pub(crate) fn drops_local(ctx: &TcContext) -> bool {
    let Some(settings) = maps::settings() else { return false };
    let bytes = Skb(ctx);
    match network(&bytes) {
        (Network::V4, at) => {
            parse_v4(&bytes, at).is_some_and(|packet| is_refused_local(ctx, settings, &packet))
        }
        (Network::V6, at) => {
            parse_v6(&bytes, at).is_some_and(|packet| is_refused_local(ctx, settings, &packet))
        }
        (Network::Other | Network::Hidden, _) => false,
    }
}

#[inline(always)]
fn is_refused_local(ctx: &TcContext, settings: &Settings, packet: &Packet<impl HeldAddress>) -> bool {
    if from_pod(settings, packet) != PodDecision::Redirect {
        return false;
    }
    let identity = identity();
    let local = LocalSender {
        origin: sender::origin(&SkbSender(ctx), &identity),
        is_vip: is_vip(settings, packet.source),
        is_denied: packet.source.access().is_some_and(|access| access.allow != 1),
        has_access: access::allowed(settings, packet.source, LOOPBACK),
        default_allow: settings.default_allow == 1,
    };
    let is_admitted = sender::admits(identity.local, local);
    if !packet.payload.flags.opens() {
        return !is_admitted && !is_from_kernel(ctx);
    }
    let connection = packet.source.connection(packet.payload.ports);
    if is_admitted {
        // SAFETY: reads a clock.
        let at_ns = unsafe { bpf_ktime_get_boot_ns() };
        let _ = ADMITTED.insert(connection, RawAdmission { at_ns, arrived: 0 }, 0);
    } else {
        let _ = ADMITTED.remove(connection);
    }
    false
}

/// Returns whether the kernel itself sent a packet, such as an acknowledgment for a socket in TIME_WAIT or a reset. It has no
/// socket, or one of the kernel's, which are in the root cgroup.
#[inline(always)]
fn is_from_kernel(ctx: &TcContext) -> bool {
    // SAFETY: the context the kernel called us with.
    let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    cgroup == 0 || cgroup == SkbSender(ctx).ancestor(0)
}

/// `RawAdmission::arrived` of a packet that has arrived.
const ARRIVED: u64 = 1;

/// Returns `arrived` of a recent admission.
#[inline(always)]
fn admission(connection: LocalConnection) -> Option<u64> {
    // SAFETY: a clock is read, and two fields are copied; a slot that is reused meanwhile holds another valid entry.
    let (now, RawAdmission { at_ns, arrived }) =
        unsafe { (bpf_ktime_get_boot_ns(), *ADMITTED.get(connection)?) };
    (now.saturating_sub(at_ns) < ADMISSION_NS).then_some(arrived)
}

/// Returns whether a packet that opens a connection has an admission. An admission is for one packet only, since packets can
/// be sent past the program that admits (`PACKET_QDISC_BYPASS`).
#[inline(always)]
fn arrive(connection: LocalConnection) -> bool {
    if admission(connection) != Some(0) {
        let _ = ADMITTED.remove(connection);
        return false;
    }
    // SAFETY: reads a clock.
    let at_ns = unsafe { bpf_ktime_get_boot_ns() };
    ADMITTED.insert(connection, RawAdmission { at_ns, arrived: ARRIVED }, 0).is_ok()
}
