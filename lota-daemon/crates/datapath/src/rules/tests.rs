use proptest::prelude::*;

use super::{
    certainty::Match::{self, Maybe, No, Yes},
    test_rules::*,
    *,
};

#[test]
fn matches_decide() {
    let is = |value: u32| value.to_ne_bytes();
    let cases: Vec<(&str, Vec<RawExpression>, Match)> = vec![
        ("port", port(80), Yes),
        ("another port", port(443), No),
        ("source", vec![payload(1, 12, 4), compare(0, &[10, 0, 0, 2])], Yes),
        ("a prefix of the destination", vec![payload(1, 16, 2), compare(0, &[169, 254])], Yes),
        (
            "the destination and a mask",
            vec![payload(1, 16, 4), mask(&[255, 255, 128, 0]), compare(0, &[169, 254, 0, 0])],
            Yes,
        ),
        ("not this destination", vec![payload(1, 16, 4), compare(1, &[169, 254, 77, 80])], No),
        ("interface", vec![load("meta", 6), compare(0, b"cali")], Yes),
        ("another interface", vec![load("meta", 6), compare(0, &name(b"eth0"))], No),
        ("interface by index", vec![load("meta", 4), compare(0, &is(7))], Yes),
        ("another interface by index", vec![load("meta", 4), compare(0, &is(1))], No),
        ("output interface", vec![load("meta", 7), compare(1, &[0; 16])], No),
        ("new", state(8).to_vec(), Yes),
        ("established", state(2).to_vec(), No),
        ("destination translated", vec![load("ct", 2), mask(&is(32)), compare(1, &is(0))], No),
        ("confirmed", vec![load("ct", 2), mask(&is(8 << 8)), compare(1, &is(0))], Maybe),
        ("connection mark", vec![load("ct", 3), compare(0, &is(0))], Maybe),
        ("to a local address", vec![fib(3, 2), compare(0, &is(2))], Yes),
        ("to a local address of its interface", vec![fib(3, 2 | 8), compare(0, &is(2))], No),
        ("without a way back", vec![fib(1, 1 | 8), compare(0, &is(0))], Maybe),
        ("iptables: new", vec![xtables("match", "conntrack", &conntrack(1 << 3))], Yes),
        ("iptables: invalid", vec![xtables("match", "conntrack", &conntrack(1))], No),
        ("iptables: source translated", vec![xtables("match", "conntrack", &conntrack(1 << 6))], No),
        ("iptables: to a local address", vec![xtables("match", "addrtype", &[0, 0, 4, 0, 0, 0, 0, 0])], Yes),
        ("iptables: UDP", vec![xtables("match", "udp", &[])], No),
        ("iptables: reverse path", vec![xtables("match", "rpfilter", &[8])], Maybe),
        ("iptables: ports", vec![xtables("match", "multiport", &multiport(1, &[22, 80], 0))], Yes),
        ("iptables: other ports", vec![xtables("match", "multiport", &multiport(1, &[22, 81], 0))], No),
        ("iptables: range of ports", vec![xtables("match", "multiport", &multiport(1, &[22, 81], 1))], Yes),
        ("iptables: source ports", vec![xtables("match", "multiport", &multiport(0, &[80], 0))], Maybe),
        ("iptables: any of the ports", vec![xtables("match", "multiport", &multiport(2, &[80], 0))], Yes),
        ("iptables: broadcast", vec![xtables("match", "pkttype", &[1, 0, 0, 0, 0, 0, 0, 0])], No),
        ("iptables: routing header", vec![xtables("match", "rt", &[])], No),
        ("routing header", vec![plain("exthdr")], No),
        ("TCP option", vec![expression("exthdr", |data| data.number(6, 1))], Maybe),
        ("iptables: a rate", vec![xtables("match", "limit", &[0; 48])], Maybe),
        ("a rate", vec![plain("limit")], Maybe),
        ("a counter", vec![plain("counter")], Yes),
        ("a named counter", vec![expression("objref", |data| data.number(1, 1))], Yes),
        ("a named quota", vec![expression("objref", |data| data.number(1, 2))], Maybe),
        ("ports below", vec![payload(2, 2, 2), compare(2, &80u16.to_be_bytes())], No),
        ("ports up to it", vec![payload(2, 2, 2), compare(3, &80u16.to_be_bytes())], Yes),
        ("ports above", vec![payload(2, 2, 2), compare(4, &80u16.to_be_bytes())], No),
        ("ports from it on", vec![payload(2, 2, 2), compare(5, &80u16.to_be_bytes())], Yes),
        ("source ports by order", vec![payload(2, 0, 2), compare(5, &[0, 1])], Maybe),
        ("a range of ports", vec![payload(2, 2, 2), range(0, 80, 90)], Yes),
        ("a range up to the port", vec![payload(2, 2, 2), range(0, 70, 80)], Yes),
        ("another range of ports", vec![payload(2, 2, 2), range(0, 81, 90)], No),
        ("not in a range of ports", vec![payload(2, 2, 2), range(1, 81, 90)], Yes),
        (
            "a number instead of the port",
            [vec![payload(2, 2, 2), plain("numgen")], port(443)[1..].to_vec()].concat(),
            Maybe,
        ),
        (
            "bytes in another order",
            [vec![payload(2, 2, 2), plain("byteorder")], port(443)[1..].to_vec()].concat(),
            Maybe,
        ),
        ("a set that cannot be read", vec![payload(2, 2, 2), lookup("missing")], Maybe),
    ];
    for (name, matches, expected) in cases {
        let expected = match expected {
            Yes => dropped("INPUT", 1),
            Maybe => perhaps("INPUT", 1),
            No => Passes,
        };
        assert_eq!(input(&[&rule(&[&matches], drop())], false), expected, "{name}");
    }
}

