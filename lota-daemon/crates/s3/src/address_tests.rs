use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

use super::*;

fn zone() -> Zone {
    Zone::parse("cwlota.com").unwrap()
}

fn object(bucket: &str, key: &str) -> Resource {
    Resource::Object(Bucket(bucket.to_owned()), Key(key.to_owned()))
}

#[test]
fn both_styles_name_the_same_object() {
    assert_eq!(zone().resource("cwlota.com", "/data/a/b"), object("data", "a/b"));
    assert_eq!(zone().resource("data.cwlota.com", "/a/b"), object("data", "a/b"));
    assert_eq!(zone().resource("DATA.CWLOTA.COM:80", "/a/b"), object("data", "a/b"));
    assert_eq!(zone().resource("cwlota.com.", "/data/a/b"), object("data", "a/b"));
}

#[test]
fn buckets_may_have_dots() {
    assert_eq!(zone().resource("a.b.cwlota.com", "/k"), object("a.b", "k"));
}

#[test]
fn service_and_buckets() {
    let data = Resource::Bucket(Bucket("data".to_owned()));
    assert_eq!(zone().resource("cwlota.com", "/"), Resource::Service);
    assert_eq!(zone().resource("cwlota.com", "/data"), data);
    assert_eq!(zone().resource("cwlota.com", "/data/"), data);
    assert_eq!(zone().resource("data.cwlota.com:8080", "/"), data);
}

#[test]
fn keys_are_decoded_but_not_normalised() {
    for (path, key) in [
        ("/b/../x", "../x"),
        ("/b/%2e%2e%2fx", "../x"),
        ("/b//x", "/x"),
        ("/b/a+b%20c", "a+b c"),
        ("/b/%E2%82%AC", "€"),
        ("/b/100%", "100%"),
    ] {
        assert_eq!(zone().resource("cwlota.com", path), object("b", key), "{path}");
    }
}

#[test]
fn other_targets_are_left_to_the_gateway() {
    let long = format!("/b/{}", "k".repeat(1025));
    for (host, path) in [
        ("example.com", "/b/k"),
        ("10.0.0.1", "/b/k"),
        ("notcwlota.com", "/b/k"),
        (".cwlota.com", "/k"),
        ("cwlota.com", "/../k"),
        ("cwlota.com", "/b%2Fk/k"),
        ("cwlota.com", "/b/%ff"),
        ("cwlota.com", "*"),
        ("cwlota.com", &long),
    ] {
        assert_eq!(zone().resource(host, path), Resource::Unknown, "{host} {path}");
    }
}

#[test]
fn zones_are_names() {
    for bad in ["", "a..b", "a b", "a/b", &"x".repeat(64)] {
        assert!(Zone::parse(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn any_host_and_path_resolve_without_panic(host in ".*", path in ".*") {
        let _ = zone().resource(&host, &path);
    }

    #[test]
    fn keys_round_trip(key in "\\PC{1,200}") {
        let raw = utf8_percent_encode(&key, NON_ALPHANUMERIC).to_string();
        prop_assume!(key.len() <= 1024);
        prop_assert_eq!(zone().resource("b.cwlota.com", &format!("/{raw}")), object("b", &key));
        prop_assert_eq!(zone().resource("cwlota.com", &format!("/b/{raw}")), object("b", &key));
    }
}
