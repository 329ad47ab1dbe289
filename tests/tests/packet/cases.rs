//! Packets and their expected actions and verdicts.

use std::net::{Ipv4Addr, Ipv6Addr};

use lota_common::{MAX_NAME, Settings, Verdict};

use super::packets::{Packet, Transport};

pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 80);
pub(crate) const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0xface, 0, 0, 0, 0, 0, 0x80);
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
pub(crate) const POD6: Ipv6Addr = Ipv6Addr::new(0xfd10, 1, 0, 0, 0, 0, 0, 2);
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 9);
pub(crate) const STRANGER6: Ipv6Addr = Ipv6Addr::new(0xfd10, 1, 0, 0, 0, 0, 0, 9);
/// Address with an entry for another interface than that of test packets.
pub(crate) const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
pub(crate) const SELF: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub(crate) const SELF6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 2);
pub(crate) const PEER_PORT: u16 = 7480;
pub(crate) const ADMIN_PORT: u16 = 7481;
/// The rules allow 10.1.4.0/22 (`RULED`) and deny 10.1.5.0/24 (`RULED_OUT`); `EXCEPTED` and `BANNED` have entries of
/// their own.
pub(crate) const RULED: Ipv4Addr = Ipv4Addr::new(10, 1, 4, 9);
pub(crate) const RULED_OUT: Ipv4Addr = Ipv4Addr::new(10, 1, 5, 9);
pub(crate) const EXCEPTED: Ipv4Addr = Ipv4Addr::new(10, 1, 5, 10);
pub(crate) const BANNED: Ipv4Addr = Ipv4Addr::new(10, 1, 4, 10);
pub(crate) const RULED6: Ipv6Addr = Ipv6Addr::new(0xfd10, 4, 0, 0, 0, 0, 0, 9);

/// Length of the longest possible name.
const LONGEST_NAME: u8 = 128;
const _: () = assert!(LONGEST_NAME as usize == MAX_NAME);
/// Redirected ports of the VIP.
pub(crate) const PORTS: [u16; 8] = [80, 9000, 443, 8080, 9001, 9002, 9003, 65535];

pub(crate) fn settings() -> Settings {
    Settings {
        vip4: VIP.octets(),
        vip6: VIP6.octets(),
        ports: PORTS,
        dns_port: 53,
        peer_port: PEER_PORT,
        admin_port: ADMIN_PORT,
        longest_name: LONGEST_NAME,
        answer_dns: 1,
        default_allow: 0,
        lookups: 0,
        targets: 0,
        epoch: 1,
    }
}

/// Action of a program on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Continue with the next program.
    Next,
    Pass,
    Drop,
    /// Sent to another interface.
    Redirect,
}

