//! Decisions by the cgroup of the socket that sent a packet. Pure; the kernel's answers come from [`Sender`].

use lota_common::RawIdentity;

/// A known pod that sends packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendingPod {
    /// Whether the access rules select the pod.
    pub allowed: bool,
    /// Whether the pod may send packets with addresses of other pods.
    pub forwards: bool,
}

/// The sender of a packet.
pub trait Sender {
    /// Returns the ID of the ancestor at this level of the cgroup of the packet's socket; 0 if there is none.
    fn ancestor(&self, level: u32) -> u64;

    /// Returns the pod with this cgroup, if it is known.
    fn pod(&self, cgroup: u64) -> Option<SendingPod>;
}

/// Sender of a packet according to the cgroup of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenderOrigin {
    /// A known pod.
    Pod(SendingPod),
    /// A pod that is not known, or not yet.
    UnknownPod,
    /// No pod, or there is no socket.
    Other,
}

/// Returns what sent a packet.
#[inline(always)]
pub fn origin(sender: &impl Sender, identity: &RawIdentity) -> SenderOrigin {
    let ancestor = |level: u32| if level == 0 { 0 } else { sender.ancestor(level) };
    let pod = |level: u32| match ancestor(level) {
        0 => None,
        cgroup => sender.pod(cgroup),
    };
    let [first, second] = identity.levels;
    if let Some(pod) = pod(first).or_else(|| pod(second)) {
        return SenderOrigin::Pod(pod);
    }
    let [one, other] = identity.kubepods;
    match ancestor(first.saturating_sub(1)) {
        0 => SenderOrigin::Other,
        above if above == one || above == other => SenderOrigin::UnknownPod,
        _ => SenderOrigin::Other,
    }
}

/// Returns whether a packet is from a pod that may send packets with addresses of other pods.
#[inline(always)]
pub fn forwards(sender: &impl Sender, identity: &RawIdentity) -> bool {
    matches!(origin(sender, identity), SenderOrigin::Pod(SendingPod { forwards: true, .. }))
}

/// Returns whether a packet is from a pod that may not use its source address. `cgroup` and `level` are those of the pod
/// that has the address. If they are zeros, its cgroup is not known, and a pod that is not known may be that pod.
/// `has_sender` returns whether such a packet has the socket that sent it, as far as pods let it.
#[inline(always)]
pub fn is_spoofed(
    sender: &impl Sender,
    cgroup: u64,
    level: u32,
    identity: impl FnOnce() -> RawIdentity,
    has_sender: impl FnOnce() -> bool,
) -> bool {
    if cgroup != 0 && sender.ancestor(level) == cgroup {
        return false;
    }
    let identity = identity();
    match origin(sender, &identity) {
        SenderOrigin::Pod(pod) => !pod.forwards,
        SenderOrigin::UnknownPod => cgroup != 0,
        // A pod can send a packet without its socket: by a packet socket at its own `lo`, from which it is forwarded.
        SenderOrigin::Other => identity.strict == 1 && cgroup != 0 && has_sender() && sender.ancestor(0) == 0,
    }
}

/// Evidence about a process in the node's own network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalSender {
    /// Sender according to its cgroup.
    pub origin: SenderOrigin,
    /// Whether it sends from the VIP.
    pub is_vip: bool,
    /// Whether an entry denies the address that it sends from.
    pub is_denied: bool,
    /// Whether that address has access.
    pub has_access: bool,
    /// Whether pods that no rule selects have access.
    pub default_allow: bool,
}

/// Returns whether a process in the node's own network namespace has access. `local` is one of the constants of
/// [`RawIdentity`].
#[inline(always)]
#[must_use]
pub fn admits(local: u32, sender: LocalSender) -> bool {
    match sender.origin {
        _ if local == RawIdentity::BY_ADDRESS => sender.has_access,
        SenderOrigin::Pod(pod) => (pod.allowed || sender.default_allow) && sender.is_vip && !sender.is_denied,
        SenderOrigin::UnknownPod => false,
        SenderOrigin::Other => local == RawIdentity::PROCESSES && sender.has_access,
    }
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