#[test]
fn the_state_of_a_connection_depends_on_its_direction_and_tracking() {
    let [established, new, untracked, invalid] = [2, 8, 64, 1].map(|bits| rule(&[&state(bits)], accept()));
    let table = |request: &[RawExpression], reply: &[RawExpression], raw: &[RawExpression], priority: i32| {
        let raw_at = |hook| Some(BaseChain { priority, ..base(hook, false) });
        Table::default()
            .chain_at("raw", raw_at(PREROUTING), &[raw])
            .chain("INPUT", Some((INPUT, true)), &[request])
            .chain("OUTPUT", Some((OUTPUT, true)), &[reply])
            .of_pod()
    };
    let tracked = |request, reply| table(request, reply, &[], 0);
    assert_eq!(tracked(&new, &established), Passes);
    assert_eq!(tracked(&established, &established), dropped("INPUT", POLICY));
    assert_eq!(tracked(&new, &new), dropped("OUTPUT", POLICY));
    let notrack = xtables("target", "CT", &[1, 0, 0, 0]);
    for notrack in [notrack.clone(), plain("notrack"), xtables("target", "NOTRACK", &[])] {
        let raw = [notrack];
        assert_eq!(table(&new, &established, &raw, -300), dropped("INPUT", POLICY));
        assert_eq!(table(&untracked, &established, &raw, -300), dropped("OUTPUT", POLICY));
        assert_eq!(table(&untracked, &invalid, &raw, -300), Passes);
        assert_eq!(table(&new, &established, &raw, -100), Passes, "too late");
    }
    assert_eq!(table(&new, &established, &[unknown(), notrack], -300), perhaps("INPUT", POLICY));
    let helper = xtables("target", "CT", &[0, 0, 0, 0]);
    assert_eq!(table(&new, &established, &[helper], -300), Passes);
    let early = rule(&[&state(1)], drop());
    assert_eq!(table(&new, &established, &early, -300), dropped("raw", 1), "not tracked yet");
    assert_eq!(table(&new, &established, &early, -150), Passes);
}

#[test]
fn jumps_and_returns() {
    let jump = || vec![verdict(-3, "other")];
    let goto = || vec![verdict(-4, "other")];
    let give_back = || vec![verdict(-5, "")];
    for (what, first, other, expected) in [
        ("jump and return", jump(), vec![give_back(), vec![accept()]], dropped("INPUT", 2)),
        ("jump and accept", jump(), vec![vec![accept()]], Passes),
        ("jump and drop", jump(), vec![vec![drop()]], dropped("other", 1)),
        ("goto and return", goto(), vec![give_back()], dropped("INPUT", POLICY)),
        ("a missing chain", vec![verdict(-3, "missing")], vec![], dropped("INPUT", 2)),
        ("continue", vec![verdict(-1, "")], vec![], dropped("INPUT", 2)),
    ] {
        let other: Vec<&[RawExpression]> = other.iter().map(Vec::as_slice).collect();
        let table = Table::default()
            .chain("INPUT", Some((INPUT, true)), &[&first, &[drop()]])
            .chain("other", None, &other);
        assert_eq!(table.of_pod(), expected, "{what}");
    }
}

