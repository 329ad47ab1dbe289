//! Unit tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::access::bucket_of_host;
use super::blob;
use super::checksum::Checksums;
use super::conditions::{Verdict, evaluate, range_applies};
use super::head::OwnHeaders;
use super::listing::{PageQuery, list};
use super::range::{Selection, select};
use super::store::Object;
use super::{Direct, Gateway, Settings, redirect};

const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

fn then() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(784_111_777)
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let parsed = |&(name, value)| {
        let name = HeaderName::from_static(name);
        (name, HeaderValue::from_static(value))
    };
    pairs.iter().map(parsed).collect()
}

#[test]
fn conditions_follow_their_precedence() {
    use Verdict::{Failed, NotModified, Proceed};
    let cases: &[(&[(&str, &str)], Verdict)] = &[
        (&[], Proceed),
        (&[("if-match", "\"e\"")], Proceed),
        (&[("if-match", "e")], Proceed),
        (&[("if-match", "*")], Proceed),
        (&[("if-match", "\"a\", \"e\"")], Proceed),
        (&[("if-match", "\"a\"")], Failed),
        (&[("if-match", "W/\"e\"")], Failed),
        (&[("if-unmodified-since", BEFORE)], Failed),
        (&[("if-unmodified-since", THEN)], Proceed),
        (&[("if-unmodified-since", "yesterday")], Proceed),
        (&[("if-match", "\"e\""), ("if-unmodified-since", BEFORE)], Proceed),
        (&[("if-match", "\"a\""), ("if-unmodified-since", AFTER)], Failed),
        (&[("if-none-match", "\"e\"")], NotModified),
        (&[("if-none-match", "W/\"e\"")], NotModified),
        (&[("if-none-match", "*")], NotModified),
        (&[("if-none-match", "\"a\", \"b\"")], Proceed),
        (&[("if-modified-since", THEN)], NotModified),
        (&[("if-modified-since", AFTER)], NotModified),
        (&[("if-modified-since", BEFORE)], Proceed),
        (&[("if-modified-since", "yesterday")], Proceed),
        (&[("if-none-match", "\"a\""), ("if-modified-since", AFTER)], Proceed),
        (&[("if-none-match", "\"e\""), ("if-modified-since", BEFORE)], NotModified),
        (&[("if-match", "\"a\""), ("if-none-match", "\"e\"")], Failed),
        (&[("if-match", "\"e\""), ("if-none-match", "\"e\"")], NotModified),
        (&[("if-unmodified-since", AFTER), ("if-modified-since", AFTER)], NotModified),
    ];
    for (given, expected) in cases {
        assert_eq!(evaluate(&headers(given), "e", then()), *expected, "{given:?}");
    }
}

#[test]
fn if_range_requires_the_same_version() {
    let applies = |value| range_applies(&headers(&[("if-range", value)]), "e", then());
    assert!(range_applies(&HeaderMap::new(), "e", then()));
    assert!(applies("\"e\""));
    assert!(applies(THEN));
    assert!(!applies("W/\"e\""));
    assert!(!applies("\"a\""));
    assert!(!applies(AFTER));
}

#[test]
fn ranges_are_clamped_or_refused() {
    use Selection::{Part, Unsatisfiable, Whole};
    let cases = [
        (None, Whole),
        (Some("bytes=0-0"), Part(0..1)),
        (Some("bytes=2-4"), Part(2..5)),
        (Some("bytes=2-"), Part(2..10)),
        (Some("bytes=-3"), Part(7..10)),
        (Some("bytes=-30"), Part(0..10)),
        (Some("bytes=9-99999999999999999999999"), Part(9..10)),
        (Some("bytes=10-"), Unsatisfiable),
        (Some("bytes=10-12"), Unsatisfiable),
        (Some("bytes=99999999999999999999999-"), Unsatisfiable),
        (Some("bytes=-0"), Unsatisfiable),
        (Some("bytes=4-2"), Whole),
        (Some("bytes=0-1,3-4"), Whole),
        (Some("bytes=-"), Whole),
        (Some("bytes=a-b"), Whole),
        (Some("lines=0-1"), Whole),
    ];
    for (header, expected) in cases {
        assert_eq!(select(header, 10), expected, "{header:?}");
    }
    assert_eq!(select(Some("bytes=0-"), 0), Unsatisfiable);
    assert_eq!(select(Some("bytes=-5"), 0), Unsatisfiable);
}

