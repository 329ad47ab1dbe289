//! What becomes of whatever a gateway may answer.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

const HELD: &str = "\"held\"";
const SIGNED: &str = "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host;x-amz-date, Signature=00";

/// A gateway that answers each request's head by `answer`; the heads it saw.
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
    let config = config::Gateway {
        endpoint: origin,
        protocol,
        direct_allow: vec![Origin::parse("http://10.0.0.1:9001").unwrap()],
        resign: None,
    };
    let node = config::Node {
        name: "n1".into(),
        address: [10, 0, 0, 1].into(),
        zone: "rack".into(),
        region: "lab".into(),
    };
    (Gateway::new(&config, &node, Upstream::new(false).unwrap()).unwrap(), heads)
}

/// What a gateway without a cache in front answers to a conditional GET of an object with this `ETag`.
fn honest(head: &str, etag: &str, not_modified: &str) -> String {
    if head.contains("signature=01") {
        return "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".into();
    }
    if head.contains(&format!("if-none-match: {etag}\r\n")) {
        return format!("HTTP/1.1 304 Not Modified\r\n{not_modified}\r\n");
    }
    format!("HTTP/1.1 200 OK\r\netag: {etag}\r\nlast-modified: then\r\ncontent-length: 1\r\n\r\nx")
}

fn client(headers: &[(&'static str, &'static str)]) -> Head {
    let mut request = Request::builder().uri("/b/k").header("host", "cwlota.com");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Head::of(request.body(()).unwrap().into_parts().0).unwrap()
}

async fn ask(gateway: &Gateway, headers: &[(&'static str, &'static str)]) -> Result<Answer, S3Error> {
    let name = ObjectName::from_parts("b", "k", None).unwrap();
    let held = Validator { etag: HELD.into(), last_modified: Some("then".into()) };
    gateway.authorize(&client(headers), &name, Some(&held)).await
}

const CLIENT: &[(&str, &str)] = &[("authorization", SIGNED)];

#[tokio::test]
async fn a_304_is_a_yes_with_or_without_its_etag() {
    for repeated in ["", "etag: \"held\"\r\n", "etag: \"held\"\r\nlast-modified: then\r\n"] {
        let (gateway, heads) = gateway(Protocol::S3, move |head| honest(head, HELD, repeated)).await;
        let answer = ask(&gateway, CLIENT).await.unwrap();
        assert!(matches!(answer, Answer::Fresh(_)), "{repeated:?}: {answer:?}");
        assert_eq!(gateway.standing(), Standing::Trusted);
        assert_eq!(heads.lock().unwrap().len(), 3, "the question, and the trial's two");
        ask(&gateway, CLIENT).await.unwrap();
        assert_eq!(heads.lock().unwrap().len(), 4, "tried once");
    }
}

#[tokio::test]
async fn what_the_client_asks_stays_as_it_is() {
    let (gateway, heads) = gateway(Protocol::S3, |head| honest(head, HELD, "")).await;
    let asked = [CLIENT, &[("if-match", "\"x\""), ("range", "bytes=0-1"), ("x-odd", "1")]].concat();
    ask(&gateway, &asked).await.unwrap();
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
    // The bytes are the same, but were written again: with other metadata, perhaps.
    let (moved, heads) = gateway(Protocol::S3, |head| honest(head, HELD, "last-modified: later\r\n")).await;
    assert!(matches!(ask(&moved, CLIENT).await.unwrap(), Answer::Arriving(..)));
    assert!(!heads.lock().unwrap().last().unwrap().contains("if-none-match"));
    let (other, _) = gateway(Protocol::S3, |head| honest(head, HELD, "etag: \"other\"\r\n")).await;
    assert!(matches!(ask(&other, CLIENT).await.unwrap(), Answer::Arriving(..)));
    let (changed, _) = gateway(Protocol::S3, |head| honest(head, "\"new\"", "")).await;
    let Answer::Arriving(_, meta, _) = ask(&changed, CLIENT).await.unwrap() else { panic!("not arriving") };
    assert_eq!(meta.version.validator.etag, "\"new\"");
}

#[tokio::test]
async fn a_gateway_that_ignores_conditionals_sends_the_object_itself() {
    let whole = |_: &str| "HTTP/1.1 200 OK\r\netag: \"held\"\r\ncontent-length: 1\r\n\r\nx".to_owned();
    let (gateway, heads) = gateway(Protocol::S3, whole).await;
    assert!(matches!(ask(&gateway, CLIENT).await.unwrap(), Answer::Arriving(..)));
    assert_eq!(heads.lock().unwrap().len(), 1, "a 200 needs no trial");
}

