//! Connections as clients see them: a server on loopback, and bytes.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use lota_s3::Origin;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::http::{PodBandwidth, RequestHead, full, incoming, relayed, upstream::Upstream};

/// Longest wait for a head here.
const SHORT_HEAD_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection to a server that does `service`, to be served and to be talked to.
async fn connect<F>(
    service: impl Fn(Request<Incoming>) -> F + Send + 'static,
) -> (impl Future<Output = ()>, TcpStream)
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let limits = ConnectionLimits { head_timeout: SHORT_HEAD_TIMEOUT, ..ConnectionLimits::CLIENT };
    connect_with(limits, 1 << 20, service).await
}

/// The same with these limits, and so many bytes for heads.
async fn connect_with<F>(
    limits: ConnectionLimits,
    head_memory: usize,
    service: impl Fn(Request<Incoming>) -> F + Send + 'static,
) -> (impl Future<Output = ()>, TcpStream)
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    connect_to(Life::Serving, limits, (head_memory, Sending::default()), service).await
}

/// The same with a listener in this state, and with accounting of what is sent.
async fn connect_to<F>(
    listener_life: Life,
    limits: ConnectionLimits,
    (head_memory, sending): (usize, Sending),
    service: impl Fn(Request<Incoming>) -> F + Send + 'static,
) -> (impl Future<Output = ()>, TcpStream)
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let accepted = accept(&listener).await;
    let (sender, life) = watch::channel(listener_life);
    let served = move |connection: Connection, request| {
        let answer = (connection.refused.is_none()).then(|| service(request));
        async move {
            match answer {
                Some(answer) => Ok(answer.await),
                None => Ok(Response::builder().status(400).body(full("refused")).unwrap()),
            }
        }
    };
    let heads = crate::http::HeadBudget::new(head_memory, head_memory).charge([127, 0, 0, 1].into());
    let terms = (limits, heads);
    let serving = async move {
        serve(accepted, terms, sending, life, std::future::pending(), served).await;
        drop(sender);
    };
    (serving, client)
}

/// Returns the answer to a connection that sends `bytes` and then nothing more, by a server that does `service`.
async fn answered<F>(bytes: &[u8], service: impl Fn(Request<Incoming>) -> F + Send + 'static) -> String
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (serving, mut client) = connect(service).await;
    let talking = async {
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::join!(serving, talking).1
}

#[tokio::test]
async fn a_response_is_as_slow_as_its_pod_may_receive() {
    const LIMIT: u64 = 2 << 20;
    let content: Vec<u8> = (0..1 << 20).map(|i: u32| i.to_le_bytes()[1]).collect();
    let body = content.clone();
    // The timeout for progress does not end what LOTA itself delays.
    let limits = ConnectionLimits { idle_timeout: Duration::from_millis(2), ..ConnectionLimits::CLIENT };
    let pace = PodBandwidth::new(Some(LIMIT)).pace([127, 0, 0, 1].into());
    let sending = Sending { pace: Some(pace), ..Sending::default() };
    let service = move |_| {
        let body = body.clone();
        async { Response::new(full(body)) }
    };
    let (serving, mut client) = connect_to(Life::Serving, limits, (1 << 20, sending), service).await;
    let receiving = async move {
        let began = Instant::now();
        client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        (answer, began.elapsed())
    };
    let ((), (answer, took)) = tokio::join!(serving, receiving);
    assert!(answer.ends_with(&content), "{} bytes", answer.len());
    assert!(took >= Duration::from_millis(470), "it took {took:?}");
}

/// A connection to a server whose listener has ended, to be served and to be talked to.
async fn connect_to_ended() -> (impl Future<Output = ()>, TcpStream) {
    let service = |_| async { Response::new(full("served")) };
    connect_to(Life::Ending, ConnectionLimits::CLIENT, (1 << 20, Sending::default()), service).await
}

#[tokio::test]
async fn a_new_connection_is_served_although_its_listener_has_ended() {
    let (serving, mut client) = connect_to_ended().await;
    let talking = async {
        tokio::time::sleep(FIRST_REQUEST_GRACE / 4).await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        let (begun, mut answer) = (Instant::now(), String::new());
        client.read_to_string(&mut answer).await.unwrap();
        (answer, begun.elapsed())
    };
    let ((), (answer, took)) = tokio::join!(serving, talking);
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("connection: close"), "{answer}");
    assert!(took < FIRST_REQUEST_GRACE, "it is open for {took:?} after its response");
}

