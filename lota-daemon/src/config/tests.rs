use std::net::Ipv4Addr;

use lota_s3::Credential;
use proptest::prelude::*;

use lota_s3::Origin;

use super::*;
use crate::gateway::Protocol;

const SMALLEST: &str = r#"
    [node]
    name = "n1"
    address = "10.0.0.1"
    [gateway]
    endpoint = "http://10.0.0.9:9000"
    [cache]
    folder = "/var/cache/lota"
    capacity = "10GiB"
"#;

fn error(text: &str) -> String {
    Config::parse(text).unwrap_err()
}

#[test]
fn the_smallest_configuration_has_the_documented_defaults() {
    let config = Config::parse(SMALLEST).unwrap();
    assert_eq!(config.endpoint.zone.as_str(), "cwlota.com");
    assert_eq!(config.endpoint.vip, Ipv4Addr::new(169, 254, 77, 80));
    assert_eq!(config.gateway.protocol, Protocol::S3);
    assert_eq!(config.cache.capacity(), 10 << 30);
    assert_eq!(config.peer_port(), 7480);
    assert!(config.admin.listen.ip().is_loopback());
    assert!(config.access.pods.is_empty());
}

#[test]
fn an_unknown_key_is_reported_with_its_line_and_the_closest_key() {
    let message = error(&SMALLEST.replace("capacity", "capacty"));
    assert!(message.contains("line 9"), "{message}");
    assert!(message.contains("`capacty`"), "{message}");
    assert!(message.ends_with("did you mean `capacity`?"), "{message}");
    let message = error(&format!("{SMALLEST}\n[gatway]\n"));
    assert!(message.ends_with("did you mean `gateway`?"), "{message}");
    let message = error(&SMALLEST.replace("9000\"", "9000\"\nprotocol = \"lotta\""));
    assert!(message.ends_with("did you mean `lota`?"), "{message}");
}

#[test]
fn errors_of_bad_values_show_valid_ones() {
    for (good, bad, hint) in [
        ("10GiB", "10 gigs", "10GiB"),
        ("10GiB", "99999999999PiB", "10GiB"),
        ("http://10.0.0.9:9000", "10.0.0.9:9000", "http://"),
        ("http://10.0.0.9:9000", "http://10.0.0.9/path", "http://"),
        ("http://10.0.0.9:9000", "http://user:pw@10.0.0.9", "http://"),
        ("10.0.0.1", "10.0.0.256", "IP address"),
        ("\"n1\"", "\"\"", "node.name"),
        ("\"n1\"", "\"a;b\"", "node.name"),
        ("[cache]", "[admin]\nlisten = \"0.0.0.0:7481\"\n[cache]", "admin.listen"),
        ("[cache]", "[admin]\nmetrics_listen = \"0.0.0.0:7480\"\n[cache]", "admin.metrics_listen"),
        ("[cache]", "[admin]\nmetrics_listen = \"0.0.0.0:7481\"\n[cache]", "admin.metrics_listen"),
        (
            "[cache]",
            "[gateway.re_sign]\nclients_file = \"/c\"\nstyle = \"virtual-host\"\n[cache]",
            "gateway.re_sign.style",
        ),
        (
            "[cache]",
            "[gateway.re_sign]\nclients_file = \"/c\"\nregion = \"a\\n\"\n[cache]",
            "gateway.re_sign.region",
        ),
        ("[cache]", "[placement]\nstripe = \"1KiB\"\n[cache]", "must be a multiple of 1 MiB"),
        ("[cache]", "[placement]\nstripe = \"2GiB\"\n[cache]", "must be a multiple of 1 MiB"),
        ("[cache]", "[limits]\nconnections = 0\n[cache]", "limits.connections"),
        ("[cache]", "[limits]\nconnections_per_pod = 0\n[cache]", "limits.connections_per_pod"),
        ("[cache]", "[limits]\nfills = 0\n[cache]", "limits.fills"),
        ("[cache]", "[cache]\nmax_objects = 0", "cache.max_objects"),
        ("[cache]", "[cache]\nafter_write = \"fetch\"", "\"keep\" need [backend]"),
        ("[cache]", "[cache]\nafter_write = \"keep\"", "\"keep\" need [backend]"),
        ("[cache]", "[cache]\nafter_write = \"kept\"", "expected one of `off`, `fetch`, `keep`"),
        ("[cache]", "[fill]\nconcurrency = 0\n[cache]", "fill.concurrency"),
        ("[cache]", "[fill]\npart_size = \"1KiB\"\n[cache]", "fill.part_size"),
        ("[cache]", "[limits]\nidle_timeout_seconds = 0\n[cache]", "limits.idle_timeout_seconds"),
        ("[cache]", "[limits]\nidle_timeout_seconds = 9000000\n[cache]", "limits.idle_timeout_seconds"),
        ("9000\"", "9000\"\nresponse_timeout_seconds = 0", "gateway.response_timeout_seconds"),
        ("[cache]", "[limits]\nheader_size = \"1KiB\"\n[cache]", "limits.header_size"),
        ("[cache]", "[limits]\nbody_memory = \"1MiB\"\n[cache]", "limits.body_memory"),
        ("[cache]", "[limits]\npod_bandwidth = \"1KiB\"\n[cache]", "limits.pod_bandwidth"),
    ] {
        let message = error(&SMALLEST.replace(good, bad));
        assert!(message.contains(hint), "{message}");
    }
}

