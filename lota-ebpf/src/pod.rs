//! The program on pod interfaces: parses a packet, decides by its headers, and redirects, answers or intercepts it.

use aya_ebpf::programs::TcContext;
use lota_common::{Settings, Verdict};
use lota_ebpf::{
    decide::{PodDecision, from_pod},
    packet::{Network, Packet, network, parse_plain_v4, parse_v4, parse_v6},
};

use crate::{
    answer::{self, Place},
    identity_maps::HeldAddress,
    interface::{LOOPBACK, ifindex},
    kernel_bytes::{HeadBytes, Skb},
    maps,
    query_packet::{Answerable, Decision, QueryPacket},
    redirect::redirect_if_allowed,
    target,
};

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
