use proptest::prelude::*;

use super::*;
use crate::packet::{Payload, Ports, SYN, TcpFlags};

const SETTINGS: Settings = Settings {
    vip4: [169, 254, 77, 80],
    vip6: [0; 16],
    http_port: [0, 80],
    dns_port: [0, 53],
    peer_port: [0x1d, 0x38],
    admin_port: [0x1d, 0x39],
    zone: [0; lota_common::MAX_ZONE],
    zone_length: 0,
    answer_names: 1,
    default_allow: 0,
    lookups: 0,
};
const VIP: [u8; 4] = SETTINGS.vip4;

fn to<A: Address>(destination: A, payload: Payload) -> Packet<A> {
    Packet { source: destination, destination, payload, network: 14, transport: 34 }
}

#[test]
fn an_unset_vip_matches_nothing() {
    let ports = Ports { source: [0; 2], destination: [0, 80] };
    let packet = to([0; 16], Payload { kind: Kind::Tcp, ports, flags: TcpFlags(SYN) });
    assert_eq!(from_pod(&SETTINGS, &packet), Pod::Settled(Verdict::NotOurs));
    assert_eq!(from_outside(&SETTINGS, &packet), Guard::Settled(Verdict::NotOurs));
}

fn any_ip() -> impl Strategy<Value = [u8; 4]> {
    prop_oneof![Just(VIP), any::<[u8; 4]>()]
}

fn any_payload() -> impl Strategy<Value = Payload> {
    let port = prop_oneof![
        Just(SETTINGS.http_port),
        Just(SETTINGS.dns_port),
        Just(SETTINGS.peer_port),
        Just(SETTINGS.admin_port),
        any::<[u8; 2]>()
    ];
    let kind = prop::sample::select(vec![
        Kind::Tcp,
        Kind::Udp,
        Kind::FirstFragment,
        Kind::Fragment,
        Kind::Other,
        Kind::Opaque,
    ]);
    (kind, port, any::<u8>()).prop_map(|(kind, destination, flags)| Payload {
        kind,
        ports: Ports { source: [0x9c, 0x40], destination },
        flags: TcpFlags(flags),
    })
}

proptest! {
    /// The rules, said once more and in another way.
    #[test]
    fn decisions_equal_the_reference(destination in any_ip(), payload in any_payload()) {
        let packet = to(destination, payload);
        let port = u16::from_be_bytes(payload.ports.destination);
        let kind = payload.kind;
        let vip = destination == VIP;
        let protected = |ports: &[u16]| {
            kind == Kind::Opaque || (matches!(kind, Kind::Tcp | Kind::FirstFragment) && ports.contains(&port))
        };
        let expected = match (vip, kind, port) {
            (false, ..) if protected(&[7480, 7481]) => Pod::Protect,
            (false, Kind::Udp, 53) => Pod::Name,
            (false, ..) => Pod::Settled(Verdict::NotOurs),
            (true, Kind::Opaque, _) => Pod::Settled(Verdict::Malformed),
            (true, Kind::Fragment | Kind::FirstFragment, _) => Pod::Settled(Verdict::Fragment),
            (true, Kind::Tcp, 80) => Pod::Steer,
            (true, Kind::Tcp | Kind::Udp, 53) => Pod::Settled(Verdict::Dns),
            (true, ..) => Pod::Settled(Verdict::VipOther),
        };
        prop_assert_eq!(from_pod(&SETTINGS, &packet), expected);
        let expected = match vip {
            true => Guard::Settled(Verdict::Outside),
            false if protected(&[7480]) => Guard::PeersOnly,
            false => Guard::Settled(Verdict::NotOurs),
        };
        prop_assert_eq!(from_outside(&SETTINGS, &packet), expected);
    }
}
