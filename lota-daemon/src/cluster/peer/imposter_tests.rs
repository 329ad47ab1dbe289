//! A host that has the address of a node, and no key.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::{cluster::ClusterKeys, settings::Reloadable};

const SIGNATURE: &str = "AWS4-HMAC-SHA256 Signature=secret";

/// Bytes that the host has received.
type Received = Arc<Mutex<Vec<u8>>>;

/// Starts a host that answers every request at once.
async fn imposter() -> (u16, Received) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (port, received) = (listener.local_addr().unwrap().port(), Received::default());
    let all = received.clone();
    tokio::spawn(async move {
        loop {
            let (mut connection, all) = (listener.accept().await.unwrap().0, all.clone());
            tokio::spawn(async move {
                let mut piece = [0; 4096];
                while let Ok(length @ 1..) = connection.read(&mut piece).await {
                    all.lock().unwrap().extend(&piece[..length]);
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    connection.write_all(answer).await.unwrap();
                }
            });
        }
    });
    (port, received)
}

fn has(received: &Received, text: &str) -> usize {
    String::from_utf8_lossy(&received.lock().unwrap()).matches(text).count()
}

#[tokio::test]
async fn an_imposter_gets_no_requests() {
    let (port, received) = imposter().await;
    let (me, name) = (NodeName("n1".into()), NodeName("n2".into()));
    let keys = ClusterKeys::parse("0123456789abcdef0123456789abcdef").unwrap();
    let peers = Peers::new(me, Reloadable::new(keys), port, Upstream::new(false).unwrap());
    peers.set_nodes([(&name, Ipv4Addr::LOCALHOST.into())]);
    let head = Request::builder().uri("/b/k").header("host", "cwlota.com").header("authorization", SIGNATURE);
    let head = RequestHead::of(head.body(()).unwrap().into_parts().0).unwrap();
    let ask = || peers.ask(&name, Ipv4Addr::LOCALHOST.into(), &head, PeerMethod::WHOLE);
    assert!(matches!(ask().await, Err(PeerError::Lost)));
    assert_eq!(has(&received, SIGNATURE), 0, "before any authentic response");
    assert!(has(&received, "GET / HTTP/1.1") > 0, "a ping");

    // One that takes the address later gets one request.
    let origin = peers.origin(&name).unwrap();
    peers.is_here(&name, &origin, PeerHints::default());
    assert!(matches!(ask().await, Err(PeerError::NotAuthentic(_))));
    assert!(peers.is_lost(&name));
    assert!(matches!(ask().await, Err(PeerError::Lost)));
    assert_eq!(has(&received, SIGNATURE), 1);

    // A node at another address is as unknown as a new one.
    let elsewhere = Ipv4Addr::new(127, 0, 0, 9).into();
    peers.set_nodes([(&name, elsewhere)]);
    peers.is_here(&name, &peers.origin(&name).unwrap(), PeerHints::default());
    peers.set_nodes([(&name, Ipv4Addr::LOCALHOST.into())]);
    peers.is_here(&name, &Origin::parse("http://127.0.0.9:1").unwrap(), PeerHints::default());
    assert!(matches!(ask().await, Err(PeerError::Lost)));
    assert_eq!(has(&received, SIGNATURE), 1);
}