#[test]
fn what_is_not_known_makes_the_rest_possible() {
    let maybe = |end| vec![unknown(), end];
    let input = |rules: &[&[RawExpression]], drops| {
        let return_or_not = [maybe(verdict(-5, "")), vec![accept()]];
        let return_or_not: Vec<&[RawExpression]> = return_or_not.iter().map(Vec::as_slice).collect();
        let table = Table::default().chain("INPUT", Some((INPUT, drops)), rules);
        table.chain("other", None, &return_or_not).of_pod()
    };
    assert_eq!(input(&[&maybe(drop())], false), perhaps("INPUT", 1));
    assert_eq!(input(&[&maybe(drop()), &[accept()]], true), perhaps("INPUT", 1));
    assert_eq!(input(&[&maybe(drop())], true), dropped("INPUT", POLICY));
    assert_eq!(input(&[&maybe(accept())], true), perhaps("INPUT", POLICY));
    assert_eq!(input(&[&maybe(accept()), &[drop()]], false), perhaps("INPUT", 2));
    assert_eq!(input(&[&maybe(accept()), &[accept()], &[drop()]], true), Passes);
    assert_eq!(input(&[&maybe(verdict(-5, "")), &[accept()]], true), perhaps("INPUT", POLICY));
    assert_eq!(input(&[&[verdict(-3, "other")], &[drop()]], false), perhaps("INPUT", 2));
    assert_eq!(input(&[&maybe(verdict(-3, "other")), &[drop()]], false), perhaps("INPUT", 2));
}

#[test]
fn verdicts_that_are_not_known_end_certainty() {
    let to_queue = xtables("target", "NFQUEUE", &[0; 4]);
    let cases = [
        ("queue", plain("queue")),
        ("iptables: NFQUEUE", to_queue),
        ("iptables: TPROXY", xtables("target", "TPROXY", &[0; 16])),
        ("tproxy", plain("tproxy")),
        ("iptables: a target of a newer kernel", xtables("target", "NOVEL", &[])),
        ("fwd", plain("fwd")),
        ("an expression of a newer kernel", plain("novel")),
        ("a verdict of a newer kernel", verdict(3, "")),
    ];
    for (what, ends) in cases {
        let hands_over = rule(&[&port(80)], ends);
        assert_eq!(input(&[&hands_over], false), perhaps("INPUT", 1), "{what}");
        assert_eq!(input(&[&hands_over], true), perhaps("INPUT", 1), "{what}, and a policy");
        assert_eq!(input(&[&hands_over, &[drop()]], false), perhaps("INPUT", 1), "{what}, and a rule");
        let jump = Table::default()
            .chain("INPUT", Some((INPUT, false)), &[&[verdict(-3, "other")], &[drop()]])
            .chain("other", None, &[&hands_over]);
        assert_eq!(jump.of_pod(), perhaps("other", 1), "{what}, in another chain");
        let another = rule(&[&port(443)], hands_over[2].clone());
        assert_eq!(input(&[&another], true), dropped("INPUT", POLICY), "{what}, for another port");
    }
}

