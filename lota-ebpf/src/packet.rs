//! From bytes to what matters of a packet: two addresses and what is inside.

use lota_common::Settings;

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
/// Length of Ethernet, IPv4 and TCP headers without options.
pub const PLAIN: usize = ETHERNET + IPV4 + 20;
/// Length of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Length of an IPv6 header.
pub const IPV6: usize = 40;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Extension headers that can hide a transport header from us (RFC 8200, section 4). Not ESP and AH: without
/// a security association the stack itself drops those.
const EXTENSIONS: [u8; 5] = [0, 43, 44, 60, 135];

/// TCP's SYN flag.
pub const SYN: u8 = 0x02;
/// TCP's ACK flag.
pub const ACK: u8 = 0x10;

/// Bounds-checked access to a packet, from its Ethernet header on.
pub trait Bytes {
    /// The `N` bytes at `offset`, unless the packet is shorter.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The same number. In the kernel, one that the verifier knows nothing about any more: it then checks what
    /// follows a loop once, rather than once for each way out of the loop.
    fn opaque(&self, number: usize) -> usize {
        number
    }
}

/// An IP address as on the wire. The two families are types, not variants: the verifier wants every byte it
/// sees moved to have been written, and a four-byte variant of a sixteen-byte enum is not.
pub trait Address: Copy + Eq {
    /// This node's virtual address in this family; all zeros if it has none.
    fn vip(settings: &Settings) -> Self;

    /// No address at all.
    fn is_unset(self) -> bool;

    /// An address that only processes of the node itself may use.
    fn is_loopback(self) -> bool;
}

impl Address for [u8; 4] {
    #[inline(always)]
    fn vip(settings: &Settings) -> Self {
        settings.vip4
    }

    #[inline(always)]
    fn is_unset(self) -> bool {
        self == [0; 4]
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        self[0] == 127
    }
}

impl Address for [u8; 16] {
    #[inline(always)]
    fn vip(settings: &Settings) -> Self {
        settings.vip6
    }

    #[inline(always)]
    fn is_unset(self) -> bool {
        self == [0; 16]
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        // The stack drops ::1 from any interface but its own (RFC 4291, section 2.5.3).
        false
    }
}

/// What an Ethernet frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Something else.
    Other,
    /// Behind more VLAN tags than are looked through.
    Hidden,
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// Who sent it, as it says itself.
    pub source: A,
    /// Whom it is for.
    pub destination: A,
    /// What it carries.
    pub payload: Payload,
    /// Where its own header begins, from the frame's beginning.
    pub network: usize,
    /// Where the payload begins, likewise.
    pub transport: usize,
}

/// What an IP packet carries, as far as it matters here. Flat for the verifier's sake, as [`Address`] explains:
/// fields that a kind does not have are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// What it is.
    pub kind: Kind,
    /// The ports of TCP and UDP.
    pub ports: Ports,
    /// The flags of TCP.
    pub flags: TcpFlags,
}

/// Kinds of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment.
    Tcp,
    /// A UDP datagram.
    Udp,
    /// The first fragment of a TCP segment: it has the ports.
    FirstFragment,
    /// Any other fragment.
    Fragment,
    /// Something else.
    Other,
    /// Too short for its own headers, or behind IPv6 extension headers.
    Opaque,
}

impl Payload {
    const fn bare(kind: Kind) -> Self {
        Self { kind, ports: Ports { source: [0; 2], destination: [0; 2] }, flags: TcpFlags(0) }
    }
}

/// Source and destination port, big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The sender's port.
    pub source: [u8; 2],
    /// The receiver's port.
    pub destination: [u8; 2],
}

/// The flags byte of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// Does this segment open a connection?
    #[inline(always)]
    #[must_use]
    pub fn opens(self) -> bool {
        self.0 & (SYN | ACK) == SYN
    }
}

