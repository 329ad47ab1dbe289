use std::time::UNIX_EPOCH;

use aws_sigv4::http_request::SignableBody;
use hyper::{Request, header::HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::{Credential, canonical::rest_of_query, signing::Signer};

// The examples of AWS's documentation ("Signature calculations: examples").
const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// 2013-05-24, midnight.
const THEN: Duration = Duration::from_secs(1_369_353_600);

struct Sent {
    method: Method,
    target: PathAndQuery,
    headers: HeaderMap,
}

impl Sent {
    fn new(method: Method, target: &str, headers: &[(&'static str, &str)]) -> Self {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Self { method, target: target.parse().unwrap(), headers: map }
    }

    fn example(
        method: Method,
        target: &str,
        signed: &str,
        signature: &str,
        headers: &[(&'static str, &str)],
    ) -> Self {
        let mut sent = Self::new(method, target, headers);
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={KEY}/20130524/us-east-1/s3/aws4_request,SignedHeaders={signed},\
             Signature={signature}"
        );
        for (name, value) in [
            ("authorization", authorization.as_str()),
            ("host", "examplebucket.s3.amazonaws.com"),
            ("x-amz-date", "20130524T000000Z"),
        ] {
            sent.headers.insert(name, value.parse().unwrap());
        }
        sent
    }

    fn verify_at(&self, after: u64, secret: &str) -> Result<Option<ChunkChain>, S3Error> {
        let Some(signature) = RequestSignature::of(&self.target, &self.headers)? else { return Ok(None) };
        let now = UNIX_EPOCH + THEN + Duration::from_secs(after);
        signature
            .verify(&Secret::from(secret.to_owned()), (&self.method, &self.target, &self.headers), now)
            .map(Some)
    }

    /// Returns the error code; empty if the signature is valid, `-` if the request is anonymous.
    fn verdict(&self, after: u64) -> &'static str {
        match self.verify_at(after, SECRET) {
            Ok(Some(_)) => "",
            Ok(None) => "-",
            Err(error) => error.code,
        }
    }
}

fn get_range() -> Sent {
    Sent::example(
        Method::GET,
        "/test.txt",
        "host;range;x-amz-content-sha256;x-amz-date",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        &[("range", "bytes=0-9"), ("x-amz-content-sha256", NOTHING)],
    )
}

fn presigned(signature: &str) -> Sent {
    let target = format!(
        "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={KEY}%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&\
         X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature={signature}"
    );
    Sent::new(Method::GET, &target, &[("host", "examplebucket.s3.amazonaws.com")])
}

const PRESIGNED: &str = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";

#[test]
fn the_documented_examples_are_valid() {
    assert_eq!(get_range().verdict(0), "");
    let put = Sent::example(
        Method::PUT,
        "/test$file.text",
        "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        &[
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("x-amz-content-sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ],
    );
    assert_eq!(put.verdict(0), "");
    for (target, signature) in [
        ("/?lifecycle", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("/?max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
        ("/?prefix=J&max-keys=2", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ] {
        let signed = "host;x-amz-content-sha256;x-amz-date";
        let sent =
            Sent::example(Method::GET, target, signed, signature, &[("x-amz-content-sha256", NOTHING)]);
        assert_eq!(sent.verdict(0), "", "{target}");
    }
    assert_eq!(presigned(PRESIGNED).verdict(0), "");
}

#[test]
fn changes_are_detected() {
    type Change = fn(&mut Sent);
    let changes: [(&str, Change); 5] = [
        ("method", |sent| sent.method = Method::PUT),
        ("path", |sent| sent.target = "/other.txt".parse().unwrap()),
        ("query", |sent| sent.target = "/test.txt?acl".parse().unwrap()),
        ("range", |sent| drop(sent.headers.insert("range", HeaderValue::from_static("bytes=0-99")))),
        ("host", |sent| drop(sent.headers.insert("host", HeaderValue::from_static("other")))),
    ];
    for (what, change) in changes {
        let mut sent = get_range();
        change(&mut sent);
        assert_eq!(sent.verdict(0), "SignatureDoesNotMatch", "{what}");
    }
    assert_eq!(get_range().verify_at(0, "another").unwrap_err().code, "SignatureDoesNotMatch");
    let broken = PRESIGNED.replace('4', "5");
    assert_eq!(presigned(&broken).verdict(0), "SignatureDoesNotMatch");
    // Headers that change the operation must be signed: a presigned PUT must not become a copy.
    let mut copy = presigned(PRESIGNED);
    copy.headers.insert("x-amz-copy-source", HeaderValue::from_static("/secret/object"));
    assert_eq!(copy.verdict(0), "AccessDenied");
    for name in ["x_amz_copy_source", "content-md5"] {
        let mut other = presigned(PRESIGNED);
        other.headers.insert(name, HeaderValue::from_static("/secret/object"));
        assert_eq!(other.verdict(0), "AccessDenied", "{name}");
    }
}

#[test]
fn signatures_expire() {
    const MINUTE: u64 = 60;
    let mut later = get_range();
    assert_eq!(later.verdict(15 * MINUTE), "");
    assert_eq!(later.verdict(15 * MINUTE + 1), "RequestTimeTooSkewed");
    later.headers.insert("x-amz-date", HeaderValue::from_static("20130524T001501Z"));
    assert_eq!(later.verdict(0), "RequestTimeTooSkewed", "from the future");
    assert_eq!(presigned(PRESIGNED).verdict(86_400), "");
    assert_eq!(presigned(PRESIGNED).verdict(86_401), "AccessDenied");
}

#[test]
fn malformed_signatures_are_refused_as_by_s3() {
    let scope = "20130524/us-east-1/s3/aws4_request";
    for (authorization, code) in [
        ("AWS key:signature".to_owned(), "InvalidRequest"),
        ("Bearer token".to_owned(), "InvalidRequest"),
        ("AWS4-ECDSA-P256-SHA256 Credential=a".to_owned(), "InvalidRequest"),
        ("AWS4-HMAC-SHA256".to_owned(), "AuthorizationHeaderMalformed"),
        (format!("AWS4-HMAC-SHA256 Credential=k/{scope},SignedHeaders=host"), "AuthorizationHeaderMalformed"),
        (
            format!(
                "AWS4-HMAC-SHA256 Credential=k/{scope},SignedHeaders=host,Signature={NOTHING},Signature={NOTHING}"
            ),
            "AuthorizationHeaderMalformed",
        ),
        (
            format!("AWS4-HMAC-SHA256 Credential=k/{scope},SignedHeaders=x-amz-date,Signature={NOTHING}"),
            "AuthorizationHeaderMalformed",
        ),
        (
            format!("AWS4-HMAC-SHA256 Credential=/{scope},SignedHeaders=host,Signature={NOTHING}"),
            "AuthorizationHeaderMalformed",
        ),
        (
            format!(
                "AWS4-HMAC-SHA256 Credential=k/20130525/r/s3/aws4_request,SignedHeaders=host,Signature={NOTHING}"
            ),
            "AuthorizationHeaderMalformed",
        ),
        (
            format!(
                "AWS4-HMAC-SHA256 Credential=k/20130524/r/ec2/aws4_request,SignedHeaders=host,Signature={NOTHING}"
            ),
            "AuthorizationHeaderMalformed",
        ),
    ] {
        let mut sent = get_range();
        sent.headers.insert("authorization", authorization.parse().unwrap());
        assert_eq!(sent.verdict(0), code, "{authorization}");
    }
    let mut twice = presigned(PRESIGNED);
    twice.headers.insert("authorization", get_range().headers["authorization"].clone());
    assert_eq!(twice.verdict(0), "InvalidRequest");
    let mut none = get_range();
    none.headers.remove("authorization");
    assert_eq!(none.verdict(0), "-");
    for (from, to, code) in [
        ("86400", "604801", "AuthorizationQueryParametersError"),
        ("86400", "0", "AuthorizationQueryParametersError"),
        ("HMAC-SHA256", "ECDSA-P256-SHA256", "InvalidRequest"),
        ("X-Amz-Date=", "X-Amz-Date=1&X-Amz-Date=", "AuthorizationQueryParametersError"),
        ("X-Amz-Expires=86400&", "", "AuthorizationQueryParametersError"),
    ] {
        let target = presigned(PRESIGNED).target.to_string().replace(from, to);
        let sent = Sent::new(Method::GET, &target, &[("host", "examplebucket.s3.amazonaws.com")]);
        assert_eq!(sent.verdict(0), code, "{target}");
    }
    for target in ["/b/k?AWSAccessKeyId=a&Signature=b&Expires=1", "/b/k?Signature=b", "/b/k?x%2Damz%2DDate=1"]
    {
        assert_eq!(Sent::new(Method::GET, target, &[("host", "h")]).verdict(0), "InvalidRequest");
    }
}

#[test]
fn the_rest_of_a_query_is_unchanged() {
    let signed = presigned(PRESIGNED).target.query().unwrap().to_owned();
    assert_eq!(rest_of_query(&signed), "");
    let rest = rest_of_query(&format!("versionId=a%2Fb&{signed}&response-content-type=a+b&acl&x="));
    assert_eq!(rest, "versionId=a%2Fb&response-content-type=a%20b&acl&x=");
}

proptest! {
    /// Signatures of the crate `aws-sigv4` are valid.
    #[test]
    fn signatures_of_another_implementation_are_valid(
        key in "[ -~é€]{1,40}",
        query in "([a-zA-Z0-9~.-]{1,9}=[ -$&-~]{0,9}){0,1}",
        value in "[!-~]([ -~]{0,30}[!-~])?",
        body in "[a-z]{0,9}",
        in_query: bool,
    ) {
        let credential = Credential {
            access_key: KEY.into(),
            secret_key: Secret::from(SECRET.to_owned()),
            session_token: Some(Secret::from("a/session+token==".to_owned())),
        };
        let mut target = crate::canonical::path("bucket", &key);
        if let Some((name, value)) = query.split_once('=') {
            target = format!("{target}?{}={}", canonical_query(name), canonical_query(value));
        }
        let payload =
            if in_query { SignableBody::UnsignedPayload } else { SignableBody::Bytes(body.as_bytes()) };
        let mut request = Request::builder()
            .method("PUT")
            .uri(format!("http://cwlota.com{target}"))
            .header("host", "cwlota.com")
            .header("x-amz-meta-a", &value)
            .header("x-amz-meta-b", "two  words")
            .body(())
            .unwrap();
        Signer::new(&credential, "eu-west-1").sign(&mut request, payload, in_query).unwrap();
        let target = request.uri().path_and_query().unwrap();
        let signature = RequestSignature::of(target, request.headers()).unwrap().unwrap();
        prop_assert_eq!(signature.session_token.as_deref(), Some("a/session+token=="));
        let sent = (request.method(), target, request.headers());
        let secret = Secret::from(SECRET.to_owned());
        prop_assert!(signature.verify(&secret, sent, SystemTime::now()).is_ok(), "{:?}", request);
    }

    #[test]
    fn no_other_text_is_a_valid_signature(
        query in "[ -~&&[^#]]*|X-Amz-Signature=0",
        authorization in "[ -~]*|Credential=[A-Z]{1,3}/20130524/eu/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=[0-9a-f]{64}",
        date in "[0-9TZ]{0,18}|20130524T000000Z",
    ) {
        let Ok(target) = format!("/b/k?{query}").parse::<PathAndQuery>() else { return Ok(()) };
        for text in [authorization.clone(), format!("AWS4-HMAC-SHA256 {authorization}")] {
            let headers = [
                ("host", "cwlota.com"),
                ("authorization", &*text),
                ("x-amz-date", &date),
                ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
            ];
            let sent = Sent::new(Method::GET, "/", &headers);
            for target in [&target, &sent.target] {
                match RequestSignature::of(target, &sent.headers) {
                    Ok(signature) => {
                        let signature = signature.expect("Authorization is present");
                        let sent = (&sent.method, target, &sent.headers);
                        prop_assert!(signature.verify(&Secret::from(SECRET.to_owned()), sent, UNIX_EPOCH + THEN).is_err());
                    }
                    Err(error) => prop_assert!(error.status.is_client_error(), "{:?}", error),
                }
            }
        }
    }
}