#[tokio::test]
async fn all_else_is_relayed_and_grants_nothing() {
    for answer in [
        "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 412 Precondition Failed\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 500 Internal Server Error\r\netag: \"held\"\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 301 Moved Permanently\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n",
        // A plain gateway's redirect is no direct path, whatever it carries.
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://10.0.0.1:9001/b/k\r\netag: \"e\"\r\nlota-object-size: 1\r\ncontent-length: 0\r\n\r\n",
        // Weak, or without what tells contents apart.
        "HTTP/1.1 200 OK\r\netag: W/\"held\"\r\ncontent-length: 1\r\n\r\nx",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx",
        "HTTP/1.1 206 Partial Content\r\netag: \"e\"\r\ncontent-range: bytes 0-0/*\r\ncontent-length: 1\r\n\r\nx",
    ] {
        let (gateway, _) = gateway(Protocol::S3, move |_| answer.to_owned()).await;
        let got = ask(&gateway, CLIENT).await.unwrap();
        assert!(matches!(got, Answer::Relay(_)), "{answer:?}: {got:?}");
    }
}

#[tokio::test]
async fn a_304_for_everyone_is_worth_nothing() {
    let careless = |head: &str| match head.contains("if-none-match") {
        true => "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(),
        false => "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".to_owned(),
    };
    let (gateway, heads) = gateway(Protocol::S3, careless).await;
    for _ in 0..2 {
        let Answer::Relay(answer) = ask(&gateway, CLIENT).await.unwrap() else { panic!("trusted") };
        assert_eq!(answer.status(), 403);
    }
    let Standing::Distrusted(why) = gateway.standing() else { panic!("{:?}", gateway.standing()) };
    assert!(why.contains("broken signature"), "{why}");
    assert!(!heads.lock().unwrap().last().unwrap().contains("if-none-match"), "it is only proxied now");
}

#[tokio::test]
async fn a_gateway_that_is_mended_is_trusted_once_it_is_tried_again() {
    let mended = Arc::<AtomicBool>::default();
    let is_mended = mended.clone();
    let (gateway, _) = gateway(Protocol::S3, move |head| match is_mended.load(Ordering::Relaxed) {
        false if head.contains("if-none-match") => "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(),
        _ => honest(head, HELD, ""),
    })
    .await;
    ask(&gateway, CLIENT).await.unwrap();
    mended.store(true, Ordering::Relaxed);
    assert!(
        !matches!(ask(&gateway, CLIENT).await.unwrap(), Answer::Fresh(_)),
        "nobody has said that it is mended"
    );
    gateway.try_again();
    assert!(matches!(ask(&gateway, CLIENT).await.unwrap(), Answer::Fresh(_)));
    assert_eq!(gateway.standing(), Standing::Trusted);
}

#[tokio::test]
async fn who_does_not_sign_cannot_try_a_gateway() {
    let (gateway, _) = gateway(Protocol::S3, |head| honest(head, HELD, "")).await;
    assert!(matches!(ask(&gateway, &[]).await.unwrap(), Answer::Relay(_) | Answer::Arriving(..)));
    assert_eq!(gateway.standing(), Standing::Untried);
    ask(&gateway, CLIENT).await.unwrap();
    assert!(matches!(ask(&gateway, &[]).await.unwrap(), Answer::Fresh(_)), "tried by another");
}

#[tokio::test]
async fn direct_paths_are_for_gateways_that_speak_lota() {
    let direct = |location: &'static str| {
        move |head: &str| match head.contains("lota-accept: direct") {
            true => format!(
                "HTTP/1.1 307 Temporary Redirect\r\nlocation: {location}\r\netag: \"new\"\r\nlota-object-size: 9\r\ncontent-length: 0\r\n\r\n"
            ),
            false => honest(head, "\"new\"", ""),
        }
    };
    let (allowed, heads) = gateway(Protocol::Lota, direct("http://10.0.0.1:9001/b/k?secret")).await;
    let Answer::Direct(_, meta, _) = ask(&allowed, CLIENT).await.unwrap() else { panic!("not direct") };
    assert_eq!(meta.size, 9);
    assert!(heads.lock().unwrap()[0].contains("lota-node: name=n1;zone=rack;region=lab\r\n"));
    let (elsewhere, heads) = gateway(Protocol::Lota, direct("http://10.0.0.2:9001/b/k?secret")).await;
    assert!(matches!(ask(&elsewhere, CLIENT).await.unwrap(), Answer::Arriving(..)), "the client sees no 307");
    assert!(!heads.lock().unwrap().last().unwrap().contains("lota-accept"));
}

#[tokio::test]
async fn nonsense_is_no_answer() {
    for nonsense in ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 99999 x\r\n\r\n", "\0\0\0\0"] {
        let (gateway, _) = gateway(Protocol::S3, move |_| format!("{nonsense}\r\n\r\n\r\n")).await;
        let error = ask(&gateway, CLIENT).await.unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (503, "ServiceUnavailable"), "{nonsense:?}");
    }
}
