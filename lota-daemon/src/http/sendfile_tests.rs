use std::{convert::Infallible, io::Write as _, sync::atomic::Ordering, time::Duration};

use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{Request, Response, body::Frame};
use lota_cache::BodyFile;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::*;
use crate::http::{Body, server};

/// Serves `content` from a file; the address, and the count of bytes that went by sendfile.
async fn serve_file(content: Vec<u8>) -> (std::net::SocketAddr, SentBytes) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content).unwrap();
    let file = BodyFile::new(file);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = SentBytes::default();
    let counter = sent.clone();
    tokio::spawn(async move {
        loop {
            let accepted = listener.accept().await.unwrap();
            let (file, size) = (file.clone(), content.len());
            let (_keep, life) = watch::channel(server::Life::Serving);
            let service = move |connection: server::Connection, _: Request<_>| {
                let body = body(file.clone(), size, connection.slices);
                let answer = Response::builder().header("content-length", size).body(body).unwrap();
                async move { Ok::<_, server::NoAnswer>(answer) }
            };
            let counter = counter.clone();
            tokio::spawn(async move {
                let _keep = _keep;
                let never = std::future::pending();
                server::serve(accepted, terms(), counter, life, never, service).await;
            });
        }
    });
    (address, sent)
}

fn body(file: Arc<BodyFile>, size: usize, slices: Slices) -> Body {
    let frames = (0..size).step_by(MAX_SLICE).map(move |start| {
        let length = MAX_SLICE.min(size - start);
        let slice = FileSlice { file: file.clone(), offset: start as u64, length };
        Ok::<_, Infallible>(Frame::data(slices.queue(Slice::File(slice))))
    });
    StreamBody::new(stream::iter(frames)).map_err(|never| match never {}).boxed_unsync()
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|index| u8::try_from(index % 251).unwrap()).collect()
}

async fn get(stream: &mut TcpStream, size: usize) -> Vec<u8> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let mut content = vec![0; size];
    stream.read_exact(&mut content).await.unwrap();
    content
}

/// A client's limits, and a budget for its heads.
fn terms() -> (server::ConnectionLimits, crate::http::HeadCharge) {
    (
        server::ConnectionLimits::CLIENT,
        crate::http::HeadBudget::new(1 << 20, 1 << 20).charge([127, 0, 0, 1].into()),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_a_body_goes_by_sendfile() {
    for size in [0, 1, 4095, 4096, 65536, MAX_SLICE - 1, MAX_SLICE, MAX_SLICE + 1, 3 * MAX_SLICE + 7] {
        let content = pattern(size);
        let (address, sent) = serve_file(content.clone()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        for round in 1..=3 {
            assert!(
                get(&mut stream, size).await == content,
                "{size} bytes, request {round} of the connection"
            );
            // The count follows the bytes: the reader may be faster.
            let counted = async {
                while sent.sendfile.load(Ordering::Relaxed) != (size * round) as u64 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let counted = tokio::time::timeout(Duration::from_secs(10), counted).await;
            assert!(counted.is_ok(), "{size} bytes, {round} times: {sent:?} by sendfile");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_answers_keep_their_order() {
    let content = pattern(300_000);
    let (address, _) = serve_file(content.clone()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&b"GET / HTTP/1.1\r\nhost: h\r\n\r\n".repeat(3)).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.windows(4).filter(|window| window == b"\r\n\r\n").count(), 3);
    assert!(all.ends_with(&content));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_gets_everything() {
    let content = pattern(8 << 20);
    let (address, _) = serve_file(content.clone()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert!(all.ends_with(&content));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_cut_short_breaks_the_connection() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"short").unwrap();
    let file = BodyFile::new(file);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let accepted = listener.accept().await.unwrap();
        let (_keep, life) = watch::channel(server::Life::Serving);
        let service = |connection: server::Connection, _: Request<_>| {
            let answer = Response::builder().header("content-length", 10);
            let answer = answer.body(body(file.clone(), 10, connection.slices)).unwrap();
            async move { Ok::<_, server::NoAnswer>(answer) }
        };
        let never = std::future::pending();
        server::serve(accepted, terms(), SentBytes::default(), life, never, service).await;
    });
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut all)).await.unwrap();
    assert!(all.ends_with(b"short"), "what there was, and no padding");
}
