//! Answering a name query where it stands: the packet is turned into its own answer and sent back.

use aya_ebpf::{
    helpers::{bpf_csum_diff, bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use lota_common::{SCRATCH, Settings, Verdict};
use lota_ebpf::{
    names::{self, Query, Records},
    packet::{Bytes as _, IPV4, IPV6, Packet},
};

use crate::{
    access,
    kernel_bytes::Skb,
    maps::{self, Known},
};

const UDP: usize = 8;
const PROTOCOL: u16 = 17;
const HOPS: u8 = 64;

/// Answers a query for the zone, if an allowed pod asks; all else is not ours.
///
/// Others' queries go on to their resolver. So do those of a cluster's own resolver, which must not learn an
/// address that is right on this node only and hand it out elsewhere: give it no access.
#[inline(always)]
pub(crate) fn name<A: Known + Answerable>(
    ctx: &TcContext,
    settings: &Settings,
    packet: &Packet<A>,
    ifindex: u32,
) -> Verdict {
    // Options are not worth turning around.
    if packet.transport - packet.network != A::HEADER {
        return Verdict::NotOurs;
    }
    let Some(query) = names::query(&Skb(ctx), packet.transport + UDP, settings) else {
        return Verdict::NotOurs;
    };
    if !access::allowed(settings, packet.source, ifindex) {
        return Verdict::NotOurs;
    }
    match turn_around(ctx, settings, packet, &query) {
        Some(()) => {
            // SAFETY: only notes where the packet goes when the program returns.
            unsafe { bpf_redirect(ifindex, 0) };
            Verdict::Answered
        }
        None => Verdict::NotOurs,
    }
}

/// What differs between the families when a packet is turned around.
pub(crate) trait Answerable: Sized {
    /// Length of the IP header.
    const HEADER: usize;

    /// Rewrites the IP header for a payload of `length` bytes from `source` to `destination`.
    fn rewrite(ctx: &TcContext, at: usize, source: Self, destination: Self, length: u16) -> Option<()>;

    /// The sum of the address' 16-bit words.
    fn sum(&self) -> u32;
}

impl Answerable for [u8; 4] {
    const HEADER: usize = IPV4;

    #[inline(always)]
    fn rewrite(ctx: &TcContext, at: usize, source: Self, destination: Self, length: u16) -> Option<()> {
        let mut header: [u8; IPV4] = ctx.load(at).ok()?;
        [header[2], header[3]] = (IPV4 as u16 + length).to_be_bytes();
        header[8] = HOPS;
        [header[10], header[11]] = [0; 2];
        [header[12], header[13], header[14], header[15]] = source;
        [header[16], header[17], header[18], header[19]] = destination;
        let mut sum = 0;
        for pair in header.as_chunks::<2>().0 {
            sum += u32::from(u16::from_ne_bytes(*pair));
        }
        [header[10], header[11]] = (!fold(sum)).to_ne_bytes();
        ctx.store(at, &header, 0).ok()
    }

    #[inline(always)]
    fn sum(&self) -> u32 {
        let [a, b, c, d] = *self;
        u32::from(u16::from_ne_bytes([a, b])) + u32::from(u16::from_ne_bytes([c, d]))
    }
}

impl Answerable for [u8; 16] {
    const HEADER: usize = IPV6;

    #[inline(always)]
    fn rewrite(ctx: &TcContext, at: usize, source: Self, destination: Self, length: u16) -> Option<()> {
        ctx.store(at + 4, &length.to_be_bytes(), 0).ok()?;
        ctx.store(at + 7, &HOPS, 0).ok()?;
        ctx.store(at + 8, &source, 0).ok()?;
        ctx.store(at + 24, &destination, 0).ok()
    }

    #[inline(always)]
    fn sum(&self) -> u32 {
        let mut sum = 0;
        for pair in self.as_chunks::<2>().0 {
            sum += u32::from(u16::from_ne_bytes(*pair));
        }
        sum
    }
}

/// Makes the packet its own answer.
#[inline(always)]
fn turn_around<A: Known + Answerable>(
    ctx: &TcContext,
    settings: &Settings,
    packet: &Packet<A>,
    query: &Query,
) -> Option<()> {
    let udp = packet.transport;
    let message = udp + UDP;
    let records = names::records(query, settings);
    let length = (UDP + query.length + records.length) as u16;
    let pseudo = packet.source.sum() + packet.destination.sum() + u32::from(PROTOCOL.to_be());
    let [q1, q0, check @ ..]: [u8; 4] = ctx.load(udp + 4).ok()?;
    if udp + usize::from(u16::from_be_bytes([q1, q0])) > ctx.len() as usize {
        return None;
    }
    let partial = fold(pseudo + u32::from(u16::from_ne_bytes([q1, q0]))).to_ne_bytes() == check;

    resize(ctx, udp + usize::from(length))?;
    let macs: [u8; 12] = ctx.load(0).ok()?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = macs;
    ctx.store(0, &[s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5], 0).ok()?;
    A::rewrite(ctx, packet.network, packet.destination, packet.source, length)?;
    let ([s1, s0], [d1, d0]) = (packet.payload.ports.destination, packet.payload.ports.source);
    let [l1, l0] = length.to_be_bytes();
    ctx.store(udp, &[s1, s0, d1, d0, l1, l0, 0, 0], 0).ok()?;
    ctx.store(message + 2, &names::header(query, &records), 0).ok()?;
    store_records(ctx, message + query.length, &records)?;

    let pseudo = pseudo + u32::from(length.to_be());
    // A pod's kernel leaves the sum to the network card, and only puts the addresses' share there
    // (CHECKSUM_PARTIAL): so must the answer, whose sum is then never looked at. (One right sum in 65,536 looks
    // like that, and its client asks again.)
    let check = if partial { fold(pseudo) } else { !fold(pseudo + sum(ctx, udp, length)?) };
    // RFC 768: zero would say that there is no sum.
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
    // SAFETY: reads `length` bytes of an array that is not shorter, as just compared.
    let result = unsafe { bpf_skb_store_bytes(ctx.skb.skb, at as u32, from, records.length as u32, 0) };
    (result == 0).then_some(())
}

/// The sum of the 16-bit words of `length` bytes at `at`.
#[inline(always)]
fn sum(ctx: &TcContext, at: usize, length: u16) -> Option<u32> {
    let room = maps::scratch()?;
    // Between 1 and the size of the room, as every answer's is; said so that older verifiers (6.1), which lose sight
    // of what was compared, see it too.
    let length = (Skb(ctx).opaque(usize::from(length) - 1) & (SCRATCH - 1)) + 1;
    // SAFETY: the room is this CPU's own; at most its size is read into it.
    let sum = unsafe {
        // Volatile, or the compiler makes a loop of it, which the verifier takes only with CAP_PERFMON.
        for word in 0..SCRATCH / 8 {
            room.cast::<u64>().add(word).write_volatile(0);
        }
        if bpf_skb_load_bytes(ctx.skb.skb.cast(), at as u32, room.cast(), length as u32) != 0 {
            return None;
        }
        bpf_csum_diff(core::ptr::null_mut(), 0, room.cast(), SCRATCH as u32, 0)
    };
    // Folded once, so that it can be added to.
    Some((sum as u32 >> 16) + (sum as u32 & 0xffff))
}

/// A sum of 16-bit words, with its carries, as one word (RFC 1071).
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}
