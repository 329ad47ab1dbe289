use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// IDs of the cgroups of a socket, from the root on, and known pods.
struct Model {
    path: Vec<u64>,
    pods: BTreeMap<u64, SendingPod>,
}

impl Sender for Model {
    fn ancestor(&self, level: u32) -> u64 {
        self.path.get(level as usize).copied().unwrap_or(0)
    }

    fn pod(&self, cgroup: u64) -> Option<SendingPod> {
        self.pods.get(&cgroup).copied()
    }
}

const POD: SendingPod = SendingPod { allowed: true, forwards: false };
const FORWARDER: SendingPod = SendingPod { allowed: false, forwards: true };
/// Cgroups as kubelet makes them: `kubepods` is 2 and `kubepods/burstable` 3. Pods are at levels 2 and 3.
const IDENTITY: RawIdentity = RawIdentity { kubepods: [2, 0], levels: [2, 3], local: 0, strict: 0 };

fn sender(path: &[u64]) -> Model {
    let pods = [(20, POD), (21, POD), (30, POD), (31, FORWARDER)];
    Model { path: path.to_owned(), pods: pods.into() }
}

#[test]
fn only_the_holder_and_forwarders_may_use_an_address() {
    for (path, holder, spoofed, why) in [
        (&[1, 2, 20, 99][..], (20, 2), false, "the holder"),
        (&[1, 2, 3, 30, 99], (30, 3), false, "the holder, of another class"),
        (&[1, 2, 20], (20, 2), false, "the holder's own cgroup"),
        (&[1, 2, 21, 99], (20, 2), true, "another pod"),
        (&[1, 2, 3, 30, 99], (20, 2), true, "another pod, of another class"),
        (&[1, 2, 20, 99], (30, 3), true, "another pod, of another class"),
        (&[1, 2, 3, 31, 99], (20, 2), false, "a forwarder"),
        (&[], (20, 2), false, "no socket"),
        (&[1], (20, 2), false, "a socket of the kernel"),
        (&[1, 5, 6], (20, 2), false, "a process of the node"),
        (&[1, 2, 29, 99], (20, 2), true, "an unknown pod"),
        (&[1, 2, 3, 39, 99], (20, 2), true, "an unknown pod, of another class"),
        (&[1, 9, 20, 99], (21, 2), true, "a known pod, whatever is above it"),
        (&[1, 2, 20, 99], (0, 0), true, "a holder without a known cgroup"),
        (&[1, 2, 29, 99], (0, 0), false, "a holder without a known cgroup, and an unknown pod"),
    ] {
        let is_spoofed = |identity: RawIdentity, has_sender| {
            is_spoofed(&sender(path), holder.0, holder.1, || identity, || has_sender)
        };
        assert_eq!(is_spoofed(IDENTITY, true), spoofed, "{why}");
        let strict = RawIdentity { strict: 1, ..IDENTITY };
        assert_eq!(is_spoofed(strict, true), spoofed || path.is_empty(), "strictly: {why}");
        assert_eq!(is_spoofed(strict, false), spoofed, "a packet that may have lost its socket: {why}");
        assert!(!is_spoofed(RawIdentity::default(), true), "without levels, no pod is known");
    }
    let strict = RawIdentity { strict: 1, ..IDENTITY };
    assert!(
        !is_spoofed(&sender(&[]), 0, 0, || strict, || true),
        "no cgroup is known that the socket could have"
    );
}

#[test]
fn local_processes_are_admitted_by_pod_or_address() {
    let by_address = LocalSender {
        origin: SenderOrigin::Other,
        is_vip: true,
        is_denied: false,
        has_access: true,
        default_allow: false,
    };
    let unknown = LocalSender { origin: SenderOrigin::UnknownPod, ..by_address };
    let selected = LocalSender { origin: SenderOrigin::Pod(POD), has_access: false, ..by_address };
    let other = LocalSender { origin: SenderOrigin::Pod(FORWARDER), ..by_address };
    for (local, process, pod, not_selected) in [
        (RawIdentity::BY_ADDRESS, true, false, true),
        (RawIdentity::PODS, false, true, false),
        (RawIdentity::PROCESSES, true, true, false),
    ] {
        assert_eq!(admits(local, by_address), process, "{local}");
        assert_eq!(admits(local, selected), pod, "{local}");
        assert_eq!(admits(local, other), not_selected, "{local}");
        assert_eq!(admits(local, unknown), not_selected, "{local}");
        assert!(!admits(local, LocalSender { has_access: false, ..by_address }), "{local}");
    }
    let denied = LocalSender { is_denied: true, ..selected };
    assert!(!admits(RawIdentity::PODS, denied), "an operator denied the address");
    let elsewhere = LocalSender { is_vip: false, ..selected };
    assert!(!admits(RawIdentity::PODS, elsewhere), "an operator can deny the VIP only");
    let node = LocalSender { is_vip: false, ..by_address };
    assert!(admits(RawIdentity::PROCESSES, node), "an address with access");
    let by_default = LocalSender { default_allow: true, ..other };
    assert!(
        admits(RawIdentity::PODS, by_default)
            && !admits(RawIdentity::PODS, LocalSender { origin: SenderOrigin::Other, ..by_default })
            && !admits(RawIdentity::PODS, LocalSender { origin: SenderOrigin::UnknownPod, ..by_default })
    );
}

proptest! {
    /// Compares the decision with an independent formulation, for random cgroups.
    #[test]
    fn spoofing_equals_the_reference(
        path in prop::collection::vec(1u64..6, 0..6),
        known in prop::collection::btree_map(1u64..6, (any::<bool>(), any::<bool>()), 0..6),
        holder in 0u64..6,
        level in 0u32..6,
        levels in [0u32..6, 0u32..6],
        kubepods in [0u64..6, 0u64..6],
        (strict, has_sender) in any::<(bool, bool)>(),
    ) {
        let pods: BTreeMap<_, _> =
            known.into_iter().map(|(id, (allowed, forwards))| (id, SendingPod { allowed, forwards })).collect();
        let model = Model { path: path.clone(), pods: pods.clone() };
        let at = |level: u32| path.get(level as usize);
        let is_holder = holder != 0 && at(level) == Some(&holder);
        let known = levels.iter().filter(|level| **level != 0).filter_map(|level| pods.get(at(*level)?)).next();
        let above = if levels[0] > 1 { at(levels[0] - 1) } else { None };
        let in_kubepods = above.is_some_and(|above| kubepods.contains(above));
        let is_lost = strict && has_sender && path.is_empty();
        let expected = !is_holder && known.map_or((in_kubepods || is_lost) && holder != 0, |pod| !pod.forwards);
        let identity = RawIdentity { kubepods, levels, strict: u32::from(strict), ..RawIdentity::default() };
        prop_assert_eq!(is_spoofed(&model, holder, level, || identity, || has_sender), expected);
    }
}
