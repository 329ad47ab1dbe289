//! Interception by address: connections of allowed pods to a target are redirected like those to the VIP.
//!
//! Each target has a port of the VIP that stands for it. At ingress, a packet to the target is rewritten to that port; at
//! egress, replies from it are rewritten to come from the target. Which connections are the daemon's is known from its
//! sockets, so there is no state here.

use aya_ebpf::{
    helpers::{bpf_map_lookup_elem, bpf_sk_release, generated::bpf_tcp_check_syncookie},
    programs::TcContext,
};
use lota_common::{LISTENER4, Settings, Verdict};
use lota_ebpf::{
    decide::is_vip,
    packet::{Network, Packet, PacketKind, Ports, TransportPayload, network, parse_plain_v4, parse_v4},
};

use crate::{
    identity::{self, SenderAccess},
    interface::ifindex,
    kernel_bytes::{HeadBytes, Skb},
    maps,
    redirect::redirect,
    sockets::{TIME_WAIT, connection},
};

// Offsets in the headers.
const IP_CHECK: usize = 10;
const IP_SOURCE: usize = 12;
const IP_DESTINATION: usize = 16;
const TCP_SOURCE: usize = 0;
const TCP_DESTINATION: usize = 2;
const TCP_CHECK: usize = 16;
/// Length in words of an IP or TCP header without options, and positions of words in them.
const HEADER: usize = 5;
const IP_DESTINATION_WORD: usize = IP_DESTINATION / 4;
const TCP_PORTS_WORD: usize = 0;
/// `BPF_F_PSEUDO_HDR`: the checksum covers the changed field as part of the pseudo-header.
const PSEUDO_HEADER: u64 = 1 << 4;

/// Returns the verdict on a packet that is not to the VIP, and redirects it if it belongs to an intercepted connection:
/// one that the daemon has, or a new one of a pod with access while the daemon lives.
#[inline(always)]
pub(crate) fn intercept(ctx: &TcContext, settings: &Settings, packet: &Packet<[u8; 4]>) -> Verdict {
    let Packet { payload, destination, .. } = *packet;
    if payload.kind != PacketKind::Tcp {
        return Verdict::NotOurs;
    }
    let Some(stand_in) = maps::stand_in(destination, u16::from_be_bytes(payload.ports.destination)) else {
        return Verdict::NotOurs;
    };
    let ifindex = ifindex(ctx);
    let intercepts = maps::interface(ifindex).is_some_and(|interface| interface.intercepts == 1);
    // The target works without LOTA, so packets of others are left alone.
    if !intercepts || identity::decide_by_address(ctx, settings, packet, ifindex) != SenderAccess::Allowed {
        return Verdict::NotOurs;
    }
    let ports = Ports { destination: stand_in.port.to_be_bytes(), ..payload.ports };
    let payload = TransportPayload { ports, ..payload };
    let redirected = Packet { destination: settings.vip4, payload, ..*packet };
    let flags = payload.flags;
    let connected = match connection(ctx.skb.skb, &redirected) {
        // Not a later connection from the same port, which is the target's own if it was opened without the daemon.
        Some(TIME_WAIT) => !flags.opens() && (flags.ends() || maps::daemon_lives()),
        state => state.is_some(),
    };
    if !connected {
        if stand_in.former == 1 {
            return Verdict::NotOurs;
        }
        if !flags.opens() && !(flags.may_complete() && answers_cookie(ctx, &redirected)) {
            return Verdict::NotOurs;
        }
        if flags.opens() && !maps::daemon_lives() {
            return Verdict::Bypassed;
        }
    }
    let address = Change { at: IP_DESTINATION, from: destination, to: settings.vip4 };
    let port = Change { at: TCP_DESTINATION, from: packet.payload.ports.destination, to: ports.destination };
    match rewrite(ctx, packet, &address, &port) {
        Some(()) => match redirect(settings, ctx.skb.skb, &redirected, ifindex, |_, _| connected) {
            // Socket lookup does not count it.
            Verdict::Delivered if !connected => Verdict::Redirected,
            verdict => verdict,
        },
        // Half of it may have been changed.
        None => Verdict::Malformed,
    }
}

