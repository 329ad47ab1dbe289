use lota_common::{MAX_NAME, MAX_NAMES};
use proptest::prelude::*;

use super::*;

const VIP: [u8; 4] = [169, 254, 77, 80];
const VIP6: [u8; 16] = *b"\xfd\x10\xfa\xce\0\0\0\0\0\0\0\0\0\0\0\x80";
const NO_VIP6: [u8; 16] = [0; 16];

/// Returns settings for names that are no longer than [`MAX_NAME`].
fn settings(vip6: [u8; 16]) -> Settings {
    Settings {
        vip4: VIP,
        vip6,
        ports: [80, 0, 0, 0, 0, 0, 0, 0],
        dns_port: 53,
        peer_port: 0,
        admin_port: 0,
        longest_name: u8::try_from(MAX_NAME).unwrap(),
        answer_dns: 1,
        default_allow: 0,
        lookups: 0,
        targets: 0,
        epoch: 1,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Own,
    OwnWhileUp,
    Intercepted,
}
use Kind::{Intercepted, Own, OwnWhileUp};

fn entry(text: &str, kind: Kind) -> RawName {
    RawName {
        name: [0; MAX_NAME],
        length: u32::try_from(name(text).len()).unwrap(),
        kind: if kind == Intercepted { RawName::INTERCEPTED } else { RawName::OWN },
        needs_daemon: u32::from(kind != Own),
    }
}

/// A message and the endpoint's names, among which the kernel finds one byte for byte.
struct TestQuery<'a> {
    bytes: &'a [u8],
    names: &'a [(&'a str, Kind)],
}

impl Bytes for TestQuery<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.load(offset)
    }
}

impl Message for TestQuery<'_> {
    fn find(&self, end: usize, length: usize) -> Option<FoundName> {
        assert!((1..=MAX_NAME).contains(&length), "{length}");
        let asked_name = self.bytes[end - length..end].to_ascii_lowercase();
        let ends = |text: &str| asked_name.ends_with(&name(text));
        let found = self.names.iter().filter(|(text, _)| ends(text)).max_by_key(|(text, _)| text.len());
        found.map(|(text, kind)| FoundName::of(&entry(text, *kind)))
    }
}

fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').filter(|label| !label.is_empty());
    labels
        .flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat())
        .chain([0])
        .collect()
}

/// Returns a query as clients send it.
fn message(name: &[u8], kind: u16, rest: &[u8], additional: u8) -> Vec<u8> {
    let header = [0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, additional];
    [&header[..], name, &kind.to_be_bytes(), &[0, 1], rest].concat()
}

const OPT_RECORD: [u8; 11] = [0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0];
const CWLOTA: &[(&str, Kind)] = &[("cwlota.com", Own)];

fn ask(names: &[(&str, Kind)], text: &str, kind: u16) -> Option<DnsQuery> {
    ask_bytes(names, &message(&name(text), kind, &[], 0))
}

fn ask_bytes(names: &[(&str, Kind)], bytes: &[u8]) -> Option<DnsQuery> {
    query(&TestQuery { bytes, names }, &settings(VIP6))
}

#[test]
fn a_name_and_all_names_under_it_match_in_any_case() {
    for text in
        ["cwlota.com", "b.cwlota.com", "a.b.c.cwlota.com", "BuCkEt.CWLOTA.cOm", "cwlota.com.cwlota.com"]
    {
        let found = ask(CWLOTA, text, 1).unwrap_or_else(|| panic!("{text}"));
        assert_eq!((found.kind, found.length), (QueryType::A, 12 + name(text).len() + 4), "{text}");
        assert_eq!(found.zone, 12 + name(text).len() - name("cwlota.com").len());
    }
}

#[test]
fn other_names_do_not_match() {
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
        assert_eq!(ask(CWLOTA, text, 1), None, "{text}");
    }
    // A label that ends with the bytes of the name, including the length byte of its first label.
    let odd = [&[12][..], b"x\x06cwlota\x03com", &[0]].concat();
    assert_eq!(ask_bytes(CWLOTA, &message(&odd, 1, &[], 0)), None);
}

