//! The guard on the uplink: only peers reach this node's peer port, nobody from outside reaches the VIP.

use lota_common::{Node, Settings, Verdict};
use lota_ebpf::{
    decide::{Guard, from_outside},
    packet::{Bytes, Network, Packet, network, parse_v4, parse_v6},
};

use crate::maps::{self, Known};

/// The verdict on one packet that came in over the uplink.
#[inline(always)]
pub(crate) fn verdict(bytes: &impl Bytes) -> Verdict {
    let Some(settings) = maps::settings() else { return Verdict::NotOurs };
    match network(bytes) {
        (Network::V4, at) => parse_v4(bytes, at).map(|packet| judge(settings, &packet)),
        (Network::V6, at) => parse_v6(bytes, at).map(|packet| judge(settings, &packet)),
        (Network::Other, _) => None,
        (Network::Hidden, _) => Some(Verdict::Malformed),
    }
    .unwrap_or(Verdict::NotOurs)
}

/// Must this packet go no further?
#[inline(always)]
pub(crate) fn drops(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Stranger | Verdict::Outside | Verdict::Malformed)
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
