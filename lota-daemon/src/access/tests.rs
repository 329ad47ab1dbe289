use std::collections::BTreeSet;

use ipnet::IpNet;
use lota_datapath::{AddressClaims, AddressPlace, Interface};
use proptest::prelude::*;

use super::*;

fn interfaces(names: &[(u32, &str)]) -> Interfaces {
    let interface = |name: &str| Interface {
        name: name.to_owned(),
        kind: "veth".to_owned(),
        controller: None,
        peer: None,
    };
    Interfaces(names.iter().map(|(index, name)| (*index, interface(name))).collect())
}

/// Returns the interface with this index.
fn link(index: u32) -> PodLink {
    interfaces(&[(index, "veth")]).pod_link(index).unwrap()
}

fn pod(address: &str, interface: &str) -> ConfiguredPod {
    ConfiguredPod { address: address.parse().unwrap(), interface: interface.to_owned() }
}

fn access(config: AccessConfig) -> Access {
    Access::new(config, vec!["169.254.77.80".parse().unwrap()])
}

fn subject(text: &str) -> Subject {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Returns the index of the interface that an address is bound to.
fn binding(table: &AccessTable, of: &str) -> Option<u32> {
    table.binding(address(of)).map(|place| place.ifindex)
}

#[test]
fn an_entry_applies_while_its_interface_exists() {
    let mut access = access(AccessConfig { pods: vec![pod("10.0.0.2", "veth1")], ..Default::default() });
    assert_eq!(access.table(&interfaces(&[(7, "veth2")])), AccessTable::default());
    let table = access.table(&interfaces(&[(8, "veth1")]));
    assert_eq!(binding(&table, "10.0.0.2"), Some(8));
}

#[test]
fn an_operators_entry_is_removed_with_its_interface() {
    let mut access = access(AccessConfig::default());
    access.allow(subject("10.0.0.2"), Some(link(7)));
    assert_eq!(binding(&access.table(&interfaces(&[(7, "veth1")])), "10.0.0.2"), Some(7));
    assert_eq!(access.table(&interfaces(&[])), AccessTable::default());
    assert_eq!(
        access.table(&interfaces(&[(7, "veth1")])),
        AccessTable::default(),
        "the interface is back, the entry is not"
    );
}

#[test]
fn later_sources_override_earlier_ones() {
    let there = interfaces(&[(7, "veth1"), (8, "veth2")]);
    let mut access = access(AccessConfig { pods: vec![pod("10.0.0.2", "veth1")], ..Default::default() });
    let reported = |last: u8| {
        let addresses = BTreeSet::from([IpAddr::from([10, 0, 0, last])]);
        (format!("uid-{last}"), pods::Pod { addresses, allowed: true, started: 0 })
    };
    access.kubernetes.set(BTreeMap::from([reported(2), reported(3)]), &there);
    let mut claims = AddressClaims::default();
    claims.add(8, [address("10.0.0.2"), address("10.0.0.3")]);
    access.kubernetes.locate(&claims, &there);
    let table = access.table(&there);
    assert_eq!(binding(&table, "10.0.0.2"), Some(7), "the configuration");
    assert_eq!(binding(&table, "10.0.0.3"), Some(8), "Kubernetes");
    access.deny(subject("10.0.0.2"));
    assert_eq!(binding(&access.table(&there), "10.0.0.2"), None, "the operator");
    assert!(access.forget(subject("10.0.0.2")) && !access.forget(subject("10.0.0.2")));
    assert_eq!(binding(&access.table(&there), "10.0.0.2"), Some(7));
}

#[test]
fn addresses_override_prefixes_and_longer_prefixes_shorter_ones() {
    let config = AccessConfig {
        allow: vec![subject("10.1.0.0/16"), subject("10.1.2.3")],
        deny: vec![subject("10.1.2.0/24")],
        ..Default::default()
    };
    let table = access(config).table(&interfaces(&[]));
    for (name, expected) in
        [("10.1.0.1", Some(0)), ("10.1.2.1", None), ("10.1.2.3", Some(0)), ("10.2.0.1", None)]
    {
        assert_eq!(binding(&table, name), expected, "{name}");
    }
}

#[test]
fn the_default_can_be_to_allow() {
    let config = AccessConfig {
        default: DefaultAccess::Allow,
        deny: vec![subject("10.9.0.0/16")],
        ..Default::default()
    };
    let table = access(config).table(&interfaces(&[]));
    assert_eq!(binding(&table, "10.0.0.1"), Some(0));
    assert_eq!(binding(&table, "10.9.0.1"), None);
}

#[test]
fn host_networked_clients_send_from_the_vip() {
    let table = access(AccessConfig { host_network: true, ..Default::default() }).table(&interfaces(&[]));
    assert_eq!(binding(&table, "169.254.77.80"), Some(1));
}

#[test]
fn connections_end_without_access_or_at_another_interface() {
    let bound = |ifindex, port| {
        let entry = AccessEntry { allow: true, ifindex, port, source: Source::Config };
        AccessTable { addresses: BTreeMap::from([(address("10.0.0.2"), entry)]), ..AccessTable::default() }
    };
    let keeps =
        |table: &AccessTable, ifindex, port| table.keeps(address("10.0.0.2"), AddressPlace { ifindex, port });
    assert!(keeps(&bound(7, 0), 7, 0) && keeps(&bound(0, 0), 7, 0) && keeps(&bound(7, 0), 0, 0));
    assert!(!keeps(&bound(8, 0), 7, 0) && !keeps(&AccessTable::default(), 7, 0));
    assert!(keeps(&bound(4, 7), 4, 7) && keeps(&bound(4, 7), 4, 0) && keeps(&bound(4, 0), 4, 7));
    assert!(!keeps(&bound(4, 8), 4, 7), "another port of the same bridge");
}

#[test]
fn what_the_kernel_does_not_allow_is_not_published() {
    let entry = |allow, ifindex| AccessEntry { allow, ifindex, port: 0, source: Source::Config };
    let table =
        |addresses: &[(&str, AccessEntry)], prefixes: &[(&str, AccessEntry)], default_allow| AccessTable {
            addresses: addresses.iter().map(|(name, entry)| (address(name), *entry)).collect(),
            prefixes: prefixes.iter().map(|(name, entry)| (name.parse().unwrap(), *entry)).collect(),
            default_allow,
        };
    let (allow, deny) = (entry(true, 7), entry(false, 0));
    let desired = table(
        &[("10.0.0.2", allow), ("10.0.0.3", allow), ("10.0.0.4", deny)],
        &[("10.1.0.0/16", entry(true, 0)), ("10.2.0.0/16", deny)],
        true,
    );
    // A revoked address is still there, one is at its previous interface, and the rest is missing.
    let held = table(
        &[("10.0.0.2", allow), ("10.0.0.3", entry(true, 8)), ("10.0.0.9", allow)],
        &[("10.9.0.0/16", entry(true, 0))],
        false,
    );
    let expected = table(&[("10.0.0.2", allow), ("10.0.0.4", deny)], &[("10.2.0.0/16", deny)], false);
    assert_eq!(desired.clone().as_far_as_in(&held), expected);
    assert_eq!(desired.clone().as_far_as_in(&desired), desired);
}

#[test]
fn subjects_are_addresses_or_exact_prefixes() {
    assert_eq!(subject("10.1.0.2/32"), Subject::Address(address("10.1.0.2")));
    assert_eq!(subject("fd00::/8").to_string(), "fd00::/8");
    for wrong in ["10.1.0.2/16", "pod", "10.1.0.0/33", ""] {
        assert!(wrong.parse::<Subject>().is_err(), "{wrong}");
    }
}

#[test]
fn entries_keep_their_interfaces_across_a_restart_unless_those_were_replaced() {
    let there = interfaces(&[(7, "veth1"), (8, "veth2")]);
    let mut before = access(AccessConfig::default());
    before.allow(subject("10.0.0.2"), Some(link(7)));
    let mut table = before.table(&there);
    let entry = AccessEntry { allow: true, ifindex: 7, port: 0, source: Source::Kubernetes };
    table.addresses.insert(address("10.0.0.3"), entry);
    for (replaced, expected) in [(None, Some(7)), (Some(8), Some(7)), (Some(7), None)] {
        let mut after = access(AccessConfig::default());
        after.adopt(&table, &there, 0);
        after.forget_interfaces(&replaced.into_iter().collect());
        let table = after.table(&there);
        assert_eq!(binding(&table, "10.0.0.2"), expected, "{replaced:?}");
        assert_eq!(binding(&table, "10.0.0.3"), expected, "{replaced:?}");
    }
}

#[test]
fn entries_keep_their_ports_across_a_restart() {
    let mut there = interfaces(&[(4, "cni0"), (7, "veth1"), (8, "veth2")]);
    there.0.get_mut(&4).unwrap().kind = "bridge".to_owned();
    [7, 8].iter().for_each(|port| there.0.get_mut(port).unwrap().controller = Some(4));
    let entry = |source| AccessEntry { allow: true, ifindex: 4, port: 7, source };
    let mut table = AccessTable::default();
    table.addresses.insert(address("10.0.0.2"), entry(Source::Command));
    table.addresses.insert(address("10.0.0.3"), entry(Source::Kubernetes));
    let adopted = |replaced: &[u32], there: &Interfaces| {
        let mut after = access(AccessConfig::default());
        after.adopt(&table, there, 0);
        after.forget_interfaces(&replaced.iter().copied().collect());
        after.table(there)
    };
    assert_eq!(adopted(&[], &there), table);
    assert_eq!(adopted(&[8], &there), table);
    assert_eq!(adopted(&[7], &there), AccessTable::default(), "the port was replaced");
    // The bridge still exists, but the pod is not behind it any more.
    there.0.get_mut(&7).unwrap().controller = None;
    assert_eq!(adopted(&[], &there), AccessTable::default());
    there.0.remove(&7);
    assert_eq!(adopted(&[], &there), AccessTable::default());
}

#[test]
fn a_daemon_with_other_maps_denies_whom_an_operator_has_denied() {
    let there = interfaces(&[(2, "veth1")]);
    let mut before = access(AccessConfig::default());
    let subject = |text: &str| text.parse::<Subject>().unwrap();
    before.deny(subject("10.0.0.2"));
    before.allow(subject("10.1.0.0/16"), None);
    before.allow(subject("10.0.0.3"), there.pod_link(2));
    let mut after = access(AccessConfig::default());
    after.adopt_unbound(&before.unbound_entries());
    let (mut table, before) = (after.table(&there), before.table(&there));
    assert_eq!(
        table.addresses.remove(&address("10.0.0.2")),
        before.addresses.get(&address("10.0.0.2")).copied()
    );
    assert_eq!(table.prefixes, before.prefixes);
    assert!(table.addresses.is_empty() && before.addresses.contains_key(&address("10.0.0.3")), "{table:?}");
}

proptest! {
    /// Verifies that what is accepted names one subject, in the form that operators see.
    #[test]
    fn subjects_round_trip(text in "\\PC{0,40}|[0-9a-f.:]{1,20}(/[0-9]{1,3})?", address: IpAddr, length: u8) {
        for text in [text, address.to_string(), format!("{address}/{length}")] {
            if let Ok(subject) = text.parse::<Subject>() {
                prop_assert_eq!(subject.to_string().parse::<Subject>().unwrap(), subject, "{}", text);
            }
        }
        prop_assert!(address.to_string().parse::<Subject>().is_ok());
    }

    /// Verifies that a new daemon keeps the operators' entries while the interfaces exist.
    #[test]
    fn a_restart_changes_nothing(
        prefixes in proptest::collection::vec((any::<[u8; 1]>(), 8u8..=32, any::<bool>(), 1u32..4), 0..20)
    ) {
        let there = interfaces(&[(1, "lo"), (2, "veth1"), (3, "veth2")]);
        let mut before = access(AccessConfig::default());
        for ([last], length, allow, ifindex) in prefixes {
            let prefix = IpNet::new(IpAddr::from([10, 0, 0, last]), length).unwrap().trunc();
            let subject = subject(&prefix.to_string());
            match (allow, subject) {
                (false, _) => before.deny(subject),
                (true, Subject::Address(_)) => before.allow(subject, Some(link(ifindex))),
                (true, Subject::Prefix(_)) => before.allow(subject, None),
            }
        }
        let table = before.table(&there);
        let mut after = access(AccessConfig::default());
        after.adopt(&table, &there, 0);
        prop_assert_eq!(after.table(&there), table);
    }
}