#[test]
fn each_host_name_belongs_to_one_gateway() {
    let cloud = |more: &str| format!("{SMALLEST}\n[gateways.cloud]\nendpoint = \"https://s3.test\"\n{more}");
    let config = Config::parse(&cloud("names = [\"s3.test\"]")).unwrap();
    let endpoints = config.endpoints();
    let at_address = cloud("addresses = [\"10.0.0.5\"]").replace("https://s3.test", "http://s3.test");
    let at_address = Config::parse(&at_address).unwrap();
    assert_eq!(at_address.endpoints().find("10.0.0.5:80").unwrap().gateway.as_str(), "http://s3.test");
    assert!(!at_address.targets().unwrap().is_empty() && config.targets().unwrap().is_empty());
    for (host, gateway) in [
        ("cwlota.com", Some("http://10.0.0.9:9000")),
        ("169.254.77.80", Some("http://10.0.0.9:9000")),
        ("b.s3.test:443", Some("https://s3.test")),
        ("elsewhere.test", None),
    ] {
        let found = endpoints.find(host).map(|endpoint| endpoint.gateway.as_str());
        assert_eq!(found, gateway, "{host}");
    }
    let names =
        |count: usize| (0..count).map(|name| format!("\"n{name}.test\"")).collect::<Vec<_>>().join(", ");
    assert!(Config::parse(&cloud(&format!("names = [{}]", names(63)))).is_ok());
    for (text, hint) in [
        (cloud(""), "gateways.cloud.names: empty"),
        (cloud("names = [\"s3.test\"]\nports = [53]"), "gateways.cloud.ports"),
        (cloud("names = [\"10.0.0.5\"]"), "is an address"),
        (cloud("addresses = [\"10.0.0.5\"]"), "gateways.cloud.addresses: not possible for an https"),
        (
            cloud("addresses = [\"169.254.77.80\"]").replace("https://s3.test", "http://s3.test"),
            "gateways.cloud.addresses: `169.254.77.80:80` is not possible: it is LOTA's own",
        ),
        (
            cloud("addresses = [\"10.0.0.5\", \"10.0.0.5\"]").replace("https://s3.test", "http://s3.test"),
            "gateways.cloud.addresses: duplicate address `10.0.0.5:80`",
        ),
        (cloud("names = [\"s3.test\"]").replace("https://s3.test", "http://s3.test:53"), "53 is not possible"),
        (cloud("names = [\"s3.test\"]\nports = [7480]"), "7480 is the peer port"),
        (cloud("names = [\"s3.test\"]\nports = [1, 2, 3, 4, 5, 6, 7]"), "at most 8"),
        (SMALLEST.replace("9000\"", "9000\"\nports = [9001]"), "gateway.names: empty"),
        (cloud("names = [\"cwlota.com\"]"), "gateways.cloud.names: duplicate name `cwlota.com`"),
        (cloud("names = [\"a.test\", \"A.test.\"]"), "gateways.cloud.names: duplicate name `a.test`"),
        (cloud(&format!("names = [{}]", names(64))), "at most 63"),
        (cloud(&format!("names = [\"{}\"]", ["a"; 60].join("."))), "gateways.cloud.names: `a.a."),
        (
            cloud("names = [\"s3.test\"]\ndirect_allow = [\"http://a:1\"]"),
            "gateways.cloud.protocol = \"lota\"",
        ),
        (cloud("names = [\"s3.test\"]").replace("gateways.cloud", "gateways.default"), "gateways.default"),
        (cloud("names = [\"s3.test\"]").replace("gateways.cloud", "gateways.Cloud"), "lower-case"),
        (cloud("names = [\"s3.test\"]").replace("https://s3.test", "http://10.0.0.9:9000"), "endpoint of another"),
        (
            cloud("names = [\"s3.test\"]\n[backends.clod]\nendpoints = [\"http://a\"]\ncredential_file = \"/c\""),
            "backends.clod: there is no section gateways.clod; the further gateways are gateways.cloud",
        ),
        (
            cloud("names = [\"s3.test\"]\n[backends.cloud]\nendpoints = []\ncredential_file = \"/c\""),
            "backends.cloud.endpoints: empty",
        ),
        (
            (0..8).fold(SMALLEST.to_owned(), |text, number| {
                format!("{text}\n[gateways.g{number}]\nendpoint = \"http://g{number}\"\nnames = [\"g{number}.test\"]")
            }),
            "at most 8",
        ),
    ] {
        let message = error(&text);
        assert!(message.contains(hint), "{hint}: {message}");
    }
}

