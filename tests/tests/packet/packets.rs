//! Builds valid and invalid packets.

use std::net::{Ipv4Addr, Ipv6Addr};

const ETHERNET: usize = 14;

/// Payload of a packet.
#[derive(Clone)]
pub(crate) enum Transport {
    Tcp {
        port: u16,
        flags: u8,
    },
    Udp {
        port: u16,
    },
    /// UDP with this payload.
    Payload {
        port: u16,
        bytes: Vec<u8>,
    },
    Other(u8),
}

/// Description of a packet.
#[derive(Clone)]
pub(crate) struct Packet {
    ether_type: u16,
    addresses: Addresses,
    transport: Transport,
    options: u8,
    fragment: u16,
    extension: Option<u8>,
    tags: usize,
    source_port: u16,
}

#[derive(Clone, Copy)]
enum Addresses {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Packet {
    pub(crate) fn v4(source: Ipv4Addr, destination: Ipv4Addr, transport: Transport) -> Self {
        Self::new(0x0800, Addresses::V4(source, destination), transport)
    }

    pub(crate) fn v6(source: Ipv6Addr, destination: Ipv6Addr, transport: Transport) -> Self {
        Self::new(0x86dd, Addresses::V6(source, destination), transport)
    }

    fn new(ether_type: u16, addresses: Addresses, transport: Transport) -> Self {
        let (options, fragment, extension, tags, source_port) = (0, 0, None, 0, 40_000);
        Self { ether_type, addresses, transport, options, fragment, extension, tags, source_port }
    }

    /// Adds this number of bytes of IPv4 options; a multiple of four.
    pub(crate) fn options(self, options: u8) -> Self {
        Self { options, ..self }
    }

    /// Sets flags and offset in the IPv4 header.
    pub(crate) fn fragment(self, fragment: u16) -> Self {
        Self { fragment, ..self }
    }

    /// Adds an IPv6 extension header of this number.
    pub(crate) fn extension(self, number: u8) -> Self {
        Self { extension: Some(number), ..self }
    }

    /// Sets another EtherType.
    pub(crate) fn ether_type(self, ether_type: u16) -> Self {
        Self { ether_type, ..self }
    }

    /// Adds this number of VLAN tags.
    pub(crate) fn tags(self, tags: usize) -> Self {
        Self { tags, ..self }
    }

    /// Sets the source port.
    pub(crate) fn with_source_port(self, source_port: u16) -> Self {
        Self { source_port, ..self }
    }

    /// Returns the shortest length that the kernel accepts as a test packet.
    pub(crate) fn shortest(&self) -> usize {
        match self.addresses {
            // The kernel parses no further than the tag.
            _ if self.tags > 0 => ETHERNET + 4 * self.tags + 1,
            Addresses::V4(..) => ETHERNET + 20,
            Addresses::V6(..) => ETHERNET + 40,
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (protocol, transport) = self.transport.bytes(self.source_port);
        let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        frame.extend([0x81, 0x00, 0, 7].repeat(self.tags));
        frame.extend(self.ether_type.to_be_bytes());
        match self.addresses {
            Addresses::V4(source, destination) => {
                let header = 20 + usize::from(self.options);
                let length = u16::try_from(header + transport.len()).unwrap_or(u16::MAX);
                frame.extend([0x40 | u8::try_from(header / 4).unwrap_or(5), 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([0, 1]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(vec![1; usize::from(self.options)]);
            }
            Addresses::V6(source, destination) => {
                let extension = if self.extension.is_some() { 8 } else { 0 };
                let length = u16::try_from(extension + transport.len()).unwrap_or(u16::MAX);
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([self.extension.unwrap_or(protocol), 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                if self.extension.is_some() {
                    frame.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
                }
            }
        }
        frame.extend(transport);
        frame
    }
}

impl Transport {
    /// Returns the number of the IP protocol, and the header with the payload.
    fn bytes(&self, source_port: u16) -> (u8, Vec<u8>) {
        let port = |to: u16| [source_port.to_be_bytes(), to.to_be_bytes()].concat();
        match self {
            Self::Tcp { port: to, flags } => {
                let mut header = port(*to);
                header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, *flags, 0xff, 0xff, 0, 0, 0, 0, b'x']);
                (6, header)
            }
            Self::Udp { port: to } => {
                let mut header = port(*to);
                header.extend([0, 9, 0, 0, b'x']);
                (17, header)
            }
            Self::Payload { port: to, bytes } => {
                let mut datagram = port(*to);
                let length = u16::try_from(8 + bytes.len()).unwrap_or(u16::MAX);
                datagram.extend(length.to_be_bytes());
                datagram.extend([0, 0]);
                datagram.extend(bytes);
                (17, datagram)
            }
            Self::Other(protocol) => (*protocol, vec![8, 0, 0, 0, 0, 1, 0, 1, b'x']),
        }
    }
}
