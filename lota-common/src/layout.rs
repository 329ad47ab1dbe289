//! Map keys and values. The `const` assertions verify their sizes at compile time, on both sides.

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

/// Access rule of all addresses of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawAccess {
    /// 1: access is allowed. Any other value: denied.
    pub allow: u32,
    /// Index of the only interface from which the address may send, so that a pod cannot use another pod's address; 0
    /// allows any interface.
    pub ifindex: u32,
    /// Number of the [`Source`](crate::Source) of the entry.
    pub source: u32,
}

impl RawAccess {
    /// Returns whether packets from the interface with this index are allowed.
    #[inline(always)]
    #[must_use]
    pub const fn admits(&self, ifindex: u32) -> bool {
        self.allow == 1 && (self.ifindex == 0 || self.ifindex == ifindex)
    }
}

/// Access entry of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RawAddressAccess {
    /// As in [`RawAccess`].
    pub allow: u32,
    /// As in [`RawAccess`].
    pub ifindex: u32,
    /// As in [`RawAccess`].
    pub source: u32,
    /// Level, in the hierarchy, of the cgroup below.
    pub level: u16,
    /// 1: Kubernetes reports a pod with this address.
    pub held: u16,
    /// ID of that pod's cgroup; 0 if it is not known.
    pub cgroup: u64,
    /// Index of the only port of a bridge from which the address may send, if `ifindex` is that bridge; 0 allows any port.
    pub port: u32,
    /// Zero.
    pub padding: u32,
}

impl RawAddressAccess {
    /// Returns whether packets from this port of a bridge are those of another pod.
    #[inline(always)]
    #[must_use]
    pub const fn is_behind_another_port(&self, port: u32) -> bool {
        self.port != 0 && self.port != port
    }

    /// Returns whether packets from the interface with this index are allowed.
    #[inline(always)]
    #[must_use]
    pub const fn admits(&self, ifindex: u32) -> bool {
        let Self { allow, ifindex: own, source, .. } = *self;
        RawAccess { allow, ifindex: own, source }.admits(ifindex)
    }
}

/// Access entry that a CPU read recently, so that most packets need no lookup in a hash map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RecentAccess {
    /// [`Settings::epoch`] before it was read; 0 in an unused slot.
    pub epoch: u64,
    /// The address of the entry.
    pub address: Address4,
    /// Zero. Programs make the key of the entry depend on it and on the epoch, so that they read the entry after the epoch.
    pub padding: u32,
    /// The entry.
    pub access: RawAddressAccess,
}

/// Refusals of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Denial {
    /// Number of refused packets.
    pub count: u64,
    /// Time of the last one, in nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub last_ns: u64,
    /// Index of the interface from which the last one came.
    pub ifindex: u32,
    /// Number of the [`Verdict`](crate::Verdict) on the last one.
    pub verdict: u32,
}

/// Number of addresses that were refused at an interface for the first time, in the current minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct NewDenials {
    /// Start of the minute, in nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub since_ns: u64,
    /// Number of addresses since then.
    pub count: u64,
}

/// Attempts of an allowed pod to open connections to the VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawAttempts {
    /// Number of SYNs that were left to the network stack.
    pub count: u64,
    /// Index of the interface from which the last one came.
    pub ifindex: u32,
    /// Zero.
    pub padding: u32,
}

/// An interface on which packets from pods arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawInterface {
    /// [`RawInterface::BY_TC`] or [`RawInterface::BY_LOOKUP`].
    pub redirected: u32,
    /// 1: connections to targets are intercepted; a program at egress restores the addresses of replies.
    pub intercepts: u32,
    /// 1: packets of pods have the sockets that sent them, unlike at a bridge.
    pub has_senders: u32,
}

impl RawInterface {
    /// A TC program redirects; socket lookup redirects packets that the TC program left to the stack.
    pub const BY_TC: u32 = 1;
    /// Socket lookup redirects all packets.
    pub const BY_LOOKUP: u32 = 2;
}

/// A node of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawNode {
    /// 1 for this node's own addresses, 0 for a peer's.
    pub own: u32,
}

