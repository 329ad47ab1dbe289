use std::io::Cursor;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

use super::*;

/// Returns the first message of a client.
fn hello(name: &'static str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Cursor::new(Vec::new());
    client.write_tls(&mut bytes).unwrap();
    bytes.into_inner()
}

#[test]
fn a_handshake_is_told_from_http() {
    let parse = |bytes: &[u8]| FirstBytes::parse(bytes);
    assert_eq!(parse(b"").unwrap(), None);
    assert_eq!(parse(b"GET / HTTP/1.1\r\n").unwrap(), Some(FirstBytes::Plain));
    let whole = hello("data.s3.internal");
    let tls = |name: Option<&str>| Some(FirstBytes::Tls(name.map(str::to_owned)));
    assert_eq!(parse(&whole).unwrap(), tls(Some("data.s3.internal")));
    for cut in 1..whole.len() {
        assert_eq!(parse(&whole[..cut]).unwrap(), None, "{cut} bytes");
    }
    assert_eq!(parse(&hello("10.0.0.1")).unwrap(), tls(None), "no name for an address");
    assert!(parse(&[HANDSHAKE_RECORD, 3, 1, 0, 4, 9, 9, 9, 9]).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_handled(mut bytes: Vec<u8>, at: usize, value: u8) {
        let is_plain = |bytes: &[u8]| matches!(FirstBytes::parse(bytes), Ok(Some(FirstBytes::Plain)));
        let begins_with_handshake = bytes.first() == Some(&HANDSHAKE_RECORD);
        prop_assert_eq!(is_plain(&bytes), !bytes.is_empty() && !begins_with_handshake);
        bytes.insert(0, HANDSHAKE_RECORD);
        prop_assert!(!is_plain(&bytes));
        let mut changed = hello("s3.internal");
        let at = at % changed.len();
        let is_same = std::mem::replace(&mut changed[at], value) == value;
        prop_assert_eq!(is_plain(&changed), changed[0] != HANDSHAKE_RECORD);
        if is_same {
            let name = Some("s3.internal".to_owned());
            prop_assert_eq!(FirstBytes::parse(&changed).unwrap(), Some(FirstBytes::Tls(name)));
        }
    }
}

fn written(folder: &Path, name: &str) -> (CertificateFiles, Vec<u8>) {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let files = CertificateFiles { certificate: folder.join("c.pem"), key: folder.join("k.pem") };
    fs::write(&files.certificate, certified.cert.pem()).unwrap();
    fs::write(&files.key, certified.signing_key.serialize_pem()).unwrap();
    (files, certified.cert.der().to_vec())
}

#[test]
fn a_replaced_certificate_is_used_at_once() {
    use lota_s3::{Endpoint, Zone};

    let folder = tempfile::tempdir().unwrap();
    let (files, first) = written(folder.path(), "s3.internal");
    let certified = Reloadable::new(files.read().unwrap());
    let gateway = GatewayId::from("http://gateway");
    let endpoint = Endpoint::of_zone(Zone::parse("s3.internal").unwrap(), gateway.clone());
    let other = Endpoint::of_zone(Zone::parse("cwlota.com").unwrap(), "http://other".into());
    let endpoints = [endpoint, other].into_iter().collect();
    let certificates = Certificates::new(endpoints, vec![(gateway, certified.clone())]);
    let current = || certificates.of("data.s3.internal").map(|certified| certified.cert[0].to_vec());
    assert_eq!(current(), Some(first));
    assert!(!certificates.has("cwlota.com") && !certificates.has("elsewhere"));

    let (_, second) = written(folder.path(), "s3.internal");
    certified.set(files.read().unwrap());
    assert_eq!(current(), Some(second));
}

#[test]
fn errors_name_the_file_and_show_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let (files, _) = written(folder.path(), "s3.internal");
    fs::write(&files.key, "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n").unwrap();
    let error = files.read().unwrap_err();
    assert!(error.contains("k.pem") && !error.contains("hunter2"), "{error}");
    // Mistakes of tools that join lines: errors must not contain the line, in decimal either.
    for key in [
        "-----BEGIN PRIVATE KEY----- hunter2 -----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter2",
    ] {
        fs::write(&files.key, key).unwrap();
        let error = files.read().unwrap_err();
        assert!(error.contains("on a line of its own"), "{error}");
        assert!(!error.contains("hunter2") && !error.contains("104, 117"), "{error}");
    }
    let other = rcgen::generate_simple_self_signed(["s3.internal".to_owned()]).unwrap();
    fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
    assert!(files.read().unwrap_err().contains("k.pem"), "the key of another certificate");
    fs::write(&files.certificate, "").unwrap();
    assert!(files.read().unwrap_err().contains("c.pem: no certificate"), "an empty file");
}

