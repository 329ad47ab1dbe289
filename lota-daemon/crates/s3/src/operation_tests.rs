use hyper::header::{HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::Zone;

fn classify(method: &str, host: &str, target: &str, headers: &[(&str, &str)]) -> Operation {
    let endpoint = Endpoint::of_zone(Zone::parse("cwlota.com").unwrap(), "http://g".into());
    let map = headers
        .iter()
        .map(|(name, value)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        })
        .collect();
    Operation::classify(&endpoint, &method.parse().unwrap(), host, &target.parse().unwrap(), &map, false)
}

fn get(target: &str, headers: &[(&str, &str)]) -> GetObject {
    match classify("GET", "cwlota.com", target, headers) {
        Operation::Get(get) => get,
        Operation::Pass(why) => panic!("passed: {why}"),
    }
}

#[test]
fn requests_that_the_cache_must_not_serve_are_relayed() {
    for (why, method, target, headers) in [
        ("method", "HEAD", "/b/k", vec![]),
        ("method", "HEAD", "/b/k", vec![("range", "bytes=0-1")]),
        ("method", "PUT", "/b/k", vec![]),
        ("not-an-object", "GET", "/b?list-type=2", vec![]),
        ("not-an-object", "GET", "/", vec![]),
        ("query", "GET", "/b/k?acl", vec![]),
        ("query", "GET", "/b/k?partNumber=1", vec![]),
        ("overrides", "GET", "/b/k?response-content-type=a", vec![]),
        ("overrides", "GET", "/b/k?response-content-type=a+b&X-Amz-Signature=0", vec![]),
        ("overrides", "GET", "/b/k?response-content-type=a%0d%0ax&X-Amz-Signature=0", vec![]),
        ("overrides", "GET", "/b/k?response-expires=a&response-expires=b&X-Amz-Signature=0", vec![]),
        // The headers of the response would be taken for those of the object.
        ("method", "HEAD", "/b/k?response-expires=a&X-Amz-Signature=0", vec![("range", "bytes=0-0")]),
        ("overrides", "GET", "/b/k?response-content-type=&X-Amz-Signature=0", vec![]),
        ("query", "GET", "/b/k?unheard-of=1", vec![]),
        ("conditional", "GET", "/b/k", vec![("if-none-match", "\"e\"")]),
        ("conditional", "GET", "/b/k", vec![("if-range", "\"e\"")]),
        ("sse-c", "GET", "/b/k", vec![("x-amz-server-side-encryption-customer-algorithm", "AES256")]),
        ("header", "GET", "/b/k", vec![("x-amz-rdma-token", "abc")]),
        ("header", "GET", "/b/k", vec![("origin", "https://a.example")]),
        ("header", "HEAD", "/b/k", vec![("range", "bytes=0-0"), ("x-unknown", "1")]),
        (
            "sigv4a",
            "GET",
            "/b/k",
            vec![("authorization", "AWS4-ECDSA-P256-SHA256 Credential=a, SignedHeaders=host, Signature=0")],
        ),
        ("ranges", "GET", "/b/k", vec![("range", "bytes=0-1,3-4")]),
        ("body", "GET", "/b/k", vec![("content-length", "3")]),
    ] {
        assert_eq!(classify(method, "cwlota.com", target, &headers), Operation::Pass(why), "{target}");
    }
    assert_eq!(classify("GET", "127.0.0.1", "/b/k", &[]), Operation::Pass("not-an-object"));
}

#[test]
fn signed_ranges_are_recognized() {
    let signed = "AWS4-HMAC-SHA256 Credential=a/20260101/r/s3/aws4_request, SignedHeaders=host;range;x-amz-date, Signature=00";
    let unsigned =
        "AWS4-HMAC-SHA256 Credential=a/20260101/r/s3/aws4_request,SignedHeaders=host;x-amz-date,Signature=00";
    let range = ("range", "bytes=0-9");
    assert!(get("/b/k", &[range, ("authorization", signed)]).range_signed);
    assert!(!get("/b/k", &[range, ("authorization", unsigned)]).range_signed);
    assert!(!get("/b/k", &[("authorization", signed)]).range_signed);
    assert!(get("/b/k?X-Amz-SignedHeaders=host%3Brange", &[range]).range_signed);
    assert!(!get("/b/k?X-Amz-SignedHeaders=host", &[range]).range_signed);
}

#[test]
fn a_head_of_one_byte_prefetches_the_object() {
    for byte in [0, 16 << 20] {
        let range = format!("bytes={byte}-{byte}");
        let head = classify("HEAD", "b.cwlota.com", "/k", &[("range", &range)]);
        assert!(matches!(head, Operation::Get(get) if get.range == RangeRequest::FromTo(byte, byte)));
    }
}

