//! Properties of a packet that expressions load into registers.

use super::{
    FlowDirection, FlowOrigin, NamedInterface,
    bits::{Bits, known, unknown},
    packet::{ESTABLISHED, HookPacket, NEW, TCP},
    xtables,
};
use crate::nf_tables::{
    NFT_CT_DIRECTION, NFT_CT_STATE, NFT_CT_STATUS, NFT_FIB_RESULT_ADDRTYPE, NFT_FIB_RESULT_OIF,
    NFT_FIB_RESULT_OIFNAME, NFT_META_IIF, NFT_META_IIFNAME, NFT_META_L4PROTO, NFT_META_MARK,
    NFT_META_NFPROTO, NFT_META_OIF, NFT_META_OIFNAME, NFT_META_PKTTYPE, NFT_META_PROTOCOL, NFTA_FIB_F_IIF,
    NFTA_FIB_F_OIF, NFTA_FIB_F_PRESENT, NFTA_FIB_F_SADDR,
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
        Some(NFT_META_PROTOCOL) => {
            known(if packet.family == super::IPV4 { &[0x08, 0x00] } else { &[0x86, 0xdd] })
        }
        Some(NFT_META_MARK) => packet.mark.to_vec(),
        Some(NFT_META_IIF) => index(is_request),
        Some(NFT_META_OIF) => index(!is_request),
        Some(NFT_META_IIFNAME) => name(is_request),
        Some(NFT_META_OIFNAME) => name(!is_request),
        Some(NFT_META_NFPROTO) => known(&[packet.family]),
        Some(NFT_META_L4PROTO) => known(&[TCP]),
        // PACKET_HOST
        Some(NFT_META_PKTTYPE) if is_request => known(&[0]),
        _ => unknown(16),
    }
}

/// Returns a property of the packet's connection (`enum nft_ct_keys`).
pub(super) fn tracked(packet: &HookPacket<'_>, key: Option<u32>) -> Vec<Bits> {
    match (key, packet.state) {
        (Some(NFT_CT_STATE), Some(state)) => known(&state.to_ne_bytes()),
        (Some(NFT_CT_DIRECTION), Some(state @ (NEW | ESTABLISHED))) => {
            known(&[u8::from(state == ESTABLISHED)])
        }
        // Neither expected, nor answered, nor confirmed, nor translated (see `nat_exemption`).
        (Some(NFT_CT_STATUS), Some(NEW)) => [known(&[0]), unknown(3)].concat(),
        _ => unknown(16),
    }
}

/// Returns the result of a lookup in the routing tables.
pub(super) fn fib(packet: &HookPacket<'_>, result: Option<u32>, flags: u32) -> Vec<Bits> {
    let of_source = flags & NFTA_FIB_F_SADDR != 0;
    let is_way_back = packet.has_way_back() && of_source;
    let is_local = (packet.direction == FlowDirection::Request) != of_source;
    let at_interface = flags & (NFTA_FIB_F_IIF | NFTA_FIB_F_OIF) != 0;
    match (result, packet.flow.origin) {
        (Some(NFT_FIB_RESULT_OIF | NFT_FIB_RESULT_OIFNAME), _)
            if is_way_back && flags & NFTA_FIB_F_PRESENT != 0 =>
        {
            known(&[1])
        }
        (Some(NFT_FIB_RESULT_OIF), _) if is_way_back => meta(packet, Some(NFT_META_IIF)),
        (Some(NFT_FIB_RESULT_OIFNAME), _) if is_way_back => meta(packet, Some(NFT_META_IIFNAME)),
        (Some(NFT_FIB_RESULT_ADDRTYPE), _) if !at_interface => known(&xtables::kind(is_local).to_ne_bytes()),
        // The VIP is on `lo`, so at the interface of a pod, it is an address like any other.
        (Some(NFT_FIB_RESULT_ADDRTYPE), FlowOrigin::Pods) if is_local && packet.family == super::IPV4 => {
            known(&xtables::kind(false).to_ne_bytes())
        }
        _ => unknown(16),
    }
}
