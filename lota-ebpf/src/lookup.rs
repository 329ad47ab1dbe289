//! At socket lookup: the backstop, and steering where TC does not or cannot.
//!
//! Whatever reaches the VIP without having been steered is refused, so that a foreign listener on `0.0.0.0:80`
//! never sees a pod's signed request, daemon up or down.

use aya_ebpf::programs::SkLookupContext;
use lota_common::{Interface, Settings, Verdict};
use lota_ebpf::{
    decide::{Pod, from_pod},
    packet::{Kind, Packet, Payload, Ports, TcpFlags},
};

use crate::{
    access,
    maps::{self, Known},
    steer::LOOPBACK,
};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const TCP: u32 = 6;

/// Refuses everything for the VIP but names; `None`: not ours.
#[inline(always)]
pub(crate) fn backstop(ctx: &SkLookupContext) -> Option<Verdict> {
    let settings = maps::settings()?;
    let refuse = |decision| match decision {
        Pod::Steer | Pod::Settled(Verdict::VipOther) => Some(Verdict::Backstop),
        _ => None,
    };
    match family(ctx) {
        AF_INET => refuse(from_pod(settings, &packet_v4(ctx))),
        AF_INET6 => refuse(from_pod(settings, &packet_v6(ctx))),
        _ => None,
    }
}

/// The same, and steers what comes from allowed pods: all of it where no TC program is, else what that one has left
/// to the stack.
#[inline(always)]
pub(crate) fn steer(ctx: &SkLookupContext) -> Option<Verdict> {
    let settings = maps::settings()?;
    match family(ctx) {
        AF_INET => judge(ctx, settings, &packet_v4(ctx)),
        AF_INET6 => judge(ctx, settings, &packet_v6(ctx)),
        _ => None,
    }
}

/// May the lookup go on? Else it is refused.
#[inline(always)]
pub(crate) fn passes(verdict: Option<Verdict>) -> bool {
    matches!(verdict, None | Some(Verdict::Steered))
}

#[inline(always)]
fn judge<A: Known>(ctx: &SkLookupContext, settings: &Settings, packet: &Packet<A>) -> Option<Verdict> {
    // SAFETY: the context the kernel called us with.
    let ifindex = unsafe { (*ctx.lookup).ingress_ifindex };
    let steered = maps::interface(ifindex).map_or(0, |interface| interface.steered);
    let by_lookup = steered == Interface::BY_LOOKUP;
    match from_pod(settings, packet) {
        Pod::Steer if steered != 0 && access::allowed(settings, packet.source, ifindex) => {
            Some(match maps::LISTENER_SOCKETS.redirect_sk_lookup(ctx, A::LISTENER, 0) {
                Ok(()) => Verdict::Steered,
                Err(_) if by_lookup => Verdict::NoListener,
                Err(_) => Verdict::Backstop,
            })
        }
        Pod::Steer if by_lookup => {
            packet.source.refused(Verdict::Denied, ifindex);
            Some(Verdict::Denied)
        }
        // What a TC program has refused is refused here, too, and counted there.
        Pod::Steer | Pod::Settled(Verdict::VipOther) => Some(Verdict::Backstop),
        // It would not be looked up here if it were not for this node.
        Pod::Protect if by_lookup && ifindex != LOOPBACK => Some(Verdict::Protected),
        _ => None,
    }
}

#[inline(always)]
fn family(ctx: &SkLookupContext) -> u32 {
    // SAFETY: the context the kernel called us with.
    unsafe { (*ctx.lookup).family }
}

// Addresses in the context are in network order, so native-endian bytes are the wire's; so is the remote
// port, while the local one is in host order.

#[inline(always)]
fn packet_v4(ctx: &SkLookupContext) -> Packet<[u8; 4]> {
    // SAFETY: the context the kernel called us with.
    let (source, destination) = unsafe { ((*ctx.lookup).remote_ip4, (*ctx.lookup).local_ip4) };
    packet(ctx, source.to_ne_bytes(), destination.to_ne_bytes())
}

#[inline(always)]
fn packet_v6(ctx: &SkLookupContext) -> Packet<[u8; 16]> {
    // Word by word: the kernel lets no other reads through.
    // SAFETY: the context the kernel called us with.
    let (source, destination) =
        unsafe { (&raw const (*ctx.lookup).remote_ip6, &raw const (*ctx.lookup).local_ip6) };
    packet(ctx, address(source), address(destination))
}

#[inline(always)]
fn address(words: *const [u32; 4]) -> [u8; 16] {
    let word = |index: usize| {
        // SAFETY: one of the four words of the context's field.
        unsafe { words.cast::<u32>().add(index).read_volatile() }.to_ne_bytes()
    };
    let [w, x, y, z] = [word(0), word(1), word(2), word(3)];
    [w[0], w[1], w[2], w[3], x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3], z[0], z[1], z[2], z[3]]
}

#[inline(always)]
fn packet<A>(ctx: &SkLookupContext, source: A, destination: A) -> Packet<A> {
    // SAFETY: the context the kernel called us with.
    let (protocol, port) = unsafe { ((*ctx.lookup).protocol, (*ctx.lookup).local_port) };
    let kind = if protocol == TCP { Kind::Tcp } else { Kind::Udp };
    let ports = Ports { source: [0; 2], destination: (port as u16).to_be_bytes() };
    let payload = Payload { kind, ports, flags: TcpFlags(0) };
    Packet { source, destination, payload, network: 0, transport: 0 }
}