/// Settings of the programs on this node. Ports are numbers; an all-zero VIP matches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// The IPv4 VIP, to which the endpoint's names resolve.
    pub vip4: [u8; 4],
    /// The IPv6 VIP, or zeros.
    pub vip6: [u8; 16],
    /// TCP ports of the VIP that are redirected to the daemon; zeros behind them.
    pub ports: [u16; MAX_PORTS],
    /// The port of the DNS responder on the VIP, 53.
    pub dns_port: u16,
    /// The port for connections between nodes.
    pub peer_port: u16,
    /// The port of metrics and health.
    pub admin_port: u16,
    /// Length in bytes of the longest name in the map of names, in wire format; 0 if there are none.
    pub longest_name: u8,
    /// 1: pods' DNS queries for the endpoint's names are answered in the datapath.
    pub answer_dns: u8,
    /// 1: addresses without an entry or rule have access.
    pub default_allow: u8,
    /// 1: socket lookup redirects, too (kernel 5.17).
    pub lookups: u8,
    /// Number of entries in the map of targets.
    pub targets: u16,
    /// Number of the state of the access entries. Every write of the settings raises it, and one follows every change of
    /// access entries: programs use a [`RecentAccess`] only in the state in which they read it.
    pub epoch: u64,
}

impl Settings {
    /// Returns whether connections to this TCP port of the VIP are redirected.
    #[inline(always)]
    #[must_use]
    pub fn redirects(&self, port: u16) -> bool {
        // A product is zero if one of its factors is; four of 16 bits do not overflow. One comparison per port would have
        // the verifier follow a path for each.
        let [a, b, c, d, e, f, g, h] = self.ports.map(|redirected| u64::from(redirected ^ port));
        (a * b * c * d == 0 || e * f * g * h == 0) && port != 0
    }

    /// Returns whether this TCP port of the VIP may stand for a target.
    #[inline(always)]
    #[must_use]
    pub fn is_stand_in(&self, port: u16) -> bool {
        self.targets != 0 && port >= FIRST_STAND_IN
    }
}

/// An address and TCP port at which connections of pods are intercepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RawTarget {
    /// The address; zeros in an unused entry of the map of stand-ins.
    pub address: [u8; 4],
    /// The port.
    pub port: u16,
    /// Always 0.
    pub reserved: u16,
}

/// Port of the VIP that stands for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct StandIn {
    /// At least [`FIRST_STAND_IN`].
    pub port: u16,
    /// 1: new connections are not intercepted any more.
    pub former: u16,
}

/// A domain name as the key of the map of names: in wire format (RFC 1035, section 3.1), in lower case, from the last
/// byte to the first, so that the names under it begin with its key; zeros behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct NameKey {
    /// The bytes.
    pub reversed: [u8; MAX_NAME],
}

/// A name of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawName {
    /// The name in text form, in lower case, for people; zeros behind it. (bpftool shows it as text.)
    pub name: [i8; MAX_NAME],
    /// Length in wire format, in bytes.
    pub length: u32,
    /// [`RawName::OWN`] or [`RawName::INTERCEPTED`].
    pub kind: u32,
    /// 1: queries are answered only while the daemon lives, with a TTL that is accordingly short.
    pub needs_daemon: u32,
}

impl RawName {
    /// A name of LOTA's own.
    pub const OWN: u32 = 1;
    /// A name of the gateway, which also works without LOTA.
    pub const INTERCEPTED: u32 = 2;
}

/// Sign of life of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Heartbeat {
    /// Time of the last one, in nanoseconds since boot (`CLOCK_BOOTTIME`); 0 if the daemon does not serve.
    pub at_ns: u64,
}

impl Heartbeat {
    /// Maximum age of the last heartbeat of a daemon that lives, in nanoseconds: three seconds.
    pub const LIMIT_NS: u64 = 3_000_000_000;

    /// Returns whether the daemon lives at `now_ns`.
    #[inline(always)]
    #[must_use]
    pub const fn is_recent(&self, now_ns: u64) -> bool {
        self.at_ns != 0 && now_ns.saturating_sub(self.at_ns) < Self::LIMIT_NS
    }
}

/// Maximum length of an endpoint's name in wire format, in bytes.
pub const MAX_NAME: usize = 128;
/// Maximum number of redirected ports of the VIP.
pub const MAX_PORTS: usize = 8;
/// Maximum number of targets.
pub const MAX_TARGETS: usize = 64;
/// First port of the VIP that can stand for a target; the last one is 65535.
pub const FIRST_STAND_IN: u16 = u16::MAX - 63;
const _: () = assert!(u16::MAX as usize - FIRST_STAND_IN as usize + 1 == MAX_TARGETS);

