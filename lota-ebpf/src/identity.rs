//! Identifies the senders of packets by their addresses and the cgroups of their sockets.

use aya_ebpf::programs::TcContext;
use lota_common::{RawIdentity, Settings};
use lota_ebpf::{
    packet::{Packet, Ports},
    sender,
};

use crate::{
    access, admission,
    identity_maps::{HeldAddress, SkbSender, identity},
    interface::LOOPBACK,
    maps,
};

/// Decision about the sender of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SenderAccess {
    /// It has access.
    Allowed,
    /// Its address has no access here.
    Denied,
    /// Its address has access, but is that of another pod.
    Spoofed,
}

/// Decides about the sender of a packet that TC sees.
#[inline(always)]
pub(crate) fn decide<A: HeldAddress>(
    ctx: &TcContext,
    settings: &Settings,
    packet: &Packet<A>,
    ifindex: u32,
) -> SenderAccess {
    if !is_local(ifindex) {
        return decide_by_address(ctx, settings, packet, ifindex);
    }
    let Packet { source, payload, .. } = *packet;
    // Packets on connections have passed the program at the egress of `lo`.
    match !payload.flags.opens() || admission::arrive(source.connection(payload.ports)) {
        true => SenderAccess::Allowed,
        false => SenderAccess::Denied,
    }
}

/// Decides about the sender of a packet that TC sees at the interface of a pod.
#[inline(always)]
pub(crate) fn decide_by_address(
    ctx: &TcContext,
    settings: &Settings,
    packet: &Packet<impl HeldAddress>,
    ifindex: u32,
) -> SenderAccess {
    let Packet { source, payload, .. } = *packet;
    // The access entry says which pod has the address, so that most packets need no further lookup.
    let (allowed, holder) = match source.recent_access(settings) {
        Some(access) if access.held == 1 => {
            (access.admits(ifindex), Some((access.cgroup, u32::from(access.level))))
        }
        Some(access) => (access.admits(ifindex), None),
        None => (access::allowed_by_rule(settings, source, ifindex), source.holder()),
    };
    if !allowed {
        SenderAccess::Denied
    } else if is_spoofed(ctx, holder, || {
        payload.flags.opens() && maps::interface(ifindex).is_some_and(|interface| interface.has_senders == 1)
    }) {
        SenderAccess::Spoofed
    } else {
        SenderAccess::Allowed
    }
}

/// Returns whether the sender of a packet that opens a connection has access, as far as socket lookup can know.
#[inline(always)]
pub(crate) fn allows_connection(
    settings: &Settings,
    source: impl HeldAddress,
    ports: Ports,
    ifindex: u32,
) -> bool {
    if !is_local(ifindex) {
        return access::allowed(settings, source, ifindex);
    }
    // There can be several lookups: by other programs, and for the last packet of a handshake with a SYN cookie.
    admission::has_arrived(source.connection(ports))
}

/// Returns whether the program at the egress of `lo` decides about packets from this interface.
#[inline(always)]
fn is_local(ifindex: u32) -> bool {
    ifindex == LOOPBACK && identity().local != RawIdentity::BY_ADDRESS
}

/// Returns whether another pod than the one that has its source address sent a packet; `None`: no pod has it.
#[inline(always)]
pub(crate) fn is_spoofed(
    ctx: &TcContext,
    holder: Option<(u64, u32)>,
    has_sender: impl FnOnce() -> bool,
) -> bool {
    match holder {
        Some((cgroup, level)) => sender::is_spoofed(&SkbSender(ctx), cgroup, level, identity, has_sender),
        None => false,
    }
}
