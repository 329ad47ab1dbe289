//! Decisions about packets by this node's settings. Pure; lookups of maps and sockets come later.

use lota_common::{Settings, Verdict};

use crate::packet::{Address, Packet, PacketKind};

/// Decision of the program on pod interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodDecision {
    /// The verdict is final, without lookups.
    Settled(Verdict),
    /// TCP to a redirected port of the VIP: redirect it if the source has access.
    Redirect,
    /// A DNS query to any resolver: answer it if it is for a name of the endpoint and the source has access.
    Name,
    /// Possibly to a port that pods must not reach on any node: drop it if the destination is a node.
    Protect,
    /// With further destinations in a routing header: drop it.
    Forbid,
    /// TCP to a port of the VIP that may stand for a target. Pods do not address it themselves.
    StandIn,
}

/// Decision of the guard on the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The verdict is final, without lookups.
    Settled(Verdict),
    /// Possibly to the peer port: admit only peers if the destination is this node.
    PeersOnly,
}

/// Decides about a packet from a pod.
#[inline(always)]
pub fn from_pod<A: Address>(settings: &Settings, packet: &Packet<A>) -> PodDecision {
    let port = u16::from_be_bytes(packet.payload.ports.destination);
    if !is_vip(settings, packet.destination) {
        return match packet.payload.kind {
            PacketKind::Tcp | PacketKind::FirstFragment
                if port == settings.peer_port || port == settings.admin_port =>
            {
                PodDecision::Protect
            }
            // It may hide such a port.
            PacketKind::Opaque => PodDecision::Protect,
            // It may go to such a port of any node.
            PacketKind::Routed => PodDecision::Forbid,
            PacketKind::Udp if port == settings.dns_port && settings.answer_dns == 1 => PodDecision::Name,
            _ => PodDecision::Settled(Verdict::NotOurs),
        };
    }
    PodDecision::Settled(match packet.payload.kind {
        PacketKind::Tcp if settings.redirects(port) => return PodDecision::Redirect,
        PacketKind::Tcp if A::HAS_STAND_INS && settings.is_stand_in(port) => return PodDecision::StandIn,
        PacketKind::Tcp | PacketKind::Udp if port == settings.dns_port => Verdict::Dns,
        PacketKind::FirstFragment | PacketKind::Fragment => Verdict::Fragment,
        PacketKind::Opaque | PacketKind::Routed => Verdict::Malformed,
        PacketKind::Tcp | PacketKind::Udp | PacketKind::Other => Verdict::VipOther,
    })
}

/// Decides about a packet from the uplink.
#[inline(always)]
pub fn from_outside<A: Address>(settings: &Settings, packet: &Packet<A>) -> Guard {
    if is_vip(settings, packet.destination) {
        return Guard::Settled(Verdict::External);
    }
    match packet.payload.kind {
        PacketKind::Tcp | PacketKind::FirstFragment
            if u16::from_be_bytes(packet.payload.ports.destination) == settings.peer_port =>
        {
            Guard::PeersOnly
        }
        // It may hide that port.
        PacketKind::Opaque | PacketKind::Routed => Guard::PeersOnly,
        _ => Guard::Settled(Verdict::NotOurs),
    }
}

/// Returns whether an address is the VIP of its family.
#[inline(always)]
pub fn is_vip<A: Address>(settings: &Settings, destination: A) -> bool {
    destination == A::vip(settings) && !destination.is_unset()
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
