use hyper::{StatusCode, header::HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::{cluster::ClusterKeys, settings::Reloadable};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn wire(me: &str, secret: &str) -> Wire {
    Wire::new(NodeName(me.into()), keys(secret))
}

fn keys(text: &str) -> Reloadable<ClusterKeys> {
    Reloadable::new(ClusterKeys::parse(text).unwrap())
}

fn signed() -> (Request<()>, MessageMac) {
    let mut request = Request::builder()
        .uri("http://10.0.0.2:7480/b/k?x=1")
        .header("host", "cwlota.com")
        .header("range", "bytes=0-1")
        .body(())
        .unwrap();
    let signature = wire("n1", SECRET).sign_request(
        &NodeName("n2".into()),
        WireVersion(1),
        &mut request,
        SystemTime::now(),
    );
    let signature = signature.unwrap();
    // The receiver sees the target in origin form.
    *request.uri_mut() = "/b/k?x=1".parse().unwrap();
    (request, signature)
}

#[test]
fn a_peers_request_is_known_and_nothing_else_is() {
    let n2 = wire("n2", SECRET);
    let (request, signature) = signed();
    assert_eq!(n2.verify_request(&request).unwrap().0.nonce(), signature.nonce());
    assert_eq!(wire("n3", SECRET).verify_request(&request).unwrap_err(), RejectedMessage::Destination);
    assert_eq!(
        wire("n2", &SECRET.replace('0', "1")).verify_request(&request).unwrap_err(),
        RejectedMessage::Mac
    );

    let mut without = request.clone();
    without.headers_mut().remove("lota-peer");
    assert_eq!(n2.verify_request(&without).unwrap_err(), RejectedMessage::NoHeader);

    let tampered: [fn(&mut Request<()>); 5] = [
        |request| *request.uri_mut() = "/b/other?x=1".parse().unwrap(),
        |request| *request.method_mut() = hyper::Method::PUT,
        |request| drop(request.headers_mut().insert("range", HeaderValue::from_static("bytes=0-2"))),
        |request| {
            request.headers_mut().append("range", HeaderValue::from_static("bytes=0-1"));
        },
        |request| drop(request.headers_mut().remove("range")),
    ];
    for tamper in tampered {
        let mut request = request.clone();
        tamper(&mut request);
        assert_eq!(n2.verify_request(&request).unwrap_err(), RejectedMessage::Mac);
    }
    for (from, to, refused) in [
        ("n1", "n9", RejectedMessage::Mac),
        ("v=1", "v=2", RejectedMessage::Version),
        ("time=1", "time=2", RejectedMessage::Mac),
    ] {
        let mut request = request.clone();
        let value = request.headers()["lota-peer"].to_str().unwrap().replacen(from, to, 1);
        request.headers_mut().insert("lota-peer", value.parse().unwrap());
        assert_eq!(n2.verify_request(&request).unwrap_err(), refused);
    }
}

#[test]
fn an_answer_is_bound_to_its_request() {
    let (n1, n2) = (wire("n1", SECRET), wire("n2", SECRET));
    let (request, signature) = signed();
    let (seen, _) = n2.verify_request(&request).unwrap();
    let mut answer = Response::builder().status(206).header("content-range", "bytes 0-1/9").body(()).unwrap();
    n2.sign_answer(&seen, &mut answer);
    answer.headers_mut().insert("date", HeaderValue::from_static("now"));
    let verify = |signature: &MessageMac, answer: &Response<()>| {
        n1.verify_answer(signature, answer.status(), answer.headers())
    };
    assert_eq!(verify(&signature, &answer), Ok(()));
    assert_eq!(verify(&signed().1, &answer), Err(RejectedMessage::Mac));
    *answer.status_mut() = StatusCode::OK;
    assert_eq!(verify(&signature, &answer), Err(RejectedMessage::Mac));
}

/// Verifies that both processes refuse a message after a handover that was accepted before it.
#[test]
fn a_message_that_the_daemon_before_has_verified_is_refused() {
    let peers = || {
        let upstream = Upstream::new(false).unwrap();
        Peers::new(NodeName("n2".into()), keys(SECRET), 7480, upstream)
    };
    let (before, (seen, _), (late, _)) = (peers(), signed(), signed());
    before.verify(&seen).unwrap();
    let after = peers();
    after.adopt_seen(&before.seal().unwrap()).unwrap();
    assert_eq!(after.verify(&seen).unwrap_err(), RejectedMessage::Replay);
    assert_eq!(
        before.verify(&late).unwrap_err(),
        RejectedMessage::HandedOver,
        "else the next one could not know it"
    );
    after.verify(&late).unwrap();
    before.unseal();
    before.verify(&signed().0).unwrap();
}

proptest! {
    #[test]
    fn any_header_is_survived(value in "[ -~]*", fields in "(v=1;)?(from=[a-z;=]*;)?(to=n2;)?(time=[0-9]*;)?(nonce=[0-9a-f]*;)?(mac=[0-9a-f]*)?") {
        for value in [value, fields] {
            let request = Request::builder().uri("/").header("lota-peer", value).body(()).unwrap();
            prop_assert!(wire("n2", SECRET).verify_request(&request).is_err());
        }
    }
}