#[test]
fn the_longest_name_decides() {
    let names = [("s3.internal", Intercepted), ("eu.s3.internal", Own), ("internal", OwnWhileUp)];
    for (text, length) in [
        ("s3.internal", Some(11)),
        ("bucket.S3.internal", Some(11)),
        ("eu.s3.internal", Some(14)),
        ("bucket.eu.s3.Internal", Some(14)),
        ("xeu.s3.internal", Some(11)),
        ("xs3.internal", Some(8)),
        ("internal", Some(8)),
        ("xinternal", None),
        ("s3", None),
    ] {
        let found = ask(&names, text, 1).map(|query| query.name.length - 2);
        assert_eq!(found, length, "{text}");
    }
}

#[test]
fn queries_are_ours_by_the_kind_of_the_name() {
    let names = [("own.test", Own), ("up.test", OwnWhileUp), ("s3.test", Intercepted)];
    for (text, needs_daemon, ttl, other, without_vip6) in [
        ("b.own.test", false, TTL, true, true),
        ("b.up.test", true, SHORT_TTL, true, true),
        ("b.s3.test", true, SHORT_TTL, false, false),
    ] {
        let query_of = |kind| ask(&names, text, kind).unwrap();
        assert_eq!(query_of(1).name.needs_daemon, needs_daemon, "{text}");
        assert_eq!(query_of(1).ttl(), ttl, "{text}");
        for kind in [1, 28, 64, 65] {
            assert!(query_of(kind).is_ours(&settings(NO_VIP6), false), "{text}, type {kind}");
            assert_eq!(query_of(kind).is_ours(&settings(NO_VIP6), true), without_vip6, "{text}, type {kind}");
            assert!(query_of(kind).is_ours(&settings(VIP6), true), "{text}, type {kind}");
        }
        for kind in [2, 5, 6, 15, 16, 33, 255, 256, 257] {
            assert_eq!(query_of(kind).is_ours(&settings(VIP6), false), other, "{text}, type {kind}");
        }
    }
}

/// Names are answered up to 40 labels, the root's included, and 255 bytes.
#[test]
fn long_names_do_not_match() {
    // The endpoint's name has three labels and twelve bytes.
    for (labels, length, ours) in [(37, 1, true), (38, 1, false), (4, 59, true), (4, 60, false)] {
        let text = format!("{}cwlota.com", format!("{}.", "x".repeat(length)).repeat(labels));
        assert_eq!(ask(CWLOTA, &text, 1).is_some(), ours, "{labels} labels of {length} bytes");
    }
}

/// Without names, nothing is looked up.
#[test]
fn no_name_is_longer_than_the_longest() {
    let bytes = message(&name("b.cwlota.com"), 1, &[], 0);
    for (longest_name, found) in [(0, false), (11, false), (12, true), (128, true)] {
        let settings = Settings { longest_name, ..settings(NO_VIP6) };
        assert_eq!(
            query(&TestQuery { bytes: &bytes, names: CWLOTA }, &settings).is_some(),
            found,
            "{longest_name}"
        );
    }
}

#[test]
fn only_simple_queries_are_answered() {
    let whole = message(&name("cwlota.com"), 1, &OPT_RECORD, 1);
    assert!(ask_bytes(CWLOTA, &whole).unwrap().edns);
    // A response, another opcode, truncated, two questions, answers, authorities, two more records, another class,
    // another record than OPT, another version of EDNS, a compressed name.
    let end = 12 + name("cwlota.com").len() + 4;
    for (at, byte) in [
        (2, 0x81),
        (2, 0x09),
        (2, 0x03),
        (5, 2),
        (7, 1),
        (9, 1),
        (11, 2),
        (end - 1, 3),
        (end + 2, 42),
        (end, 1),
        (end + 6, 1),
        (12, 0xc0),
    ] {
        let mut changed = whole.clone();
        changed[at] = byte;
        assert_eq!(ask_bytes(CWLOTA, &changed), None, "byte {at} as {byte}");
    }
    for length in 0..whole.len() - 4 {
        assert_eq!(ask_bytes(CWLOTA, &whole[..length]), None, "cut to {length}");
    }
}

