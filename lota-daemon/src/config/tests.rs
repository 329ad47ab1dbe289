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
