//! Maps that say which pod has an address or a cgroup, and which cgroup sent a packet.

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    helpers::bpf_skb_ancestor_cgroup_id,
    macros::btf_map,
    programs::TcContext,
};
use lota_common::{Address4, Address6, LocalConnection, MAX_PODS, RawHolder, RawIdentity, RawPod};
use lota_ebpf::{
    packet::Ports,
    sender::{Sender, SendingPod},
};

use crate::maps::{self, AddressMaps, ON_DEMAND};

#[btf_map(name = "lota_cgroups")]
static CGROUPS: HashMap<u64, RawPod, MAX_PODS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_holders4")]
static HOLDERS4: HashMap<Address4, RawHolder, MAX_PODS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_holders6")]
static HOLDERS6: HashMap<Address6, RawHolder, MAX_PODS, ON_DEMAND> = HashMap::new();
#[btf_map(name = "lota_identity")]
static IDENTITY: Array<RawIdentity, 1> = Array::new();

/// The socket that sent a packet.
pub(crate) struct SkbSender<'a>(pub(crate) &'a TcContext);

impl Sender for SkbSender<'_> {
    #[inline(always)]
    fn ancestor(&self, level: u32) -> u64 {
        // SAFETY: the context the kernel called us with.
        unsafe { bpf_skb_ancestor_cgroup_id(self.0.skb.skb, level.cast_signed()) }
    }

    #[inline(always)]
    fn pod(&self, cgroup: u64) -> Option<SendingPod> {
        // SAFETY: two fields are copied; a slot that is reused meanwhile holds another valid entry.
        let pod = unsafe { CGROUPS.get(cgroup) }?;
        Some(SendingPod { allowed: pod.allow == 1, forwards: pod.forwards == 1 })
    }
}

/// Lookups of the pod that has an address of one family.
pub(crate) trait HeldAddress: AddressMaps {
    /// Returns ID and level of the cgroup of the pod that has the address.
    fn holder(self) -> Option<(u64, u32)>;

    /// Returns the connection of this address with these ports.
    fn connection(self, ports: Ports) -> LocalConnection;

    /// Returns whether this address and port are a target.
    fn is_target(self, port: u16) -> bool;
}

impl HeldAddress for [u8; 4] {
    #[inline(always)]
    fn holder(self) -> Option<(u64, u32)> {
        // SAFETY: as above.
        unsafe { HOLDERS4.get(Address4 { address: self }) }.map(|holder| (holder.cgroup, holder.level))
    }

    #[inline(always)]
    fn connection(self, ports: Ports) -> LocalConnection {
        let [a, b, c, d] = self;
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d].connection(ports)
    }

    #[inline(always)]
    fn is_target(self, port: u16) -> bool {
        maps::stand_in(self, port).is_some()
    }
}

impl HeldAddress for [u8; 16] {
    #[inline(always)]
    fn holder(self) -> Option<(u64, u32)> {
        // SAFETY: as above.
        unsafe { HOLDERS6.get(Address6 { address: self }) }.map(|holder| (holder.cgroup, holder.level))
    }

    #[inline(always)]
    fn connection(self, ports: Ports) -> LocalConnection {
        LocalConnection {
            address: Address6 { address: self },
            port: ports.source,
            vip_port: ports.destination,
        }
    }

    #[inline(always)]
    fn is_target(self, _port: u16) -> bool {
        false
    }
}

/// Returns the settings of the identification by cgroup.
#[inline(always)]
pub(crate) fn identity() -> RawIdentity {
    IDENTITY.get(0).copied().unwrap_or_default()
}
