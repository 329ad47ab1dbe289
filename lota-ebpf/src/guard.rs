//! The guard on the uplink: only peers reach this node's peer port, nobody from outside reaches the VIP.

use aya_ebpf::programs::XdpContext;
use lota_common::{Node, Settings, Verdict};
use lota_ebpf::{
    decide::{Guard, from_outside},
    packet::{Family, Packet, family, parse_v4, parse_v6},
};

use crate::{
    kernel_bytes::Frame,
    maps::{self, Known},
};

/// The verdict on one packet that came in over the uplink.
#[inline(always)]
pub(crate) fn verdict(ctx: &XdpContext) -> Verdict {
    let Some(settings) = maps::settings() else { return Verdict::NotOurs };
    let bytes = Frame(ctx);
    match family(&bytes) {
        Some(Family::V4) => parse_v4(&bytes).map(|packet| judge(settings, &packet)),
        Some(Family::V6) => parse_v6(&bytes).map(|packet| judge(settings, &packet)),
        None => None,
    }
    .unwrap_or(Verdict::NotOurs)
}

#[inline(always)]
fn judge(settings: &Settings, packet: &Packet<impl Known>) -> Verdict {
    match from_outside(settings, packet) {
        Guard::Settled(verdict) => verdict,
        Guard::PeersOnly => match (packet.destination.node(), packet.source.node()) {
            (Some(Node { own: 1 }), Some(_)) => Verdict::Peer,
            (Some(Node { own: 1 }), None) => Verdict::Stranger,
            // Traffic that this node only forwards.
            _ => Verdict::NotOurs,
        },
    }
}
