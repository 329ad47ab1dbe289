//! Answers DNS queries in the kernel: rewrites the packet into the response and sends it back.

use aya_ebpf::{
    helpers::{bpf_csum_diff, bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use lota_common::{SCRATCH, Settings, Verdict};
use lota_ebpf::dns::{self, DnsQuery, Records};

use crate::{
    access,
    interface::ifindex,
    kernel_bytes::bounded,
    maps,
    message::CopiedMessage,
    query_packet::{Answerable, QueryPacket, UDP, addresses, fold},
};

/// Number of UDP in an IP header.
const PROTOCOL: u16 = 17;
/// Bytes for a UDP header and the longest response (a header, a question of 255 + 4 bytes, and at most 47 bytes of
/// records), rounded up to a power of two.
const RESPONSE: usize = 512;
const _: () = assert!(RESPONSE <= SCRATCH);

/// Place at which a program sees queries of pods.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// At the interface that access is bound to.
    Pods,
    /// At a port of the bridge that access is bound to.
    BridgePort,
}

/// A query that is for LOTA to answer.
struct OurQuery {
    query: DnsQuery,
    /// Sum of the addresses of the packet.
    addresses: u32,
}

/// Answers a query of an allowed pod for a name of the endpoint; any other query continues to its resolver.
///
/// The cluster's own resolver must not have access: it would cache an address that is valid only on this node and
/// return it to other nodes.
#[inline(always)]
pub(crate) fn name(ctx: &TcContext, settings: &Settings, packet: &QueryPacket, place: Place) -> Verdict {
    let Some(query) = our_query(ctx, settings, packet, place) else { return Verdict::NotOurs };
    if query.query.name.needs_daemon && !maps::daemon_lives() {
        return Verdict::Bypassed;
    }
    match answer(ctx, settings, packet, &query) {
        Some(()) => {
            // SAFETY: only records the target interface for the return of the program.
            unsafe { bpf_redirect(ifindex(ctx), 0) };
            Verdict::Answered
        }
        None => Verdict::NotOurs,
    }
}

/// Returns the sum of the addresses of a packet; `None` if its source has no access.
#[inline(always)]
fn admit<A: Answerable>(ctx: &TcContext, settings: &Settings, network: usize, place: Place) -> Option<u32> {
    let (source, destination): (A, A) = addresses(ctx, network)?;
    let allowed = match place {
        Place::Pods => access::allowed(settings, source, ifindex(ctx)),
        Place::BridgePort => access::allowed_at_port(settings, source, ifindex(ctx)),
    };
    allowed.then(|| source.sum() + destination.sum())
}

/// Returns the query in the packet; `None` if it is not for LOTA to answer.
#[inline(always)]
fn our_query(ctx: &TcContext, settings: &Settings, packet: &QueryPacket, place: Place) -> Option<OurQuery> {
    let &QueryPacket { network, is_v6 } = packet;
    let query = dns::query(&CopiedMessage::copy(ctx, packet.message())?, settings)?;
    if !query.is_ours(settings, is_v6) {
        return None;
    }
    let addresses = if is_v6 {
        admit::<[u8; 16]>(ctx, settings, network, place)?
    } else {
        admit::<[u8; 4]>(ctx, settings, network, place)?
    };
    Some(OurQuery { query, addresses })
}

/// Rewrites the packet into the response; `None` if that is not possible.
#[inline(always)]
fn answer(ctx: &TcContext, settings: &Settings, packet: &QueryPacket, query: &OurQuery) -> Option<()> {
    let &QueryPacket { network, is_v6 } = packet;
    let &OurQuery { ref query, addresses } = query;
    let (udp, message) = (packet.udp(), packet.message());
    let records = dns::records(query, settings);
    let length = (UDP + query.length + records.length) as u16;
    let [s1, s0, d1, d0, q1, q0, check @ ..]: [u8; UDP] = ctx.load(udp).ok()?;
    if udp + usize::from(u16::from_be_bytes([q1, q0])) > ctx.len() as usize {
        return None;
    }
    let pseudo = addresses + u32::from(PROTOCOL.to_be());
    let partial = fold(pseudo + u32::from(u16::from_ne_bytes([q1, q0]))).to_ne_bytes() == check;

    resize(ctx, udp + usize::from(length))?;
    let macs: [u8; 12] = ctx.load(0).ok()?;
    let [m0, m1, m2, m3, m4, m5, n0, n1, n2, n3, n4, n5] = macs;
    ctx.store(0, &[n0, n1, n2, n3, n4, n5, m0, m1, m2, m3, m4, m5], 0).ok()?;
    if is_v6 {
        <[u8; 16]>::turn_around(ctx, network, length)?;
    } else {
        <[u8; 4]>::turn_around(ctx, network, length)?;
    }
    let [l1, l0] = length.to_be_bytes();
    ctx.store(udp, &[d1, d0, s1, s0, l1, l0, 0, 0], 0).ok()?;
    ctx.store(message + 2, &dns::header(query, &records), 0).ok()?;
    store_records(ctx, message + query.length, &records)?;

    let pseudo = pseudo + u32::from(length.to_be());
    // A pod's kernel leaves the checksum to the network card and stores only the sum of the pseudo-header
    // (CHECKSUM_PARTIAL). The response must do the same; its checksum is then not verified. (One complete checksum in
    // 65,536 looks like a partial one; its client retries.)
    let check = if partial { fold(pseudo) } else { !fold(pseudo + sum(ctx, udp, length)?) };
    // RFC 768: zero means no checksum.
    let check = if check == 0 { u16::MAX } else { check };
    ctx.store(udp + 6, &check.to_ne_bytes(), 0).ok()
}

#[inline(always)]
fn resize(ctx: &TcContext, length: usize) -> Option<()> {
    // SAFETY: the context the kernel called us with.
    let result = unsafe { bpf_skb_change_tail(ctx.skb.skb, length as u32, 0) };
    (result == 0).then_some(())
}

#[inline(always)]
fn store_records(ctx: &TcContext, at: usize, records: &Records) -> Option<()> {
    if records.length == 0 || records.length > size_of_val(&records.words) {
        return None;
    }
    let from = records.words.as_ptr().cast();
    // SAFETY: reads `length` bytes of an array that is not shorter, as compared above.
    let result = unsafe { bpf_skb_store_bytes(ctx.skb.skb, at as u32, from, records.length as u32, 0) };
    (result == 0).then_some(())
}

/// Returns the sum of the 16-bit words of `length` bytes at `at`.
#[inline(always)]
fn sum(ctx: &TcContext, at: usize, length: u16) -> Option<u32> {
    let room = maps::scratch()?;
    let length = bounded::<RESPONSE>(room, usize::from(length));
    // SAFETY: the buffer belongs to this CPU; at most its size is read into it.
    let sum = unsafe {
        // Volatile, or the compiler emits a loop or a subprogram, which cost the verifier more.
        for word in 0..RESPONSE / 8 {
            room.add(word).write_volatile(0);
        }
        if bpf_skb_load_bytes(ctx.skb.skb.cast(), at as u32, room.cast(), length as u32) != 0 {
            return None;
        }
        bpf_csum_diff(core::ptr::null_mut(), 0, room.cast(), RESPONSE as u32, 0)
    };
    // Folded once, so that further sums do not overflow.
    Some((sum as u32 >> 16) + (sum as u32 & 0xffff))
}