/// Counter of a verdict on one CPU.
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
    assert!(size_of::<RawAccess>() == 12);
    assert!(size_of::<RawAddressAccess>() == 32);
    assert!(size_of::<Denial>() == 24);
    assert!(size_of::<NewDenials>() == 16);
    assert!(size_of::<RawAttempts>() == 16);
    assert!(size_of::<RawInterface>() == 12);
    assert!(size_of::<RawNode>() == 4);
    assert!(size_of::<RecentAccess>() == 48);
    assert!(size_of::<Settings>() == 4 + 16 + 2 * MAX_PORTS + 3 * 2 + 4 + 2 + 8);
    assert!(size_of::<RawTarget>() == 8 && size_of::<StandIn>() == 4);
    assert!(size_of::<NameKey>() == MAX_NAME && align_of::<NameKey>() == 1);
    assert!(size_of::<RawName>() == MAX_NAME + 3 * 4);
    assert!(size_of::<Heartbeat>() == 8);
    assert!(size_of::<Count>() == 16);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        Address4, Address6, Count, Denial, Heartbeat, NameKey, NewDenials, RawAccess, RawAddressAccess,
        RawAttempts, RawInterface, RawName, RawNode, RawTarget, RecentAccess, Settings, StandIn,
    };

    // SAFETY: `repr(C)`, no padding (asserted above), every bit pattern valid.
    unsafe impl aya::Pod for Address4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Address6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RawAccess {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RawAddressAccess {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RecentAccess {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Denial {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NewDenials {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RawAttempts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RawInterface {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RawNode {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Count {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NameKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RawName {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Heartbeat {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RawTarget {}
    // SAFETY: as above.
    unsafe impl aya::Pod for StandIn {}
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    /// Operators and older daemons rely on this layout; a change requires a new `LAYOUT`.
    #[test]
    fn offsets_of_settings_are_stable() {
        assert_eq!(offset_of!(Settings, vip4), 0);
        assert_eq!(offset_of!(Settings, vip6), 4);
        assert_eq!(offset_of!(Settings, ports), 20);
        assert_eq!(offset_of!(Settings, dns_port), 36);
        assert_eq!(offset_of!(Settings, peer_port), 38);
        assert_eq!(offset_of!(Settings, admin_port), 40);
        assert_eq!(offset_of!(Settings, longest_name), 42);
        assert_eq!(offset_of!(Settings, answer_dns), 43);
        assert_eq!(offset_of!(Settings, default_allow), 44);
        assert_eq!(offset_of!(Settings, lookups), 45);
        assert_eq!(offset_of!(Settings, targets), 46);
        assert_eq!(offset_of!(Settings, epoch), 48);
    }

    #[test]
    fn a_heartbeat_is_recent_for_three_seconds() {
        let beat = Heartbeat { at_ns: 10_000_000_000 };
        assert!(beat.is_recent(10_000_000_000) && beat.is_recent(12_999_999_999));
        assert!(!beat.is_recent(13_000_000_000) && !beat.is_recent(u64::MAX));
        // Another CPU's clock may be slightly behind.
        assert!(beat.is_recent(9_999_999_000));
        assert!(!Heartbeat { at_ns: 0 }.is_recent(0));
    }

    #[test]
    fn access_is_bound_to_one_interface_or_any() {
        let access = |allow, ifindex| RawAddressAccess { allow, ifindex, ..RawAddressAccess::default() };
        assert!(access(1, 7).admits(7) && access(1, 0).admits(7));
        assert!(!access(1, 7).admits(8) && !access(0, 0).admits(7) && !access(2, 0).admits(7));
    }

    #[test]
    fn access_is_bound_to_one_port_of_a_bridge_or_any() {
        let access = |port| RawAddressAccess { port, ..RawAddressAccess::default() };
        assert!(access(7).is_behind_another_port(8));
        assert!(!access(7).is_behind_another_port(7) && !access(0).is_behind_another_port(7));
    }

    #[test]
    fn counts_are_two_words() {
        assert_eq!(offset_of!(Count, packets), 0);
        assert_eq!(offset_of!(Count, bytes), 8);
    }

    #[test]
    fn map_names_fit_into_fifteen_characters() {
        use crate::map;
        for name in map::ALL {
            assert!(name.len() <= 15, "{name}");
        }
    }
}