#[tokio::test]
async fn a_new_connection_without_a_request_ends_after_its_listener() {
    let (serving, mut client) = connect_to_ended().await;
    let begun = Instant::now();
    let ((), read) = tokio::join!(serving, client.read_u8());
    assert!(read.is_err() && begun.elapsed() >= FIRST_REQUEST_GRACE, "it ended after {:?}", begun.elapsed());
}

/// Returns the answer to a connection that sends `bytes` and then nothing more, by a server that passes requests on to
/// `origin`.
async fn passed_on(bytes: impl AsRef<[u8]>, origin: Origin) -> String {
    let upstream = Upstream::new(false).unwrap();
    let pass_on = move |request: Request<Incoming>| {
        let (upstream, origin) = (upstream.clone(), origin.clone());
        async move {
            let (parts, body) = request.into_parts();
            let request = RequestHead::of(parts).unwrap().request(&origin, incoming(body)).unwrap();
            upstream.send(request).await.unwrap().map(incoming)
        }
    };
    answered(bytes.as_ref(), pass_on).await
}

/// A server that answers each connection's first request with `answer`; where it is, and the bytes that it got.
async fn recorder(answer: &'static str) -> (Origin, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = Origin::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let got = Arc::<Mutex<Vec<u8>>>::default();
    let record = got.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut piece = vec![0; 64 << 10];
            let mut all = Vec::new();
            while !all.windows(4).any(|window| window == b"\r\n\r\n") || !all.ends_with(b"\r\n\r\n") {
                match stream.read(&mut piece).await {
                    Ok(read @ 1..) => all.extend_from_slice(&piece[..read]),
                    _ => break,
                }
            }
            record.lock().unwrap().extend_from_slice(&all);
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (origin, got)
}

