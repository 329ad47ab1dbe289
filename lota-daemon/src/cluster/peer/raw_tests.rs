use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hyper::{Request, body::Incoming};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::*;
use crate::http::{
    HeadBudget, full,
    server::{self, Connection, ConnectionLimits, Life, NoAnswer},
    upstream::Upstream,
};

const LENGTH_OF_BODY: usize = (4 << 20) + 12_345;

/// Serves connections; returns the address, and the number of connections so far.
async fn serve<S, F>(service: S) -> (SocketAddr, Arc<AtomicUsize>)
where
    S: Fn(Connection, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<Body>, NoAnswer>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, accepted) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = accepted.clone();
    tokio::spawn(async move {
        let (_serving, life) = watch::channel(Life::Serving);
        loop {
            let connection = server::accept(&listener).await;
            count.fetch_add(1, Ordering::Relaxed);
            let heads = HeadBudget::new(1 << 20, 1 << 20).charge(connection.1.ip());
            let limits = ConnectionLimits::PEER;
            let ended = std::future::pending();
            tokio::spawn(server::serve(
                connection,
                (limits, heads),
                crate::http::Sending::default(),
                life.clone(),
                ended,
                service.clone(),
            ));
        }
    });
    (address, accepted)
}

#[tokio::test]
async fn a_connection_carries_one_body_after_another() {
    let byte = |at: usize, number: usize| u8::try_from((at * 7 + number) % 251).unwrap();
    let body = move |number| (0..LENGTH_OF_BODY).map(|at| byte(at, number)).collect::<Vec<_>>();
    let (owner, connections) = serve(move |connection, request| async move {
        assert!(is_accepted(request.headers()));
        let number = request.uri().path()[1..].parse().unwrap();
        let mut answer = Response::new(full(body(number)));
        answer.headers_mut().insert(header::CONTENT_LENGTH, LENGTH_OF_BODY.into());
        Ok(switch(answer, &connection.raw))
    })
    .await;
    let upstream = Upstream::new(false).unwrap().without_retries();
    let (entry, _) = serve(move |connection, request| {
        let upstream = upstream.clone();
        async move {
            let mut forwarded =
                Request::get(format!("http://{owner}{}", request.uri())).body(empty()).unwrap();
            accept(forwarded.headers_mut());
            let answered = upstream.send(forwarded).await.unwrap();
            assert_eq!(answered.status(), StatusCode::SWITCHING_PROTOCOLS);
            Ok(answer(answered, &connection.slices).await.unwrap())
        }
    })
    .await;
    let mut client = TcpStream::connect(entry).await.unwrap();
    for number in 0..6 {
        client.write_all(format!("GET /{number} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && !head.contains("lota-"), "{head}");
        let mut received = vec![0; LENGTH_OF_BODY];
        client.read_exact(&mut received).await.unwrap();
        assert!(received == body(number), "body {number}");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}
