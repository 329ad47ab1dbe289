//! Packets with forged source addresses.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
};

use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Sends a packet with a SYN by a raw socket, from the namespace of the calling thread.
pub(crate) fn send_syn(source: SocketAddrV4, destination: SocketAddrV4) -> io::Result<()> {
    send(&syn(source, destination), destination)
}

/// Sends an IPv4 packet by a raw socket, from the namespace of the calling thread.
pub(crate) fn send(packet: &[u8], destination: SocketAddrV4) -> io::Result<()> {
    /// `IPPROTO_RAW`: the packet includes the IP header.
    const RAW: i32 = 255;
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)))?;
    socket.send_to(packet, &destination.into()).map(drop)
}

/// Sends an IPv4 packet by a packet socket at an interface, from the namespace of the calling thread. If it is `lo`, the
/// namespace receives the packet.
pub(crate) fn send_at(interface: u32, packet: &[u8]) -> io::Result<()> {
    /// `AF_PACKET` and `ETH_P_IP`.
    const PACKET: u16 = 17;
    const IPV4: u16 = 0x0800;
    let protocol = IPV4.to_be();
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(protocol))))?;
    // SAFETY: the storage has room for any kind of address, and all of this one is written.
    let ((), to) = unsafe {
        SockAddr::try_init(|storage, length| {
            storage.cast::<libc::sockaddr_ll>().write(libc::sockaddr_ll {
                sll_family: PACKET,
                sll_protocol: protocol,
                sll_ifindex: interface.cast_signed(),
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 6,
                sll_addr: [0; 8],
            });
            *length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
            Ok(())
        })
    }?;
    socket.send_to(packet, &to).map(drop)
}

/// Returns an IPv4 packet with a SYN.
pub(crate) fn syn(source: SocketAddrV4, destination: SocketAddrV4) -> Vec<u8> {
    segment(source, destination, 0x02)
}

/// Returns an IPv4 packet with a TCP segment that has these flags.
pub(crate) fn segment(source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Vec<u8> {
    let ends = [source.ip(), destination.ip()].map(Ipv4Addr::octets).concat();
    let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    ip.extend(&ends);
    let check = checksum(&ip);
    ip[10..12].copy_from_slice(&check);
    let mut tcp = [source.port(), destination.port()].map(u16::to_be_bytes).concat();
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo: Vec<u8> = ends.iter().chain(&[0, 6, 0, 20]).chain(&tcp).copied().collect();
    let check = checksum(&pseudo);
    tcp[16..18].copy_from_slice(&check);
    ip.extend(tcp);
    ip
}

/// Returns the checksum of RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    loop {
        match u16::try_from(sum) {
            Ok(sum) => return (!sum).to_be_bytes(),
            Err(_) => sum = (sum >> 16) + (sum & 0xffff),
        }
    }
}