#[tokio::test]
async fn an_answer_that_is_buffered_before_its_request_ends_is_sent() {
    const ANSWER: usize = 16 << 20;
    let service = async |request: Request<Incoming>| {
        tokio::spawn(request.into_body().collect());
        Response::new(full(vec![1; ANSWER]))
    };
    let (serving, mut client) = connect(service).await;
    let reading = async {
        client.write_all(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na").await.unwrap();
        tokio::time::sleep(FREE_IDLE_AFTER / 2).await;
        client.write_all(b"b").await.unwrap();
        tokio::time::sleep(FREE_IDLE_AFTER + SHORT_HEAD_TIMEOUT).await;
        let mut answer = vec![0; ANSWER];
        let read = client.read_exact(&mut answer).await;
        drop(client);
        read
    };
    let ((), read) = tokio::join!(serving, reading);
    assert!(read.is_ok(), "{read:?}");
}

#[tokio::test]
async fn each_pause_of_a_body_has_a_timeout_of_its_own() {
    let limits = ConnectionLimits { idle_timeout: Duration::from_secs(2), ..ConnectionLimits::CLIENT };
    let service = async |request: Request<Incoming>| {
        let received = request.into_body().collect().await.is_ok();
        Response::new(full(if received { "received" } else { "broken" }))
    };
    let (serving, mut client) = connect_with(limits, 1 << 20, service).await;
    let uploading = async {
        for _ in 0..2 {
            client.write_all(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(600)).await;
            client.write_all(b"ab").await.unwrap();
            let mut answer = [0; 512];
            let read = client.read(&mut answer).await.unwrap();
            assert!(answer[..read].ends_with(b"received"), "{}", String::from_utf8_lossy(&answer[..read]));
            // Without hyper, and past the end of the first pause's timeout.
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        drop(client);
    };
    tokio::join!(serving, uploading);
}

/// Longer than the waits for a head, but shorter than the idle timeout.
const LONG_PAUSE: Duration = Duration::from_secs(7);

/// Sends a request with `header`, and pauses while the socket holds the whole response. Returns the connection, and
/// whether the server kept it open during the pause.
async fn paused(header: &str, idle_timeout: Duration, half_close: Option<Duration>) -> (TcpStream, bool) {
    let limits =
        ConnectionLimits { head_timeout: Duration::from_secs(1), idle_timeout, ..ConnectionLimits::CLIENT };
    let (serving, mut client) = connect_with(limits, 1 << 20, async |_| Response::new(full(LAST))).await;
    let serving = tokio::spawn(serving);
    client.write_all(format!("GET / HTTP/1.1\r\nHost: h\r\n{header}\r\n").as_bytes()).await.unwrap();
    if let Some(after) = half_close {
        tokio::time::sleep(after).await;
        client.shutdown().await.unwrap();
    }
    tokio::time::sleep(LONG_PAUSE).await;
    let is_served = !serving.is_finished();
    (client, is_served)
}

/// An answer that fits into the server's socket, but not into the client's.
const LAST: &[u8] = &[b'l'; 512 << 10];
/// Connections that stay open, whose client closes its half at once or later, and which the server closes.
const KINDS: [(&str, Option<Duration>); 4] = [
    ("", None),
    ("", Some(Duration::ZERO)),
    ("", Some(Duration::from_secs(2))),
    ("Connection: close\r\n", None),
];

#[tokio::test]
async fn the_last_bytes_have_the_idle_timeout() {
    join_all(KINDS.map(async |(header, half_close)| {
        let (mut client, is_served) = paused(header, LONG_PAUSE * 10, half_close).await;
        assert!(is_served, "{header:?} {half_close:?}");
        client.read_exact(&mut vec![0; LAST.len()]).await.unwrap();
    }))
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_take_the_last_bytes_is_not_waited_for() {
    join_all(KINDS.map(async |(header, half_close)| {
        let (_client, is_served) = paused(header, Duration::from_secs(1), half_close).await;
        assert!(!is_served, "{header:?} {half_close:?}");
    }))
    .await;
}

#[tokio::test]
async fn half_a_head_is_not_kept_as_long_as_the_last_bytes() {
    let limits = ConnectionLimits {
        head_timeout: Duration::from_secs(1),
        idle_timeout: LONG_PAUSE * 10,
        ..ConnectionLimits::CLIENT
    };
    let (serving, mut client) = connect_with(limits, 1 << 20, async |_| Response::new(full(LAST))).await;
    let serving = tokio::spawn(serving);
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET / HT").await.unwrap();
    let ended = tokio::time::timeout(LONG_PAUSE * 5, serving).await;
    assert!(ended.is_ok(), "it is kept for the idle timeout");
}

#[test]
fn waits_between_requests_are_no_busy_loop() {
    for idle in [1, 2, 300] {
        let limits = ConnectionLimits { idle_timeout: Duration::from_secs(idle), ..ConnectionLimits::CLIENT };
        let wait = limits.wait_when_idle();
        assert!(wait >= Duration::from_millis(50) && wait <= limits.idle_timeout, "{idle} s: {wait:?}");
    }
}

#[tokio::test]
async fn a_head_without_memory_for_it_is_answered_once() {
    let (serving, mut client) =
        connect_with(ConnectionLimits::CLIENT, 6 << 10, async |_| Response::new(full("served"))).await;
    let asking = async {
        let head = format!("GET / HTTP/1.1\r\nHost: h\r\nX-A: {}\r\n\r\n", "a".repeat(8 << 10));
        client.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let ((), answer) = tokio::join!(serving, asking);
    assert!(answer.matches("HTTP/1.1 ").count() == 1 && answer.ends_with("refused"), "{answer}");
}

#[tokio::test]
async fn an_idle_connection_is_served_again() {
    let (serving, mut client) = connect(async |_| Response::new(full("answer"))).await;
    let asking = async {
        for idle in [
            FREE_IDLE_AFTER / 2,
            FREE_IDLE_AFTER * 3,
            SHORT_HEAD_TIMEOUT - Duration::from_millis(500),
            SHORT_HEAD_TIMEOUT * 3 / 2,
        ] {
            client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            let mut answer = [0; 512];
            let read = client.read(&mut answer).await.unwrap();
            assert!(answer[..read].ends_with(b"answer"), "{}", String::from_utf8_lossy(&answer));
            tokio::time::sleep(idle).await;
        }
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "idle for too long");
    };
    tokio::join!(serving, asking);
}

#[tokio::test]
async fn a_malformed_chunked_body_is_answered() {
    let head = "PUT /b/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "hello world this is not a chunk",
        "5\r\nhelloworld\r\n0",
        "5\r\nhello\r\nx\r\n",
        "3\r\nabc\r\n0\r\n: x\r\n\r\n",
    ] {
        let sent = format!("{head}{body}");
        let answer = answered(sent.as_bytes(), async |request| {
            let read = request.into_body().collect().await;
            Response::builder().status(if read.is_err() { 400 } else { 200 }).body(full("malformed")).unwrap()
        });
        let answer = answer.await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("malformed"), "{body:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_malformed_chunk_line_is_answered_before_its_end() {
    let service = async |request: Request<Incoming>| {
        let read = request.into_body().collect().await;
        Response::new(full(if read.is_err() { "malformed" } else { "whole" }))
    };
    // The default idle timeout is minutes.
    let (serving, mut client) = connect_with(ConnectionLimits::CLIENT, 1 << 20, service).await;
    let asking = async {
        let request = b"PUT /b/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nhello";
        client.write_all(request).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        drop(client);
        answer
    };
    let answer =
        tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(serving, asking).1 }).await;
    assert!(answer.as_ref().is_ok_and(|answer| answer.ends_with("malformed")), "{answer:?}");
}

#[tokio::test]
async fn a_target_with_a_fragment_reaches_nobody() {
    let request = b"DELETE /public/victim#x HTTP/1.1\r\nHost: h\r\n\r\n";
    let answer = answered(request, async |_| panic!("the request was served")).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn requests_are_forwarded_unchanged() {
    let (origin, got) =
        recorder("HTTP/1.1 207 Odd Reason\r\nX-Odd: \u{e9}  x\r\nContent-Length: 0\r\n\r\n").await;
    let target = "/B//./..%2f%2F+%20~!$&'()*,;:@?x=%&&y=?/-._";
    let lines = [
        "Host: B.CWLOTA.com:80",
        "X-Twice: 2",
        "x-twice: 1",
        "X-Obs: \u{fc}\t\u{80}",
        "x-empty:",
        "aCcePt: a,  b",
    ];
    let request = format!("GET {target} HTTP/1.1\r\n{}\r\nX-Padded:   p  \r\n\r\n", lines.join("\r\n"));
    let answer = passed_on(&request, origin).await;
    let got = String::from_utf8_lossy(&got.lock().unwrap()).into_owned();
    assert!(got.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{got}");
    for line in lines.iter().chain(&["X-Padded: p"]) {
        let line = line.trim_end_matches(':');
        assert!(got.contains(&format!("\r\n{line}")), "{line:?} is missing in {got}");
    }
    assert!(got.find("X-Twice: 2") < got.find("x-twice: 1"), "{got}");
    assert!(answer.starts_with("HTTP/1.1 207 Odd Reason\r\n"), "{answer}");
    assert!(answer.contains("\r\nX-Odd: \u{e9}  x\r\n"), "{answer}");
}

#[tokio::test]
async fn trailers_under_lotas_names_do_not_travel() {
    let (origin, got) = recorder("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let request = "PUT /b/k HTTP/1.1\r\nHost: h\r\nTrailer: Lota-Accept, x-amz-checksum-crc32, Keep-Alive\r\n\
                   Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nLota-Accept: direct\r\nKeep-Alive: 9\r\n\
                   x-amz-checksum-crc32: 6Le+Qw==\r\n\r\n";
    assert!(passed_on(request, origin).await.starts_with("HTTP/1.1 200 "));
    let got = String::from_utf8_lossy(&got.lock().unwrap()).to_ascii_lowercase();
    let (_, body) = got.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "1\r\na\r\n0\r\nx-amz-checksum-crc32: 6le+qw==\r\n\r\n");
}

/// Returns what a client receives of a response whose source sends `answer` and then nothing more.
async fn cut_short(request: &[u8], answer: &'static str) -> io::Result<String> {
    const LONGEST: Duration = Duration::from_millis(300);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}/", listener.local_addr().unwrap());
    let _source = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        tokio::time::sleep(LONGEST * 100).await;
    });
    let upstream = Upstream::new(false).unwrap().with_idle_timeout(LONGEST);
    let (serving, mut client) = connect(move |_| {
        let (upstream, request) = (upstream.clone(), Request::get(&uri).body(crate::http::empty()).unwrap());
        async move { relayed(upstream.send(request).await.unwrap()) }
    })
    .await;
    let receiving = async {
        client.write_all(request).await.unwrap();
        let mut received = String::new();
        client.read_to_string(&mut received).await.map(|_| received)
    };
    tokio::time::timeout(LONGEST * 20, async { tokio::join!(serving, receiving).1 }).await.expect("it waits")
}

#[tokio::test]
async fn a_response_whose_source_stalls_does_not_look_complete() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n";
    const LONG: &str = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome";
    for (answer, whole) in [(CHUNKED, "0\r\n\r\n"), (LONG, "more")] {
        let got = cut_short(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", answer).await.unwrap();
        assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("some") && !got.ends_with(whole), "{got}");
    }
    // Without a length, only a reset differs from the end.
    let got = cut_short(b"GET / HTTP/1.0\r\nHost: h\r\n\r\n", CHUNKED).await;
    assert_eq!(got.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}
