//! Redirects allowed pods' connections to the VIP to the daemon's hidden listener. Access is decided here; the listener
//! is selected at socket lookup, or assigned here on kernels before 5.17.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use lota_common::{Settings, Verdict};
use lota_ebpf::{
    decide::{PodDecision, from_pod},
    packet::{Network, Packet, network, parse_plain_v4, parse_v4, parse_v6},
};

use crate::{
    answer::{self, Answerable, Place, QueryPacket},
    identity::{self, HeldAddress, SenderAccess},
    kernel_bytes::{HeadBytes, Skb},
    maps::{self, AddressMaps},
    target,
};

/// `BPF_F_CURRENT_NETNS`: look for sockets in the network namespace of the interface.
const CURRENT_NETNS: u64 = u64::MAX;
/// `lo`, in every network namespace (`LOOPBACK_IFINDEX`, `include/net/flow.h`).
pub(crate) const LOOPBACK: u32 = 1;
/// Socket states (`include/net/tcp_states.h`).
pub(crate) const TIME_WAIT: u32 = 6;
const LISTEN: u32 = 10;

/// `struct bpf_sock_tuple` of one family.
#[repr(C, packed)]
struct Tuple<A> {
    source: A,
    destination: A,
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

/// Returns the verdict on a packet from a pod, and redirects or answers the packet if that is the verdict.
#[inline(always)]
pub(crate) fn verdict(ctx: &TcContext) -> Verdict {
    let Some(settings) = maps::settings() else { return Verdict::NotOurs };
    // Each step is in the program once, after the paths that lead to it: the verifier checks each copy.
    match decide_packet(ctx, settings) {
        Decision::Settled(verdict) => verdict,
        Decision::Query(query) => answer::name(ctx, settings, &query, Place::Pods),
    }
}

/// Decision by a packet's IP and transport headers.
pub(crate) enum Decision {
    Settled(Verdict),
    Query(QueryPacket),
}

#[inline(always)]
fn decide_packet(ctx: &TcContext, settings: &Settings) -> Decision {
    let packet = 'packet: {
        // Fast path for packets without tags and options: one read at fixed offsets takes a third of the time.
        if let Some(head) = HeadBytes::of(ctx)
            && let Some(packet) = parse_plain_v4(&head)
        {
            break 'packet Some(packet);
        }
        let bytes = Skb(ctx);
        match network(&bytes) {
            (Network::V4, at) => parse_v4(&bytes, at),
            (Network::V6, at) => match parse_v6(&bytes, at) {
                Some(packet) => return decide_parsed(ctx, settings, &packet),
                None => None,
            },
            (Network::Other, _) => None,
            (Network::Hidden, _) => return Decision::Settled(Verdict::Malformed),
        }
    };
    match packet {
        Some(packet) => match decide_parsed(ctx, settings, &packet) {
            Decision::Settled(Verdict::NotOurs) if settings.targets != 0 => {
                Decision::Settled(target::intercept(ctx, settings, &packet))
            }
            decision => decision,
        },
        None => Decision::Settled(Verdict::NotOurs),
    }
}

#[inline(always)]
fn decide_parsed<A: HeldAddress + Answerable>(
    ctx: &TcContext,
    settings: &Settings,
    packet: &Packet<A>,
) -> Decision {
    let decision = from_pod(settings, packet);
    // Queries of the node's own processes are not answered.
    if decision == PodDecision::Name
        && ifindex(ctx) != LOOPBACK
        && let Some(query) = QueryPacket::of(packet)
    {
        return Decision::Query(query);
    }
    Decision::Settled(settle(ctx, settings, packet, decision))
}

/// Returns the verdict for all decisions except DNS.
#[inline(always)]
fn settle<A: HeldAddress>(
    ctx: &TcContext,
    settings: &Settings,
    packet: &Packet<A>,
    decision: PodDecision,
) -> Verdict {
    match decision {
        PodDecision::Settled(verdict) => verdict,
        PodDecision::Redirect => redirect_if_allowed(ctx, settings, packet, ifindex(ctx)),
        // The node's own processes may use its ports.
        PodDecision::Protect | PodDecision::Forbid if ifindex(ctx) == LOOPBACK => Verdict::NotOurs,
        PodDecision::Protect if packet.destination.is_loopback() || packet.destination.node().is_some() => {
            Verdict::Protected
        }
        // A reply to a process of the node, whose ephemeral port it is.
        PodDecision::StandIn if ifindex(ctx) == LOOPBACK => Verdict::VipOther,
        PodDecision::Forbid | PodDecision::StandIn => Verdict::Protected,
        PodDecision::Protect | PodDecision::Name => Verdict::NotOurs,
    }
}

