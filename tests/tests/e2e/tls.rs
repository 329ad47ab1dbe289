//! A gateway with TLS.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Result, ensure};
use lota_tests::{
    lab::{GATEWAY, Mode, Style},
    tour::{MIB, Tour},
};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{net::TcpStream, runtime::Runtime};
use tokio_rustls::TlsAcceptor;

const PORT: u16 = 9443;

/// A server of the gateway's over TLS, which forwards to the gateway.
pub(crate) struct TlsProxy {
    certificate: PathBuf,
    key: PathBuf,
    _runtime: Runtime,
}

impl TlsProxy {
    /// Starts a server for these names at a port of the gateway's address, with a certificate of its own.
    pub(crate) fn start(tour: &Tour, names: &[String], port: u16) -> Result<Self> {
        let certified = rcgen::generate_simple_self_signed(names)?;
        let folder = tour.lab.folder();
        let (certificate, key) = (folder.join("server.pem"), folder.join("server.key"));
        std::fs::write(&certificate, certified.cert.pem())?;
        std::fs::write(&key, certified.signing_key.serialize_pem())?;
        let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], secret)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tour.lab.switch().run(move || TcpListener::bind((GATEWAY, port)))??;
        listener.set_nonblocking(true)?;
        let (origin, runtime) = (tour.origin.address(), Runtime::new()?);
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
        Ok(Self { certificate, key, _runtime: runtime })
    }

    /// Returns the file with the certificate, which is its own root.
    pub(crate) fn root(&self) -> &Path {
        &self.certificate
    }

    /// Returns the files with the certificate and its key.
    pub(crate) fn files(&self) -> (&Path, &Path) {
        (&self.certificate, &self.key)
    }
}

/// Verifies that the nodes reach the gateway by HTTPS, and trust its certificate through the system's root
/// certificates.
pub(crate) fn gateway(tour: &mut Tour) -> Result<()> {
    let proxy = TlsProxy::start(tour, &[GATEWAY.to_string()], PORT)?;
    restart(tour, &format!("https://{GATEWAY}:{PORT}"), proxy.root())?;
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

    // Without that root certificate the gateway is not trusted, and nothing is served.
    let empty = tour.lab.folder().join("no-root.pem");
    std::fs::write(&empty, other_root()?)?;
    restart(tour, &format!("https://{GATEWAY}:{PORT}"), &empty)?;
    let got = client.get_with(&pod, key, serde_json::json!({"attempts": 1}))?;
    ensure!(got.status == 503, "with an untrusted certificate: {}", got.status);
    for node in &mut tour.nodes {
        node.set_environment(Vec::new());
    }
    tour.restart(Mode::OwnCredential)
}

fn other_root() -> Result<String> {
    Ok(rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()])?.cert.pem())
}

fn restart(tour: &mut Tour, gateway: &str, root: &Path) -> Result<()> {
    tour.restart_each(|node| {
        node.set_environment(vec![("SSL_CERT_FILE", root.to_owned())]);
        node.configure_gateway(Mode::OwnCredential, gateway)
    })
}
