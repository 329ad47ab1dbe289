use std::{net::SocketAddr, sync::atomic::Ordering, time::Duration};

use hyper::{Request, Response};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
};

use super::*;
use crate::http::{
    SentBytes,
    server::{self, Connection, ConnectionLimits, Life, NoAnswer},
};

/// Starts a source that sends `content` in pieces of these sizes, and a server that passes on `length` bytes of it, of which
/// it has received the first `given` already. Returns the server's address, and the counters of sent bytes.
async fn pass_on(content: Vec<u8>, pieces: Vec<usize>, given: usize, length: u64) -> (SocketAddr, SentBytes) {
    let source = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = source.local_addr().unwrap();
    let (first, rest) = content.split_at(given.min(content.len()));
    let (first, rest) = (Bytes::copy_from_slice(first), rest.to_vec());
    tokio::spawn(async move {
        let (mut stream, _) = source.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut rest, mut pieces) = (&rest[..], pieces.iter().cycle());
        while !rest.is_empty() {
            let (piece, others) = rest.split_at((*pieces.next().unwrap()).min(rest.len()));
            if stream.write_all(piece).await.is_err() {
                return;
            }
            rest = others;
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = SentBytes::default();
    let counter = sent.clone();
    tokio::spawn(async move {
        let accepted = listener.accept().await.unwrap();
        let (_keep, life) = watch::channel(Life::Serving);
        let service = |connection: Connection, _: Request<_>| {
            let first = first.clone();
            async move {
                let from = TcpStream::connect(at).await.unwrap();
                let body = spliced(from, first, length, connection.slices, None);
                Ok::<_, NoAnswer>(Response::builder().header("content-length", length).body(body).unwrap())
            }
        };
        let heads = crate::http::HeadBudget::new(1 << 20, 1 << 20).charge([127, 0, 0, 1].into());
        server::serve(
            accepted,
            (ConnectionLimits::CLIENT, heads),
            counter,
            life,
            std::future::pending(),
            service,
        )
        .await;
    });
    (address, sent)
}

async fn get(address: SocketAddr, pause: Duration) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    tokio::time::sleep(pause).await;
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    let head = all.windows(4).position(|window| window == b"\r\n\r\n");
    head.map(|head| all.split_off(head + 4)).unwrap_or_default()
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|index| u8::try_from(index % 251).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_receive_all_bytes_of_small_pieces() {
    // Small pieces use up the slots of the pipe long before its capacity in bytes.
    let content = pattern(2 << 20);
    let (address, sent) = pass_on(content.clone(), vec![600], 0, content.len() as u64).await;
    assert!(get(address, Duration::from_millis(200)).await == content);
    assert_eq!(sent.splice.load(Ordering::Relaxed), content.len() as u64);
    assert_eq!(sent.sendfile.load(Ordering::Relaxed), 0);
}

#[test]
fn a_pipe_has_as_many_slots_as_the_size_of_pages_permits() {
    // 64 KiB pages: as many as a new pipe has. More needs a privilege.
    for (page, slots) in [(4 << 10, 64), (16 << 10, 64), (64 << 10, 16)] {
        assert_eq!(pipe_size(page) / page, slots, "pages of {page} bytes");
    }
    let pipe = Pipe::new().unwrap();
    let size = rustix::pipe::fcntl_getpipe_size(&pipe.end_in).unwrap();
    assert!(size >= pipe_size(4 << 10), "{size}");
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_bodies_reset_the_connection() {
    let content = pattern(100_000);
    let (address, _) = pass_on(content.clone(), vec![7000], 0, 100_001).await;
    let got = tokio::time::timeout(Duration::from_secs(5), get(address, Duration::ZERO)).await.unwrap();
    assert!(got == content, "what there was, and no padding");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_beyond_the_length_are_not_forwarded() {
    let content = pattern(100_000);
    let (address, _) = pass_on(content.clone(), vec![7000], 10, 50_000).await;
    assert!(get(address, Duration::ZERO).await == content[..50_000]);
    // More bytes with the head than the body has: the response is malformed.
    let (address, _) = pass_on(content, vec![7000], 5000, 4000).await;
    assert!(get(address, Duration::ZERO).await.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_pieces_arrive_in_order(
        size in 0usize..3_000_000, pieces in prop::collection::vec(1usize..200_000, 1..8), given in 0usize..20_000,
    ) {
        // So that no case takes long.
        let pieces = pieces.into_iter().map(|piece| piece.max(size / 500)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (content, given) = (pattern(size), given.min(size));
            let (address, sent) = pass_on(content.clone(), pieces, given, size as u64).await;
            assert!(get(address, Duration::ZERO).await == content);
            assert_eq!(sent.splice.load(Ordering::Relaxed), (size - given) as u64);
        });
    }
}