#[test]
fn maps_of_verdicts() {
    let by_name = |elements: Vec<SetElement>, drops, flow: &InboundFlow| {
        let rule = [load("meta", 6), vmap("map")];
        let mut table = Table::default().chain("INPUT", Some((INPUT, drops)), &[&rule]);
        table.sets.insert("map".to_owned(), elements);
        table.predict(flow)
    };
    let (lo, veth) = (|code| decides(&name(b"lo"), code), |code| decides(&name(b"cali12"), code));
    let known = |elements, drops| by_name(elements, drops, &flow());
    assert_eq!(known(vec![lo(1), veth(0)], false), dropped("INPUT", 1));
    assert_eq!(known(vec![lo(0), veth(1)], true), Passes);
    assert_eq!(known(vec![lo(1)], true), dropped("INPUT", POLICY));
    let future = |elements, drops| by_name(elements, drops, &future_flow());
    assert_eq!(future(vec![lo(1), veth(0)], false), perhaps("INPUT", 1));
    assert_eq!(future(vec![lo(1), veth(1)], true), perhaps("INPUT", 1));
    assert_eq!(future(vec![lo(1)], true), dropped("INPUT", POLICY), "it is not lo");
    let concatenated = vec![SetElement { has_end: true, ..veth(1) }];
    assert_eq!(known(concatenated, true), perhaps("INPUT", 1));
}

#[test]
fn chains_of_one_hook_all_decide() {
    let mut table = Table::default()
        .chain("later", Some((INPUT, false)), &[&[drop()]])
        .chain("earlier", Some((INPUT, true)), &[&[accept()]])
        .chain("unrelated", Some((2, true)), &[&[drop()]]);
    table.chains[0].base.as_mut().unwrap().priority = 10;
    assert_eq!(table.of_pod(), dropped("later", 1));
    table.chains[0].base.as_mut().unwrap().translates = true;
    assert_eq!(table.of_pod(), Passes);
}

#[test]
fn chains_of_interfaces() {
    for (hook, family) in [(INGRESS, NETDEV), (INGRESS, INET), (EGRESS, NETDEV)] {
        let at = |devices: &[&[u8]], flow: &InboundFlow| {
            let devices = devices.iter().map(|device| device.to_vec()).collect();
            let chain = BaseChain { devices, ..base(hook, false) };
            let mut table = Table::default().chain_at("device", Some(chain), &[&[drop()]]);
            table.chains[0].id.family = family;
            table.predict(flow)
        };
        assert_eq!(at(&[b"cali12\0"], &flow()), dropped("device", 1));
        assert_eq!(at(&[b"eth0\0", b"cali12\0"], &flow()), dropped("device", 1));
        assert_eq!(at(&[b"cali"], &flow()), dropped("device", 1), "names with this beginning");
        assert_eq!(at(&[b"eth0\0", b"cali1\0"], &flow()), Passes);
        assert_eq!(at(&[b"eth0\0"], &future_flow()), perhaps("device", 1));
    }
}

#[test]
fn sets_and_their_intervals() {
    let end = |key: &[u8]| SetElement { ends: true, ..element(key) };
    let of = |first: [u8; 4], behind: [u8; 4]| vec![element(&first), end(&behind)];
    let to = |elements: Vec<SetElement>| {
        let matches = [payload(1, 16, 4), lookup("set")];
        let mut table = Table::default().chain("INPUT", Some((INPUT, false)), &[&rule(&[&matches], drop())]);
        table.sets.insert("set".to_owned(), elements);
        table.of_pod()
    };
    assert_eq!(to(of([169, 254, 0, 0], [169, 255, 0, 0])), dropped("INPUT", 1));
    assert_eq!(to(of([169, 254, 0, 0], [169, 254, 77, 80])), Passes);
    let adjacent = [of([169, 254, 0, 0], [169, 254, 77, 80]), of([169, 254, 77, 80], [170, 0, 0, 0])];
    assert_eq!(to(adjacent.concat()), dropped("INPUT", 1));
    assert_eq!(to(vec![element(&[169, 254, 77, 80])]), dropped("INPUT", 1));
    assert_eq!(to(vec![element(&[169, 254, 77, 81])]), Passes);
    assert_eq!(to(vec![]), Passes);
    let catch_all = SetElement { is_catch_all: true, ..element(&[]) };
    assert_eq!(to(vec![element(&[1, 1, 1, 1]), catch_all]), dropped("INPUT", 1));
}

