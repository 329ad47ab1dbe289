use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;

const GOOD: &str = "authorization: AWS key:0good\r\n";
const BAD: &str = "authorization: AWS key:1bad\r\n";

fn correct() -> CorrectGateway {
    CorrectGateway::new().object("/b/k", StoredObject::new("0123456789"))
}

/// Sends one request on a new connection; returns all bytes until the server closes it.
async fn ask(gateway: &ScriptedGateway, target: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nhost: h\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    String::from_utf8(all).unwrap()
}

async fn status(gateway: &ScriptedGateway, target: &str, headers: &str) -> u16 {
    ask(gateway, target, headers).await[9..12].parse().unwrap()
}

#[tokio::test]
async fn an_honest_gateway_behaves_like_s3() {
    let gateway = ScriptedGateway::start(correct()).await;
    for (headers, expected) in [
        (GOOD.to_owned(), 200),
        (BAD.to_owned(), 403),
        (String::new(), 403),
        (format!("{GOOD}if-none-match: \"etag\"\r\n"), 304),
        (format!("{BAD}if-none-match: \"etag\"\r\n"), 403),
        (format!("{GOOD}if-none-match: \"other\"\r\n"), 200),
        (format!("{GOOD}if-match: \"other\"\r\n"), 412),
        (format!("{GOOD}range: bytes=2-3\r\n"), 206),
        (format!("{GOOD}range: bytes=10-\r\n"), 416),
    ] {
        assert_eq!(status(&gateway, "/b/k", &headers).await, expected, "{headers}");
    }
    assert!(ask(&gateway, "/b/k", &format!("{GOOD}range: bytes=2-3\r\n")).await.ends_with("\r\n\r\n23"));
    assert_eq!(status(&gateway, "/b/other?Signature=0", "").await, 404);
    assert_eq!(gateway.seen()[0].header("AUTHORIZATION"), Some("AWS key:0good"));
    assert_eq!(gateway.connections(), gateway.take_seen().len());
}

#[tokio::test]
async fn caches_answer_without_authorization_once_they_have_the_object() {
    let bad = format!("{BAD}if-none-match: \"etag\"\r\n");
    for (what, around) in [
        (Misbehaviour::CacheByUrl, ("/b/k?x-id=GetObject", "")),
        (Misbehaviour::CacheByWholeUrl, ("/b/k?x-amz-date=1", "")),
        (Misbehaviour::CacheUnlessNoCache, ("/b/k", "cache-control: no-cache\r\n")),
        (Misbehaviour::CacheByVary("user-agent".into()), ("/b/k", "user-agent: other\r\n")),
    ] {
        let gateway = ScriptedGateway::start(what.clone().script(correct())).await;
        assert_eq!(status(&gateway, "/b/k", &bad).await, 403, "{what:?}");
        assert_eq!(status(&gateway, "/b/k", GOOD).await, 200, "{what:?}");
        assert_eq!(status(&gateway, "/b/k", &bad).await, 304, "{what:?}");
        assert_eq!(status(&gateway, "/b/k", BAD).await, 200, "{what:?}");
        let (target, header) = around;
        assert_eq!(status(&gateway, target, &format!("{bad}{header}")).await, 403, "{what:?}");
    }
    let delayed = ScriptedGateway::start(Misbehaviour::CacheDelayed(2).script(correct())).await;
    for expected in [200, 403, 304] {
        let headers = if expected == 200 { GOOD } else { &bad };
        assert_eq!(status(&delayed, "/b/k", headers).await, expected);
    }
}

#[tokio::test]
async fn bytes_are_written_as_scripted() {
    let gateway = ScriptedGateway::start(|_: &SeenRequest| {
        Answer::status(200).body("some").declared_length(9).extra(Duration::ZERO, "!").close()
    })
    .await;
    let expected = "HTTP/1.1 200 Scripted\r\ncontent-length: 9\r\n\r\nsome!";
    assert_eq!(ask(&gateway, "/", "").await, expected);
    gateway.set_script(|_: &SeenRequest| Answer::raw("SSH-2.0\r\n").close());
    assert_eq!(ask(&gateway, "/", "").await, "SSH-2.0\r\n");
    gateway.set_script(Misbehaviour::BodyAfterHead(Duration::ZERO).script(correct()));
    assert!(ask(&gateway, "/b/k", &format!("{GOOD}if-none-match: *\r\n")).await.ends_with("evil"));
    gateway.set_script(Misbehaviour::ClosesMidway.script(correct()));
    assert!(ask(&gateway, "/b/k", GOOD).await.ends_with("content-length: 10\r\n\r\n01234"));
}