/// Returns the index of the interface that the packet came from.
#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context the kernel called us with.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
fn redirect_if_allowed<A: HeldAddress>(
    ctx: &TcContext,
    settings: &Settings,
    packet: &Packet<A>,
    ifindex: u32,
) -> Verdict {
    let skb = ctx.skb.skb;
    match identity::decide(ctx, settings, packet, ifindex) {
        SenderAccess::Allowed => {}
        SenderAccess::Denied => {
            let connected = has_connection(skb, packet);
            let verdict = if connected { Verdict::Revoked } else { Verdict::Denied };
            packet.source.refused(verdict, ifindex);
            return verdict;
        }
        SenderAccess::Spoofed => {
            packet.source.refused(Verdict::Spoofed, ifindex);
            return Verdict::Spoofed;
        }
    }
    redirect(settings, skb, packet, ifindex, has_connection)
}

/// Redirects a packet of an allowed pod. `connected` returns whether it belongs to an existing connection.
#[inline(always)]
pub(crate) fn redirect<A: AddressMaps>(
    settings: &Settings,
    skb: *mut __sk_buff,
    packet: &Packet<A>,
    ifindex: u32,
    connected: impl FnOnce(*mut __sk_buff, &Packet<A>) -> bool,
) -> Verdict {
    if packet.payload.flags.opens() {
        packet.source.attempted(ifindex);
    }
    // Measured, a redirect at socket lookup takes half the time of a socket lookup and assignment here. It also works
    // where the tuple's previous connection is in TIME_WAIT: newer kernels (seen on 6.18) drop a SYN that was assigned
    // over a waiting socket.
    if settings.lookups == 1 {
        return Verdict::Delivered;
    }
    match connected(skb, packet) {
        true => Verdict::Established,
        false if assign(skb, A::LISTENER) => Verdict::Redirected,
        false => Verdict::NoListener,
    }
}

/// Returns whether the segment belongs to an existing connection.
#[inline(always)]
fn has_connection<A: AddressMaps>(skb: *mut __sk_buff, packet: &Packet<A>) -> bool {
    // A SYN on a tuple in TIME_WAIT must reach the listener: the waiting socket would drop it, and the client would
    // have to retry.
    connection(skb, packet).is_some_and(|state| state != TIME_WAIT || !packet.payload.flags.opens())
}

/// Returns the state of the socket of the segment's connection.
#[inline(always)]
pub(crate) fn connection<A: AddressMaps>(skb: *mut __sk_buff, packet: &Packet<A>) -> Option<u32> {
    let mut tuple = Tuple {
        source: packet.source,
        destination: packet.destination,
        source_port: packet.payload.ports.source,
        destination_port: packet.payload.ports.destination,
    };
    let size = size_of::<Tuple<A>>() as u32;
    // SAFETY: the tuple is on the stack and has `size` bytes; every socket found is released.
    unsafe {
        let socket = bpf_skc_lookup_tcp(skb.cast(), (&raw mut tuple).cast(), size, CURRENT_NETNS, 0);
        if socket.is_null() {
            return None;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        (state != LISTEN).then_some(state)
    }
}

/// Assigns the packet to the daemon's listener; returns false if there is none.
#[inline(always)]
fn assign(skb: *mut __sk_buff, slot: u32) -> bool {
    // SAFETY: a sockmap lookup takes a reference to the socket, which is released below on the only path that has
    // one.
    unsafe {
        let listeners = (&raw const maps::LISTENER_SOCKETS).cast_mut();
        let socket = bpf_map_lookup_elem(listeners.cast(), (&raw const slot).cast());
        if socket.is_null() {
            return false;
        }
        let result = bpf_sk_assign(skb.cast(), socket, 0);
        bpf_sk_release(socket);
        result == 0
    }
}
