use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::datapath::Interface;

fn interfaces(names: &[(u32, &str)]) -> Interfaces {
    let interface =
        |name: &str| Interface { name: name.to_owned(), kind: "veth".to_owned(), controller: None };
    Interfaces(names.iter().map(|(index, name)| (*index, interface(name))).collect())
}

fn pod(address: &str, interface: &str) -> Pod {
    Pod { address: address.parse().unwrap(), interface: interface.to_owned() }
}

fn access(config: config::Access) -> Access {
    Access::new(config, vec!["169.254.77.80".parse().unwrap()])
}

fn subject(text: &str) -> Subject {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn an_entry_lives_and_dies_with_its_interface() {
    let mut access = access(config::Access { pods: vec![pod("10.0.0.2", "veth1")], ..Default::default() });
    assert_eq!(access.table(&interfaces(&[(7, "veth2")])), Table::default());
    let table = access.table(&interfaces(&[(8, "veth1")]));
    assert_eq!(table.binding(address("10.0.0.2")), Some(8));
}

#[test]
fn what_an_operator_said_about_a_pod_does_not_outlive_its_interface() {
    let mut access = access(config::Access::default());
    access.allow(subject("10.0.0.2"), 7);
    assert_eq!(access.table(&interfaces(&[(7, "veth1")])).binding(address("10.0.0.2")), Some(7));
    assert_eq!(access.table(&interfaces(&[])), Table::default());
    assert_eq!(access.table(&interfaces(&[(7, "veth1")])), Table::default(), "it came back");
}

#[test]
fn later_sources_override_earlier_ones() {
    let there = interfaces(&[(7, "veth1"), (8, "veth2")]);
    let mut access = access(config::Access { pods: vec![pod("10.0.0.2", "veth1")], ..Default::default() });
    let told = |last: u8| {
        let addresses = BTreeSet::from([IpAddr::from([10, 0, 0, last])]);
        (format!("uid-{last}"), pods::Pod { addresses, allowed: true, started: 0 })
    };
    access.kubernetes.set(BTreeMap::from([told(2), told(3)]), &there);
    access.kubernetes.bind(address("10.0.0.2"), 8);
    access.kubernetes.bind(address("10.0.0.3"), 8);
    let table = access.table(&there);
    assert_eq!(table.binding(address("10.0.0.2")), Some(7), "the configuration");
    assert_eq!(table.binding(address("10.0.0.3")), Some(8), "Kubernetes");
    access.deny(subject("10.0.0.2"));
    assert_eq!(access.table(&there).binding(address("10.0.0.2")), None, "the operator");
    assert!(access.forget(subject("10.0.0.2")) && !access.forget(subject("10.0.0.2")));
    assert_eq!(access.table(&there).binding(address("10.0.0.2")), Some(7));
}

#[test]
fn an_address_of_its_own_comes_before_prefixes_and_the_longest_before_others() {
    let config = config::Access {
        allow: vec![subject("10.1.0.0/16"), subject("10.1.2.3")],
        deny: vec![subject("10.1.2.0/24")],
        ..Default::default()
    };
    let table = access(config).table(&interfaces(&[]));
    for (name, binding) in
        [("10.1.0.1", Some(0)), ("10.1.2.1", None), ("10.1.2.3", Some(0)), ("10.2.0.1", None)]
    {
        assert_eq!(table.binding(address(name)), binding, "{name}");
    }
}

#[test]
fn the_default_can_be_to_allow() {
    let config = config::Access {
        default: config::DefaultAccess::Allow,
        deny: vec![subject("10.9.0.0/16")],
        ..Default::default()
    };
    let table = access(config).table(&interfaces(&[]));
    assert_eq!(table.binding(address("10.0.0.1")), Some(0));
    assert_eq!(table.binding(address("10.9.0.1")), None);
}

#[test]
fn host_networked_clients_send_from_the_virtual_address() {
    let table = access(config::Access { host_network: true, ..Default::default() }).table(&interfaces(&[]));
    assert_eq!(table.binding(address("169.254.77.80")), Some(1));
}

#[test]
fn connections_end_with_access_or_at_another_interface() {
    let bound = |ifindex| {
        let entry = Entry { allow: true, ifindex, source: Source::Config };
        Table { addresses: BTreeMap::from([(address("10.0.0.2"), entry)]), ..Table::default() }
    };
    let keeps = |table: &Table, then| table.keeps(address("10.0.0.2"), then);
    assert!(keeps(&bound(7), 7) && keeps(&bound(0), 7) && keeps(&bound(7), 0));
    assert!(!keeps(&bound(8), 7) && !keeps(&Table::default(), 7));
}

#[test]
fn subjects_are_addresses_or_exact_prefixes() {
    assert_eq!(subject("10.1.0.2/32"), Subject::Address(address("10.1.0.2")));
    assert_eq!(subject("fd00::/8").to_string(), "fd00::/8");
    for wrong in ["10.1.0.2/16", "pod", "10.1.0.0/33", ""] {
        assert!(wrong.parse::<Subject>().is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn any_text_is_survived(text: String) {
        let _ = text.parse::<Subject>();
    }

    /// What was said through one daemon is said through the next one, as long as the interfaces stay.
    #[test]
    fn a_restart_changes_nothing(
        said in proptest::collection::vec((any::<[u8; 1]>(), 8u8..=32, any::<bool>(), 1u32..4), 0..20)
    ) {
        let there = interfaces(&[(1, "lo"), (2, "veth1"), (3, "veth2")]);
        let mut before = access(config::Access::default());
        for ([last], length, allow, ifindex) in said {
            let prefix = IpNet::new(IpAddr::from([10, 0, 0, last]), length).unwrap().trunc();
            let subject = subject(&prefix.to_string());
            match (allow, subject) {
                (false, _) => before.deny(subject),
                (true, Subject::Address(_)) => before.allow(subject, ifindex),
                (true, Subject::Prefix(_)) => before.allow(subject, 0),
            }
        }
        let table = before.table(&there);
        let mut after = access(config::Access::default());
        after.adopt(&table, &there, 0);
        prop_assert_eq!(after.table(&there), table);
    }
}
