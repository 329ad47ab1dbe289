//! What to do about a packet, given this node's settings. Pure: lookups in maps and sockets come after.

use lota_common::{Settings, Verdict};

use crate::packet::{Address, Kind, Packet};

/// What the pod-side program does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pod {
    /// Nothing to look up: this is the verdict.
    Settled(Verdict),
    /// HTTP to the VIP: steer it if the source has access.
    Steer,
    /// A name query to some resolver: answer it if it is for the zone and the source has access.
    Name,
    /// To a port that pods must not reach on any node, as far as one can tell: drop it if the destination is
    /// a node.
    Protect,
}

/// What the uplink's guard does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing to look up: this is the verdict.
    Settled(Verdict),
    /// To the peer port, as far as one can tell: if the destination is this node, only peers may.
    PeersOnly,
}

/// Decides about a packet that a pod sent.
#[inline(always)]
pub fn from_pod<A: Address>(settings: &Settings, packet: &Packet<A>) -> Pod {
    let port = packet.payload.ports.destination;
    if !is_vip(settings, packet.destination) {
        return match packet.payload.kind {
            Kind::Tcp | Kind::FirstFragment if port == settings.peer_port || port == settings.admin_port => {
                Pod::Protect
            }
            // Could be hiding such a port.
            Kind::Opaque => Pod::Protect,
            Kind::Udp if port == settings.dns_port && settings.answer_names == 1 => Pod::Name,
            _ => Pod::Settled(Verdict::NotOurs),
        };
    }
    Pod::Settled(match packet.payload.kind {
        Kind::Tcp if port == settings.http_port => return Pod::Steer,
        Kind::Tcp | Kind::Udp if port == settings.dns_port => Verdict::Dns,
        Kind::FirstFragment | Kind::Fragment => Verdict::Fragment,
        Kind::Opaque => Verdict::Malformed,
        Kind::Tcp | Kind::Udp | Kind::Other => Verdict::VipOther,
    })
}

/// Decides about a packet that came in over the uplink.
#[inline(always)]
pub fn from_outside<A: Address>(settings: &Settings, packet: &Packet<A>) -> Guard {
    if is_vip(settings, packet.destination) {
        return Guard::Settled(Verdict::Outside);
    }
    match packet.payload.kind {
        Kind::Tcp | Kind::FirstFragment if packet.payload.ports.destination == settings.peer_port => {
            Guard::PeersOnly
        }
        // Could be hiding that port.
        Kind::Opaque => Guard::PeersOnly,
        _ => Guard::Settled(Verdict::NotOurs),
    }
}

#[inline(always)]
fn is_vip<A: Address>(settings: &Settings, destination: A) -> bool {
    destination == A::vip(settings) && !destination.is_unset()
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
