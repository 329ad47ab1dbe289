//! Steering: an allowed pod's connection to the VIP goes to the daemon's hidden listener. This decides who may; the
//! listener is found at socket lookup, or on kernels before 5.17 assigned here.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use lota_common::{Settings, Verdict};
use lota_ebpf::{
    decide::{Pod, from_pod},
    packet::{Network, PLAIN, Packet, network, parse_plain_v4, parse_v4, parse_v6},
};

use crate::{
    access,
    answer::{self, Answerable},
    kernel_bytes::{Head, Skb},
    maps::{self, Known},
};

/// `BPF_F_CURRENT_NETNS`: look for sockets where the interface lives.
const CURRENT_NETNS: u64 = u64::MAX;
/// `lo`, in every network namespace (`LOOPBACK_IFINDEX`, `include/net/flow.h`).
pub(crate) const LOOPBACK: u32 = 1;
/// Socket states (`include/net/tcp_states.h`).
const TIME_WAIT: u32 = 6;
const LISTEN: u32 = 10;

/// `struct bpf_sock_tuple` of one family: whose socket to look for.
#[repr(C, packed)]
struct Tuple<A> {
    source: A,
    destination: A,
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

/// The verdict on one packet that a pod sent; steers it if that is the verdict.
#[inline(always)]
pub(crate) fn verdict(ctx: &TcContext) -> Verdict {
    let Some(settings) = maps::settings() else { return Verdict::NotOurs };
    // Nearly every packet: no tags, no options. Read at once, at fixed places, it costs a third.
    if let Ok(head) = ctx.load::<[u8; PLAIN]>(0)
        && let Some(packet) = parse_plain_v4(&Head(&head))
    {
        let decision = from_pod(settings, &packet);
        // A query is worth the long way.
        if decision != Pod::Name {
            return settle(ctx, settings, &packet, decision);
        }
    }
    let bytes = Skb(ctx);
    match network(&bytes) {
        (Network::V4, at) => parse_v4(&bytes, at).map(|packet| judge(ctx, settings, &packet)),
        (Network::V6, at) => parse_v6(&bytes, at).map(|packet| judge(ctx, settings, &packet)),
        (Network::Other, _) => None,
        (Network::Hidden, _) => Some(Verdict::Malformed),
    }
    .unwrap_or(Verdict::NotOurs)
}

#[inline(always)]
fn judge<A: Known + Answerable>(ctx: &TcContext, settings: &Settings, packet: &Packet<A>) -> Verdict {
    match from_pod(settings, packet) {
        // The node's own processes ask whom they like.
        Pod::Name if ifindex(ctx) == LOOPBACK => Verdict::NotOurs,
        Pod::Name => answer::name(ctx, settings, packet, ifindex(ctx)),
        decision => settle(ctx, settings, packet, decision),
    }
}

/// Everything but names.
#[inline(always)]
fn settle<A: Known>(ctx: &TcContext, settings: &Settings, packet: &Packet<A>, decision: Pod) -> Verdict {
    match decision {
        Pod::Settled(verdict) => verdict,
        Pod::Steer => steer(ctx, settings, packet, ifindex(ctx)),
        // The node's own processes reach its ports.
        Pod::Protect if ifindex(ctx) == LOOPBACK => Verdict::NotOurs,
        Pod::Protect if packet.destination.is_loopback() || packet.destination.node().is_some() => {
            Verdict::Protected
        }
        Pod::Protect | Pod::Name => Verdict::NotOurs,
    }
}

#[inline(always)]
fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context the kernel called us with.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
fn steer<A: Known>(ctx: &TcContext, settings: &Settings, packet: &Packet<A>, ifindex: u32) -> Verdict {
    let skb = ctx.skb.skb;
    if !access::allowed(settings, packet.source, ifindex) {
        let connected = has_connection(skb, packet);
        let verdict = if connected { Verdict::Revoked } else { Verdict::Denied };
        packet.source.refused(verdict, ifindex);
        return verdict;
    }
    // Measured, socket lookup hands a connection over in half the time that finding its socket and assigning one
    // takes here; and it alone can where the tuple's last connection is in TIME_WAIT: newer kernels (seen on 6.18)
    // drop a SYN that was assigned over a waiting socket.
    if settings.lookups == 1 {
        return Verdict::Passed;
    }
    match has_connection(skb, packet) {
        true => Verdict::Established,
        false if assign(skb, A::LISTENER) => Verdict::Steered,
        false => Verdict::NoListener,
    }
}

/// Is there a socket already that this segment belongs to?
#[inline(always)]
fn has_connection<A: Known>(skb: *mut __sk_buff, packet: &Packet<A>) -> bool {
    let mut tuple = Tuple {
        source: packet.source,
        destination: packet.destination,
        source_port: packet.payload.ports.source,
        destination_port: packet.payload.ports.destination,
    };
    let size = size_of::<Tuple<A>>() as u32;
    // SAFETY: the tuple lives on our stack and is `size` bytes; every socket found is released.
    unsafe {
        let socket = bpf_skc_lookup_tcp(skb.cast(), (&raw mut tuple).cast(), size, CURRENT_NETNS, 0);
        if socket.is_null() {
            return false;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        // A new SYN on a tuple that is only waiting out its end must reach the listener: handed to the
        // TIME_WAIT socket it would be lost until the client tries again.
        state != LISTEN && !(state == TIME_WAIT && packet.payload.flags.opens())
    }
}

/// Hands the packet to the daemon's listener; false if there is none.
#[inline(always)]
fn assign(skb: *mut __sk_buff, slot: u32) -> bool {
    // SAFETY: a sockmap lookup takes a reference on the socket it finds, which is released below on the only
    // path that has one.
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