/// What a frame carries, and where that begins. The kernel takes off any number of priority tags before it looks
/// further, so up to two tags are looked through, whatever their VLAN: what is behind them is judged as if
/// they were not there.
#[inline(always)]
pub fn network(bytes: &impl Bytes) -> (Network, usize) {
    let mut tags = 0;
    while tags <= 2 {
        let Some(ether_type) = bytes.load::<2>(ETHERNET - 2 + tags * VLAN_TAG) else {
            return (Network::Other, 0);
        };
        match ether_type {
            [0x08, 0x00] => return (Network::V4, ETHERNET + tags * VLAN_TAG),
            [0x86, 0xdd] => return (Network::V6, ETHERNET + tags * VLAN_TAG),
            [0x81, 0x00] | [0x88, 0xa8] => tags += 1,
            _ => return (Network::Other, 0),
        }
    }
    (Network::Hidden, 0)
}

/// Parses the IPv4 packet at `network`; `None` if it is shorter than an IP header.
#[inline(always)]
pub fn parse_v4(bytes: &impl Bytes, network: usize) -> Option<Packet<[u8; 4]>> {
    let header: [u8; IPV4] = bytes.load(network)?;
    let length = usize::from(header[0] & 0x0f) * 4;
    let sound = header[0] >> 4 == 4 && length >= IPV4;
    Some(packet_v4(bytes, &header, network, network + length, sound))
}

/// The same for the plainest of frames, and `None` for all others: no tags, no options, and as long as a TCP header.
/// Everything in it is at a place that is known when this is compiled.
#[inline(always)]
pub fn parse_plain_v4(bytes: &impl Bytes) -> Option<Packet<[u8; 4]>> {
    let [ether_type @ .., version] = bytes.load::<3>(ETHERNET - 2)?;
    let header: [u8; IPV4] = bytes.load(ETHERNET)?;
    let plain = ether_type == [0x08, 0x00] && version == 0x45;
    plain.then(|| packet_v4(bytes, &header, ETHERNET, ETHERNET + IPV4, true))
}

#[inline(always)]
fn packet_v4(
    bytes: &impl Bytes,
    header: &[u8; IPV4],
    network: usize,
    transport: usize,
    sound: bool,
) -> Packet<[u8; 4]> {
    let source = [header[12], header[13], header[14], header[15]];
    let destination = [header[16], header[17], header[18], header[19]];
    // RFC 791: a flag for "more fragments", then thirteen bits of offset.
    let more = header[6] & 0x20 != 0;
    let offset = header[6] & 0x1f != 0 || header[7] != 0;
    let payload = if !sound {
        Payload::bare(Kind::Opaque)
    } else if offset {
        Payload::bare(Kind::Fragment)
    } else {
        parse_transport(bytes, header[9], transport, more)
    };
    Packet { source, destination, payload, network, transport }
}

/// Parses the IPv6 packet at `network`; `None` if it is shorter than an IP header.
#[inline(always)]
pub fn parse_v6(bytes: &impl Bytes, network: usize) -> Option<Packet<[u8; 16]>> {
    let [next]: [u8; 1] = bytes.load(network + 6)?;
    let source = bytes.load(network + 8)?;
    let destination = bytes.load(network + 24)?;
    let transport = network + IPV6;
    let payload = if EXTENSIONS.contains(&next) {
        Payload::bare(Kind::Opaque)
    } else {
        parse_transport(bytes, next, transport, false)
    };
    Some(Packet { source, destination, payload, network, transport })
}

#[inline(always)]
fn parse_transport(bytes: &impl Bytes, protocol: u8, offset: usize, fragment: bool) -> Payload {
    if protocol != TCP && protocol != UDP {
        return Payload::bare(if fragment { Kind::Fragment } else { Kind::Other });
    }
    let Some([s0, s1, d0, d1]) = bytes.load::<4>(offset) else { return Payload::bare(Kind::Opaque) };
    let ports = Ports { source: [s0, s1], destination: [d0, d1] };
    let kind = match (protocol, fragment) {
        (TCP, false) => Kind::Tcp,
        // It may be as short as eight bytes: the ports are there, the flags need not be.
        (TCP, true) => return Payload { kind: Kind::FirstFragment, ports, flags: TcpFlags(0) },
        (_, false) => return Payload { kind: Kind::Udp, ports, flags: TcpFlags(0) },
        (_, true) => return Payload::bare(Kind::Fragment),
    };
    match bytes.load::<1>(offset + 13) {
        Some([flags]) => Payload { kind, ports, flags: TcpFlags(flags) },
        None => Payload::bare(Kind::Opaque),
    }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
