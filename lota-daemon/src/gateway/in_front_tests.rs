//! Verifies that a cache in front of a gateway is never trusted, whichever request comes first, and that a good
//! gateway always becomes trusted.

use hyper::{HeaderMap, StatusCode};
use lota_s3::{Credential, ObjectName};
use lota_scripted::{
    Access, Answer as Scripted, CorrectGateway, Misbehaviour, Script, ScriptedGateway, SeenRequest,
    StoredObject,
};

use super::*;

const ETAG: &str = "\"held\"";
const SIGNATURE: &str = "0000000000000000000000000000000000000000000000000000000000000000";
const BASE64: &str = "0AAAAAAAAAAAAAAAAAAAAAAAAAA%3D";

fn object() -> StoredObject {
    StoredObject::new("0123456789").etag(ETAG)
}

fn correct() -> CorrectGateway {
    CorrectGateway::new().object("/b/k", object())
}

async fn start(script: impl Script) -> (Gateway, ScriptedGateway) {
    let server = ScriptedGateway::start(script).await;
    let config = GatewayConfig::for_test(Origin::parse(&server.endpoint()).unwrap());
    let node = NodeConfig {
        name: "n1".into(),
        address: [10, 0, 0, 1].into(),
        zone: String::new(),
        region: String::new(),
    };
    (Gateway::new(&config, &node, Upstream::new(false).unwrap()).unwrap(), server)
}

fn v4(signed: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential=AK/1/r/s3/aws4_request, SignedHeaders={signed}, Signature={SIGNATURE}"
    )
}

fn head(target: &str, headers: &[(&str, &str)]) -> RequestHead {
    let request = Request::builder().uri(target).header("host", "cwlota.com");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    RequestHead::of(request.body(()).unwrap().into_parts().0).unwrap()
}

/// Returns typical client requests, each of which may come first.
fn requests() -> Vec<RequestHead> {
    let (v4, ranged) = (v4("host;x-amz-date"), v4("host;range"));
    let (v4, ranged) = (v4.as_str(), ranged.as_str());
    let presigned = format!("/b/k?X-Amz-Credential=AK&X-Amz-SignedHeaders=host&X-Amz-Signature={SIGNATURE}");
    vec![
        head("/b/k", &[("authorization", v4)]),
        head("/b/k", &[("authorization", v4), ("cache-control", "no-cache"), ("pragma", "no-cache")]),
        head("/b/k?x-id=GetObject", &[("authorization", v4)]),
        head("/b/k", &[("authorization", v4), ("user-agent", "other"), ("accept-encoding", "identity")]),
        head(
            "/b/k",
            &[("authorization", "AWS AK:0AAAAAAAAAAAAAAAAAAAAAAAAAA="), ("cache-control", "max-age=0")],
        ),
        head("/b/k", &[("authorization", ranged), ("range", "bytes=0-3")]),
        head("/b/k", &[("authorization", v4), ("range", "bytes=0-")]),
        head(&presigned, &[("range", "bytes=0-3")]),
        head(&format!("/b/k?AWSAccessKeyId=AK&Signature={BASE64}&Expires=9999999999"), &[]),
        head("/b/k", &[]),
    ]
}

async fn is_hit(gateway: &Gateway, head: &RequestHead) -> bool {
    let name = ObjectName::from_parts("http://gateway", "b", "k", None).unwrap();
    let modified = httpdate::parse_http_date(&object().last_modified).unwrap();
    let learned = httpdate::fmt_http_date(modified + Duration::from_secs(9));
    let (date, length) = (object().last_modified, "9".to_owned());
    let described =
        [("etag", ETAG.to_owned()), ("last-modified", date), ("date", learned), ("content-length", length)];
    let described = described.map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
    let held =
        ObjectMeta::of_answer(&name, &HeaderMap::new(), StatusCode::OK, &described.into_iter().collect());
    let held = Arc::new(held.unwrap().learned_by(key_groups::asker(head, &name, |_| None)));
    matches!(gateway.authorize(head, &name, Some(&held)).await.unwrap(), Authorization::Fresh(_))
}

