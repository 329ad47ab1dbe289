//! TLS on the ports of pods: detection by the first bytes of a connection, and the certificates of the endpoints.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lota_s3::{Endpoints, GatewayId};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::{Acceptor, ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::TlsConnection;
use crate::settings::Reloadable;

/// Timeout for the first bytes of a connection, and for a handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Minimum and maximum interval at which an incomplete first message is read again.
const PEEK_INTERVAL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));
/// Initial buffer size, which suffices for most first messages.
const INITIAL_HELLO_SIZE: usize = 2 << 10;
/// Maximum size of a first message: one TLS record (RFC 8446, section 5.1).
const MAX_HELLO: usize = 5 + (1 << 14);
/// First byte of a TLS record with a handshake message.
const HANDSHAKE_RECORD: u8 = 22;

/// Protocol at the beginning of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// Not TLS.
    Plain,
    /// A TLS handshake, for this server name if the client sends one.
    Tls(Option<String>),
}

impl FirstBytes {
    /// Reads the first bytes of a connection without consuming them.
    ///
    /// # Errors
    /// If they do not arrive in time, or are a malformed handshake.
    pub async fn of(stream: &TcpStream) -> io::Result<Self> {
        let look = async {
            let (mut bytes, mut parsed, mut pause) = (vec![0; 1], 0, PEEK_INTERVAL.0);
            loop {
                let read = stream.peek(&mut bytes).await?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if read > parsed {
                    if let Some(first) = Self::parse(&bytes[..read])? {
                        return Ok(first);
                    }
                    parsed = read;
                }
                match bytes.len() {
                    full if read < full => {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(PEEK_INTERVAL.1);
                    }
                    MAX_HELLO => return Err(io::ErrorKind::InvalidData.into()),
                    1 => bytes.resize(INITIAL_HELLO_SIZE, 0),
                    _ => bytes.resize(MAX_HELLO, 0),
                }
            }
        };
        timeout(HANDSHAKE_TIMEOUT, look).await?
    }

    /// Returns whether the first byte of a connection begins a TLS handshake, without consuming it.
    ///
    /// # Errors
    /// If it does not arrive in time.
    pub async fn are_tls(stream: &TcpStream) -> io::Result<bool> {
        let mut first = [0];
        match timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await?? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(first == [HANDSHAKE_RECORD]),
        }
    }

    /// Parses the first bytes. Returns `None` if there are too few.
    ///
    /// # Errors
    /// If they are a malformed handshake.
    pub fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        match bytes.first() {
            None => return Ok(None),
            Some(&HANDSHAKE_RECORD) => {}
            Some(_) => return Ok(Some(Self::Plain)),
        }
        let (mut acceptor, mut rest) = (Acceptor::default(), bytes);
        while !rest.is_empty() && acceptor.read_tls(&mut rest)? > 0 {}
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                Ok(Some(Self::Tls(accepted.client_hello().server_name().map(str::to_owned))))
            }
            Ok(None) => Ok(None),
            Err((error, _)) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

/// Files with a certificate chain and its key, in PEM format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate of the server, followed by intermediate certificates.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl CertificateFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// One line with the file and the reason, without its content.
    pub fn read(&self) -> Result<CertifiedKey, String> {
        let read = |path: &Path| fs::read(path).map_err(|error| of(path, &error));
        self.parse(&read(&self.certificate)?, &read(&self.key)?)
    }

    /// Parses the contents of the files.
    ///
    /// # Errors
    /// One line with the file and the reason, without its content.
    pub fn parse(&self, certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, String> {
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| of_pem(&self.certificate, &error))?;
        if chain.is_empty() {
            return Err(of(&self.certificate, &"no certificate in PEM format"));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| of_pem(&self.key, &error))?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider());
        certified.map_err(|error| of(&self.key, &error))
    }
}

/// Returns an error about a file, in one line.
pub(super) fn of(path: &Path, error: &dyn fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

/// Returns an error about a file that is not PEM, in one line. The library's own texts contain lines of the file, which may be those
/// of a key.
pub(super) fn of_pem(path: &Path, error: &pem::Error) -> String {
    let why = match error {
        pem::Error::MissingSectionEnd { .. } | pem::Error::IllegalSectionStart { .. } => {
            "a BEGIN or END of PEM is missing, or not on a line of its own"
        }
        pem::Error::Base64Decode(_) => "not base64 between BEGIN and END",
        pem::Error::NoItemsFound => "nothing of the expected kind in PEM format",
        _ => "not in PEM format",
    };
    of(path, &why)
}

/// The certificates of the endpoints.
pub struct Certificates {
    endpoints: Endpoints,
    of_gateways: Vec<(GatewayId, Reloadable<CertifiedKey>)>,
}

impl Certificates {
    /// Returns the certificates of these gateways' names.
    #[must_use]
    pub fn new(endpoints: Endpoints, of_gateways: Vec<(GatewayId, Reloadable<CertifiedKey>)>) -> Self {
        Self { endpoints, of_gateways }
    }

    /// Returns whether TLS for this server name ends at LOTA.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.of(name).is_some()
    }

    fn of(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let endpoint = self.endpoints.find(name)?;
        let (_, certified) = self.of_gateways.iter().find(|(gateway, _)| *gateway == endpoint.gateway)?;
        Some(certified.get())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.of(hello.server_name()?)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("gateways", &self.of_gateways.len()).finish_non_exhaustive()
    }
}

/// Completes handshakes with the certificates of the endpoints.
#[derive(Clone)]
pub struct TlsServer {
    /// The certificates.
    pub certificates: Arc<Certificates>,
    acceptor: TlsAcceptor,
}

impl TlsServer {
    /// Creates a server of HTTP/1.1 over TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// Never, since the provider supports both versions.
    pub fn new(certificates: Certificates) -> Result<Self, rustls::Error> {
        let certificates = Arc::new(certificates);
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificates.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { certificates, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Completes the handshake of a connection.
    ///
    /// # Errors
    /// If it fails or does not complete in time.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsConnection> {
        let tls = timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await??;
        Ok(TlsConnection::new(tls))
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
