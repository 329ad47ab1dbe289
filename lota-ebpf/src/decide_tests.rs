use proptest::prelude::*;

use super::*;
use crate::packet::{Ports, SYN, TcpFlags, TransportPayload};

const SETTINGS: Settings = Settings {
    vip4: [169, 254, 77, 80],
    vip6: [0; 16],
    ports: [80, 9000, 443, 0, 0, 0, 0, 0],
    dns_port: 53,
    peer_port: 7480,
    admin_port: 7481,
    longest_name: 0,
    answer_dns: 1,
    default_allow: 0,
    lookups: 0,
    targets: 0,
    epoch: 1,
};
const VIP: [u8; 4] = SETTINGS.vip4;

fn to<A: Address>(destination: A, payload: TransportPayload) -> Packet<A> {
    Packet { source: destination, destination, payload, network: 14, transport: 34 }
}

#[test]
fn an_unset_vip_matches_nothing() {
    let ports = Ports { source: [0; 2], destination: [0, 80] };
    let packet = to([0; 16], TransportPayload { kind: PacketKind::Tcp, ports, flags: TcpFlags(SYN) });
    assert_eq!(from_pod(&SETTINGS, &packet), PodDecision::Settled(Verdict::NotOurs));
    assert_eq!(from_outside(&SETTINGS, &packet), Guard::Settled(Verdict::NotOurs));
}

fn any_ip() -> impl Strategy<Value = [u8; 4]> {
    prop_oneof![Just(VIP), any::<[u8; 4]>()]
}

fn any_payload() -> impl Strategy<Value = TransportPayload> {
    let port = prop_oneof![
        prop::sample::select(vec![0, 80, 443, 9000, 53, 7480, 7481, 65_471, 65_472, 65_535])
            .prop_map(u16::to_be_bytes),
        any::<[u8; 2]>()
    ];
    let kind = prop::sample::select(vec![
        PacketKind::Tcp,
        PacketKind::Udp,
        PacketKind::FirstFragment,
        PacketKind::Fragment,
        PacketKind::Other,
        PacketKind::Opaque,
        PacketKind::Routed,
    ]);
    (kind, port, any::<u8>()).prop_map(|(kind, destination, flags)| TransportPayload {
        kind,
        ports: Ports { source: [0x9c, 0x40], destination },
        flags: TcpFlags(flags),
    })
}

#[test]
fn targets_have_only_ports_of_the_ipv4_vip() {
    let settings = Settings { targets: 1, vip6: [1; 16], ..SETTINGS };
    let ports = Ports { source: [0; 2], destination: 65_500u16.to_be_bytes() };
    let payload = TransportPayload { kind: PacketKind::Tcp, ports, flags: TcpFlags(SYN) };
    assert_eq!(from_pod(&settings, &to(VIP, payload)), PodDecision::StandIn);
    let v6 = Packet { source: [2; 16], destination: [1; 16], payload, network: 14, transport: 54 };
    assert_eq!(from_pod(&settings, &v6), PodDecision::Settled(Verdict::VipOther));
}

proptest! {
    /// Compares the decisions with an independent formulation of the rules.
    #[test]
    fn decisions_equal_the_reference(destination in any_ip(), payload in any_payload(), targets in 0..3u16) {
        let settings = Settings { targets, ..SETTINGS };
        let packet = to(destination, payload);
        let port = u16::from_be_bytes(payload.ports.destination);
        let kind = payload.kind;
        let vip = destination == VIP;
        let protected = |ports: &[u16]| {
            kind == PacketKind::Opaque || (matches!(kind, PacketKind::Tcp | PacketKind::FirstFragment) && ports.contains(&port))
        };
        let expected = match (vip, kind, port) {
            (false, PacketKind::Routed, _) => PodDecision::Forbid,
            (false, ..) if protected(&[7480, 7481]) => PodDecision::Protect,
            (false, PacketKind::Udp, 53) => PodDecision::Name,
            (false, ..) => PodDecision::Settled(Verdict::NotOurs),
            (true, PacketKind::Opaque | PacketKind::Routed, _) => PodDecision::Settled(Verdict::Malformed),
            (true, PacketKind::Fragment | PacketKind::FirstFragment, _) => PodDecision::Settled(Verdict::Fragment),
            (true, PacketKind::Tcp, 80 | 443 | 9000) => PodDecision::Redirect,
            (true, PacketKind::Tcp, 65_472..) if targets > 0 => PodDecision::StandIn,
            (true, PacketKind::Tcp | PacketKind::Udp, 53) => PodDecision::Settled(Verdict::Dns),
            (true, ..) => PodDecision::Settled(Verdict::VipOther),
        };
        prop_assert_eq!(from_pod(&settings, &packet), expected);
        let expected = match vip {
            true => Guard::Settled(Verdict::External),
            false if kind == PacketKind::Routed || protected(&[7480]) => Guard::PeersOnly,
            false => Guard::Settled(Verdict::NotOurs),
        };
        prop_assert_eq!(from_outside(&SETTINGS, &packet), expected);
    }
}
