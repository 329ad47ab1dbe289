//! The program on the ports of a bridge.

use aya_ebpf::programs::TcContext;
use lota_common::{Settings, Verdict};
use lota_ebpf::{
    decide::{PodDecision, from_pod},
    packet::{Network, Packet, PacketKind, network, parse_v4, parse_v6},
    sender,
};

use crate::{
    access,
    answer::{self, Place},
    identity::is_spoofed,
    identity_maps::{HeldAddress, SkbSender, identity},
    interface::ifindex,
    kernel_bytes::Skb,
    maps,
    query_packet::{Answerable, Decision, QueryPacket},
};

/// Returns the verdict on a packet at a bridge's port, and answers it if it is a query. A packet that another pod sent than
/// the one that has its source address is dropped here: at the bridge, it has lost its socket. Queries are answered here
/// because netfilter may translate their destination before the bridge sees them.
#[inline(always)]
pub(crate) fn verdict(ctx: &TcContext) -> Verdict {
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