/// A client's connection to a server of this content over TLS, and the files that it comes from.
async fn connected(content: Vec<u8>) -> tokio_rustls::client::TlsStream<TcpStream> {
    let certified = rcgen::generate_simple_self_signed(["s3.internal".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let files = CertificateFiles { certificate: folder.path().join("c"), key: folder.path().join("k") };
    fs::write(&files.certificate, certified.cert.pem()).unwrap();
    fs::write(&files.key, certified.signing_key.serialize_pem()).unwrap();
    let gateway = GatewayId::from("http://gateway");
    let zone = lota_s3::Zone::parse("s3.internal").unwrap();
    let endpoints = [lota_s3::Endpoint::of_zone(zone, gateway.clone())].into_iter().collect();
    let in_use = Reloadable::new(files.read().unwrap());
    let server = TlsServer::new(Certificates::new(endpoints, vec![(gateway, in_use)])).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, client) = listener.accept().await.unwrap();
        assert_eq!(FirstBytes::of(&stream).await.unwrap(), FirstBytes::Tls(Some("s3.internal".into())));
        let tls = server.accept(stream).await.unwrap();
        serve_file(tls, client, content).await;
    });
    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("s3.internal").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// Answers requests with the content: half of it from a file, half from memory.
async fn serve_file(tls: TlsConnection, client: std::net::SocketAddr, content: Vec<u8>) {
    use std::{convert::Infallible, io::Write as _};

    use futures_util::stream;
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::{Response, body::Frame};
    use lota_cache::{BodyFile, FileSlice, MAX_SLICE};

    use crate::http::{
        HeadBudget, SentBytes, ServerStream, Slice,
        server::{self, Connection, ConnectionLimits, Life, NoAnswer},
    };

    let half = content.len() / 2;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content[..half]).unwrap();
    let file = BodyFile::new(file);
    let (_keep, life) = tokio::sync::watch::channel(Life::Serving);
    let service = move |connection: Connection, _: hyper::Request<_>| {
        let (file, slices) = (file.clone(), connection.slices);
        let rest = Frame::data(bytes::Bytes::copy_from_slice(&content[half..]));
        let frames = (0..half).step_by(MAX_SLICE).map(move |start| {
            let length = MAX_SLICE.min(half - start);
            let slice = FileSlice { file: file.clone(), offset: start as u64, length };
            Frame::data(slices.queue(Slice::File(slice)))
        });
        let frames = stream::iter(frames.chain([rest]).map(Ok::<_, Infallible>));
        let body = StreamBody::new(frames).map_err(|never| match never {}).boxed_unsync();
        let answer = Response::builder().header("content-length", content.len()).body(body).unwrap();
        async move { Ok::<_, NoAnswer>(answer) }
    };
    let terms = (ConnectionLimits::CLIENT, HeadBudget::new(1 << 20, 1 << 20).charge(client.ip()));
    let stream = ServerStream::Tls(tls);
    server::serve((stream, client), terms, SentBytes::default(), life, std::future::pending(), service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_from_files_and_memory_arrive_over_tls() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let content: Vec<u8> = (0..9_000_001_usize).map(|index| u8::try_from(index % 251).unwrap()).collect();
    let mut client = connected(content.clone()).await;
    for _ in 0..2 {
        client.write_all(b"GET / HTTP/1.1\r\nhost: s3.internal\r\n\r\n").await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        let mut body = vec![0; content.len()];
        client.read_exact(&mut body).await.unwrap();
        assert!(body == content, "other bytes arrived");
    }
    client.shutdown().await.unwrap();
    // A server may close without a last record once the client has closed.
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "{} more bytes", rest.len());
}
