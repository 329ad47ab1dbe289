//! Properties of a packet that expressions load into registers.

use super::{
    FlowDirection, FlowOrigin, NamedInterface,
    bits::{Bits, known, unknown},
    packet::{ESTABLISHED, HookPacket, NEW, TCP},
    xtables,
};

/// Returns a property of the packet (`enum nft_meta_keys`).
pub(super) fn meta(packet: &HookPacket<'_>, key: Option<u32>) -> Vec<Bits> {
    let is_request = packet.direction == FlowDirection::Request;
    let interface = packet.flow.interface.as_ref();
    // Zeros stand for no interface.
    let of_interface = |is_there: bool, length: usize, value: &dyn Fn(&NamedInterface) -> Vec<u8>| {
        let value = match (interface, is_there) {
            (_, false) => Vec::new(),
            (None, true) => return unknown(length),
            (Some(interface), true) => value(interface),
        };
        let mut bytes = known(&value);
        bytes.resize(length, Bits::new(0));
        bytes
    };
    let index = |is_there| of_interface(is_there, 4, &|interface| interface.index.to_ne_bytes().to_vec());
    let name = |is_there| of_interface(is_there, 16, &|interface| interface.name.as_bytes().to_vec());
    match key {
        Some(1) => known(if packet.family == super::IPV4 { &[0x08, 0x00] } else { &[0x86, 0xdd] }),
        Some(3) => packet.mark.to_vec(),
        Some(4) => index(is_request),
        Some(5) => index(!is_request),
        Some(6) => name(is_request),
        Some(7) => name(!is_request),
        Some(15) => known(&[packet.family]),
        Some(16) => known(&[TCP]),
        // PACKET_HOST
        Some(19) if is_request => known(&[0]),
        _ => unknown(16),
    }
}

/// Returns a property of the packet's connection (`enum nft_ct_keys`).
pub(super) fn tracked(packet: &HookPacket<'_>, key: Option<u32>) -> Vec<Bits> {
    match (key, packet.state) {
        (Some(0), Some(state)) => known(&state.to_ne_bytes()),
        (Some(1), Some(state @ (NEW | ESTABLISHED))) => known(&[u8::from(state == ESTABLISHED)]),
        // Neither expected, nor answered, nor confirmed, nor translated (see `nat_exemption`).
        (Some(2), Some(NEW)) => [known(&[0]), unknown(3)].concat(),
        _ => unknown(16),
    }
}

/// Returns the result of a lookup in the routing tables.
pub(super) fn fib(packet: &HookPacket<'_>, result: Option<u32>, flags: u32) -> Vec<Bits> {
    const SOURCE: u32 = 1;
    const INTERFACES: u32 = 8 | 16;
    const PRESENT: u32 = 32;
    let is_way_back = packet.has_way_back() && flags & SOURCE != 0;
    let is_local = (packet.direction == FlowDirection::Request) != (flags & SOURCE != 0);
    let at_interface = flags & INTERFACES != 0;
    match (result, packet.flow.origin) {
        (Some(1 | 2), _) if is_way_back && flags & PRESENT != 0 => known(&[1]),
        (Some(1), _) if is_way_back => meta(packet, Some(4)),
        (Some(2), _) if is_way_back => meta(packet, Some(6)),
        (Some(3), _) if !at_interface => known(&xtables::kind(is_local).to_ne_bytes()),
        // The VIP is on `lo`, so at the interface of a pod, it is an address like any other.
        (Some(3), FlowOrigin::Pods) if is_local && packet.family == super::IPV4 => {
            known(&xtables::kind(false).to_ne_bytes())
        }
        _ => unknown(16),
    }
}
