//! Tests how LOTA handles the responses of a gateway.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{HeaderMap, StatusCode, body::Frame};
use lota_s3::{Learned, ObjectName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::http::full;

#[path = "proof_tests.rs"]
mod proof;

const HELD: &str = "\"held\"";
const THEN: &str = "Wed, 21 Oct 2015 07:28:00 GMT";
const LATER: &str = "Wed, 21 Oct 2015 07:28:09 GMT";
/// Header that most servers send in a 304.
const STATED: &str = "last-modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n";
const SIGNED: &str = "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host;x-amz-date, \
                      Signature=0000000000000000000000000000000000000000000000000000000000000000";

/// Returns a gateway that answers each request's head by `answer`, and the heads it received.
async fn gateway(
    protocol: Protocol,
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> (Gateway, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = Origin::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let (heads, answer) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(answer));
    let seen = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (seen, answer) = (seen.clone(), answer.clone());
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
                    while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                        let head: Vec<u8> = bytes.drain(..end + 4).collect();
                        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                        let answer = answer(&head);
                        seen.lock().unwrap().push(head);
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    let config = GatewayConfig {
        protocol,
        direct_allow: vec![Origin::parse("http://10.0.0.1:9001").unwrap()],
        ..GatewayConfig::for_test(origin)
    };
    let node = NodeConfig {
        name: "n1".into(),
        address: [10, 0, 0, 1].into(),
        zone: "rack".into(),
        region: "lab".into(),
    };
    (Gateway::new(&config, &node, Upstream::new(false).unwrap()).unwrap(), heads)
}

/// Returns the response of a gateway without a cache in front to a conditional GET of an object with this `ETag`.
fn correct(head: &str, etag: &str, not_modified: &str) -> String {
    if head.contains("signature=") && !head.contains("signature=00") {
        return "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".into();
    }
    if head.contains(&format!("if-none-match: {etag}\r\n")) {
        return format!("HTTP/1.1 304 Not Modified\r\n{not_modified}\r\n");
    }
    format!("HTTP/1.1 200 OK\r\netag: {etag}\r\nlast-modified: {THEN}\r\ncontent-length: 1\r\n\r\nx")
}

fn client(headers: &[(&'static str, &'static str)]) -> RequestHead {
    let mut request = Request::builder().uri("/b/k").header("host", "cwlota.com");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    RequestHead::of(request.body(()).unwrap().into_parts().0).unwrap()
}

/// Returns the metadata of an object as the gateway describes it.
fn held(name: &ObjectName) -> ObjectMeta {
    let described = [("etag", HELD), ("last-modified", THEN), ("date", LATER), ("content-length", "1")];
    let described =
        described.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    ObjectMeta::of_answer(name, &HeaderMap::new(), StatusCode::OK, &described.into_iter().collect()).unwrap()
}

async fn ask(gateway: &Gateway, headers: &[(&'static str, &'static str)]) -> Result<Authorization, S3Error> {
    let name = ObjectName::from_parts("http://gateway", "b", "k", None).unwrap();
    let by = key_groups::asker(&client(CLIENT), &name, |_| None);
    // The access keys are known to see the same objects.
    gateway.key_groups.join(by, key_groups::asker(&client(headers), &name, |_| None));
    gateway.authorize(&client(headers), &name, Some(&Arc::new(held(&name).learned_by(by)))).await
}

const CLIENT: &[(&str, &str)] = &[("authorization", SIGNED)];

#[tokio::test]
async fn a_304_authorizes_with_or_without_its_etag() {
    for repeated in ["", "etag: \"held\"\r\n"] {
        let repeated = format!("{repeated}{STATED}");
        let (gateway, heads) = gateway(Protocol::S3, move |head| correct(head, HELD, &repeated)).await;
        let answer = ask(&gateway, CLIENT).await.unwrap();
        assert!(matches!(answer, Authorization::Fresh(_)), "{answer:?}");
        assert_eq!(gateway.trust(), GatewayTrust::Trusted);
        let requests = heads.lock().unwrap().len();
        ask(&gateway, CLIENT).await.unwrap();
        assert_eq!(heads.lock().unwrap().len(), requests + 1, "it is not verified again at once");
    }
}

#[tokio::test]
async fn metadata_of_the_backend_are_never_proven() {
    let (gateway, heads) = gateway(Protocol::S3, |head| correct(head, HELD, STATED)).await;
    let name = ObjectName::from_parts("http://gateway", "b", "k", None).unwrap();
    let of_backend = Arc::new(held(&name).learned_when(Learned::default()));
    for _ in 0..2 {
        let answer = gateway.authorize(&client(CLIENT), &name, Some(&of_backend)).await.unwrap();
        assert!(matches!(answer, Authorization::Arriving(..)), "{answer:?}");
    }
    assert!(heads.lock().unwrap().iter().all(|head| !head.contains("if-none-match")));
    let asker = key_groups::asker(&client(CLIENT), &name, |_| None);
    assert!(!gateway.key_groups.see_the_same(of_backend.learned().by, asker));
}

#[tokio::test]
async fn the_clients_request_is_unchanged() {
    let (gateway, heads) = gateway(Protocol::S3, |head| correct(head, HELD, STATED)).await;
    let headers = [CLIENT, &[("if-match", "\"x\""), ("range", "bytes=0-1"), ("x-odd", "1")]].concat();
    ask(&gateway, &headers).await.unwrap();
    let heads = heads.lock().unwrap();
    for part in [
        "get /b/k http/1.1\r\n",
        "host: cwlota.com\r\n",
        "if-match: \"x\"\r\n",
        "range: bytes=0-1\r\n",
        "x-odd: 1\r\n",
    ] {
        assert!(heads[0].contains(part), "{part:?} is missing in {:?}", heads[0]);
    }
    assert!(!heads[0].contains("if-modified-since") && !heads[0].contains("lota-"), "{:?}", heads[0]);
}

#[tokio::test]
async fn another_version_is_not_fresh() {
    // The bytes are the same, but were written again, perhaps with other metadata.
    let (moved, heads) =
        gateway(Protocol::S3, |head| correct(head, HELD, "last-modified: Wed, 21 Oct 2015 07:28:01 GMT\r\n"))
            .await;
    assert!(matches!(ask(&moved, CLIENT).await.unwrap(), Authorization::Arriving(..)));
    assert!(!heads.lock().unwrap().last().unwrap().contains("if-none-match"));
    let (other, _) = gateway(Protocol::S3, |head| correct(head, HELD, "etag: \"other\"\r\n")).await;
    assert!(matches!(ask(&other, CLIENT).await.unwrap(), Authorization::Arriving(..)));
    let (changed, _) = gateway(Protocol::S3, |head| correct(head, "\"new\"", "")).await;
    let Authorization::Arriving(_, meta, _) = ask(&changed, CLIENT).await.unwrap() else {
        panic!("not Authorization::Arriving")
    };
    assert_eq!(meta.version.validator.etag, "\"new\"");
}

#[tokio::test]
async fn a_gateway_that_ignores_conditionals_sends_the_object_itself() {
    let whole = |_: &str| "HTTP/1.1 200 OK\r\netag: \"held\"\r\ncontent-length: 1\r\n\r\nx".to_owned();
    let (gateway, heads) = gateway(Protocol::S3, whole).await;
    assert!(matches!(ask(&gateway, CLIENT).await.unwrap(), Authorization::Arriving(..)));
    assert_eq!(heads.lock().unwrap().len(), 1, "a 200 needs no verification");
}

#[tokio::test]
async fn other_responses_are_relayed_and_grant_nothing() {
    for answer in [
        "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 412 Precondition Failed\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 500 Internal Server Error\r\netag: \"held\"\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 301 Moved Permanently\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n",
        // A plain gateway's redirect is not a direct path, whatever headers it has.
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://10.0.0.1:9001/b/k\r\netag: \"e\"\r\nlota-object-size: 1\r\ncontent-length: 0\r\n\r\n",
    ] {
        let (gateway, _) = gateway(Protocol::S3, move |_| answer.to_owned()).await;
        let got = ask(&gateway, CLIENT).await.unwrap();
        assert!(matches!(got, Authorization::Relay(_)), "{answer:?}: {got:?}");
    }
    for answer in [
        "HTTP/1.1 200 OK\r\netag: W/\"held\"\r\ncontent-length: 1\r\n\r\nx",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx",
        // The body was sent by RDMA, or is for this client alone.
        "HTTP/1.1 200 OK\r\netag: \"held-2\"\r\nx-amz-rdma-reply: 200\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\netag: \"held\"\r\nvary: Authorization\r\ncontent-length: 1\r\n\r\nx",
        "HTTP/1.1 206 Partial Content\r\netag: \"e\"\r\ncontent-range: bytes 0-0/*\r\ncontent-length: 1\r\n\r\nx",
    ] {
        let (gateway, _) = gateway(Protocol::S3, move |_| answer.to_owned()).await;
        let got = ask(&gateway, CLIENT).await.unwrap();
        assert!(matches!(got, Authorization::Unstorable(..)), "{answer:?}: {got:?}");
    }
}

#[tokio::test]
async fn a_304_for_everyone_is_not_trusted() {
    let careless = |head: &str| match head.contains("if-none-match") {
        true => "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(),
        false if head.contains("signature=00") => correct(head, HELD, ""),
        false => "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".to_owned(),
    };
    let (gateway, heads) = gateway(Protocol::S3, careless).await;
    for _ in 0..2 {
        assert!(matches!(ask(&gateway, CLIENT).await.unwrap(), Authorization::Relay(_)), "trusted");
    }
    let GatewayTrust::Distrusted(why) = gateway.trust() else { panic!("{:?}", gateway.trust()) };
    assert!(why.contains("broken signature"), "{why}");
    assert!(
        !heads.lock().unwrap().last().unwrap().contains("if-none-match"),
        "the request is only proxied now"
    );
}

#[tokio::test]
async fn a_repaired_gateway_is_trusted_after_another_verification() {
    let mended = Arc::<AtomicBool>::default();
    let is_mended = mended.clone();
    let (gateway, _) = gateway(Protocol::S3, move |head| match is_mended.load(Ordering::Relaxed) {
        false if head.contains("if-none-match") => "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(),
        _ => correct(head, HELD, STATED),
    })
    .await;
    ask(&gateway, CLIENT).await.unwrap();
    mended.store(true, Ordering::Relaxed);
    assert!(
        !matches!(ask(&gateway, CLIENT).await.unwrap(), Authorization::Fresh(_)),
        "verification was not requested again"
    );
    gateway.try_again();
    assert!(matches!(ask(&gateway, CLIENT).await.unwrap(), Authorization::Fresh(_)));
    assert_eq!(gateway.trust(), GatewayTrust::Trusted);
}

#[tokio::test]
async fn an_anonymous_request_does_not_start_a_verification() {
    let (gateway, _) = gateway(Protocol::S3, |head| correct(head, HELD, STATED)).await;
    assert!(matches!(
        ask(&gateway, &[]).await.unwrap(),
        Authorization::Relay(_) | Authorization::Arriving(..)
    ));
    assert_eq!(gateway.trust(), GatewayTrust::Unverified);
    ask(&gateway, CLIENT).await.unwrap();
    assert!(
        matches!(ask(&gateway, &[]).await.unwrap(), Authorization::Fresh(_)),
        "verified with another request"
    );
}

#[tokio::test]
async fn direct_paths_require_the_lota_protocol() {
    let direct = |location: &'static str| {
        move |head: &str| match head.contains("lota-accept: direct") {
            true => format!(
                "HTTP/1.1 307 Temporary Redirect\r\nlocation: {location}\r\netag: \"new\"\r\nlota-object-size: 9\r\ncontent-length: 0\r\n\r\n"
            ),
            false => correct(head, "\"new\"", ""),
        }
    };
    let (allowed, heads) = gateway(Protocol::Lota, direct("http://10.0.0.1:9001/b/k?secret")).await;
    let Authorization::Direct(_, meta, _) = ask(&allowed, CLIENT).await.unwrap() else {
        panic!("not Authorization::Direct")
    };
    assert_eq!(meta.size, 9);
    assert!(heads.lock().unwrap()[0].contains("lota-node: name=n1;zone=rack;region=lab\r\n"));
    let (elsewhere, heads) = gateway(Protocol::Lota, direct("http://10.0.0.2:9001/b/k?secret")).await;
    assert!(
        matches!(ask(&elsewhere, CLIENT).await.unwrap(), Authorization::Arriving(..)),
        "the client sees no 307"
    );
    assert!(!heads.lock().unwrap().last().unwrap().contains("lota-accept"));
}