#[test]
fn marks_of_rules_are_followed() {
    let set = xtables("target", "MARK", &[0x10u32.to_ne_bytes(), 0x10u32.to_ne_bytes()].concat());
    let marked =
        [xtables("match", "mark", &[&0x10u32.to_ne_bytes()[..], &0x10u32.to_ne_bytes(), &[0]].concat())];
    let drops = rule(&[&marked], drop());
    assert_eq!(input(&[&drops], false), Passes);
    assert_eq!(input(&[std::slice::from_ref(&set), &drops], false), dropped("INPUT", 2));
    assert_eq!(input(&[&[unknown(), set], &drops], false), perhaps("INPUT", 2));
    for (mode, bits, expected) in
        [(0, 0x10, Passes), (1, 0x10, Passes), (2, 0x80, Passes), (2, 0x10, perhaps("INPUT", 2))]
    {
        let restores = xtables("target", "CONNMARK", &connmark(mode, bits));
        assert_eq!(input(&[&[restores], &drops], false), expected, "mode {mode}, bits {bits:#x}");
    }
    let other = xtables("target", "MARK", &[0x200u32.to_ne_bytes(), 0x200u32.to_ne_bytes()].concat());
    assert_eq!(input(&[&[unknown(), other], &drops], false), Passes, "another bit of the same byte or word");
    let by_nft = [load("meta", 3), mask(&0x10u32.to_ne_bytes()), compare(1, &[0; 4])];
    let restores = xtables("target", "CONNMARK", &connmark(2, 0xffff_ff8f));
    assert_eq!(input(&[&[restores], &rule(&[&by_nft], drop())], false), Passes);
    let shortens = xtables("target", "CONNMARK", &[]);
    assert_eq!(input(&[&[shortens], &drops], false), perhaps("INPUT", 2));
}

/// `xt_connmark_tginfo2`.
#[test]
fn the_way_back_may_be_assumed() {
    let symmetric = InboundFlow { is_symmetric: true, ..flow() };
    let missing = |result: u32, flags: u32, value: &[u8]| vec![fib(result, flags), compare(0, value)];
    for matches in [
        missing(1, 1 | 8, &[0; 4]),
        missing(2, 1 | 8, &[0; 16]),
        missing(1, 1 | 8 | 32, &[0]),
        vec![xtables("match", "rpfilter", &[8])],
    ] {
        let drops = rule(&[&matches], drop());
        for (hook, flow, expected) in [
            (PREROUTING, &symmetric, Passes),
            (PREROUTING, &flow(), perhaps("chain", 1)),
            // Not that of the reply.
            (OUTPUT, &symmetric, perhaps("chain", 1)),
        ] {
            let table = Table::default().chain("chain", Some((hook, false)), &[&drops]);
            assert_eq!(table.predict(flow), expected, "{matches:?}");
        }
    }
}

#[test]
fn headers_that_rules_write_are_not_known() {
    let write = expression("payload", |data| data.number(5, 1));
    assert_eq!(input(&[&[write], &rule(&[&port(443)], drop())], false), perhaps("INPUT", 2));
    let ttl = rule(&[&[payload(1, 8, 1), compare(0, &[1])]], drop());
    assert_eq!(input(&[&ttl], false), Passes);
    let set_ttl = [xtables("target", "TTL", &[])];
    assert_eq!(input(&[&set_ttl, &ttl], false), perhaps("INPUT", 2));
    assert_eq!(input(&[&set_ttl, &rule(&[&port(443)], drop())], false), Passes);
}

#[test]
fn a_pod_that_does_not_run_yet_may_match() {
    let from = |matches: &[RawExpression]| {
        let rules = rule(&[matches], drop());
        Table::default().chain("INPUT", Some((INPUT, false)), &[&rules]).predict(&future_flow())
    };
    assert_eq!(from(&[payload(1, 12, 4), compare(0, &[10, 0, 0, 2])]), perhaps("INPUT", 1));
    for (key, lo, other) in [(6, name(b"lo"), name(b"eth1")), (4, vec![1, 0, 0, 0], vec![2, 0, 0, 0])] {
        assert_eq!(from(&[load("meta", key), compare(0, &lo)]), Passes);
        assert_eq!(from(&[load("meta", key), compare(1, &lo)]), dropped("INPUT", 1));
        assert_eq!(from(&[load("meta", key), compare(0, &other)]), perhaps("INPUT", 1));
    }
    let marked = [load("meta", 4), load("meta", 3), compare(0, &[1, 0, 0, 0])];
    assert_eq!(from(&marked), Passes, "a mark of 1 is not the interface lo");
    let restored = [xtables("target", "CONNMARK", &[]), load("meta", 3), compare(0, &[1, 0, 0, 0])];
    assert_eq!(from(&restored), perhaps("INPUT", 1));
}

