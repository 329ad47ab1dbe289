use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
};

use http_body_util::BodyExt as _;
use hyper::{Request, Response, body::Incoming};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::http::{empty, upstream::Upstream};

fn front(port: u16) -> UpstreamServer {
    UpstreamServer { address: SocketAddr::from(([127, 0, 0, 1], port)), certificate: None }
}

#[test]
fn a_server_is_watched_until_it_is_clean_and_for_ever_if_it_is_not() {
    let (stray, one, other) = (StrayBytes::default(), front(1), front(2));
    stray.meet(&one);
    for _ in 0..CLEAN_RESPONSES {
        assert!(stray.is_watching() && stray.is_to_watch(&one, Bodyless::Status));
        stray.clean(&one, Bodyless::Status);
    }
    assert!(!stray.is_to_watch(&one, Bodyless::Status) && stray.is_to_watch(&one, Bodyless::Head));
    for _ in 0..CLEAN_RESPONSES {
        stray.clean(&one, Bodyless::Head);
    }
    let watched = (0..SAMPLE_INTERVAL).filter(|_| stray.is_watching()).count();
    assert_eq!(watched, 1, "samples of a clean server");
    stray.meet(&other);
    assert!(stray.is_watching() && stray.is_to_watch(&other, Bodyless::Head));
    stray.stray(&one);
    for _ in 0..CLEAN_RESPONSES {
        stray.clean(&one, Bodyless::Head);
    }
    assert!(stray.is_to_watch(&one, Bodyless::Head));
}

/// Another object's content: a whole answer, which must never be one.
const PLANTED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nplanted";

/// A server that sends a body after the heads of answers that have none, late.
async fn sends_bodies_late() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut request).await {
                    let request = String::from_utf8_lossy(&request[..read]).into_owned();
                    if request.starts_with("HEAD") || request.contains("if-none-match") {
                        let status = if request.starts_with("HEAD") { "200 OK" } else { "304 Not Modified" };
                        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", PLANTED.len());
                        let _ = stream.write_all(head.as_bytes()).await;
                        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                        let _ = stream.write_all(PLANTED.as_bytes()).await;
                    } else {
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                    }
                }
            });
        }
    });
    address
}

async fn ask(
    upstream: &Upstream,
    method: Method,
    to: SocketAddr,
    is_conditional: bool,
) -> Response<Incoming> {
    let mut request = Request::builder().method(method).uri(format!("http://{to}/b/k"));
    if is_conditional {
        request = request.header("if-none-match", "\"e\"");
    }
    upstream.send(request.body(empty()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn stray_bodies_are_not_used_as_responses() {
    let (upstream, server) = (Upstream::new(false).unwrap(), sends_bodies_late().await);
    for round in 0..20 {
        match round % 2 {
            0 => assert_eq!(ask(&upstream, Method::HEAD, server, false).await.status(), 200),
            _ => assert_eq!(ask(&upstream, Method::GET, server, true).await.status(), 304),
        }
        // Another client's, on whichever connection is free.
        let body = ask(&upstream, Method::GET, server, false).await.into_body();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "ok", "round {round}");
    }
}

#[tokio::test]
async fn bytes_that_come_before_a_request_are_no_answer_to_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    let (accepted, connections) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = accepted.send(stream.try_clone().unwrap());
            std::thread::spawn(move || {
                while let Ok(1..) = stream.read(&mut [0; 4096]) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
    let upstream = Upstream::new(false).unwrap();
    for round in 0..3 {
        let body = ask(&upstream, Method::GET, server, false).await.into_body();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "ok", "round {round}");
        // Until the connection is kept; then bytes of which this runtime, which has no turn, cannot know.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        if let Ok(mut kept) = connections.try_recv() {
            kept.write_all(PLANTED.as_bytes()).unwrap();
        }
    }
}
