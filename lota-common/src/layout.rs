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

/// May an address, or all addresses of a prefix, talk to LOTA at all?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Access {
    /// 1: yes. Anything else: no.
    pub allow: u32,
    /// The only interface the address may send from, so that a pod cannot borrow its neighbour's address; 0 is
    /// any.
    pub ifindex: u32,
    /// Who says so: the number of a [`Source`](crate::Source).
    pub source: u32,
}

impl Access {
    /// Is this a yes to packets from the interface of this index?
    #[inline(always)]
    #[must_use]
    pub const fn admits(&self, ifindex: u32) -> bool {
        self.allow == 1 && (self.ifindex == 0 || self.ifindex == ifindex)
    }
}

/// An address's last refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Denial {
    /// Refused packets so far.
    pub count: u64,
    /// When the last one came, in nanoseconds since the machine started (`CLOCK_BOOTTIME`).
    pub last_ns: u64,
    /// The interface it came from.
    pub ifindex: u32,
    /// What was decided about it: the number of a [`Verdict`](crate::Verdict).
    pub verdict: u32,
}

/// An interface that packets from pods come in at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Interface {
    /// [`Interface::BY_TC`] or [`Interface::BY_LOOKUP`].
    pub steered: u32,
}

impl Interface {
    /// A TC program on it steers; at socket lookup, what that one had to leave to the stack.
    pub const BY_TC: u32 = 1;
    /// Socket lookup steers everything.
    pub const BY_LOOKUP: u32 = 2;
}

/// A node of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Node {
    /// 1 for this node's own addresses, 0 for a peer's.
    pub own: u32,
}

/// What the programs need to know about this node. Ports are big-endian; an all-zero VIP matches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// The DNS zone in wire format (RFC 1035, section 3.1), in lower case, at the end of this field; zeros before
    /// it.
    pub zone: [u8; MAX_ZONE],
    /// Its length, final zero included.
    pub zone_length: u8,
    /// 1: pods' name queries for the zone are answered in the datapath.
    pub answer_names: u8,
    /// 1: addresses that nothing is said about have access.
    pub default_allow: u8,
    /// 1: socket lookup steers, too (kernel 5.17).
    pub lookups: u8,
}

/// Longest zone that fits, in wire format.
pub const MAX_ZONE: usize = 64;

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
    assert!(size_of::<Access>() == 12);
    assert!(size_of::<Denial>() == 24);
    assert!(size_of::<Interface>() == 4);
    assert!(size_of::<Node>() == 4);
    assert!(size_of::<Settings>() == 4 + 16 + 4 * 2 + MAX_ZONE + 4 && align_of::<Settings>() == 1);
    assert!(size_of::<Count>() == 16);
};

#[cfg(feature = "user")]
mod pod {
    use super::{Access, Address4, Address6, Count, Denial, Interface, Node, Settings};

    // SAFETY: `repr(C)`, no padding (asserted above), every bit pattern valid.
    unsafe impl aya::Pod for Address4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Address6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Access {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Denial {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Interface {}
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
        assert_eq!(offset_of!(Settings, zone), 28);
        assert_eq!(offset_of!(Settings, zone_length), 92);
        assert_eq!(offset_of!(Settings, answer_names), 93);
        assert_eq!(offset_of!(Settings, default_allow), 94);
        assert_eq!(offset_of!(Settings, lookups), 95);
    }

    #[test]
    fn access_is_for_one_interface_or_any() {
        let access = |allow, ifindex| Access { allow, ifindex, source: 1 };
        assert!(access(1, 7).admits(7) && access(1, 0).admits(7));
        assert!(!access(1, 7).admits(8) && !access(0, 0).admits(7) && !access(2, 0).admits(7));
    }

    #[test]
    fn counts_are_two_words() {
        assert_eq!(offset_of!(Count, packets), 0);
        assert_eq!(offset_of!(Count, bytes), 8);
    }

    #[test]
    fn map_names_survive_the_kernels_fifteen_characters() {
        use crate::map;
        for name in map::ALL {
            assert!(name.len() <= 15, "{name}");
        }
    }
}
