use lota_common::RawIdentity;
use lota_ebpf::sender::{LocalSender, Sender, SendingPod, admits, is_spoofed, origin};
use proptest::prelude::*;

use super::*;

/// Levels at which kubelet makes pods, and the IDs of the cgroups above.
const LEVELS: [u32; 2] = [2, 3];
const ROOT: u64 = 1;
const KUBEPODS: u64 = 2;
const BURSTABLE: u64 = 3;

fn pod(name: &str) -> ReportedPod {
    let name = format!("team/{name}");
    ReportedPod { name, allowed: true, forwards: false, host_network: false, static_uid: None }
}

fn static_pod(name: &str, hash: &str) -> ReportedPod {
    ReportedPod { static_uid: Some(hash.to_owned()), ..pod(name) }
}

fn reported(pods: &[(&str, ReportedPod)]) -> BTreeMap<Uid, ReportedPod> {
    pods.iter().map(|(uid, pod)| ((*uid).to_owned(), pod.clone())).collect()
}

fn cgroups(of: &[(&str, u64)]) -> PodCgroups {
    let by_uid = of.iter().map(|(uid, id)| ((*uid).to_owned(), PodCgroup { id: *id, level: LEVELS[0] }));
    PodCgroups { by_uid: by_uid.collect(), kubepods: [KUBEPODS, 0], levels: LEVELS }
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn identities(pods: &[(&str, ReportedPod)], of: &[(&str, u64)]) -> Identities {
    let mut identities = Identities::default();
    identities.set_pods(reported(pods));
    identities.set_cgroups(Some(cgroups(of)));
    identities
}

/// Returns the UIDs of the pods by cgroup.
fn uids(identities: &Identities) -> Vec<(u64, String)> {
    let table = identities.table(&BTreeMap::new(), false, false);
    table.pods.into_iter().map(|(id, pod)| (id, pod.uid)).collect()
}

#[test]
fn a_pod_has_the_cgroup_with_its_uid() {
    let known = identities(&[("a", pod("a")), ("b", pod("b"))], &[("a", 20), ("c", 22)]);
    let (a, b) = ("a".to_owned(), "b".to_owned());
    let table = known.table(&BTreeMap::from([(address(2), &a), (address(3), &b)]), false, false);
    assert_eq!(table.pods[&20].name, "team/a");
    assert_eq!(table.pods.len(), 1, "c is not reported");
    let of = |last| table.holders[&address(last)].cgroup;
    assert_eq!((of(2), of(3)), (Some(PodCgroup { id: 20, level: 2 }), None));
    assert_eq!(table.local, LocalAccess::Pods);
    let status = known.status(|_, _| true);
    assert_eq!((status.identified, &*status.unidentified), (1, &["team/b".to_owned()][..]));
}

#[test]
fn a_static_pod_has_the_cgroup_with_the_hash_of_its_definition() {
    let mirror = ("m", static_pod("m", "hash"));
    assert_eq!(uids(&identities(std::slice::from_ref(&mirror), &[("hash", 20)])), [(20, "m".to_owned())]);
    // Pods that anyone can create claim the cgroups of others.
    let victim = ("v", pod("v"));
    for (pods, expected, why) in [
        (vec![("x", static_pod("x", "v")), victim.clone()], vec![(21, "v")], "that of another pod"),
        (vec![("x", static_pod("x", "hash")), mirror.clone()], vec![], "that of another static pod"),
        (vec![("w", static_pod("w", "v")), victim], vec![(21, "v"), (22, "w")], "besides its own"),
    ] {
        let found = uids(&identities(&pods, &[("hash", 20), ("v", 21), ("w", 22)]));
        let expected: Vec<_> = expected.into_iter().map(|(id, uid)| (id, uid.to_owned())).collect();
        assert_eq!(found, expected, "{why}");
    }
}

#[test]
fn without_cgroups_only_addresses_identify_pods() {
    let mut known = identities(&[("a", ReportedPod { host_network: true, ..pod("a") })], &[("a", 20)]);
    assert!(known.allow_local_pods(false));
    known.set_cgroups(None);
    assert!(!known.allow_local_pods(false) && known.without_cgroups().is_empty());
    let a = "a".to_owned();
    let table = known.table(&BTreeMap::from([(address(2), &a)]), true, true);
    assert_eq!(
        (table.pods.len(), table.kubepods, table.levels, table.local),
        (0, [0; 2], [0; 2], LocalAccess::ByAddress)
    );
    assert!(!table.is_strict && !table.keeps_pods, "there are no cgroups");
    assert_eq!(table.holders[&address(2)].name, "team/a", "bpftool still shows whose address it is");
}

#[test]
fn pods_of_the_previous_daemon_hold_until_pods_are_reported() {
    let table = |known: &Identities| known.table(&BTreeMap::new(), true, true);
    let mut known = Identities::default();
    assert!(!table(&known).keeps_pods, "there are no cgroups");
    known.set_cgroups(Some(cgroups(&[("a", 20)])));
    let before = table(&known);
    assert!(before.keeps_pods && before.is_strict);
    // Processes of pods are not processes of no pod, although no pod is known yet.
    assert_eq!(
        (before.local, before.levels, before.kubepods),
        (LocalAccess::Processes, LEVELS, [KUBEPODS, 0])
    );
    known.set_pods(BTreeMap::new());
    assert!(!table(&known).keeps_pods);
}

/// A socket, as the kernel sees it with a table.
struct Socket<'a> {
    table: &'a IdentityTable,
    /// IDs of its cgroup and those above, from the root on.
    path: Vec<u64>,
}