/// Sends all requests several times, starting with each one. None that the cache may answer must be a hit.
async fn is_never_trusted(what: &Misbehaviour) {
    for first in 0..requests().len() {
        let (gateway, _server) = start(what.clone().script(correct())).await;
        let mut heads = requests();
        heads.rotate_left(first);
        for _ in 0..3 {
            for head in &heads {
                let hit = is_hit(&gateway, head).await;
                let is_ranged = head.headers.contains_key("range");
                let may_be = match what {
                    Misbehaviour::CacheOfWholeObjects => is_ranged,
                    Misbehaviour::CacheOfRanges => !is_ranged,
                    Misbehaviour::CacheOfRangesFromStart => {
                        head.headers.get("range").is_some_and(|range| range != "bytes=0-")
                    }
                    _ => false,
                };
                assert!(!hit || may_be, "{what:?} after {:?}: {head:?}", heads[0]);
            }
            gateway.verification.forget_pauses();
        }
    }
}

#[tokio::test]
async fn a_cache_by_url_is_never_trusted() {
    is_never_trusted(&Misbehaviour::CacheByUrl).await;
    is_never_trusted(&Misbehaviour::CacheByWholeUrl).await;
}

#[tokio::test]
async fn a_cache_that_no_cache_passes_is_never_trusted() {
    is_never_trusted(&Misbehaviour::CacheUnlessNoCache).await;
}

#[tokio::test]
async fn a_cache_by_request_headers_is_never_trusted() {
    is_never_trusted(&Misbehaviour::CacheByVary("user-agent".into())).await;
    is_never_trusted(&Misbehaviour::CacheByVary("accept-encoding".into())).await;
}

#[tokio::test]
async fn a_cache_that_starts_late_is_never_trusted() {
    for answers in [1, 2, 3, 5, 8] {
        is_never_trusted(&Misbehaviour::CacheDelayed(answers)).await;
    }
}

#[tokio::test]
async fn a_cache_of_whole_objects_is_trusted_at_most_for_ranges() {
    is_never_trusted(&Misbehaviour::CacheOfWholeObjects).await;
}

#[tokio::test]
async fn a_cache_of_ranges_is_trusted_at_most_for_whole_objects() {
    is_never_trusted(&Misbehaviour::CacheOfRanges).await;
}

#[tokio::test]
async fn a_cache_of_ranges_from_the_start_is_never_trusted() {
    is_never_trusted(&Misbehaviour::CacheOfRangesFromStart).await;
}

#[tokio::test]
async fn a_304_to_everyone_or_to_any_etag_is_never_trusted() {
    is_never_trusted(&Misbehaviour::NotModifiedForEveryone).await;
    is_never_trusted(&Misbehaviour::NotModifiedWhateverEtag).await;
}

#[tokio::test]
async fn a_304_with_an_age_is_never_trusted() {
    let correct = correct();
    let (gateway, server) = start(correct.clone()).await;
    let plain = &requests()[0];
    assert!(is_hit(&gateway, plain).await);
    server.set_script(move |request: &SeenRequest| correct.answer(request).header("age", "3"));
    assert!(!is_hit(&gateway, plain).await, "a cache was put in front of a trusted gateway");
    let why = gateway.trust();
    assert!(matches!(&why, GatewayTrust::Distrusted(why) if why.contains("Age")), "{why:?}");
}

#[tokio::test]
async fn a_good_gateway_is_trusted_after_any_usable_request() {
    for (index, first) in requests().iter().enumerate() {
        let (gateway, _server) = start(correct().object("/b/k", object().public())).await;
        let hit = is_hit(&gateway, first).await;
        assert_eq!(hit, index != 9, "{first:?}");
        assert_eq!(gateway.trust() == GatewayTrust::Trusted, hit);
    }
}

#[tokio::test]
async fn a_cache_put_in_front_of_a_trusted_gateway_is_detected() {
    let correct = correct();
    let (gateway, server) = start(correct.clone()).await;
    let plain = &requests()[0];
    assert!(is_hit(&gateway, plain).await);
    server.set_script(Misbehaviour::NotModifiedForEveryone.script(correct.clone()));
    gateway.verification.forget_pauses();
    while gateway.trust() == GatewayTrust::Trusted {
        is_hit(&gateway, plain).await;
        tokio::task::yield_now().await;
    }
    while !matches!(gateway.trust(), GatewayTrust::Distrusted(_)) {
        is_hit(&gateway, plain).await;
    }
    // The cache is removed again, without `lota reload`.
    server.set_script(correct);
    gateway.verification.forget_pauses();
    while !is_hit(&gateway, plain).await {
        tokio::task::yield_now().await;
    }
}

