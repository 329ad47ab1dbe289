//! Frames, as the kernel side reads them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lota_ebpf::packet::{
    Address, Bytes, Network, Packet, PacketKind, network, parse_plain_v4, parse_v4, parse_v6,
};

/// Loads that end at the frame's end, as the kernel's do.
struct Frame<'a>(&'a [u8]);

impl Bytes for Frame<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }
}

fuzz_target!(|bytes: &[u8]| {
    let frame = Frame(bytes);
    let (kind, at) = network(&frame);
    match kind {
        Network::V4 => sound(parse_v4(&frame, at), bytes),
        Network::V6 => sound(parse_v6(&frame, at), bytes),
        _ => {}
    }
    if let Some(plain) = parse_plain_v4(&frame) {
        // The short way and the long one must not disagree about who sends what to whom.
        assert_eq!(parse_v4(&frame, at), Some(plain));
    }
});

fn sound<A: Address>(packet: Option<Packet<A>>, bytes: &[u8]) {
    if let Some(packet) = packet {
        assert!(packet.network < bytes.len());
        assert!(packet.payload.kind == PacketKind::Opaque || packet.transport > packet.network);
    }
}
