//! Packet parsing: addresses, ports, flags and kind of payload.

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
/// Extension headers that can precede a transport header (RFC 8200, section 4). ESP and AH are left out: without a
/// security association, the stack drops them.
const EXTENSIONS: [u8; 5] = [0, 43, 44, 60, 135];
/// The routing header, which names further destinations after that of the IP header (RFC 8200, section 4.4).
const ROUTING: u8 = 43;
/// Extension headers that may precede a routing header.
const BEFORE_ROUTING: [u8; 2] = [0, 60];

/// TCP's FIN flag.
pub const FIN: u8 = 0x01;
/// TCP's SYN flag.
pub const SYN: u8 = 0x02;
/// TCP's RST flag.
pub const RST: u8 = 0x04;
/// TCP's ACK flag.
pub const ACK: u8 = 0x10;

/// Bounds-checked access to a packet, from its Ethernet header on.
pub trait Bytes {
    /// Returns the `N` bytes at `offset`, or `None` if the packet is shorter.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Returns the same number. In the kernel, the verifier loses its bounds, and so checks the code after a loop once
    /// instead of once for each exit of the loop.
    fn opaque(&self, number: usize) -> usize {
        number
    }
}

/// An IP address as on the wire. The two families are types, not variants: the verifier rejects copies of uninitialized
/// bytes, which a four-byte variant of a sixteen-byte enum has.
pub trait Address: Copy + Eq {
    /// Whether ports of the VIP of this family can stand for targets.
    const HAS_STAND_INS: bool;

    /// Returns the VIP of this family; all zeros if there is none.
    fn vip(settings: &Settings) -> Self;

    /// Returns whether the address is all zeros.
    fn is_unset(self) -> bool;

    /// Returns whether only processes of the node itself can use the address.
    fn is_loopback(self) -> bool;
}

impl Address for [u8; 4] {
    const HAS_STAND_INS: bool = true;

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
    const HAS_STAND_INS: bool = false;

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
        // The stack drops ::1 from any interface but `lo` (RFC 4291, section 2.5.3).
        false
    }
}

/// Network protocol of an Ethernet frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Any other.
    Other,
    /// Unknown, behind more VLAN tags than are parsed.
    Hidden,
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// Source address, which may be forged.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Payload.
    pub payload: TransportPayload,
    /// Offset of the IP header in the frame.
    pub network: usize,
    /// Offset of the payload in the frame.
    pub transport: usize,
}

/// Payload of an IP packet. A flat struct, not an enum, for the reason given at [`Address`]; fields that a kind does
/// not have are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportPayload {
    /// Kind of payload.
    pub kind: PacketKind,
    /// Ports of TCP and UDP.
    pub ports: Ports,
    /// Flags of TCP.
    pub flags: TcpFlags,
}

/// Kinds of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketKind {
    /// A TCP segment.
    Tcp,
    /// A UDP datagram.
    Udp,
    /// The first fragment of a TCP segment, which contains the ports.
    FirstFragment,
    /// Any other fragment.
    Fragment,
    /// Any other.
    Other,
    /// Too short for its own headers, or behind IPv6 extension headers.
    Opaque,
    /// Behind an IPv6 routing header, or behind extension headers that may include one.
    Routed,
}

impl TransportPayload {
    const fn bare(kind: PacketKind) -> Self {
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
    /// Returns whether the segment opens a connection.
    #[inline(always)]
    #[must_use]
    pub fn opens(self) -> bool {
        self.0 & (SYN | ACK) == SYN
    }

    /// Returns whether the sender has nothing more to send.
    #[inline(always)]
    #[must_use]
    pub fn ends(self) -> bool {
        self.0 & FIN != 0
    }

    /// Returns whether the segment may complete a handshake, as its third one.
    #[inline(always)]
    #[must_use]
    pub fn may_complete(self) -> bool {
        self.0 & (SYN | ACK | RST) == ACK
    }
}

/// Returns the network protocol of a frame and the offset of its header. The kernel removes any number of priority
/// tags, so up to two VLAN tags are skipped, whatever their VLAN ID, and the packet is handled as if it were
/// untagged.
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

/// Parses an IPv4 packet without VLAN tags and IP options; `None` for any other frame. All offsets are constants.
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
    // RFC 791: the flag "more fragments", then an offset of 13 bits.
    let more = header[6] & 0x20 != 0;
    let offset = header[6] & 0x1f != 0 || header[7] != 0;
    let payload = if !sound {
        TransportPayload::bare(PacketKind::Opaque)
    } else if offset {
        TransportPayload::bare(PacketKind::Fragment)
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
        let second = bytes.load::<1>(transport);
        let is_routed = next == ROUTING
            || matches!(second, Some([second]) if second == ROUTING || BEFORE_ROUTING.contains(&second));
        TransportPayload::bare(if is_routed { PacketKind::Routed } else { PacketKind::Opaque })
    } else {
        parse_transport(bytes, next, transport, false)
    };
    Some(Packet { source, destination, payload, network, transport })
}

#[inline(always)]
fn parse_transport(bytes: &impl Bytes, protocol: u8, offset: usize, fragment: bool) -> TransportPayload {
    if protocol != TCP && protocol != UDP {
        return TransportPayload::bare(if fragment { PacketKind::Fragment } else { PacketKind::Other });
    }
    let Some([s0, s1, d0, d1]) = bytes.load::<4>(offset) else {
        return TransportPayload::bare(PacketKind::Opaque);
    };
    let ports = Ports { source: [s0, s1], destination: [d0, d1] };
    let kind = match (protocol, fragment) {
        (TCP, false) => PacketKind::Tcp,
        // It may be only eight bytes long: with the ports, but without the flags.
        (TCP, true) => {
            return TransportPayload { kind: PacketKind::FirstFragment, ports, flags: TcpFlags(0) };
        }
        (_, false) => return TransportPayload { kind: PacketKind::Udp, ports, flags: TcpFlags(0) },
        (_, true) => return TransportPayload::bare(PacketKind::Fragment),
    };
    match bytes.load::<1>(offset + 13) {
        Some([flags]) => TransportPayload { kind, ports, flags: TcpFlags(flags) },
        None => TransportPayload::bare(PacketKind::Opaque),
    }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