/// Returns whether the segment completes a handshake for which the daemon's listener has only sent a SYN cookie: such a
/// connection has no socket yet. `to` is the packet as the listener sees it.
#[inline(always)]
fn answers_cookie(ctx: &TcContext, to: &Packet<[u8; 4]>) -> bool {
    let load = |at| ctx.load::<[u32; HEADER]>(at).ok();
    let (Some(mut ip), Some(mut tcp)) = (load(to.network), load(to.transport)) else { return false };
    let Ports { source, destination } = to.payload.ports;
    ip[IP_DESTINATION_WORD] = u32::from_ne_bytes(to.destination);
    tcp[TCP_PORTS_WORD] = u32::from_ne_bytes([source[0], source[1], destination[0], destination[1]]);
    let size = size_of_val(&ip) as u32;
    let slot = LISTENER4;
    // SAFETY: both headers are on the stack and have `size` bytes; the lookup takes a reference to the socket, which is
    // released.
    unsafe {
        let listeners = (&raw const maps::LISTENER_SOCKETS).cast_mut();
        let socket = bpf_map_lookup_elem(listeners.cast(), (&raw const slot).cast());
        if socket.is_null() {
            return false;
        }
        let (ip, tcp) = ((&raw mut ip).cast(), (&raw mut tcp).cast());
        let result = bpf_tcp_check_syncookie(socket, ip, size, tcp, size);
        bpf_sk_release(socket);
        result == 0
    }
}

/// Restores the target as the source of a packet from a port of the VIP that stands for it. Returns whether it was one.
#[inline(always)]
pub(crate) fn restore(ctx: &TcContext) -> bool {
    let Some(settings) = maps::settings() else { return false };
    let packet = 'packet: {
        if let Some(head) = HeadBytes::of(ctx)
            && let Some(packet) = parse_plain_v4(&head)
        {
            break 'packet packet;
        }
        let bytes = Skb(ctx);
        match network(&bytes) {
            (Network::V4, at) => match parse_v4(&bytes, at) {
                Some(packet) => packet,
                None => return false,
            },
            _ => return false,
        }
    };
    let ours = packet.payload.ports.source;
    let stand_in = u16::from_be_bytes(ours);
    if packet.payload.kind != PacketKind::Tcp
        || !is_vip(settings, packet.source)
        || !settings.is_stand_in(stand_in)
    {
        return false;
    }
    let Some(target) = maps::target(stand_in) else { return false };
    let address = Change { at: IP_SOURCE, from: packet.source, to: target.address };
    let port = Change { at: TCP_SOURCE, from: ours, to: target.port.to_be_bytes() };
    rewrite(ctx, &packet, &address, &port).is_some()
}

/// Change of a field of a header.
struct Change<T> {
    /// Offset in the header.
    at: usize,
    from: T,
    to: T,
}

/// Changes an address and a port, with the checksums.
#[inline(always)]
fn rewrite(
    ctx: &TcContext,
    packet: &Packet<[u8; 4]>,
    address: &Change<[u8; 4]>,
    port: &Change<[u8; 2]>,
) -> Option<()> {
    let (ip, tcp) = (packet.network, packet.transport);
    let [from, to] = [address.from, address.to].map(|address| u64::from(u32::from_ne_bytes(address)));
    ctx.l4_csum_replace(tcp + TCP_CHECK, from, to, PSEUDO_HEADER | 4).ok()?;
    ctx.l3_csum_replace(ip + IP_CHECK, from, to, 4).ok()?;
    ctx.store(ip + address.at, &address.to, 0).ok()?;
    let [from, to] = [port.from, port.to].map(|port| u64::from(u16::from_ne_bytes(port)));
    ctx.l4_csum_replace(tcp + TCP_CHECK, from, to, 2).ok()?;
    ctx.store(tcp + port.at, &port.to, 0).ok()
}
