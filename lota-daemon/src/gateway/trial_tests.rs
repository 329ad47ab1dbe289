use hyper::Request;
use proptest::prelude::*;

use super::*;

fn head(target: &str, authorization: Option<&str>) -> Head {
    let mut request = Request::builder().uri(target).header("host", "cwlota.com");
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    Head::of(request.body(()).unwrap().into_parts().0).unwrap()
}

#[tokio::test]
async fn verdicts() {
    for (refused, changed, standing) in [
        (403, 200, Standing::Trusted),
        (401, 200, Standing::Trusted),
        (400, 206, Standing::Trusted),
        (304, 200, Standing::Distrusted),
        (200, 200, Standing::Distrusted),
        (403, 304, Standing::Distrusted),
        (304, 304, Standing::Distrusted),
        // Proves nothing either way.
        (503, 200, Standing::Untried),
        (403, 503, Standing::Untried),
        (403, 416, Standing::Untried),
        (403, 404, Standing::Untried),
        (403, 412, Standing::Untried),
        (404, 200, Standing::Untried),
    ] {
        let trial = Trial::default();
        let status = |code| StatusCode::from_u16(code).unwrap();
        let trusted = trial.begin().await.unwrap().judge(status(refused), status(changed));
        assert_eq!(trial.standing(), standing, "{refused} {changed}");
        assert_eq!(trusted, standing == Standing::Trusted);
        assert_eq!(trial.begin().await.is_none(), standing != Standing::Untried, "held once");
    }
}

#[test]
fn every_place_of_a_signature_is_found() {
    let broken = |target: &str, authorization| break_signature(&head(target, authorization)).unwrap();
    let headers = broken("/b/k", Some("AWS4-HMAC-SHA256 Signature=0a1,SignedHeaders=host")).headers;
    assert_eq!(headers["authorization"], "AWS4-HMAC-SHA256 Signature=0a0,SignedHeaders=host");
    assert_eq!(broken("/b/k", Some("AWS key:abcd")).headers["authorization"], "AWS key:abc0");
    for (target, expected) in [
        ("/k?X-Amz-Signature=ab0&X-Amz-Date=1", "/k?X-Amz-Signature=ab1&X-Amz-Date=1"),
        (
            "/k?AWSAccessKeyId=a&Signature=MitF%3D&Expires=1",
            "/k?AWSAccessKeyId=a&Signature=Mit0%3D&Expires=1",
        ),
        ("/k?Signature=Mit0", "/k?Signature=Mit1"),
    ] {
        assert_eq!(broken(target, None).target.as_str(), expected);
    }
}

#[test]
fn a_scheme_that_may_be_nothing_to_the_gateway_is_no_signature() {
    assert!(break_signature(&head("/b/k", Some("Bearer abc"))).is_none());
    assert!(break_signature(&head("/b/k", Some("AWS4-ECDSA-P256-SHA256 Signature=ab"))).is_none());
}

proptest! {
    #[test]
    fn a_broken_signature_differs_or_is_none(authorization in "[ -~]*", query in "[a-zA-Z=&%0-9-]*") {
        for head in [head("/b/k", Some(&authorization)), head(&format!("/b/k?{query}"), None)] {
            if let Some(broken) = break_signature(&head) {
                prop_assert!(broken.target != head.target || broken.headers != head.headers);
            }
        }
    }
}