#[test]
fn connections_of_other_nodes_arrive_at_the_address_of_the_interface() {
    let flow = InboundFlow { origin: FlowOrigin::Nodes, ..flow() };
    let rules = rule(&[&[fib(3, 2 | 8), compare(0, &1u32.to_ne_bytes())]], drop());
    let table = Table::default().chain("INPUT", Some((INPUT, false)), &[&rules]);
    assert_eq!(table.predict(&flow), perhaps("INPUT", 1));
    assert_eq!(table.of_pod(), dropped("INPUT", 1));
}

#[test]
fn each_owner_of_a_rule_has_its_remedy() {
    let found =
        |table: &Table, flow: &InboundFlow| crate::obstacle::rule_obstacle(table, flow).unwrap().unwrap();
    let in_chain = |chain: &str| {
        let jump = vec![verdict(-3, chain)];
        Table::default().chain("INPUT", Some((INPUT, false)), &[&jump]).chain(chain, None, &[&[drop()]])
    };
    let policy = || Table::default().chain("INPUT", Some((INPUT, true)), &[]);
    let ufw = "`ufw allow proto tcp to 169.254.77.80 port 80`";
    let nft = "accept pods' packets to 169.254.77.80:80 in the same chain, before it";
    let beside_ufw = in_chain("mine").chain("ufw-user-input", None, &[]);
    let mut other_table = policy().chain("ufw-user-input", None, &[]);
    other_table.chains[1].id.family = IPV6;
    for (what, table, fix) in [
        ("a rule of ufw", in_chain("ufw-not-local"), ufw),
        ("a policy of ufw", policy().chain("ufw-user-input", None, &[]), ufw),
        ("a rule beside ufw", beside_ufw, nft),
        ("a policy, and ufw in another table", other_table, nft),
        ("Calico", in_chain("cali-fw-pod"), "allow egress to 169.254.77.80, TCP port 80"),
        ("Calico with nftables", in_chain("filter-cali-fw-pod"), "allow egress to 169.254.77.80"),
        (
            "the host's policy of Calico",
            in_chain("filter-cali-wl-to-host"),
            "set defaultEndpointToHostAction",
        ),
    ] {
        let fixed = found(&table, &flow()).fix();
        assert!(fixed.starts_with(fix), "{what}: {fixed}");
    }
    let unsure = Table::default().chain("INPUT", Some((INPUT, true)), &[&[unknown(), accept()]]);
    assert_eq!(
        found(&unsure, &flow()).to_string(),
        "the policy of the nftables chain `ip filter INPUT` may drop pods' packets to 169.254.77.80:80 (it depends on \
         what LOTA cannot evaluate: the match `set`)"
    );
    let of_nodes = InboundFlow { origin: FlowOrigin::Nodes, port: 7480, ..flow() };
    let reply = Table::default().chain("OUTPUT", Some((OUTPUT, true)), &[]);
    let found = found(&reply, &of_nodes);
    assert!(found.to_string().ends_with("drops the replies of TCP port 7480 to other nodes"), "{found}");
}

proptest! {
    #[test]
    fn any_rule_is_evaluated(
        expressions in prop::collection::vec(
            (prop::sample::select(vec![
                "meta", "payload", "cmp", "range", "bitwise", "lookup", "notrack", "immediate", "ct", "fib", "match",
                "target",
            ]), prop::collection::vec(any::<u8>(), 0..64)),
            0..6,
        ),
        info: Vec<u8>,
        name in prop::sample::select(vec![
            "conntrack", "state", "addrtype", "tcp", "multiport", "mark", "rpfilter", "pkttype",
        ]),
        target in prop::sample::select(vec!["MARK", "CONNMARK", "CT"]),
    ) {
        let mut rule: Vec<RawExpression> =
            expressions.into_iter().map(|(name, data)| RawExpression { name: name.to_owned(), data }).collect();
        rule.push(xtables("match", name, &info));
        rule.push(xtables("target", target, &info));
        rule.push(drop());
        let table = Table::default().chain("INPUT", Some((INPUT, true)), &[&rule]);
        let _ = table.of_pod();
    }
}
