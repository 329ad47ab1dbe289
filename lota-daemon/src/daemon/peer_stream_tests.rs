use std::time::Duration;

use hyper::{Request, Response};
use lota_scripted::{Authority, CertificatePlan};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

use super::*;
use crate::{
    cluster::PeerTlsMode,
    http::{
        HeadBudget, MutualTls, MutualTlsFiles, SentBytes, empty,
        server::{self, Connection, ConnectionLimits, NoAnswer},
        tls::CertificateFiles,
        upstream::{Upstream, chain},
    },
    settings::Reloadable,
};

const HERE: &str = "127.0.0.1";

/// Certificates of one authority.
struct Nodes {
    authority: Authority,
}

impl Nodes {
    fn new() -> Self {
        Self { authority: Authority::new("the nodes' CA").unwrap() }
    }

    /// Returns a certificate with this serial number, and without trust in those that are `revoked`.
    fn tls(&self, serial: u64, revoked: &[u64]) -> MutualTls {
        let issued = self.authority.issue(&[HERE], CertificatePlan { serial, ..Default::default() }).unwrap();
        let files = MutualTlsFiles {
            own: CertificateFiles { certificate: "c".into(), key: "k".into() },
            ca: "ca".into(),
            crl: Some("crl".into()),
            server_name: None,
        };
        let (ca, crl) = (self.authority.pem(), self.authority.revoke(revoked).unwrap());
        files.parse(&[issued.certificate, issued.key, ca, crl].map(String::into_bytes)).unwrap()
    }

    fn peer(&self, mode: PeerTlsMode, serial: u64) -> PeerTls {
        PeerTls::new(mode, Reloadable::new(self.tls(serial, &[])), HERE.parse().unwrap())
    }
}

/// A peer port that answers everything.
struct Port {
    address: SocketAddr,
    life: PeerLife,
    metrics: Metrics,
    _serving: JoinSet<()>,
}

impl Port {
    async fn open(tls: Option<PeerTls>) -> Self {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let (life, metrics) = (PeerLife::new(), Metrics::default());
        let (streams, lives) = (PeerStreams::new(tls, metrics.clone()), life.clone());
        let (address, mut serving) = (listener.local_addr().unwrap(), JoinSet::new());
        serving.spawn(async move {
            loop {
                let (stream, client) = server::accept(&listener).await;
                let (streams, life) = (streams.clone(), lives.of_new());
                tokio::spawn(async move {
                    let Ok(stream) = streams.open(stream, client).await else { return };
                    let service =
                        async |_: Connection, _: Request<_>| Ok::<_, NoAnswer>(Response::new(empty()));
                    let heads = HeadBudget::new(1 << 20, 1 << 20).charge(client.ip());
                    let terms = (ConnectionLimits::PEER, heads);
                    let sent = SentBytes::default();
                    server::serve((stream, client), terms, sent, life, std::future::pending(), service).await;
                });
            }
        });
        Self { address, life, metrics, _serving: serving }
    }

    fn refused(&self) -> u64 {
        self.metrics.peer_requests.get_or_create(&PeerLabels { role: "refused" }).get()
    }

    /// Sends a request as a node with this configuration. Returns why it has no response.
    async fn ask(&self, upstream: &Upstream, is_tls: bool) -> Result<(), String> {
        let scheme = if is_tls { "https" } else { "http" };
        let request = Request::builder().uri(format!("{scheme}://{}/", self.address)).body(empty()).unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(8), upstream.send(request)).await;
        answer.map_err(|_| "timeout".to_owned())?.map(drop).map_err(|error| {
            TlsRefusal::of(&error).map_or_else(|| chain(&error), |refusal| refusal.to_string())
        })
    }
}

fn client(tls: Option<&PeerTls>) -> (Upstream, bool) {
    let plain = Upstream::new(false).unwrap();
    match tls {
        Some(tls) => (plain.with_mutual_tls(tls.current().clone()).without_retries(), tls.is_sent()),
        None => (plain.without_retries(), false),
    }
}

#[tokio::test]
async fn neighbouring_modes_understand_each_other() {
    use PeerTlsMode::{Accept, Require, Send};

    let nodes = Nodes::new();
    let steps = [None, Some(Accept), Some(Send), Some(Require)];
    let step = |mode: Option<PeerTlsMode>, serial| mode.map(|mode| nodes.peer(mode, serial));
    for (to, server) in steps.into_iter().enumerate() {
        let port = Port::open(step(server, 1)).await;
        for (from, mode) in steps.into_iter().enumerate() {
            let (upstream, is_tls) = client(step(mode, 2).as_ref());
            let (answered, refused) = (port.ask(&upstream, is_tls).await, port.refused());
            let is_understood = if is_tls { server.is_some() } else { server != Some(Require) };
            assert_eq!(answered.is_ok(), is_understood, "from {mode:?} to {server:?}: {answered:?}");
            assert!(from.abs_diff(to) > 1 || answered.is_ok(), "a rolling introduction fails");
            // Those that send no TLS come first.
            let plain = if server == Some(Require) { [1, 2, 2, 2][from] } else { 0 };
            assert_eq!(refused, plain, "from {mode:?} to {server:?}");
        }
    }
}

#[tokio::test]
async fn a_plain_request_gets_no_byte_where_tls_is_required() {
    let port = Port::open(Some(Nodes::new().peer(PeerTlsMode::Require, 1))).await;
    for request in [&b"GET / HTTP/1.1\r\nhost: n\r\n\r\n"[..], b"\x00", &[b'G'; 100_000]] {
        let mut plain = TcpStream::connect(port.address).await.unwrap();
        let _ = plain.write_all(request).await;
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer).await;
        assert!(answer.is_empty(), "{answer:?}");
    }
    assert_eq!(port.refused(), 3);
}

#[tokio::test]
async fn a_revoked_certificate_ends_with_the_current_request() {
    let nodes = Nodes::new();
    let (server, of_client) = (nodes.peer(PeerTlsMode::Require, 1), nodes.peer(PeerTlsMode::Require, 2));
    let port = Port::open(Some(server.clone())).await;
    let (upstream, _) = client(Some(&of_client));
    assert_eq!(port.ask(&upstream, true).await, Ok(()));

    server.current().set(nodes.tls(1, &[2]));
    assert_eq!(port.ask(&upstream, true).await, Ok(()), "the connection is still open");
    port.life.renew();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let refused = port.ask(&upstream, true).await.unwrap_err();
    assert!(refused.contains("refuses the certificate of this node: it is revoked"), "{refused}");
    assert_eq!(port.refused(), 1);

    // The same node with a new certificate is welcome, and its new connections stay.
    of_client.current().set(nodes.tls(3, &[]));
    for _ in 0..3 {
        assert_eq!(port.ask(&upstream, true).await, Ok(()));
    }

    // The client no longer trusts the server.
    of_client.current().set(nodes.tls(3, &[1]));
    assert_eq!(port.ask(&upstream, true).await, Ok(()), "the connection is still open");
    let renewed = upstream.without_retries();
    let refused = port.ask(&renewed, true).await.unwrap_err();
    assert_eq!(refused, "its certificate is revoked; issue a new one");
    port.life.end();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(port.ask(&upstream, true).await.is_err());
}
