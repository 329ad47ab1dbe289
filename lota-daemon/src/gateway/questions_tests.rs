use hyper::http::request::Builder;
use lota_s3::Credential;

use super::*;

const V4: &str =
    "AWS4-HMAC-SHA256 Credential=AK/1/r/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=0";
const V4_CACHE: &str =
    "AWS4-HMAC-SHA256 Credential=AK/1/r/s3/aws4_request, SignedHeaders=cache-control;host, Signature=0";
const V4_RANGE: &str =
    "AWS4-HMAC-SHA256 Credential=AK/1/r/s3/aws4_request, SignedHeaders=host;range, Signature=0";

fn head(target: &str, headers: &[(&str, &str)]) -> RequestHead {
    let request = Request::builder().uri(target).header("host", "cwlota.com");
    let request =
        headers.iter().fold(request, |request: Builder, (name, value)| request.header(*name, *value));
    RequestHead::of(request.body(()).unwrap().into_parts().0).unwrap()
}

#[test]
fn unsigned_parts_of_the_client_are_removed() {
    let of_caches = [
        ("cache-control", "no-cache"),
        ("pragma", "no-cache"),
        ("range", "bytes=0-1"),
        ("x-odd", "1"),
        ("forwarded", "for=x"),
    ];
    let presigned = "/b/k?AWSAccessKeyId=AK&Signature=s&Expires=1&x-id=GetObject";
    for (target, authorization, expected) in [
        ("/b/k", Some(V4), Some(("/b/k", Form::Path))),
        ("/b/k?x-id=GetObject", Some(V4), Some(("/b/k?x-id=GetObject", Form::Query))),
        ("/b/k?x-id=GetObject", Some("AWS AK:s"), Some(("/b/k", Form::Path))),
        (presigned, None, Some(("/b/k?AWSAccessKeyId=AK&Signature=s&Expires=1", Form::Presigned))),
        ("/b/k", None, None),
        (presigned, Some(V4), None),
        ("/b/k?response-expires=x", Some(V4), None),
    ] {
        let authorization = authorization.map(|value| ("authorization", value));
        let headers: Vec<_> = of_caches.into_iter().chain(authorization).collect();
        let question = of_client(&head(target, &headers));
        let found = question.as_ref().map(|(shape, head)| (head.target.as_str(), shape.form));
        assert_eq!(found, expected, "{target}");
        let Some((shape, question)) = question else { continue };
        assert_eq!(shape.range, RangeForm::Whole);
        assert!(of_caches.iter().all(|(name, _)| !question.headers.contains_key(*name)), "{question:?}");
    }
}

#[test]
fn signed_parts_are_kept() {
    let headers = [("range", "bytes=0-1"), ("authorization", V4_RANGE), ("user-agent", "x")];
    let (shape, question) = of_client(&head("/b/k", &headers)).unwrap();
    assert!(
        shape.range == RangeForm::Part
            && question.headers.contains_key("range")
            && question.headers.contains_key("user-agent")
    );
    let headers = [("cache-control", "no-cache"), ("authorization", V4_CACHE)];
    assert!(of_client(&head("/b/k", &headers)).is_none(), "it has signed a header that controls caches");
}

#[test]
fn lotas_own_request_has_the_same_target() {
    let credential: Credential = toml::from_str("access_key = \"OWN\"\nsecret_key = \"SK\"").unwrap();
    let signer = Signer::new(&credential, "us-east-1");
    let origin = Origin::parse("http://10.0.0.1:9000").unwrap();
    let client =
        head("/b/k%20?x-id=GetObject&versionId=7", &[("authorization", V4), ("cache-control", "no-cache")]);
    let (shape, request) = own(&signer, &origin, None, &client, Form::Path).unwrap();
    assert_eq!(request.uri(), "http://10.0.0.1:9000/b/k%20?versionId=7");
    assert_eq!(
        (shape.form, &request.headers()["host"]),
        (Form::Query, &HeaderValue::from_static("cwlota.com"))
    );
    assert!(request.headers()["authorization"].to_str().unwrap().contains("Credential=OWN/"));
    assert!(!request.headers().contains_key("cache-control"));
    let (shape, request) = own(&signer, &origin, None, &client, Form::Presigned).unwrap();
    assert_eq!(shape.form, Form::Presigned);
    assert!(
        request.uri().query().unwrap().starts_with("versionId=7&")
            && !request.headers().contains_key("authorization")
    );
}
