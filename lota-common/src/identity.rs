//! Layout of the maps that identify senders by the cgroup of their sockets.

use crate::Address6;

/// Bytes for `namespace/name` of a pod, of at most 63 and 253 characters, and a zero.
pub const MAX_POD_NAME: usize = 320;
/// Bytes for the UID of a pod and a zero.
pub const MAX_UID: usize = 40;

/// Text that ends with a zero. `bpftool` shows arrays of `i8` as text, since the build names that type `char`.
pub type Text<const N: usize> = [i8; N];

/// A pod, by the ID of its cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawPod {
    /// 1: the access rules select the pod. Decides about pods on the host network only; others have addresses.
    pub allow: u32,
    /// Number of the [`Source`](crate::Source) of the entry.
    pub source: u32,
    /// 1: the pod may send packets with addresses of other pods.
    pub forwards: u32,
    /// `namespace/name`.
    pub pod: Text<MAX_POD_NAME>,
    /// UID.
    pub uid: Text<MAX_UID>,
}

/// The pod that has an address, as Kubernetes reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawHolder {
    /// ID of the pod's cgroup; 0 if it is not known.
    pub cgroup: u64,
    /// Level of the pod's cgroup in the hierarchy; the root has level 0.
    pub level: u32,
    /// Number of the [`Source`](crate::Source) of the entry.
    pub source: u32,
    /// `namespace/name`.
    pub pod: Text<MAX_POD_NAME>,
    /// UID.
    pub uid: Text<MAX_UID>,
}

/// Settings of the identification by cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RawIdentity {
    /// IDs of the cgroups with all pods, one level above the first of `levels`; 0 for none.
    pub kubepods: [u64; 2],
    /// Levels of the hierarchy that have cgroups of pods; 0 for none.
    pub levels: [u32; 2],
    /// [`RawIdentity::BY_ADDRESS`], [`RawIdentity::PODS`] or [`RawIdentity::PROCESSES`].
    pub local: u32,
    /// 1: a packet that opens a connection must have the socket of a sender, if the cgroup of the pod with its source
    /// address is known.
    pub strict: u32,
}

impl RawIdentity {
    /// Processes in the node's own network namespace have access by the address that they send from.
    pub const BY_ADDRESS: u32 = 0;
    /// Of the processes in the node's own network namespace, those of allowed pods have access, with the VIP as source.
    pub const PODS: u32 = 1;
    /// Also those of no known pod, by the address that they send from.
    pub const PROCESSES: u32 = 2;
}

/// Connection of a client in the node's own network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct LocalConnection {
    /// The client's address; an IPv4 address in its IPv6 form (`::ffff:a.b.c.d`).
    pub address: Address6,
    /// The client's port, as on the wire.
    pub port: [u8; 2],
    /// The port of the VIP, as on the wire.
    pub vip_port: [u8; 2],
}

/// Admission of the connection that a local client opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawAdmission {
    /// Time in nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub at_ns: u64,
    /// 1: the packet has arrived; another one needs an admission of its own.
    pub arrived: u64,
}

/// Validity of an admission, in nanoseconds: one second. A packet passes `lo` within microseconds.
pub const ADMISSION_NS: u64 = 1_000_000_000;

const _: () = {
    assert!(size_of::<RawPod>() == 12 + MAX_POD_NAME + MAX_UID);
    assert!(size_of::<RawHolder>() == 16 + MAX_POD_NAME + MAX_UID);
    assert!(size_of::<RawIdentity>() == 32);
    assert!(size_of::<LocalConnection>() == 20 && align_of::<LocalConnection>() == 1);
    assert!(size_of::<RawAdmission>() == 16);
};

/// Returns a text, cut off where it does not fit.
#[must_use]
pub fn text<const N: usize>(from: &str) -> Text<N> {
    let mut text = [0; N];
    for (to, from) in text.iter_mut().take(N - 1).zip(from.bytes()) {
        *to = from.cast_signed();
    }
    text
}

#[cfg(feature = "user")]
mod pod {
    use super::{LocalConnection, RawAdmission, RawHolder, RawIdentity, RawPod};

    // SAFETY: `repr(C)`, no padding (asserted above), every bit pattern valid.
    unsafe impl aya::Pod for RawPod {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RawHolder {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RawIdentity {}
    // SAFETY: as above.
    unsafe impl aya::Pod for LocalConnection {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RawAdmission {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_end_with_a_zero() {
        assert_eq!(text::<4>("ab"), [97, 98, 0, 0]);
        assert_eq!(text::<4>("abcdef"), [97, 98, 99, 0]);
        assert_eq!(text::<4>(""), [0; 4]);
    }
}