impl Sender for Socket<'_> {
    fn ancestor(&self, level: u32) -> u64 {
        self.path.get(level as usize).copied().unwrap_or(0)
    }

    fn pod(&self, cgroup: u64) -> Option<SendingPod> {
        self.table.pods.get(&cgroup).map(|pod| SendingPod { allowed: pod.allowed, forwards: pod.forwards })
    }
}

/// Change on a node.
#[derive(Clone, Debug)]
enum Event {
    /// Reports a pod.
    Report {
        uid: u8,
        allowed: bool,
        forwards: bool,
        host_network: bool,
    },
    /// No longer reports a pod.
    Forget {
        uid: u8,
    },
    /// Makes a pod's cgroup, or makes it again.
    Make {
        uid: u8,
        burstable: bool,
    },
    Remove {
        uid: u8,
    },
    /// An address becomes that of a pod.
    Assign {
        last: u8,
        uid: u8,
    },
    Release {
        last: u8,
    },
    /// Pods on the node's network without a rule get access, or lose it.
    Default {
        allow: bool,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let (uid, last) = (0u8..4, 0u8..3);
    prop_oneof![
        (uid.clone(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(uid, allowed, forwards, host_network)| Event::Report { uid, allowed, forwards, host_network }
        ),
        uid.clone().prop_map(|uid| Event::Forget { uid }),
        (uid.clone(), any::<bool>()).prop_map(|(uid, burstable)| Event::Make { uid, burstable }),
        uid.clone().prop_map(|uid| Event::Remove { uid }),
        (last.clone(), uid).prop_map(|(last, uid)| Event::Assign { last, uid }),
        last.prop_map(|last| Event::Release { last }),
        any::<bool>().prop_map(|allow| Event::Default { allow }),
    ]
}

proptest! {
    /// After each of up to sixty changes, every socket may use exactly the addresses that a reference model allows.
    #[test]
    fn no_pod_uses_the_address_of_another(events in prop::collection::vec(event(), 0..60)) {
        let mut known = Identities::default();
        let mut pods = BTreeMap::<u8, ReportedPod>::new();
        // The paths of the pods' cgroups, and the pod of each address.
        let (mut made, mut holders) = (BTreeMap::<u8, Vec<u64>>::new(), BTreeMap::<u8, u8>::new());
        let (mut next, mut default_allow) = (10, false);
        for event in events {
            next += 1;
            match event {
                Event::Report { uid, allowed, forwards, host_network } => {
                    pods.insert(uid, ReportedPod { allowed, forwards, host_network, ..pod("p") });
                }
                Event::Forget { uid } => drop(pods.remove(&uid)),
                Event::Make { uid, burstable } => {
                    let path = if burstable { vec![ROOT, KUBEPODS, BURSTABLE, next] } else { vec![ROOT, KUBEPODS, next] };
                    made.insert(uid, path);
                }
                Event::Remove { uid } => drop(made.remove(&uid)),
                Event::Assign { last, uid } => drop(holders.insert(last, uid)),
                Event::Release { last } => drop(holders.remove(&last)),
                Event::Default { allow } => default_allow = allow,
            }
            known.set_pods(pods.iter().map(|(uid, pod)| (uid.to_string(), pod.clone())).collect());
            let by_uid = made.iter().map(|(uid, path)| {
                let level = u32::try_from(path.len()).unwrap() - 1;
                (uid.to_string(), PodCgroup { id: path[level as usize], level })
            });
            known.set_cgroups(Some(PodCgroups { by_uid: by_uid.collect(), kubepods: [KUBEPODS, 0], levels: LEVELS }));
            let names: BTreeMap<u8, Uid> = (0..4).map(|uid| (uid, uid.to_string())).collect();
            let held = holders.iter().map(|(last, uid)| (address(*last), &names[uid])).collect();
            let table = known.table(&held, false, false);
            for uid in 0..4u8 {
                let Some(path) = made.get(&uid) else { continue };
                // A container's cgroup in the pod's.
                let socket = Socket { table: &table, path: path.iter().copied().chain([9000]).collect() };
                let sender = pods.get(&uid);
                let identity = RawIdentity { kubepods: table.kubepods, levels: table.levels, ..RawIdentity::default() };
                for last in 0..3u8 {
                    let holder = holders.get(&last).filter(|holder| pods.contains_key(holder));
                    // A pod that is not reported is none that has an address and a cgroup.
                    let may_not = |holder: &u8| match sender {
                        Some(sender) => !sender.forwards && *holder != uid,
                        None => made.contains_key(holder),
                    };
                    let expected = holder.is_some_and(may_not);
                    let seen = table.holders.get(&address(last)).is_some_and(|holder| {
                        let cgroup = holder.cgroup.unwrap_or(PodCgroup { id: 0, level: 0 });
                        is_spoofed(&socket, cgroup.id, cgroup.level, || identity, || true)
                    });
                    prop_assert_eq!(seen, expected, "{} as {}", uid, last);
                }
                let local = LocalSender {
                    origin: origin(&socket, &identity),
                    is_vip: true,
                    is_denied: false,
                    has_access: false,
                    default_allow,
                };
                let expected = sender.is_some_and(|sender| sender.allowed || default_allow);
                prop_assert_eq!(admits(RawIdentity::PODS, local), expected, "{} at lo", uid);
            }
            let local = |pod: &ReportedPod| pod.host_network && (pod.allowed || default_allow);
            prop_assert_eq!(known.allow_local_pods(default_allow), pods.values().any(local));
        }
    }
}