#[test]
fn hosts_in_the_zone_name_buckets() {
    let bucket = |host| bucket_of_host(host, "cwlota.com");
    assert_eq!(bucket("b.cwlota.com").as_deref(), Some("b"));
    assert_eq!(bucket("my.b.CWLota.com:8080").as_deref(), Some("my.b"));
    for host in ["cwlota.com", "cwlota.com:80", "10.0.0.1:9", "[::1]:9", "xcwlota.com", ""] {
        assert_eq!(bucket(host), None, "{host}");
    }
}

#[tokio::test]
async fn lists_roll_up_and_continue() {
    let dir = std::env::temp_dir();
    let mut objects = BTreeMap::new();
    for key in ["a", "b/1", "b/2", "b/c/3", "d", "d/e"] {
        let nothing = Checksums::none();
        let received = blob::receive(&dir, None, nothing).await.expect("a writable directory");
        let own = OwnHeaders::of(&HeaderMap::new());
        objects.insert(key.to_owned(), Arc::new(Object::new(received, own)));
    }
    let page = |prefix, after, max_keys| {
        let delimiter = Some("/");
        let query = PageQuery { prefix, delimiter, after, max_keys };
        let page = list(&objects, &query);
        let keys: Vec<_> = page.objects.into_iter().map(|(key, _)| key).collect();
        (keys.join(" "), page.prefixes.join(" "), page.last_of_more)
    };
    let texts = |keys: &str, prefixes: &str, last: Option<&str>| {
        (keys.to_owned(), prefixes.to_owned(), last.map(str::to_owned))
    };
    assert_eq!(page("", None, 9), texts("a d", "b/ d/", None));
    assert_eq!(page("", None, 2), texts("a", "b/", Some("b/")));
    assert_eq!(page("", Some("b/"), 2), texts("d", "d/", None));
    assert_eq!(page("b/", None, 9), texts("b/1 b/2", "b/c/", None));
    assert_eq!(page("b/", Some("b/1"), 1), texts("b/2", "", Some("b/2")));
    assert_eq!(page("x", None, 9), texts("", "", None));
}

#[test]
fn presigned_urls_keep_the_key_as_it_is() {
    let direct = Direct {
        backend: "http://10.77.0.100:9001".to_owned(),
        access_key: "key".to_owned(),
        secret_key: "secret".to_owned(),
        expires: Duration::from_mins(1),
    };
    let url = redirect::presign(&direct, "bucket", "a/../b//c d%2Fé").expect("a URL");
    let start = "http://10.77.0.100:9001/bucket/a/../b//c%20d%252F%C3%A9?";
    assert!(url.starts_with(start), "{url}");
    assert!(url.contains("X-Amz-Expires=60&"), "{url}");
    assert!(url.contains("X-Amz-SignedHeaders=host&"), "{url}");
}

#[tokio::test]
async fn a_dropped_gateway_stops_accepting() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let settings = Settings {
        zone: "cwlota.com".to_owned(),
        users: Vec::new(),
        direct: None,
        data_dir: std::env::temp_dir(),
    };
    let gateway = Gateway::serve(listener, settings).await.expect("a gateway");
    let address = gateway.address();
    let mut client = TcpStream::connect(address).await.expect("a connection");
    let request = b"GET /bucket/key HTTP/1.1\r\nHost: x\r\nLota-Node: n1\r\n\r\n";
    client.write_all(request).await.expect("an open connection");
    let mut status = [0; 12];
    client.read_exact(&mut status).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 403");
    assert_eq!(gateway.last_seen_node().as_deref(), Some("n1"));

    drop(gateway);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.expect("the end of the connection");
    assert!(TcpStream::connect(address).await.is_err());
}
