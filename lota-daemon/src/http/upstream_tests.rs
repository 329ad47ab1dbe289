use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::http::full;

/// A server that answers the first request of a connection and ends it with the second; its address.
async fn answers_once() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                let _ = stream.read(&mut request).await;
            });
        }
    });
    address
}

async fn send(upstream: &Upstream, method: Method, to: SocketAddr, body: Body) -> bool {
    let request = Request::builder().method(method).uri(format!("http://{to}/")).body(body).unwrap();
    let answer = upstream.send(request).await;
    // The connection is kept when the answer has been read.
    tokio::time::sleep(Duration::from_millis(20)).await;
    answer.is_ok()
}

#[tokio::test]
async fn idempotent_requests_are_retried_on_closed_connections() {
    let (upstream, server) = (Upstream::new(false).unwrap(), answers_once().await);
    for method in [Method::GET, Method::HEAD, Method::GET, Method::GET] {
        assert!(send(&upstream, method, server, empty()).await);
    }
}

#[tokio::test]
async fn non_idempotent_requests_are_not_retried() {
    for (method, body) in
        [(Method::PUT, full("some")), (Method::DELETE, empty()), (Method::GET, full("some"))]
    {
        let (upstream, server) = (Upstream::new(false).unwrap(), answers_once().await);
        assert!(send(&upstream, Method::GET, server, empty()).await);
        assert!(!send(&upstream, method, server, body).await);
    }
    let (single, server) = (Upstream::new(false).unwrap().without_retries(), answers_once().await);
    assert!(send(&single, Method::GET, server, empty()).await);
    assert!(!send(&single, Method::GET, server, empty()).await, "without retries");
}
