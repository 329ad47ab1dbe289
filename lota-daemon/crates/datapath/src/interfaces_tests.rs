use super::*;
use crate::RedirectionMode;

fn node() -> Interfaces {
    let interface = |name: &str, kind: &str, controller| Interface {
        name: name.to_owned(),
        kind: kind.to_owned(),
        controller,
        peer: None,
    };
    Interfaces(BTreeMap::from([
        (1, interface("lo", "", None)),
        (2, interface("eth0", "", None)),
        (3, interface("veth1", "veth", None)),
        (4, interface("cni0", "bridge", None)),
        (5, interface("veth2", "veth", Some(4))),
        (6, interface("veth3", "veth", Some(4))),
        (7, interface("red", "vrf", None)),
        (8, interface("veth4", "veth", Some(7))),
        (9, interface("lxc5", "netkit", None)),
    ]))
}

fn plan(mode: RedirectionMode, patterns: &[&str], host_network: bool) -> RedirectionPlan {
    let config = DatapathConfig {
        mode,
        pod_interfaces: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
        uplink: Some("eth0".to_owned()),
        ..DatapathConfig::default()
    };
    node().plan(&config, host_network, &BTreeSet::new())
}

#[test]
fn each_kind_is_redirected_where_it_works() {
    let plan = plan(RedirectionMode::Auto, &["veth*", "lxc*"], false);
    let redirected = BTreeMap::from([(3, Redirection::Tc), (4, Redirection::Tc), (9, Redirection::Lookup)]);
    assert_eq!(plan.redirected, redirected);
    assert_eq!(plan.skipped.keys().copied().collect::<Vec<_>>(), [5, 6, 8]);
    assert_eq!(plan.skipped[&5], SkipReason::BridgePort { bridge: "cni0".to_owned() });
    assert_eq!(
        plan.skipped[&8],
        SkipReason::OtherPort { controller: "red".to_owned(), kind: "vrf".to_owned() }
    );
}

#[test]
fn senders_are_checked_at_the_ports_of_redirected_bridges() {
    let checked = |patterns: &[&str], uplink, at_all_ports| {
        let plan =
            plan(RedirectionMode::Auto, patterns, true).checking_senders(&node(), uplink, at_all_ports);
        assert!(plan.ports.iter().all(|port| plan.skipped.contains_key(port)));
        plan.ports.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(checked(&["cni0"], None, true), [5, 6], "no pattern matches the ports");
    assert_eq!(checked(&["cni0"], Some("veth3"), true), [5]);
    assert_eq!(checked(&["veth*"], None, false), [5, 6]);
    assert!(checked(&["cni0"], None, false).is_empty());
    assert!(checked(&["veth1"], None, true).is_empty(), "the bridge is not redirected");
    let by_lookup = plan(RedirectionMode::Lookup, &["cni0"], false).checking_senders(&node(), None, true);
    assert!(by_lookup.ports.is_empty());
}

#[test]
fn processes_are_checked_by_tc_if_any_may_have_access() {
    for mode in [RedirectionMode::Auto, RedirectionMode::Lookup] {
        let checked = plan(mode, &[], true).checking_processes();
        assert!(checked.local && checked.redirected == BTreeMap::from([(1, Redirection::Tc)]), "{mode:?}");
        assert!(!plan(mode, &[], false).checking_processes().local);
    }
}

#[test]
fn modes_can_be_forced() {
    assert_eq!(
        plan(RedirectionMode::Lookup, &["veth1"], false).redirected,
        BTreeMap::from([(3, Redirection::Lookup)])
    );
    let tc = plan(RedirectionMode::Tc, &["lxc5"], false);
    assert!(tc.redirected.is_empty() && tc.skipped[&9] == SkipReason::Netkit);
}

#[test]
fn lo_only_for_host_networked_clients_and_the_uplink_never() {
    let all = plan(RedirectionMode::Auto, &["*"], false);
    assert!(!all.redirected.contains_key(&1) && !all.redirected.contains_key(&2));
    assert_eq!(all.skipped[&2], SkipReason::Uplink);
    assert_eq!(plan(RedirectionMode::Auto, &[], true).redirected, BTreeMap::from([(1, Redirection::Tc)]));
    assert!(plan(RedirectionMode::Auto, &["lo"], false).redirected.is_empty());
}

#[test]
fn a_bridge_that_is_the_uplink_is_not_a_pods() {
    let config = DatapathConfig {
        pod_interfaces: vec!["veth2".to_owned()],
        uplink: Some("cni0".to_owned()),
        ..DatapathConfig::default()
    };
    let plan = node().plan(&config, false, &BTreeSet::new());
    assert!(plan.redirected.is_empty() && plan.skipped[&5] == SkipReason::Uplink);
}

#[test]
fn a_pod_at_a_port_is_seen_at_its_bridge() {
    let node = node();
    let seen = |port| node.pod_link(port).map(|link| (link.ifindex, link.bridge_port()));
    assert_eq!([3, 5, 8, 99].map(seen), [Some((3, 0)), Some((4, 5)), Some((8, 0)), None]);
}

#[test]
fn a_nodes_vlan_is_not_a_pods_interface_unless_named_in_full() {
    let interface = |name: &str, kind: &str| Interface {
        name: name.to_owned(),
        kind: kind.to_owned(),
        controller: None,
        peer: None,
    };
    let node = Interfaces(BTreeMap::from([
        (2, interface("vlan.eth.1", "vlan")),
        (3, interface("vlan0a1b2c3d", "veth")),
        (4, interface("azv4f", "veth")),
    ]));
    let by_default = node.plan(&DatapathConfig::default(), false, &BTreeSet::new());
    assert_eq!(by_default.redirected.into_keys().collect::<Vec<_>>(), [3, 4]);
    assert_eq!(by_default.skipped[&2], SkipReason::Vlan);
    let named = DatapathConfig { pod_interfaces: vec!["vlan.eth.1".to_owned()], ..DatapathConfig::default() };
    assert_eq!(node.plan(&named, false, &BTreeSet::new()).redirected.into_keys().collect::<Vec<_>>(), [2]);
}

#[test]
fn patterns() {
    let patterns = ["veth*".to_owned(), "eth0".to_owned()];
    assert!(matches(&patterns, "veth") && matches(&patterns, "veth9") && matches(&patterns, "eth0"));
    assert!(!matches(&patterns, "eth01") && !matches(&patterns, "lo") && !matches(&[], "veth1"));
}
