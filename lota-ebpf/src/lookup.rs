//! Programs at socket lookup: the backstop, and the redirect where TC does not or cannot redirect.
//!
//! Packets to the VIP that were not redirected are refused, so that another listener on `0.0.0.0:80` never receives a
//! pod's signed request, whether the daemon runs or not.

use aya_ebpf::programs::SkLookupContext;
use lota_common::{RawInterface, Settings, Verdict};
use lota_ebpf::{
    decide::{PodDecision, from_pod},
    packet::{Packet, PacketKind, Ports, TcpFlags, TransportPayload},
};

use crate::{identity, identity_maps::HeldAddress, interface::LOOPBACK, maps};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const TCP: u32 = 6;

/// Outcome of a lookup.
#[derive(Clone, Copy)]
pub(crate) enum LookupOutcome {
    /// The lookup continues, or finds the listener that was selected.
    Passed,
    /// As the verdict says, which is counted.
    Counted(Verdict),
    /// Refused, and not counted: to a port that stands for a target. The TC program, which drops packets that pods send
    /// there themselves, looks for sockets of such connections, and so causes lookups for packets that it leaves alone.
    Refused,
}

impl LookupOutcome {
    /// Returns whether the lookup continues; else it is refused.
    #[inline(always)]
    pub(crate) fn passes(self) -> bool {
        matches!(self, Self::Passed | Self::Counted(Verdict::Redirected))
    }
}

/// Refuses packets to the VIP except DNS.
#[inline(always)]
pub(crate) fn backstop(ctx: &SkLookupContext) -> LookupOutcome {
    let Some(settings) = maps::settings() else { return LookupOutcome::Passed };
    let refuse = |decision| match decision {
        PodDecision::StandIn => LookupOutcome::Refused,
        PodDecision::Redirect | PodDecision::Settled(Verdict::VipOther) => {
            LookupOutcome::Counted(Verdict::Backstop)
        }
        _ => LookupOutcome::Passed,
    };
    match family(ctx) {
        AF_INET => refuse(from_pod(settings, &packet_v4(ctx))),
        AF_INET6 => refuse(from_pod(settings, &packet_v6(ctx))),
        _ => LookupOutcome::Passed,
    }
}

/// Refuses like [`backstop`], but redirects connections of allowed pods: all where no TC program is attached, else
/// those that it left to the stack.
#[inline(always)]
pub(crate) fn redirect(ctx: &SkLookupContext) -> LookupOutcome {
    let Some(settings) = maps::settings() else { return LookupOutcome::Passed };
    match family(ctx) {
        AF_INET => decide_connection(ctx, settings, &packet_v4(ctx)),
        AF_INET6 => decide_connection(ctx, settings, &packet_v6(ctx)),
        _ => LookupOutcome::Passed,
    }
}

#[inline(always)]
fn decide_connection<A: HeldAddress>(
    ctx: &SkLookupContext,
    settings: &Settings,
    packet: &Packet<A>,
) -> LookupOutcome {
    // SAFETY: the context the kernel called us with.
    let ifindex = unsafe { (*ctx.lookup).ingress_ifindex };
    let interface = maps::interface(ifindex);
    let method = interface.map_or(0, |interface| interface.redirected);
    let intercepts = interface.is_some_and(|interface| interface.intercepts == 1);
    let by_lookup = method == RawInterface::BY_LOOKUP;
    let decision = from_pod(settings, packet);
    let redirects = match decision {
        PodDecision::Redirect => method != 0,
        PodDecision::StandIn => intercepts,
        _ => false,
    };
    // Packets on connections find their sockets without a lookup.
    let (source, ports) = (packet.source, packet.payload.ports);
    let redirected = (redirects && identity::allows_connection(settings, source, ports, ifindex))
        .then(|| maps::LISTENER_SOCKETS.redirect_sk_lookup(ctx, A::LISTENER, 0).is_ok());
    LookupOutcome::Counted(match (decision, redirected) {
        (PodDecision::StandIn, Some(true)) => return LookupOutcome::Passed,
        (PodDecision::StandIn, _) if intercepts => return LookupOutcome::Refused,
        (PodDecision::Redirect, Some(true)) => Verdict::Redirected,
        (PodDecision::Redirect, Some(false)) if by_lookup => Verdict::NoListener,
        (PodDecision::Redirect, None) if by_lookup => {
            packet.source.refused(Verdict::Denied, ifindex);
            Verdict::Denied
        }
        // Packets that a TC program refused are refused here, too; that program counted them.
        (PodDecision::Redirect | PodDecision::StandIn | PodDecision::Settled(Verdict::VipOther), _) => {
            Verdict::Backstop
        }
        // The packet is for this node, whatever destination the pod used: TC saw it before address translation.
        (PodDecision::Protect, _) if method != 0 && ifindex != LOOPBACK => Verdict::Protected,
        _ => return LookupOutcome::Passed,
    })
}

#[inline(always)]
fn family(ctx: &SkLookupContext) -> u32 {
    // SAFETY: the context the kernel called us with.
    unsafe { (*ctx.lookup).family }
}

// Addresses and the remote port in the context are in network order, so their native-endian bytes are those on the
// wire. The local port is in host order.

#[inline(always)]
fn packet_v4(ctx: &SkLookupContext) -> Packet<[u8; 4]> {
    // SAFETY: the context the kernel called us with.
    let (source, destination) = unsafe { ((*ctx.lookup).remote_ip4, (*ctx.lookup).local_ip4) };
    packet(ctx, source.to_ne_bytes(), destination.to_ne_bytes())
}

#[inline(always)]
fn packet_v6(ctx: &SkLookupContext) -> Packet<[u8; 16]> {
    // The verifier allows only reads of single words.
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
    let (protocol, port, remote) =
        unsafe { ((*ctx.lookup).protocol, (*ctx.lookup).local_port, (*ctx.lookup).remote_port) };
    let kind = if protocol == TCP { PacketKind::Tcp } else { PacketKind::Udp };
    let ports = Ports { source: remote.to_ne_bytes(), destination: (port as u16).to_be_bytes() };
    let payload = TransportPayload { kind, ports, flags: TcpFlags(0) };
    Packet { source, destination, payload, network: 0, transport: 0 }
}
