use super::*;
use crate::test_request::request;

fn signed_by(target: &str, authorizations: &[&str]) -> SignedBy {
    let request = request(target, authorizations);
    SignedBy::of(request.uri().path_and_query().unwrap(), request.headers())
}

#[test]
fn a_second_signature_is_detected() {
    let (v2, v4) = ("AWSAccessKeyId=a&Signature=s&Expires=1", "X-Amz-Credential=a&X-Amz-Signature=0");
    for (target, authorizations, expected) in [
        ("/b/k".to_owned(), vec![], SignedBy::Nothing),
        ("/b/k?x-id=GetObject".to_owned(), vec!["AWS a:b"], SignedBy::Header),
        (format!("/b/k?{v2}"), vec![], SignedBy::Query),
        (format!("/b/k?{v4}&x-amz-security-token=t"), vec![], SignedBy::Query),
        (format!("/b/k?{v2}&x-amz-security-token=t"), vec![], SignedBy::Query),
        ("/b/k".to_owned(), vec!["AWS a:b", "AWS4-HMAC-SHA256 x"], SignedBy::Several),
        (format!("/b/k?{v2}&x-amz-signature=00"), vec![], SignedBy::Several),
        (format!("/b/k?{v2}&X-Amz-S%69gnature=00"), vec![], SignedBy::Several),
        (format!("/b/k?{v2}&signature=00"), vec![], SignedBy::Several),
        (format!("/b/k?{v4}&signature=00"), vec![], SignedBy::Several),
        (format!("/b/k?{v4}"), vec!["AWS a:b"], SignedBy::Several),
        ("/b/k?x-amz-date=1".to_owned(), vec!["Basic x"], SignedBy::Several),
    ] {
        assert_eq!(signed_by(&target, &authorizations), expected, "{target} {authorizations:?}");
    }
}

#[test]
fn a_header_that_servers_may_read_differently_counts_as_several() {
    let header = "AWS4-HMAC-SHA256 Credential=a/1, SignedHeaders=host, Signature=0";
    for (authorization, expected) in [
        (header, SignedBy::Header),
        ("AWS4-HMAC-SHA256 Credential=a/1,SignedHeaders=host,Signature=0", SignedBy::Header),
        ("AWS4-ECDSA-P256-SHA256 Credential=a/1, SignedHeaders=host, Signature=0", SignedBy::Header),
        ("Bearer x", SignedBy::Header),
        (
            "AWS4-HMAC-SHA256 xCredential=b/1, Credential=a/1, SignedHeaders=host, Signature=0",
            SignedBy::Several,
        ),
        (
            "AWS4-HMAC-SHA256 Credential=b/1, Credential=a/1, SignedHeaders=host, Signature=0",
            SignedBy::Several,
        ),
        ("AWS4-HMAC-SHA256 Credential=a/1, SignedHeaders=host", SignedBy::Several),
        ("AWS4-HMAC-SHA256 Credential=xCredential=b/1, SignedHeaders=host, Signature=0", SignedBy::Several),
        ("AWS4-HMAC-SHA256 Credential=a/1 b, SignedHeaders=host, Signature=0", SignedBy::Several),
        ("aws4-hmac-sha256 Credential=a/1, SignedHeaders=host, Signature=0", SignedBy::Several),
        ("AWS a:b:c", SignedBy::Several),
        ("AWS a", SignedBy::Several),
        ("aws a:b", SignedBy::Several),
    ] {
        assert_eq!(signed_by("/b/k", &[authorization]), expected, "{authorization}");
    }
    let twice = "/b/k?X-Amz-Credential=a&X%2DAmz-Credential=b&X-Amz-Signature=0";
    assert_eq!(signed_by(twice, &[]), SignedBy::Several);
}

#[test]
fn signed_headers_and_access_key_are_parsed() {
    let header = "AWS4-HMAC-SHA256 Credential=AK/1/r/s3/aws4_request, SignedHeaders=Host;range, Signature=0";
    for (target, authorizations, names, key) in [
        ("/b/k", vec![header], Some(vec!["host".to_owned(), "range".to_owned()]), "AK"),
        ("/b/k", vec!["AWS AK:x"], None, "AK"),
        ("/b/k?AWSAccessKeyId=AK&Signature=x", vec![], None, "AK"),
        (
            "/b/k?X-Amz-Credential=AK%2F1&X-Amz-SignedHeaders=host%3Brange",
            vec![],
            Some(vec!["host".to_owned(), "range".to_owned()]),
            "AK",
        ),
        ("/b/k", vec![], None, ""),
    ] {
        let request = request(target, &authorizations);
        let target = request.uri().path_and_query().unwrap();
        assert_eq!(signed_headers(target, request.headers()), names, "{target}");
        assert_eq!(access_key(target, request.headers()), key, "{target}");
    }
}
