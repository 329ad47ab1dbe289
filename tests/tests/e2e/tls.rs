//! A gateway behind TLS.

use std::{net::TcpListener, path::Path, sync::Arc};

use anyhow::{Result, ensure};
use lota_tests::{
    lab::{GATEWAY, Mode, Style},
    tour::{MIB, Tour},
};
use nix::sys::signal::Signal;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

const PORT: u16 = 9443;

/// The nodes reach the gateway by https, and trust its certificate as the system does: by a root they are given.
pub(crate) fn gateway(tour: &mut Tour) -> Result<()> {
    let certified = rcgen::generate_simple_self_signed([GATEWAY.to_string()])?;
    let root = tour.lab.folder().join("root.pem");
    std::fs::write(&root, certified.cert.pem())?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));

    let listener = tour.lab.switch().run(|| TcpListener::bind((GATEWAY, PORT)))??;
    listener.set_nonblocking(true)?;
    let origin = tour.origin.address();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.spawn(async move {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut client = acceptor.accept(client).await?;
                let mut server = TcpStream::connect(origin).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });

    restart(tour, &format!("https://{GATEWAY}:{PORT}"), &root)?;
    let (client, pod, key) = (tour.client.clone(), tour.pod(1, 1), "tls/object");
    let put = client.put(&pod, key, 130, 2 * MIB)?;
    for cache in ["miss", "hit"] {
        let got = client.get(&pod, key, Style::Virtual)?;
        ensure!(
            got.sha256 == put.sha256 && got.cache() == cache,
            "{} `{}`, not {cache}",
            got.status,
            got.cache()
        );
        tour.wait_cached(key)?;
    }

    // Without that root there is no gateway, and so there are no bytes.
    let empty = tour.lab.folder().join("no-root.pem");
    std::fs::write(&empty, other_root()?)?;
    restart(tour, &format!("https://{GATEWAY}:{PORT}"), &empty)?;
    let got = client.get_with(&pod, key, serde_json::json!({"attempts": 1}))?;
    ensure!(got.status == 503, "with a certificate it does not trust: {}", got.status);
    for node in &mut tour.nodes {
        node.set_environment(Vec::new());
    }
    tour.restart(Mode::OwnCredential)
}

fn other_root() -> Result<String> {
    Ok(rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()])?.cert.pem())
}

fn restart(tour: &mut Tour, gateway: &str, root: &Path) -> Result<()> {
    for node in &mut tour.nodes {
        node.stop(Signal::SIGTERM)?;
        node.configure_gateway(Mode::OwnCredential, gateway)?;
        node.set_environment(vec![("SSL_CERT_FILE", root.to_owned())]);
        node.start()?;
    }
    Ok(())
}