#[test]
fn default_ports_are_not_a_difference() {
    let origin = |text| Origin::parse(text).unwrap();
    assert_eq!(origin("http://h:80"), origin("http://h"));
    assert_eq!(origin("https://h:443"), origin("https://h/"));
    assert_ne!(origin("http://h:443"), origin("http://h"));
}

#[test]
fn secrets_do_not_show() {
    let credential: Credential = toml::from_str("access_key = \"a\"\nsecret_key = \"hunter2\"").unwrap();
    assert!(!format!("{credential:?}").contains("hunter2"));
}

#[test]
fn the_example_with_every_key_is_valid() {
    let config = Config::parse(include_str!("../../../deploy/lota.toml")).unwrap();
    assert_eq!(config.datapath.pod_interfaces, DatapathConfig::default().pod_interfaces);
    assert_eq!(config.endpoint.vip, EndpointConfig::default().vip);
    assert_eq!(config.admin.listen, AdminConfig::default().listen);
    assert_eq!(config.datapath.bpffs_path, DatapathConfig::default().bpffs_path);
}

proptest! {
    #[test]
    fn other_text_is_refused_and_unknown_keys_are_named(text in "\\PC*", key in "[a-z_]{1,12}") {
        prop_assert!(!Config::parse(&text).unwrap_err().is_empty());
        // A key of `[cache]`.
        let known = include_str!("../../../deploy/lota.toml").lines().any(|line| line.contains(&format!("{key} = ")));
        if let Err(message) = Config::parse(&format!("{SMALLEST}\n{key} = 1")) {
            prop_assert!(message.contains(&format!("unknown field `{key}`")) || known, "{}", message);
        } else {
            prop_assert!(known, "{} is accepted", key);
        }
    }

    #[test]
    fn origins_round_trip(text in "\\PC*", host in "[a-z][a-z0-9.-]{0,9}", port in prop_oneof![Just(80), Just(443), 1u16..], tls: bool) {
        if let Ok(origin) = Origin::parse(&text) {
            prop_assert_eq!(Origin::parse(&origin.to_string()), Ok(origin));
        }
        let (scheme, default) = if tls { ("https", 443) } else { ("http", 80) };
        let origin = Origin::parse(&format!("{scheme}://{host}:{port}/")).unwrap();
        let shown = if port == default { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") };
        prop_assert_eq!(origin.to_string(), shown);
    }
}

/// Returns a configuration with these keys of `[peers]`, and two nodes with these of theirs.
fn with_peers(keys: &str, nodes: [&str; 2]) -> String {
    let [n1, n2] = nodes;
    format!(
        "{SMALLEST}\n[peers]\n{keys}\nnodes = [\n\
         {{ {n1} name = 'n1', address = '10.0.0.1', capacity = '1GiB' }},\n\
         {{ {n2} name = 'n2', address = '10.0.0.2', capacity = '1GiB' }}]"
    )
}

#[test]
fn the_files_of_a_kind_of_keys_must_be_set() {
    let (shared, node) = ("secret_file = '/s'", "node_key_file = '/n'");
    let kind = |keys: &str| {
        let config = Config::parse(&with_peers(keys, ["", ""])).map_err(|error| error.to_string())?;
        let keys = config.peers.unwrap().keys;
        let files = [keys.shared(), keys.node()].map(|file| file.map(|file| file.display().to_string()));
        Ok::<_, String>((keys.authentication().name(), files.map(Option::unwrap_or_default)))
    };
    let of = |name, files: [&str; 2]| Ok((name, files.map(str::to_owned)));
    assert_eq!(kind(shared), of("shared", ["/s", ""]));
    assert_eq!(kind(&format!("{shared}\n{node}")), of("both", ["/s", "/n"]));
    assert_eq!(kind(node), of("node", ["", "/n"]));
    for (authentication, files) in [("shared", ["/s", ""]), ("both", ["/s", "/n"]), ("node", ["", "/n"])] {
        let all = format!("authentication = '{authentication}'\n{shared}\n{node}");
        assert_eq!(kind(&all), of(authentication, files));
    }
    for (keys, missing) in [
        ("", "peers.secret_file: missing; authentication = \"shared\" needs it"),
        ("authentication = 'shared'\nnode_key_file = '/n'", "peers.secret_file: missing"),
        (
            "authentication = 'both'\nnode_key_file = '/n'",
            "peers.secret_file: missing; authentication = \"both\"",
        ),
        (
            "authentication = 'both'\nsecret_file = '/s'",
            "peers.node_key_file: missing; authentication = \"both\"",
        ),
        (
            "authentication = 'node'\nsecret_file = '/s'",
            "peers.node_key_file: missing; authentication = \"node\"",
        ),
        ("authentication = 'nodes'\nsecret_file = '/s'", "did you mean `node`?"),
        ("secret_fil = '/s'", "did you mean `secret_file`?"),
    ] {
        let error = kind(keys).unwrap_err();
        assert!(error.contains(missing), "{keys}: {error}");
    }
}

#[test]
fn public_keys_are_unique_and_few() {
    const KEYS: [&str; 3] = [
        "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=",
        "DyI0AaJkyq1lWsoVvyU8eJ7dz0HYIw0h+Lg5p2+uZrk=",
        "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    ];
    let parse = |of_n1: &[&str], of_n2: &[&str]| {
        let nodes = [of_n1, of_n2].map(|keys| format!("public_keys = {keys:?},"));
        Config::parse(&with_peers("node_key_file = '/n'", [&nodes[0], &nodes[1]]))
    };
    let known = parse(&KEYS[..2], &KEYS[2..]).unwrap().peers.unwrap().public_keys();
    let of_n1 = &known[&lota_cache::placement::NodeName("n1".to_owned())];
    assert_eq!(of_n1.iter().map(ToString::to_string).collect::<Vec<_>>(), &KEYS[..2]);
    for (of_n1, of_n2, hint) in [
        (&KEYS[..], &[][..], "more than 2 keys of `n1`"),
        (&KEYS[..1], &KEYS[..1], "`n2` has a key of `n1`"),
        (&["x"], &[], "`x` is not a public key"),
    ] {
        let error = parse(of_n1, of_n2).unwrap_err();
        assert!(error.contains(hint), "{error}");
    }
    let twice =
        with_peers("node_key_file = '/n'", ["", ""]).replace("'n2'", "'n1'").replace("\"n2\"", "\"n1\"");
    assert!(Config::parse(&twice).unwrap_err().contains("two nodes have the name `n1`"));
}

#[test]
fn a_running_daemon_keeps_its_keys_of_nodes_until_it_restarts_without_them() {
    let published =
        |keys: &str| Config::parse(&with_peers(keys, ["", ""])).unwrap().peers.unwrap().published_keys();
    assert_eq!(published("secret_file = '/s'"), None);
    assert_eq!(published("secret_file = '/s'\nnode_key_file = '/n'").unwrap().len(), 2);
}

#[test]
fn keys_of_nodes_need_a_list_of_nodes() {
    for (authentication, is_known) in [("shared", true), ("both", false), ("node", false)] {
        let keys = format!(
            "{SMALLEST}\n[kubernetes]\n[peers]\nsecret_file = '/s'\nnode_key_file = '/n'\nauthentication = '{authentication}'"
        );
        let parsed = Config::parse(&keys);
        assert_eq!(parsed.is_ok(), is_known, "{authentication}");
        assert!(parsed.is_ok() || parsed.unwrap_err().contains("list the nodes in peers.nodes"));
    }
    let listed = with_peers("node_key_file = '/n'", ["", ""]).replace("[peers]", "[kubernetes]\n[peers]");
    Config::parse(&listed).unwrap();
}