#[tokio::test]
async fn an_unreadable_response_is_not_a_failure_of_the_gateway() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x-amz-meta-a: b\r\n".repeat(5000));
    let folded = "HTTP/1.1 200 OK\r\nx: y\r\n folded\r\n\r\n".to_owned();
    let odd = ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 99999 x\r\n\r\n", "\0\0\0\0"].map(str::to_owned);
    for nonsense in odd.into_iter().chain([many, folded]) {
        let answer = nonsense.clone();
        let (gateway, _) = gateway(Protocol::S3, move |_| format!("{answer}\r\n\r\n\r\n")).await;
        let error = ask(&gateway, CLIENT).await.unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (502, "BadGateway"), "{nonsense:?}");
        assert!(gateway.silent().is_none(), "{nonsense:?}");
    }
}

#[tokio::test]
async fn an_object_with_many_metadata_headers_is_read() {
    let metadata: String = (0..900).map(|number| format!("x-amz-meta-{number}: {number}\r\n")).collect();
    let answer = format!("HTTP/1.1 200 OK\r\netag: \"many\"\r\n{metadata}content-length: 0\r\n\r\n");
    let (gateway, _) = gateway(Protocol::S3, move |_| answer.clone()).await;
    let Authorization::Arriving(_, meta, _) = ask(&gateway, CLIENT).await.unwrap() else {
        panic!("not Authorization::Arriving")
    };
    assert_eq!(meta.headers.len(), 901);
}

