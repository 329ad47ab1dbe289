//! Map keys and values. The `const` assertions fix sizes at compile time, on both sides.

/// A pod's or node's IPv4 address, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Address4 {
    /// The four octets.
    pub address: [u8; 4],
}

/// A pod's or node's IPv6 address, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Address6 {
    /// The sixteen octets.
    pub address: [u8; 16],
}

/// A pod's permit to talk to LOTA at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Access {
    /// The only interface this address may send from; a pod cannot borrow its neighbour's address.
    pub ifindex: u32,
}

/// A node of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Node {
    /// 1 for this node's own addresses, 0 for a peer's.
    pub own: u32,
}

/// What the programs need to know about this node. Ports are big-endian; an all-zero VIP matches nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// The virtual IPv4 address that `cwlota.com` resolves to.
    pub vip4: [u8; 4],
    /// The virtual IPv6 address, or zeros.
    pub vip6: [u8; 16],
    /// The steered port, 80.
    pub http_port: [u8; 2],
    /// The DNS responder's port on the VIP, 53.
    pub dns_port: [u8; 2],
    /// The port that nodes talk to each other on.
    pub peer_port: [u8; 2],
    /// The port of metrics and health.
    pub admin_port: [u8; 2],
}

/// How often a verdict was given, on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, link-layer header included; counted at TC only.
    pub bytes: u64,
}

const _: () = {
    assert!(size_of::<Address4>() == 4 && align_of::<Address4>() == 1);
    assert!(size_of::<Address6>() == 16 && align_of::<Address6>() == 1);
    assert!(size_of::<Access>() == 4);
    assert!(size_of::<Node>() == 4);
    assert!(size_of::<Settings>() == 4 + 16 + 4 * 2 && align_of::<Settings>() == 1);
    assert!(size_of::<Count>() == 16);
};

#[cfg(feature = "user")]
mod pod {
    use super::{Access, Address4, Address6, Count, Node, Settings};

    // SAFETY: `repr(C)`, no padding (asserted above), every bit pattern valid.
    unsafe impl aya::Pod for Address4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Address6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Access {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Node {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Count {}
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    /// The layout operators and older daemons rely on; a change here needs a new `LAYOUT`.
    #[test]
    fn settings_fields_stay_where_they_are() {
        assert_eq!(offset_of!(Settings, vip4), 0);
        assert_eq!(offset_of!(Settings, vip6), 4);
        assert_eq!(offset_of!(Settings, http_port), 20);
        assert_eq!(offset_of!(Settings, dns_port), 22);
        assert_eq!(offset_of!(Settings, peer_port), 24);
        assert_eq!(offset_of!(Settings, admin_port), 26);
    }

    #[test]
    fn counts_are_two_words() {
        assert_eq!(offset_of!(Count, packets), 0);
        assert_eq!(offset_of!(Count, bytes), 8);
    }

    #[test]
    fn map_names_survive_the_kernels_fifteen_characters() {
        use crate::map;
        for name in [
            map::ACCESS4,
            map::ACCESS6,
            map::NODES4,
            map::NODES6,
            map::SETTINGS,
            map::LISTENERS,
            map::VERDICTS,
        ] {
            assert!(name.len() <= 15, "{name}");
        }
    }
}