#[test]
fn records_have_the_requested_type() {
    let with6 = settings(VIP6);
    let bytes = |records: Records| {
        records.words.iter().flat_map(|word| word.to_ne_bytes()).take(records.length).collect::<Vec<u8>>()
    };
    let query = ask(CWLOTA, "b.cwlota.com", 1).unwrap();
    let a = bytes(records(&query, &with6));
    assert_eq!(a, [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4][..], &VIP].concat());
    let edns = bytes(records(&DnsQuery { edns: true, ..query }, &with6));
    assert_eq!(edns, [&a[..], &[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]].concat());
    let aaaa = DnsQuery { kind: QueryType::Aaaa, ..query };
    assert_eq!(bytes(records(&aaaa, &with6))[12..], VIP6);
    let without6 = settings(NO_VIP6);
    for (kind, settings) in
        [(QueryType::Aaaa, without6), (QueryType::Other, with6), (QueryType::Service, with6)]
    {
        let soa = records(&DnsQuery { kind, ..query }, &settings);
        assert_eq!((soa.answers, soa.length), (0, 36));
        let soa = bytes(soa);
        assert_eq!(soa[..6], [0xc0, 14, 0, 6, 0, 1]);
        assert_eq!(soa[10..16], [0, 24, 0xc0, 14, 0xc0, 14]);
        assert_eq!(soa[32..36], [0, 0, 0, 60]);
    }
    let short = FoundName { needs_daemon: true, ..query.name };
    assert_eq!(bytes(records(&DnsQuery { name: short, ..query }, &with6))[6..10], [0, 0, 0, 1]);
    let no_data = DnsQuery { name: short, kind: QueryType::Service, ..query };
    assert_eq!(bytes(records(&no_data, &with6))[32..36], [0, 0, 0, 1]);
}

#[test]
fn headers_have_flags_and_counts() {
    let query = ask(CWLOTA, "cwlota.com", 1).unwrap();
    let answered = Records { words: [0; 6], length: 16, answers: 1 };
    assert_eq!(header(&query, &answered), [0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    let nothing = Records { answers: 0, ..answered };
    assert_eq!(header(&DnsQuery { edns: true, ..query }, &nothing), [0x85, 0x80, 0, 1, 0, 0, 0, 1, 0, 1]);
}

/// Returns labels of which many are equal or contain one another.
fn labels() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec(prop_oneof!["[abAB]{1,3}", "[a-zA-Z0-9-]{1,20}"], 1..6)
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = ask_bytes(CWLOTA, &bytes);
    }

    /// Compares the result with an independent formulation of the rule: label by label, on text.
    #[test]
    fn names_equal_the_reference(
        names in proptest::collection::vec((labels(), prop::sample::select(vec![Own, OwnWhileUp, Intercepted])), 0..MAX_NAMES),
        asked_name in labels(),
        under: prop::sample::Index,
        is_under: bool,
    ) {
        let texts: Vec<String> = names.iter().map(|(labels, _)| labels.join(".").to_ascii_lowercase()).collect();
        let mut asked_name = asked_name;
        if is_under && !names.is_empty() {
            asked_name.extend(names[under.index(names.len())].0.clone());
        }
        let text = asked_name.join(".");
        let entries: Vec<(&str, Kind)> =
            texts.iter().zip(&names).map(|(text, (_, kind))| (text.as_str(), *kind)).collect();
        let ends = |labels: &[String]| {
            labels.len() <= asked_name.len()
                && labels.iter().rev().zip(asked_name.iter().rev()).all(|(a, b)| a.eq_ignore_ascii_case(b))
        };
        let matching = names.iter().map(|(labels, _)| labels).filter(|labels| ends(labels));
        let longest = matching.map(|labels| labels.join(".").len() + 2).max();
        prop_assert_eq!(ask(&entries, &text, 1).map(|query| query.name.length), longest, "{}", text);
    }

    #[test]
    fn words_of_a_key_are_reversed_and_in_lower_case(characters: [u8; 8]) {
        // Lengths of labels are below the letters, and bytes beyond ASCII have no case.
        let mut expected = characters.map(|character| character.to_ascii_lowercase());
        expected.reverse();
        prop_assert_eq!(key_word(u64::from_ne_bytes(characters)).to_ne_bytes(), expected);
    }
}