#[test]
fn overrides_of_signed_requests_are_parsed() {
    let target = "/b/k?response-content-type=text%2Fplain%3B%20x&response-expires=never&X-Amz-Signature=0";
    let overrides = get(target, &[]).overrides;
    assert_eq!(
        overrides,
        [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; x")),
            (header::EXPIRES, HeaderValue::from_static("never"))
        ]
    );
}

#[test]
fn versions_are_part_of_the_name() {
    assert_eq!(get("/b/k?versionId=null", &[]).name.version_id.as_deref(), Some("null"));
    for unclear in ["/b/k?versionId=a+b", "/b/k?versionId=a&versionId=b"] {
        assert_eq!(classify("GET", "cwlota.com", unclear, &[]), Operation::Pass("version"));
    }
    assert_eq!(get("/b/k?versionId=3%2FL4k%3D", &[]).name.version_id.as_deref(), Some("3/L4k="));
}

/// Requests recorded from about thirty real clients: every plain GET of an object must use the cache.
#[test]
fn requests_of_real_clients_use_the_cache() {
    let mut gets = 0;
    for line in include_str!("../../../../tests/data/client-requests.jsonl").lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let Some(request) = record["line"].as_str() else { continue };
        let mut words = request.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let target = target.strip_prefix("http://bkt.cwlota.com").unwrap_or(target);
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=a/1, SignedHeaders={}, Signature=0",
            record["signed"].as_str().unwrap()
        );
        let mut headers = vec![];
        if !target.contains("Signature=") {
            headers.push(("authorization", authorization.as_str()));
        }
        for (field, name) in
            [("range", "range"), ("ae", "accept-encoding"), ("expect", "expect"), ("ua", "user-agent")]
        {
            headers.extend(record[field].as_str().map(|value| (name, value)));
        }
        // The values of the other headers were not recorded.
        let signed = record["signed"].as_str().unwrap().split(';').filter(|name| !name.is_empty());
        let known = ["authorization", "range", "accept-encoding", "expect", "user-agent"];
        headers.extend(signed.filter(|name| !known.contains(name)).map(|name| (name, "0")));
        let operation = classify(method, record["host"].as_str().unwrap(), target, &headers);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let bucket_only =
            path == "/" || path.starts_with("/bkt") && !path[1..].contains('/') || path == "/bkt/";
        let about = ["location", "list-type"].iter().any(|parameter| query.starts_with(parameter));
        match operation {
            Operation::Get(get) => {
                assert!(method == "GET" && !bucket_only && !about, "{request}");
                assert_eq!(get.name.bucket.as_str(), "bkt", "{request}");
                assert_eq!(
                    get.range_signed,
                    record["signed"].as_str().unwrap().contains("range"),
                    "{request}"
                );
                assert_eq!(get.range != RangeRequest::Whole, record["range"].is_string(), "{request}");
                gets += 1;
            }
            Operation::Pass(why) => {
                assert!(method != "GET" || bucket_only || about, "{request} passed: {why}");
            }
        }
    }
    assert_eq!(gets, 126);
}

proptest! {
    #[test]
    fn any_request_classifies(host in "[ -~]*", path in "/[a-z%/.]*", query in "[a-zA-Z0-9=&%-]*", authorization in "[ -~]*", range in "[ -~]*") {
        let headers = [("authorization", authorization.as_str()), ("range", range.as_str())];
        if let Operation::Get(get) = classify("GET", &host, &format!("{path}?{query}"), &headers) {
            prop_assert!(get.range == RangeRequest::parse(&range) && get.range != RangeRequest::Unusual);
        }
    }

    /// Verifies that the cache serves a request only if every parameter of its query is known, and as the object that the
    /// path names.
    #[test]
    fn only_known_parameters_are_served_from_the_cache(
        key in "[a-z.][a-z./]{0,9}(%2[0Ff]|%C3%BC)?",
        parameters in prop::collection::vec(
            "x-id=GetObject|versionId=[a-z]{1,3}|X-Amz-Date=1|expires=1|acl|partNumber=1|[a-z]{1,4}=?[a-z]?", 0..4,
        ),
    ) {
        let known = ["x-id", "versionId", "X-Amz-Date", "expires"];
        let names = || parameters.iter().map(|pair| pair.split('=').next().unwrap_or_default());
        let served = names().all(|name| known.contains(&name)) && names().filter(|name| *name == "versionId").count() < 2;
        match classify("GET", "cwlota.com", &format!("/bucket/{key}?{}", parameters.join("&")), &[]) {
            Operation::Get(get) => {
                prop_assert!(served);
                prop_assert_eq!(get.name.bucket.as_str(), "bucket");
                prop_assert_eq!(get.name.key.as_str(), percent_decode_str(&key).decode_utf8().unwrap());
            }
            Operation::Pass(why) => prop_assert!(!served && ["query", "version"].contains(&why), "{}", why),
        }
    }
}
