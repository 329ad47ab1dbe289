//! The program at the egress of `lo`: admits connections of pods and processes in the node's own network namespace.

use aya_ebpf::{helpers::bpf_skb_cgroup_id, programs::TcContext};
use lota_common::Settings;
use lota_ebpf::{
    decide::{PodDecision, from_pod, is_vip},
    packet::{Network, Packet, network, parse_v4, parse_v6},
    sender::{self, LocalSender, Sender},
};

use crate::{
    access, admission,
    identity_maps::{HeldAddress, SkbSender, identity},
    interface::LOOPBACK,
    kernel_bytes::Skb,
    maps,
};

/// Returns whether a packet of a process in the node's own network namespace is dropped. A packet without access that
/// opens a connection is not: without an admission, it is refused where it arrives.
#[inline(always)]
pub(crate) fn drops(ctx: &TcContext) -> bool {
    let Some(settings) = maps::settings() else { return false };
    let bytes = Skb(ctx);
    match network(&bytes) {
        (Network::V4, at) => parse_v4(&bytes, at).is_some_and(|packet| is_refused(ctx, settings, &packet)),
        (Network::V6, at) => parse_v6(&bytes, at).is_some_and(|packet| is_refused(ctx, settings, &packet)),
        (Network::Other | Network::Hidden, _) => false,
    }
}

#[inline(always)]
fn is_refused(ctx: &TcContext, settings: &Settings, packet: &Packet<impl HeldAddress>) -> bool {
    if from_pod(settings, packet) != PodDecision::Redirect {
        return false;
    }
    let identity = identity();
    let local = LocalSender {
        origin: sender::origin(&SkbSender(ctx), &identity),
        is_vip: is_vip(settings, packet.source),
        is_denied: packet.source.access().is_some_and(|access| access.allow != 1),
        has_access: access::allowed(settings, packet.source, LOOPBACK),
        default_allow: settings.default_allow == 1,
    };
    let is_admitted = sender::admits(identity.local, local);
    if !packet.payload.flags.opens() {
        return !is_admitted && !is_from_kernel(ctx);
    }
    let connection = packet.source.connection(packet.payload.ports);
    if is_admitted {
        admission::admit(connection);
    } else {
        admission::remove(connection);
    }
    false
}

/// Returns whether the kernel itself sent a packet, such as an acknowledgment for a socket in TIME_WAIT or a reset. It has no
/// socket, or one of the kernel's, which are in the root cgroup.
#[inline(always)]
fn is_from_kernel(ctx: &TcContext) -> bool {
    // SAFETY: the context the kernel called us with.
    let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    cgroup == 0 || cgroup == SkbSender(ctx).ancestor(0)
}
