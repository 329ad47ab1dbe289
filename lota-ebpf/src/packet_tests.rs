use proptest::prelude::*;

use super::*;

impl Bytes for &[u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..offset + N)?.try_into().ok()
    }
}

fn frame(ether_type: [u8; 2], rest: &[u8]) -> Vec<u8> {
    [&[0; 12][..], &ether_type, rest].concat()
}

fn ipv4(ihl: u8, fragment: [u8; 2], protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut header = vec![0; usize::from(ihl.max(5)) * 4];
    header[0] = 0x40 | ihl;
    header[6..8].copy_from_slice(&fragment);
    header[9] = protocol;
    header[12..16].copy_from_slice(&[10, 0, 0, 2]);
    header[16..20].copy_from_slice(&[169, 254, 77, 80]);
    header.extend_from_slice(transport);
    frame([0x08, 0x00], &header)
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
    header[13] = flags;
    header
}

fn segment(flags: u8) -> TransportPayload {
    TransportPayload { kind: PacketKind::Tcp, ports: PORTS, flags: TcpFlags(flags) }
}

const PORTS: Ports = Ports { source: [0x9c, 0x40], destination: [0, 80] };

#[test]
fn a_syn_opens_a_connection_and_a_syn_ack_does_not() {
    for (flags, opens) in [(SYN, true), (SYN | ACK, false), (ACK, false), (0, false)] {
        let packet = parse_v4(&&ipv4(5, [0x40, 0], TCP, &tcp(flags))[..], ETHERNET).unwrap();
        assert_eq!(packet.payload, segment(flags));
        assert_eq!(TcpFlags(flags).opens(), opens);
    }
}

#[test]
fn options_move_the_transport_header() {
    let packet = parse_v4(&&ipv4(7, [0, 0], TCP, &tcp(SYN))[..], ETHERNET).unwrap();
    assert_eq!(packet.payload, segment(SYN));
}

#[test]
fn fragments_are_recognized() {
    for fragment in [[0, 1], [0x20, 1], [0x1f, 0xff]] {
        assert_eq!(
            parse_v4(&&ipv4(5, fragment, TCP, &tcp(SYN))[..], ETHERNET).unwrap().payload.kind,
            PacketKind::Fragment
        );
    }
    for length in 8..=20 {
        let first = ipv4(5, [0x20, 0], TCP, &tcp(SYN)[..length]);
        let payload = parse_v4(&&first[..], ETHERNET).unwrap().payload;
        assert_eq!((payload.kind, payload.ports), (PacketKind::FirstFragment, PORTS), "{length}");
    }
}

#[test]
fn a_header_length_below_the_minimum_is_opaque() {
    assert_eq!(
        parse_v4(&&ipv4(4, [0, 0], TCP, &tcp(SYN))[..], ETHERNET).unwrap().payload.kind,
        PacketKind::Opaque
    );
}

#[test]
fn extension_headers_are_opaque() {
    for next in EXTENSIONS {
        let mut header = vec![0; 40];
        header[0] = 0x60;
        header[6] = next;
        header.extend_from_slice(&tcp(SYN));
        let kind = if next == ROUTING { PacketKind::Routed } else { PacketKind::Opaque };
        assert_eq!(parse_v6(&&frame([0x86, 0xdd], &header)[..], ETHERNET).unwrap().payload.kind, kind);
    }
}

/// Routing headers are found behind any other extension header.
#[test]
fn routing_headers_are_detected() {
    for first in EXTENSIONS {
        for (second, kind) in [
            (43, PacketKind::Routed),
            (0, PacketKind::Routed),
            (60, PacketKind::Routed),
            (TCP, PacketKind::Opaque),
        ] {
            let mut header = vec![0; 48];
            (header[0], header[6], header[40]) = (0x60, first, second);
            header.extend_from_slice(&tcp(SYN));
            let kind = if first == ROUTING { PacketKind::Routed } else { kind };
            let parsed = parse_v6(&&frame([0x86, 0xdd], &header)[..], ETHERNET).unwrap();
            assert_eq!(parsed.payload.kind, kind, "{first}, {second}");
        }
    }
}

#[test]
fn truncation_never_invents_ports() {
    let whole = ipv4(5, [0, 0], TCP, &tcp(SYN));
    for length in 0..whole.len() {
        let parsed = parse_v4(&&whole[..length], ETHERNET);
        match length {
            0..34 => assert_eq!(parsed, None, "{length}"),
            34..48 => assert_eq!(parsed.unwrap().payload.kind, PacketKind::Opaque, "{length}"),
            _ => assert_eq!(parsed.unwrap().payload, segment(SYN), "{length}"),
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_parse_without_reading_past_the_end(bytes: Vec<u8>) {
        let (_, at) = network(&&bytes[..]);
        // The fixed headers of RFC 791 and RFC 8200.
        let (v4, v6) = (parse_v4(&&bytes[..], at), parse_v6(&&bytes[..], at));
        prop_assert!(v4.is_none() || bytes.len() >= at + 20);
        prop_assert!(v6.is_none() || bytes.len() >= at + 40);
    }
}

#[test]
fn up_to_two_vlan_tags_are_parsed() {
    let tagged = |tags: usize, inner: [u8; 2]| {
        let tags: Vec<u8> =
            (0..tags).flat_map(|tag| [[0x81, 0x00, 0, 0], [0x88, 0xa8, 0, 7]][tag % 2]).collect();
        [&[0; 12][..], &tags, &inner, &[0; 40]].concat()
    };
    for (tags, inner, expected) in [
        (0, [0x08, 0x00], (Network::V4, 14)),
        (1, [0x08, 0x00], (Network::V4, 18)),
        (2, [0x86, 0xdd], (Network::V6, 22)),
        (3, [0x08, 0x00], (Network::Hidden, 0)),
        (1, [0x08, 0x06], (Network::Other, 0)),
    ] {
        assert_eq!(network(&&tagged(tags, inner)[..]), expected, "{tags} tags");
    }
}

proptest! {
    /// The parser for plain packets gives the same result as the general one.
    #[test]
    fn plain_packets_are_parsed_alike(
        first in prop_oneof![Just(0x45u8), any::<u8>()],
        fragment: [u8; 2],
        protocol in prop_oneof![Just(TCP), Just(UDP), any::<u8>()],
        rest: [u8; 32],
    ) {
        let mut frame = ipv4(5, fragment, protocol, &rest);
        frame[ETHERNET] = first;
        let plain = parse_plain_v4(&&frame[..]);
        prop_assert_eq!(plain.is_some(), first == 0x45);
        if plain.is_some() {
            prop_assert_eq!(plain, parse_v4(&&frame[..], ETHERNET));
        }
        frame[13] = 0xdd;
        prop_assert_eq!(parse_plain_v4(&&frame[..]), None);
    }
}

#[test]
fn loopback_is_only_127() {
    assert!([127, 9, 9, 9].is_loopback());
    assert!(![10, 0, 0, 2].is_loopback());
}