pub(crate) type Case = (&'static str, Packet, Action, Verdict);

pub(crate) fn pod_cases() -> Vec<Case> {
    let v4 = Packet::v4;
    let v6 = Packet::v6;
    let syn = |port| Transport::Tcp { port, flags: 0x02 };
    let ack = |port| Transport::Tcp { port, flags: 0x10 };
    let udp = |port| Transport::Udp { port };
    let mut cases = vec![
        ("an allowed pod's SYN", v4(POD, VIP, syn(80)), Action::Pass, Verdict::NoListener),
        ("an allowed pod's SYN, IPv6", v6(POD6, VIP6, syn(80)), Action::Pass, Verdict::NoListener),
        (
            "an allowed pod's SYN with IP options",
            v4(POD, VIP, syn(80)).options(8),
            Action::Pass,
            Verdict::NoListener,
        ),
        ("an allowed pod's ACK without a socket", v4(POD, VIP, ack(80)), Action::Pass, Verdict::NoListener),
        ("a denied pod's SYN", v4(STRANGER, VIP, syn(80)), Action::Pass, Verdict::Denied),
        ("a denied pod's SYN, IPv6", v6(STRANGER6, VIP6, syn(80)), Action::Pass, Verdict::Denied),
        (
            "an allowed address at another interface",
            v4(ELSEWHERE, VIP, syn(80)),
            Action::Pass,
            Verdict::Denied,
        ),
        ("the VIP as a source", v4(VIP, VIP, syn(80)), Action::Pass, Verdict::Denied),
        ("an address in an allowed prefix", v4(RULED, VIP, syn(80)), Action::Pass, Verdict::NoListener),
        ("an address in a longer, denied prefix", v4(RULED_OUT, VIP, syn(80)), Action::Pass, Verdict::Denied),
        (
            "an allowed address in a denied prefix",
            v4(EXCEPTED, VIP, syn(80)),
            Action::Pass,
            Verdict::NoListener,
        ),
        (
            "an address in an allowed prefix, IPv6",
            v6(RULED6, VIP6, syn(80)),
            Action::Pass,
            Verdict::NoListener,
        ),
        ("a denied address in an allowed prefix", v4(BANNED, VIP, syn(80)), Action::Pass, Verdict::Denied),
        ("a DNS query", v4(STRANGER, VIP, udp(53)), Action::Pass, Verdict::Dns),
        ("a DNS query over TCP", v4(STRANGER, VIP, syn(53)), Action::Pass, Verdict::Dns),
        ("another port of the VIP", v4(POD, VIP, syn(444)), Action::Pass, Verdict::VipOther),
        ("port 0 of the VIP", v4(POD, VIP, syn(0)), Action::Pass, Verdict::VipOther),
        ("the VIP's peer port", v4(POD, VIP, syn(PEER_PORT)), Action::Pass, Verdict::VipOther),
        (
            "another redirected port, without access",
            v4(STRANGER, VIP, syn(443)),
            Action::Pass,
            Verdict::Denied,
        ),
        ("a redirected port of another host", v4(POD, STRANGER, syn(9000)), Action::Next, Verdict::NotOurs),
        ("UDP to the VIP's port 80", v4(POD, VIP, udp(80)), Action::Pass, Verdict::VipOther),
        ("a ping of the VIP", v4(POD, VIP, Transport::Other(1)), Action::Pass, Verdict::VipOther),
        ("a ping of the VIP, IPv6", v6(POD6, VIP6, Transport::Other(58)), Action::Pass, Verdict::VipOther),
        ("UDP to another port of the VIP, IPv6", v6(POD6, VIP6, udp(443)), Action::Pass, Verdict::VipOther),
        ("a DNS query to the VIP, IPv6", v6(STRANGER6, VIP6, udp(53)), Action::Pass, Verdict::Dns),
        (
            "UDP port 53 of another host, but no query",
            v4(POD, STRANGER, udp(53)),
            Action::Next,
            Verdict::NotOurs,
        ),
        (
            "a first fragment to the VIP",
            v4(POD, VIP, syn(80)).fragment(0x2000),
            Action::Drop,
            Verdict::Fragment,
        ),
        (
            "a later fragment to the VIP",
            v4(POD, VIP, syn(80)).fragment(0x0001),
            Action::Drop,
            Verdict::Fragment,
        ),
        (
            "extension headers to the VIP",
            v6(POD6, VIP6, syn(80)).extension(60),
            Action::Drop,
            Verdict::Malformed,
        ),
        (
            "a fragment header to the VIP, IPv6",
            v6(POD6, VIP6, syn(80)).extension(44),
            Action::Drop,
            Verdict::Malformed,
        ),
        ("another address", v4(POD, PEER, syn(80)), Action::Next, Verdict::NotOurs),
        ("another address, IPv6", v6(POD6, STRANGER6, syn(80)), Action::Next, Verdict::NotOurs),
        (
            "a fragment to another address",
            v4(POD, STRANGER, udp(9)).fragment(0x0001),
            Action::Next,
            Verdict::NotOurs,
        ),
        ("ARP", v4(POD, VIP, syn(80)).ether_type(0x0806), Action::Next, Verdict::NotOurs),
        ("a SYN behind a VLAN tag", v4(POD, VIP, syn(80)).tags(1), Action::Pass, Verdict::NoListener),
        (
            "a SYN behind two VLAN tags, IPv6",
            v6(POD6, VIP6, syn(80)).tags(2),
            Action::Pass,
            Verdict::NoListener,
        ),
        ("a SYN behind more tags", v4(POD, VIP, syn(80)).tags(4), Action::Drop, Verdict::Malformed),
        (
            "a peer port behind a VLAN tag",
            v4(POD, PEER, syn(PEER_PORT)).tags(1),
            Action::Drop,
            Verdict::Protected,
        ),
        ("this node's peer port", v4(POD, SELF, syn(PEER_PORT)), Action::Drop, Verdict::Protected),
        ("this node's admin port", v4(POD, SELF, syn(ADMIN_PORT)), Action::Drop, Verdict::Protected),
        ("another node's peer port", v4(POD, PEER, syn(PEER_PORT)), Action::Drop, Verdict::Protected),
        ("another node's admin port", v4(POD, PEER, ack(ADMIN_PORT)), Action::Drop, Verdict::Protected),
        (
            "a peer port in a first fragment",
            v4(POD, PEER, syn(PEER_PORT)).fragment(0x2000),
            Action::Drop,
            Verdict::Protected,
        ),
        (
            "the admin port at 127.0.0.1",
            v4(POD, Ipv4Addr::LOCALHOST, syn(ADMIN_PORT)),
            Action::Drop,
            Verdict::Protected,
        ),
        ("another node's peer port, IPv6", v6(POD6, PEER6, syn(PEER_PORT)), Action::Drop, Verdict::Protected),
        (
            "behind extension headers, to a node",
            v6(POD6, PEER6, syn(9)).extension(60),
            Action::Drop,
            Verdict::Protected,
        ),
        (
            "the same to another host",
            v6(POD6, STRANGER6, syn(9)).extension(60),
            Action::Next,
            Verdict::NotOurs,
        ),
        (
            "a routing header, which may lead to a node",
            v6(POD6, STRANGER6, syn(9)).extension(43),
            Action::Drop,
            Verdict::Protected,
        ),
        ("the same port of another host", v4(POD, STRANGER, syn(PEER_PORT)), Action::Next, Verdict::NotOurs),
        ("UDP to a peer port", v4(POD, PEER, udp(PEER_PORT)), Action::Next, Verdict::NotOurs),
    ];
    for port in PORTS {
        cases.push(("each redirected port", v4(POD, VIP, syn(port)), Action::Pass, Verdict::NoListener));
        cases.push((
            "each redirected port, IPv6",
            v6(POD6, VIP6, syn(port)),
            Action::Pass,
            Verdict::NoListener,
        ));
    }
    cases
}

pub(crate) fn guard_cases() -> Vec<Case> {
    let v4 = Packet::v4;
    let v6 = Packet::v6;
    let udp = |port| Transport::Udp { port };
    let syn = |port| Transport::Tcp { port, flags: 0x02 };
    vec![
        ("a peer at the peer port", v4(PEER, SELF, syn(PEER_PORT)), Action::Pass, Verdict::Peer),
        (
            "an unknown peer at the peer port",
            v4(STRANGER, SELF, syn(PEER_PORT)),
            Action::Drop,
            Verdict::UnknownPeer,
        ),
        (
            "a first fragment of an unknown peer",
            v4(STRANGER, SELF, syn(PEER_PORT)).fragment(0x2000),
            Action::Drop,
            Verdict::UnknownPeer,
        ),
        ("a peer, IPv6", v6(PEER6, SELF6, syn(PEER_PORT)), Action::Pass, Verdict::Peer),
        (
            "an unknown peer behind extension headers",
            v6(STRANGER6, SELF6, syn(9)).extension(60),
            Action::Drop,
            Verdict::UnknownPeer,
        ),
        ("an unknown peer at another port", v4(STRANGER, SELF, syn(22)), Action::Pass, Verdict::NotOurs),
        (
            "forwarded to another node's peer port",
            v4(STRANGER, PEER, syn(PEER_PORT)),
            Action::Pass,
            Verdict::NotOurs,
        ),
        ("a packet from outside to the VIP", v4(PEER, VIP, syn(80)), Action::Drop, Verdict::External),
        ("a DNS query from outside", v4(PEER, VIP, udp(53)), Action::Drop, Verdict::External),
        ("the VIP, IPv6", v6(POD6, VIP6, syn(80)), Action::Drop, Verdict::External),
        (
            "an unknown peer at the peer port, IPv6",
            v6(STRANGER6, SELF6, syn(PEER_PORT)),
            Action::Drop,
            Verdict::UnknownPeer,
        ),
        ("forwarded, IPv6", v6(STRANGER6, PEER6, syn(PEER_PORT)), Action::Pass, Verdict::NotOurs),
        ("a DNS query from outside, IPv6", v6(PEER6, VIP6, udp(53)), Action::Drop, Verdict::External),
        ("the VIP behind a priority tag", v4(PEER, VIP, syn(80)).tags(1), Action::Drop, Verdict::External),
        (
            "an unknown peer behind two tags",
            v4(STRANGER, SELF, syn(PEER_PORT)).tags(2),
            Action::Drop,
            Verdict::UnknownPeer,
        ),
        ("a peer behind a tag", v4(PEER, SELF, syn(PEER_PORT)).tags(1), Action::Pass, Verdict::Peer),
        ("more tags", v4(PEER, SELF, syn(PEER_PORT)).tags(3), Action::Drop, Verdict::Malformed),
        (
            "a fragment of a ping to the VIP",
            v4(PEER, VIP, Transport::Other(1)).fragment(1),
            Action::Drop,
            Verdict::External,
        ),
        ("anything else", v4(STRANGER, STRANGER, Transport::Other(1)), Action::Pass, Verdict::NotOurs),
    ]
}
