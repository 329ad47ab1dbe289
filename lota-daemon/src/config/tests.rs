use proptest::prelude::*;

use super::*;

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
fn an_unknown_key_names_its_line_and_the_nearest() {
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
fn bad_values_say_what_they_should_be() {
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
            "[gateway.resign]\nclients_file = \"/c\"\nstyle = \"virtual-host\"\n[cache]",
            "gateway.resign.style",
        ),
        (
            "[cache]",
            "[gateway.resign]\nclients_file = \"/c\"\nregion = \"a\\n\"\n[cache]",
            "gateway.resign.region",
        ),
        ("[cache]", "[limits]\nconnections = 0\n[cache]", "limits.connections"),
        ("[cache]", "[limits]\nconnections_per_pod = 0\n[cache]", "limits.connections_per_pod"),
        ("[cache]", "[limits]\nfills = 0\n[cache]", "limits.fills"),
        ("[cache]", "[fill]\nrequests = 0\n[cache]", "fill.requests"),
        ("[cache]", "[fill]\npart = \"1KiB\"\n[cache]", "fill.part"),
        ("[cache]", "[limits]\nidle_seconds = 0\n[cache]", "limits.idle_seconds"),
        ("[cache]", "[limits]\nidle_seconds = 9000000\n[cache]", "limits.idle_seconds"),
        ("[cache]", "[limits]\nhead = \"1KiB\"\n[cache]", "limits.head"),
        ("[cache]", "[limits]\nbody_memory = \"1MiB\"\n[cache]", "limits.body_memory"),
    ] {
        let message = error(&SMALLEST.replace(good, bad));
        assert!(message.contains(hint), "{message}");
    }
}

#[test]
fn default_ports_are_no_difference() {
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
fn the_example_that_shows_every_key_is_right() {
    let config = Config::parse(include_str!("../../../deploy/lota.toml")).unwrap();
    assert_eq!(config.datapath.pod_interfaces, Datapath::default().pod_interfaces);
    assert_eq!(config.endpoint.vip, Endpoint::default().vip);
    assert_eq!(config.admin.listen, Admin::default().listen);
    assert_eq!(config.datapath.pins, Datapath::default().pins);
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "\\PC*", key in "[a-z_]{1,12}") {
        let _ = Config::parse(&text);
        let _ = Config::parse(&format!("{SMALLEST}\n{key} = 1"));
        let _ = Origin::parse(&text);
    }
}
