//! The guard on the uplink: only peers reach this node's peer port, and nothing from outside reaches the VIP.

use lota_common::{RawNode, Settings, Verdict};
use lota_ebpf::{
    decide::{Guard, from_outside},
    packet::{Bytes, Network, Packet, network, parse_v4, parse_v6},
};

use crate::maps::{self, AddressMaps};

/// Returns the verdict on a packet from the uplink.
#[inline(always)]
pub(crate) fn verdict(bytes: &impl Bytes) -> Verdict {
    let Some(settings) = maps::settings() else { return Verdict::NotOurs };
    match network(bytes) {
        (Network::V4, at) => parse_v4(bytes, at).map(|packet| decide(settings, &packet)),
        (Network::V6, at) => parse_v6(bytes, at).map(|packet| decide(settings, &packet)),
        (Network::Other, _) => None,
        (Network::Hidden, _) => Some(Verdict::Malformed),
    }
    .unwrap_or(Verdict::NotOurs)
}

/// Returns whether a packet with this verdict is dropped.
#[inline(always)]
pub(crate) fn drops(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::UnknownPeer | Verdict::External | Verdict::Malformed)
}

#[inline(always)]
fn decide(settings: &Settings, packet: &Packet<impl AddressMaps>) -> Verdict {
    match from_outside(settings, packet) {
        Guard::Settled(verdict) => verdict,
        Guard::PeersOnly => match (packet.destination.node(), packet.source.node()) {
            (Some(RawNode { own: 1 }), Some(_)) => Verdict::Peer,
            (Some(RawNode { own: 1 }), None) => Verdict::UnknownPeer,
            // Traffic that this node forwards.
            _ => Verdict::NotOurs,
        },
    }
}
