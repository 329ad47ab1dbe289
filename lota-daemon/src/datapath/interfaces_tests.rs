use super::*;
use crate::config::Mode;

fn node() -> Interfaces {
    let interface = |name: &str, kind: &str, controller| Interface {
        name: name.to_owned(),
        kind: kind.to_owned(),
        controller,
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

fn plan(mode: Mode, patterns: &[&str], host_network: bool) -> Plan {
    let config = config::Datapath {
        mode,
        pod_interfaces: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
        uplink: Some("eth0".to_owned()),
        ..config::Datapath::default()
    };
    node().plan(&config, host_network)
}

#[test]
fn each_kind_is_steered_where_it_works() {
    let plan = plan(Mode::Auto, &["veth*", "lxc*"], false);
    let steered = BTreeMap::from([(3, Steering::Tc), (4, Steering::Tc), (9, Steering::Lookup)]);
    assert_eq!(plan.steered, steered);
    assert_eq!(plan.skipped.keys().copied().collect::<Vec<_>>(), [5, 6, 8]);
    assert!(plan.skipped[&5].contains("cni0") && plan.skipped[&8].contains("red (vrf)"));
}

#[test]
fn modes_can_be_forced() {
    assert_eq!(plan(Mode::Lookup, &["veth1"], false).steered, BTreeMap::from([(3, Steering::Lookup)]));
    let tc = plan(Mode::Tc, &["lxc5"], false);
    assert!(tc.steered.is_empty() && tc.skipped[&9].contains("sk_lookup"));
}

#[test]
fn lo_only_for_host_networked_clients_and_the_uplink_never() {
    let all = plan(Mode::Auto, &["*"], false);
    assert!(!all.steered.contains_key(&1) && !all.steered.contains_key(&2));
    assert!(all.skipped[&2].contains("uplink"));
    assert_eq!(plan(Mode::Auto, &[], true).steered, BTreeMap::from([(1, Steering::Tc)]));
    assert!(plan(Mode::Auto, &["lo"], false).steered.is_empty());
}

#[test]
fn a_bridge_that_is_the_uplink_is_not_a_pods() {
    let config = config::Datapath {
        pod_interfaces: vec!["veth2".to_owned()],
        uplink: Some("cni0".to_owned()),
        ..config::Datapath::default()
    };
    let plan = node().plan(&config, false);
    assert!(plan.steered.is_empty() && plan.skipped[&5].contains("uplink"));
}

#[test]
fn a_port_is_seen_as_its_bridge() {
    let node = node();
    let seen = |name| node.seen_as(name);
    assert_eq!(
        [seen("veth1"), seen("veth2"), seen("veth4"), seen("gone")],
        [Some(3), Some(4), Some(8), None]
    );
}

#[test]
fn patterns() {
    let patterns = ["veth*".to_owned(), "eth0".to_owned()];
    assert!(matches(&patterns, "veth") && matches(&patterns, "veth9") && matches(&patterns, "eth0"));
    assert!(!matches(&patterns, "eth01") && !matches(&patterns, "lo") && !matches(&[], "veth1"));
}
