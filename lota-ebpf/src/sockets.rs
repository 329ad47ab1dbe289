//! The node's sockets of connections.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp},
};
use lota_ebpf::packet::Packet;

use crate::maps::AddressMaps;

/// `BPF_F_CURRENT_NETNS`: look for sockets in the network namespace of the interface.
const CURRENT_NETNS: u64 = u64::MAX;
/// Socket states (`include/net/tcp_states.h`).
pub(crate) const TIME_WAIT: u32 = 6;
const LISTEN: u32 = 10;

/// `struct bpf_sock_tuple` of one family.
#[repr(C, packed)]
struct Tuple<A> {
    source: A,
    destination: A,
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

/// Returns whether the segment belongs to an existing connection.
#[inline(always)]
pub(crate) fn has_connection<A: AddressMaps>(skb: *mut __sk_buff, packet: &Packet<A>) -> bool {
    // A SYN on a tuple in TIME_WAIT must reach the listener: the waiting socket would drop it, and the client would
    // have to retry.
    connection(skb, packet).is_some_and(|state| state != TIME_WAIT || !packet.payload.flags.opens())
}

/// Returns the state of the socket of the segment's connection.
#[inline(always)]
pub(crate) fn connection<A: AddressMaps>(skb: *mut __sk_buff, packet: &Packet<A>) -> Option<u32> {
    let mut tuple = Tuple {
        source: packet.source,
        destination: packet.destination,
        source_port: packet.payload.ports.source,
        destination_port: packet.payload.ports.destination,
    };
    let size = size_of::<Tuple<A>>() as u32;
    // SAFETY: the tuple is on the stack and has `size` bytes; every socket found is released.
    unsafe {
        let socket = bpf_skc_lookup_tcp(skb.cast(), (&raw mut tuple).cast(), size, CURRENT_NETNS, 0);
        if socket.is_null() {
            return None;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        (state != LISTEN).then_some(state)
    }
}
