use proptest::prelude::*;

use super::*;

fn request(target: &str, authorization: Option<&str>) -> Request<()> {
    let mut request = Request::builder().uri(format!("http://cwlota.com{target}"));
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    request.body(()).unwrap()
}

fn front(port: u16) -> Front {
    Front { address: ([10, 0, 0, 1], port).into(), certificate: None }
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap()
}

#[test]
fn verdicts() {
    let failed = |standing: &Standing| matches!(standing, Standing::Distrusted(_));
    for (refused, changed, verdict) in [
        (403, 200, "trusted"),
        (401, 200, "trusted"),
        (400, 206, "trusted"),
        (304, 200, "distrusted"),
        (200, 200, "distrusted"),
        (403, 304, "distrusted"),
        (304, 304, "distrusted"),
        // Proves nothing either way.
        (503, 200, "untried"),
        (403, 503, "untried"),
        (403, 416, "untried"),
        (403, 404, "untried"),
        (403, 412, "untried"),
        (404, 200, "untried"),
    ] {
        let trial = Trial::default();
        assert_eq!(trial.standing_of(&front(1)), Standing::Untried);
        trial.judge((&front(1), status(refused)), (&front(1), status(changed)));
        let standing = trial.standing_of(&front(1));
        let found = match &standing {
            Standing::Trusted => "trusted",
            standing if failed(standing) => "distrusted",
            _ => "untried",
        };
        assert_eq!(found, verdict, "{refused} {changed}");
        assert_eq!(trial.standing(), standing);
    }
}

#[test]
fn each_server_is_tried_for_itself() {
    let trial = Trial::default();
    trial.judge((&front(1), status(403)), (&front(2), status(200)));
    assert_eq!(trial.standing(), Standing::Untried, "two servers, each with one half of the proof");
    trial.judge((&front(1), status(403)), (&front(1), status(200)));
    assert_eq!(trial.standing_of(&front(1)), Standing::Trusted);
    assert_eq!(trial.standing_of(&front(2)), Standing::Untried);
    let renewed = Front { certificate: Some([7; 32]), ..front(1) };
    assert_eq!(trial.standing_of(&renewed), Standing::Untried, "another certificate is another server");
    trial.judge((&front(2), status(200)), (&front(1), status(200)));
    assert!(matches!(trial.standing_of(&front(2)), Standing::Distrusted(_)));
    assert_eq!(trial.standing_of(&front(1)), Standing::Trusted);
}

#[test]
fn who_failed_is_tried_again_and_who_passed_stays() {
    let trial = Trial::default();
    trial.judge((&front(1), status(403)), (&front(1), status(200)));
    trial.judge((&front(2), status(200)), (&front(2), status(200)));
    trial.again();
    assert_eq!(trial.standing_of(&front(1)), Standing::Trusted);
    assert_eq!(trial.standing_of(&front(2)), Standing::Untried);
}

#[test]
fn every_place_of_a_signature_is_found() {
    let broken = |target: &str, authorization| {
        let mut request = request(target, authorization);
        assert!(break_signature(&mut request));
        request.into_parts().0
    };
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
        assert_eq!(broken(target, None).uri.path_and_query().unwrap().as_str(), expected);
    }
}

#[test]
fn a_scheme_that_may_be_nothing_to_the_gateway_is_no_signature() {
    assert!(!break_signature(&mut request("/b/k", Some("Bearer abc"))));
    assert!(!break_signature(&mut request("/b/k", Some("AWS4-ECDSA-P256-SHA256 Signature=ab"))));
}

proptest! {
    #[test]
    fn a_broken_signature_differs_or_is_none(authorization in "[ -~]*", query in "[a-zA-Z=&%0-9-]*") {
        for request in [request("/b/k", Some(&authorization)), request(&format!("/b/k?{query}"), None)] {
            let mut broken = request.clone();
            let is_broken = break_signature(&mut broken);
            prop_assert_eq!(is_broken, broken.uri() != request.uri() || broken.headers() != request.headers());
        }
    }
}