/// Verifies that a client's requests and the gateway's responses to them do not prevent hits of other clients.
async fn does_not_prevent_trust(name: &str, decoy: &RequestHead, script: impl Script) {
    let (gateway, server) = start(script).await;
    for _ in 0..3 {
        is_hit(&gateway, decoy).await;
        gateway.verification.forget_due();
        let trust = gateway.trust();
        assert!(!matches!(trust, GatewayTrust::Distrusted(_)), "{name}: {trust:?}");
    }
    server.set_script(correct());
    let other = v4("host").replace("=AK/", "=OTHER/");
    assert!(is_hit(&gateway, &head("/b/k", &[("authorization", &other)])).await, "{name}");
}

#[tokio::test]
async fn no_client_can_prevent_the_verification_of_a_good_gateway() {
    let all = requests();
    let plain = &all[0];
    let v2 = format!("/b/k?AWSAccessKeyId=AK&Signature={BASE64}&Expires=9999999999");
    does_not_prevent_trust("a second signature", &head(&format!("{v2}&x-amz-signature=00"), &[]), correct())
        .await;
    does_not_prevent_trust("one in a header, too", &head(&v2, &[("authorization", &v4("host"))]), correct())
        .await;
    does_not_prevent_trust("another scheme", &head("/b/k", &[("authorization", "Bearer x")]), correct())
        .await;
    does_not_prevent_trust("anonymous", &all[9], correct().object("/b/k", object().public())).await;
    // Status of the gateway's responses from the second request on.
    let later = |status: u16| {
        let (correct, requests) = (correct(), std::sync::atomic::AtomicUsize::new(0));
        move |request: &SeenRequest| match requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 5 {
            0 => correct.answer(request),
            _ => Scripted::status(status),
        }
    };
    for (name, status) in [
        ("expired", 403),
        ("deleted", 404),
        ("rate limited", 429),
        ("away", 503),
        ("redirected", 307),
        ("changed", 412),
    ] {
        does_not_prevent_trust(name, plain, later(status)).await;
    }
    // The object is public, and the gateway ignores signatures for it.
    let lenient = correct().object("/b/k", object().public()).rule(|_| Access::Anonymous);
    does_not_prevent_trust("public", plain, lenient).await;
    let replaced = |request: &SeenRequest| match request.header("if-none-match") {
        Some(ETAG) => correct().answer(request),
        _ => CorrectGateway::new().object("/b/k", object().etag("\"new\"")).answer(request),
    };
    does_not_prevent_trust("replaced", plain, replaced).await;
}

#[tokio::test]
async fn lotas_own_credential_verifies_all_shapes_at_once_if_the_gateway_knows_it() {
    let credential: Credential = toml::from_str("access_key = \"OWN\"\nsecret_key = \"SK\"").unwrap();
    let is_own = |request: &SeenRequest| {
        format!("{:?}{}", request.header("authorization"), request.target).contains("OWN")
    };
    // The gateway accepts this credential's first signature, in either form.
    for is_known in [true, false] {
        let good = std::sync::Mutex::new(HashMap::<bool, String>::new());
        let rule = move |request: &SeenRequest| {
            let of_header = request.header("authorization");
            let text = of_header.unwrap_or(&request.target);
            if !is_own(request) {
                return if text.contains(SIGNATURE) { Access::Signed } else { Access::Refused };
            }
            let signature = text.split("Signature=").nth(1).unwrap().get(..64).unwrap().to_owned();
            let mut good = good.lock().unwrap();
            let first = good.entry(request.header("authorization").is_some()).or_insert(signature.clone());
            if is_known && *first == signature { Access::Signed } else { Access::Refused }
        };
        let (gateway, server) = start(correct().rule(rule)).await;
        let gateway = gateway.tried_by(Reloadable::new(Signer::new(&credential, "us-east-1")));
        let all = requests();
        assert!(is_hit(&gateway, &all[0]).await);
        let own = server.take_seen().iter().filter(|request| is_own(request)).count();
        assert_eq!(own > 10, is_known, "{own}");
        assert!(is_hit(&gateway, &all[7]).await);
        let requests = server.seen().len();
        assert_eq!(requests == 1, is_known, "presigned requests were verified before one came: {requests}");
    }
}
