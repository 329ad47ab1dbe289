use lota_common::MAX_ZONE;
use proptest::prelude::*;

use super::*;

const VIP: [u8; 4] = [169, 254, 77, 80];
const ZONE: &[u8] = b"\x06cwlota\x03com\0";

fn settings(zone: &[u8], vip6: [u8; 16]) -> Settings {
    let mut settings = Settings {
        vip4: VIP,
        vip6,
        http_port: [0, 80],
        dns_port: [0, 53],
        peer_port: [0; 2],
        admin_port: [0; 2],
        zone: [0; MAX_ZONE],
        zone_length: u8::try_from(zone.len()).unwrap(),
        answer_names: 1,
        default_allow: 0,
        lookups: 0,
    };
    settings.zone[MAX_ZONE - zone.len()..].copy_from_slice(zone);
    settings
}

fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').filter(|label| !label.is_empty());
    labels
        .flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat())
        .chain([0])
        .collect()
}

/// A query as resolvers send it, with 54 bytes of other headers before it.
fn message(name: &[u8], kind: u16, rest: &[u8], additional: u8) -> Vec<u8> {
    let header = [0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, additional];
    [&[0xff; 54][..], &header, name, &kind.to_be_bytes(), &[0, 1], rest].concat()
}

const OPT_RECORD: [u8; 11] = [0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0];

fn ask(text: &str, kind: u16) -> Option<Query> {
    query(&&message(&name(text), kind, &[], 0)[..], 54, &settings(ZONE, [0; 16]))
}

#[test]
fn the_zone_and_every_name_under_it_in_any_case() {
    for text in
        ["cwlota.com", "b.cwlota.com", "a.b.c.cwlota.com", "BuCkEt.CWLOTA.cOm", "cwlota.com.cwlota.com"]
    {
        let found = ask(text, 1).unwrap_or_else(|| panic!("{text}"));
        assert_eq!((found.kind, found.length), (Kind::A, 12 + name(text).len() + 4), "{text}");
        assert_eq!(found.zone, 12 + name(text).len() - ZONE.len());
    }
}

#[test]
fn other_names_are_others() {
    for text in [
        "",
        "com",
        "example.com",
        "xcwlota.com",
        "cwlota.com.example",
        "cwlota.co",
        "wlota.com",
        "acwlota.com",
    ] {
        assert_eq!(ask(text, 1), None, "{text}");
    }
    // A label whose end looks like the zone: a dot is no byte of a name, and a length may be one of a label.
    let odd = [&[12][..], b"x\x06cwlota\x03com", &[0]].concat();
    assert_eq!(query(&&message(&odd, 1, &[], 0)[..], 54, &settings(ZONE, [0; 16])), None);
}

#[test]
fn zones_of_every_length() {
    for length in 1..=61 {
        let zone = name(&format!("{}z", "y".repeat(length - 1)));
        let settings = settings(&zone, [0; 16]);
        for (text, ours) in [("", true), ("bucket.", true), ("x", false)] {
            let text = format!("{text}{}Z", "Y".repeat(length - 1));
            let found = query(&&message(&name(&text), 1, &[], 0)[..], 54, &settings);
            assert_eq!(found.is_some(), ours, "{text}");
        }
    }
}

#[test]
fn only_the_plainest_queries() {
    let settings = settings(ZONE, [0; 16]);
    let whole = message(&name("cwlota.com"), 1, &OPT_RECORD, 1);
    assert!(query(&&whole[..], 54, &settings).unwrap().edns);
    // An answer, another kind of query, cut, two questions, answers, authorities, two more records, another class,
    // another record than OPT, another version of EDNS, a compressed name.
    let end = 54 + 12 + ZONE.len() + 4;
    for (at, byte) in [
        (56, 0x81),
        (56, 0x09),
        (56, 0x03),
        (59, 2),
        (61, 1),
        (63, 1),
        (65, 2),
        (end - 1, 3),
        (end + 2, 42),
        (end, 1),
        (end + 6, 1),
        (66, 0xc0),
    ] {
        let mut changed = whole.clone();
        changed[at] = byte;
        assert_eq!(query(&&changed[..], 54, &settings), None, "byte {at} as {byte}");
    }
    for length in 0..whole.len() - 4 {
        assert_eq!(query(&&whole[..length], 54, &settings), None, "cut to {length}");
    }
}

#[test]
fn records_are_what_was_asked_for() {
    let vip6 = *b"\xfd\x10\xfa\xce\0\0\0\0\0\0\0\0\0\0\0\x80";
    let with6 = settings(ZONE, vip6);
    let bytes = |records: Records| {
        records.words.iter().flat_map(|word| word.to_ne_bytes()).take(records.length).collect::<Vec<u8>>()
    };
    let query = ask("b.cwlota.com", 1).unwrap();
    let a = bytes(records(&query, &with6));
    assert_eq!(a, [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4][..], &VIP].concat());
    let edns = bytes(records(&Query { edns: true, ..query }, &with6));
    assert_eq!(edns, [&a[..], &[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]].concat());
    let aaaa = Query { kind: Kind::Aaaa, ..query };
    assert_eq!(bytes(records(&aaaa, &with6))[12..], vip6);
    for (kind, settings) in [(Kind::Aaaa, settings(ZONE, [0; 16])), (Kind::Other, with6)] {
        let soa = records(&Query { kind, ..query }, &settings);
        assert_eq!((soa.answers, soa.length), (0, 36));
        let soa = bytes(soa);
        assert_eq!(soa[..6], [0xc0, 14, 0, 6, 0, 1]);
        assert_eq!(soa[10..16], [0, 24, 0xc0, 14, 0xc0, 14]);
    }
}

#[test]
fn headers_say_who_answers_and_how_much() {
    let query = ask("cwlota.com", 1).unwrap();
    let answered = Records { words: [0; 6], length: 16, answers: 1 };
    assert_eq!(header(&query, &answered), [0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    let nothing = Records { answers: 0, ..answered };
    assert_eq!(header(&Query { edns: true, ..query }, &nothing), [0x85, 0x80, 0, 1, 0, 0, 0, 1, 0, 1]);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>, at in 0usize..80) {
        // As in the kernel, where a DNS message has Ethernet, IP and UDP before it.
        let padded = [&[0; 54][..], &bytes].concat();
        let _ = query(&&padded[..], 54 + at, &settings(ZONE, [0; 16]));
    }

    /// The rule, said once more and in another way.
    #[test]
    fn names_equal_the_reference(labels in proptest::collection::vec("[a-zA-Z0-9-]{1,20}", 0..6), ours: bool) {
        let mut text = labels.join(".");
        if ours {
            text = format!("{text}.cwLOTA.com");
        }
        let under = text.to_ascii_lowercase();
        let expected = under.trim_start_matches('.') == "cwlota.com" || under.ends_with(".cwlota.com");
        prop_assert_eq!(ask(&text, 1).is_some(), expected, "{}", text);
    }
}
