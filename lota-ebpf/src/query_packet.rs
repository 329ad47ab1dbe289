//! Packets with DNS queries, and their IP headers by address family.

use aya_ebpf::programs::TcContext;
use lota_common::Verdict;
use lota_ebpf::packet::{IPV4, IPV6, Packet};

use crate::maps::AddressMaps;

/// Length of a UDP header.
pub(crate) const UDP: usize = 8;
const HOPS: u8 = 64;

/// Decision by a packet's IP and transport headers.
pub(crate) enum Decision {
    /// The verdict is final.
    Settled(Verdict),
    /// The query decides.
    Query(QueryPacket),
}

/// A packet with a DNS query, without IP options.
pub(crate) struct QueryPacket {
    /// Offset of the IP header.
    pub(crate) network: usize,
    /// Address family.
    pub(crate) is_v6: bool,
}

impl QueryPacket {
    /// Returns a packet to port 53 as one; `None` if it has IP options, since such queries are left to the resolver.
    #[inline(always)]
    pub(crate) fn of<A: Answerable>(packet: &Packet<A>) -> Option<Self> {
        let has_options = packet.transport - packet.network != A::HEADER;
        (!has_options).then_some(Self { network: packet.network, is_v6: A::HEADER == IPV6 })
    }

    /// Returns the offset of the UDP header.
    #[inline(always)]
    pub(crate) const fn udp(&self) -> usize {
        self.network + if self.is_v6 { IPV6 } else { IPV4 }
    }

    /// Returns the offset of the DNS message.
    #[inline(always)]
    pub(crate) const fn message(&self) -> usize {
        self.udp() + UDP
    }
}

/// Differences between the address families in a response.
pub(crate) trait Answerable: AddressMaps {
    /// Length of the IP header.
    const HEADER: usize;
    /// Offset of the addresses in the IP header.
    const ADDRESSES: usize;

    /// Rewrites the IP header for a payload of `length` bytes in the opposite direction.
    fn turn_around(ctx: &TcContext, network: usize, length: u16) -> Option<()>;

    /// Returns the sum of the address's 16-bit words.
    fn sum(&self) -> u32;
}

impl Answerable for [u8; 4] {
    const HEADER: usize = IPV4;
    const ADDRESSES: usize = 12;

    #[inline(always)]
    fn turn_around(ctx: &TcContext, network: usize, length: u16) -> Option<()> {
        let mut header: [u8; IPV4] = ctx.load(network).ok()?;
        [header[2], header[3]] = (IPV4 as u16 + length).to_be_bytes();
        header[8] = HOPS;
        [header[10], header[11]] = [0; 2];
        let [.., s0, s1, s2, s3, d0, d1, d2, d3] = header;
        [header[12], header[13], header[14], header[15]] = [d0, d1, d2, d3];
        [header[16], header[17], header[18], header[19]] = [s0, s1, s2, s3];
        let mut sum = 0;
        for pair in header.as_chunks::<2>().0 {
            sum += u32::from(u16::from_ne_bytes(*pair));
        }
        [header[10], header[11]] = (!fold(sum)).to_ne_bytes();
        ctx.store(network, &header, 0).ok()
    }

    #[inline(always)]
    fn sum(&self) -> u32 {
        let [a, b, c, d] = *self;
        u32::from(u16::from_ne_bytes([a, b])) + u32::from(u16::from_ne_bytes([c, d]))
    }
}

impl Answerable for [u8; 16] {
    const HEADER: usize = IPV6;
    const ADDRESSES: usize = 8;

    #[inline(always)]
    fn turn_around(ctx: &TcContext, network: usize, length: u16) -> Option<()> {
        let (source, destination): (Self, Self) = addresses(ctx, network)?;
        ctx.store(network + 4, &length.to_be_bytes(), 0).ok()?;
        ctx.store(network + 7, &HOPS, 0).ok()?;
        ctx.store(network + 8, &destination, 0).ok()?;
        ctx.store(network + 24, &source, 0).ok()
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

/// Returns the source and destination of a packet.
#[inline(always)]
pub(crate) fn addresses<A: Answerable>(ctx: &TcContext, network: usize) -> Option<(A, A)> {
    let at = network + A::ADDRESSES;
    Some((ctx.load(at).ok()?, ctx.load(at + size_of::<A>()).ok()?))
}

/// Folds the carries of a sum of 16-bit words into one word (RFC 1071).
#[inline(always)]
pub(crate) fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}