/// Returns a gateway that answers with an error after so long, or closes after the first request.
async fn slow(wait: Duration, goes: bool, response_timeout_seconds: u64) -> Gateway {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = Origin::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    tokio::spawn(async move {
        let mut listener = Some(listener);
        while let Some(Ok((mut stream, _))) = match &listener {
            Some(listener) => Some(listener.accept().await),
            None => None,
        } {
            let answering = async move {
                let _ = stream.read(&mut [0; 4096]).await;
                tokio::time::sleep(wait).await;
                let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
            };
            if goes {
                listener = None;
            }
            tokio::spawn(answering);
        }
        std::future::pending::<()>().await;
    });
    let config = GatewayConfig { response_timeout_seconds, ..GatewayConfig::for_test(origin) };
    let node = NodeConfig {
        name: "n1".into(),
        address: [10, 0, 0, 1].into(),
        zone: String::new(),
        region: String::new(),
    };
    Gateway::new(&config, &node, Upstream::new(false).unwrap()).unwrap()
}

/// The clock jumps ahead whenever all tasks are idle.
#[tokio::test(start_paused = true)]
async fn a_slow_gateway_is_waited_for() {
    let gateway = slow(Duration::from_secs(300), false, 900).await;
    let Authorization::Relay(answer) = ask(&gateway, CLIENT).await.unwrap() else {
        panic!("not Authorization::Relay")
    };
    assert_eq!(answer.status(), 404);
    // A copy is a PUT without a body.
    for (method, body) in [
        (Method::GET, ""),
        (Method::PUT, ""),
        (Method::PUT, "bytes"),
        (Method::POST, ""),
        (Method::POST, "bytes"),
        (Method::DELETE, ""),
    ] {
        let mut head = client(CLIENT);
        head.method = method.clone();
        let answer = gateway.forward(&head, full(body)).await;
        assert_eq!(answer.unwrap().status(), 404, "{method} {body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_hangs_times_out() {
    let gateway = slow(Duration::from_secs(3600), false, 60).await;
    let before = tokio::time::Instant::now();
    let error = ask(&gateway, CLIENT).await.unwrap_err();
    assert_eq!((error.status.as_u16(), error.code), (503, "ServiceUnavailable"));
    assert!(before.elapsed() >= Duration::from_secs(60) && before.elapsed() < Duration::from_secs(90));
    assert!(gateway.silent().unwrap().1.contains("no answer within"));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_disappears_during_a_request_is_detected() {
    let gateway = slow(Duration::from_secs(86_400), true, 3600).await;
    let before = tokio::time::Instant::now();
    let error = ask(&gateway, CLIENT).await.unwrap_err();
    assert_eq!((error.status.as_u16(), error.code), (503, "ServiceUnavailable"));
    assert!(before.elapsed() < Duration::from_secs(90), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_takes_nothing_of_an_upload_times_out() {
    let gateway = slow(Duration::from_secs(86_400), false, 600).await;
    let mut head = client(CLIENT);
    head.method = Method::PUT;
    let before = tokio::time::Instant::now();
    // More than the sockets take.
    let piece = || Ok(Frame::data(Bytes::from_static(&[0; 1 << 20])));
    let body = StreamBody::new(stream::iter(std::iter::repeat_with(piece).take(64))).boxed_unsync();
    let upload = gateway.forward(&head, body);
    let error = tokio::time::timeout(Duration::from_secs(7200), upload).await.expect("it waits").unwrap_err();
    assert_eq!((error.status.as_u16(), error.code), (503, "ServiceUnavailable"));
    assert!(before.elapsed() >= Duration::from_secs(600), "{:?}", before.elapsed());
}

#[tokio::test]
async fn an_endless_head_is_refused() {
    const ENOUGH: usize = 256 << 20;
    let line = format!("x-amz-meta-a: {}\r\n", "a".repeat(64 << 10));
    // Long headers, one that does not end, and more than there may be.
    for endless in [line.clone(), line.replace("\r\n", ""), "a: b\r\n".repeat(10_000)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = Origin::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let sending = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
            let mut sent = 0;
            while sent < ENOUGH && stream.write_all(endless.as_bytes()).await.is_ok() {
                sent += endless.len();
            }
            sent
        });
        let node = NodeConfig {
            name: "n1".into(),
            address: [10, 0, 0, 1].into(),
            zone: String::new(),
            region: String::new(),
        };
        let config = GatewayConfig::for_test(origin);
        let gateway = Gateway::new(&config, &node, Upstream::new(false).unwrap()).unwrap();
        let error = ask(&gateway, CLIENT).await.unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (502, "BadGateway"));
        // Sockets take a few mebibytes.
        let sent = sending.await.unwrap();
        assert!(sent < 32 << 20, "{sent} bytes were read");
    }
}
