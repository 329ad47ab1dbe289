//! Mutual TLS 1.3 between nodes: both sides present a certificate, and verify the other's by the same CA.

use std::{
    collections::HashSet,
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::ring,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use tokio::{
    io::{self, AsyncRead, AsyncWrite, AsyncWriteExt as _, sink},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::{
    TlsConnection, TlsRefusal,
    tls::{CertificateFiles, HANDSHAKE_TIMEOUT, of, of_pem},
};

/// Time for which a refused client is waited for, so that it receives the reason: closing a socket with unread input would reset
/// the connection.
const REFUSAL_LINGER: Duration = Duration::from_secs(1);

/// Files of mutual TLS, in PEM format.
#[derive(Clone, Debug)]
pub struct MutualTlsFiles {
    /// Certificate of this node with its key. It is both a server's and a client's.
    pub own: CertificateFiles,
    /// Certificates of the authorities that issue the nodes' certificates.
    pub ca: PathBuf,
    /// Revocation lists of the authorities.
    pub crl: Option<PathBuf>,
    /// Name that each server's certificate must have; `None` for its address.
    pub server_name: Option<ServerName<'static>>,
}

impl MutualTlsFiles {
    /// Returns the paths in the order in which [`MutualTlsFiles::parse`] takes the contents.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let required = [&self.own.certificate, &self.own.key, &self.ca];
        required.into_iter().chain(&self.crl).cloned().collect()
    }

    /// Reads the files.
    ///
    /// # Errors
    /// The errors of [`MutualTlsFiles::parse`], and if a file cannot be read.
    pub fn read(&self) -> Result<MutualTls, String> {
        let read = |path: &PathBuf| fs::read(path).map_err(|error| of(path, &error));
        self.parse(&self.paths().iter().map(read).collect::<Result<Vec<_>, _>>()?)
    }

    /// Parses the contents of the files.
    ///
    /// # Errors
    /// One line with the file and the reason, without its content.
    pub fn parse(&self, contents: &[Vec<u8>]) -> Result<MutualTls, String> {
        let [certificate, key, ca, crl @ ..] = contents else {
            return Err(format!("{} files instead of three", contents.len()));
        };
        let own = self.own.parse(certificate, key)?;
        let mut roots = RootCertStore::empty();
        for authority in all::<CertificateDer<'static>>(&self.ca, ca, "certificate")? {
            roots.add(authority).map_err(|error| of(&self.ca, &error))?;
        }
        let crls = match (&self.crl, crl) {
            (Some(path), [crl]) => {
                let lists = all::<CertificateRevocationListDer<'static>>(path, crl, "revocation list")?;
                one_per_issuer(&lists).map_err(|why| of(path, &why))?;
                lists
            }
            _ => Vec::new(),
        };
        let in_crl = |error: &dyn fmt::Display| of(self.crl.as_ref().unwrap_or(&self.ca), error);
        MutualTls::new(own, roots, crls, self.server_name.clone()).map_err(|error| in_crl(&error))
    }
}

/// Parses all objects of a kind in a file, of which there must be one.
fn all<T: PemObject>(path: &Path, content: &[u8], kind: &str) -> Result<Vec<T>, String> {
    let parsed = T::pem_slice_iter(content).collect::<Result<Vec<T>, pem::Error>>();
    let parsed = parsed.map_err(|error| of_pem(path, &error))?;
    match parsed.is_empty() {
        true => Err(of(path, &format!("no {kind} in PEM format"))),
        false => Ok(parsed),
    }
}

/// Verifies that there is one list of each issuer: of several, only the first would count.
fn one_per_issuer(lists: &[CertificateRevocationListDer<'static>]) -> Result<(), String> {
    let mut issuers = HashSet::new();
    for list in lists {
        let list = OwnedCertRevocationList::from_der(list).map_err(|error| error.to_string())?;
        if !issuers.insert(CertRevocationList::from(list).issuer().to_vec()) {
            return Err("two revocation lists of one issuer; keep the newest only".to_owned());
        }
    }
    Ok(())
}

/// Keys and certificates of mutual TLS. Sessions are never resumed, since that would skip the verification of certificates.
pub struct MutualTls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    of_clients: Arc<dyn ClientCertVerifier>,
    of_servers: Arc<WebPkiServerVerifier>,
    own: Arc<CertifiedKey>,
    server_name: Option<ServerName<'static>>,
}

impl MutualTls {
    fn new(
        own: CertifiedKey,
        roots: RootCertStore,
        crls: Vec<CertificateRevocationListDer<'static>>,
        server_name: Option<ServerName<'static>>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let (provider, roots, own) = (Arc::new(ring::default_provider()), Arc::new(roots), Arc::new(own));
        // A list is one authority's. Certificates of others, such as a new one beside it, are not revoked.
        let of_clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls(crls.iter().cloned())
            .allow_unknown_revocation_status()
            .build()?;
        let of_servers = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .with_crls(crls)
            .allow_unknown_revocation_status()
            .build()?;
        let resolver = Arc::new(SingleCertAndKey::from(own.clone()));
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(of_clients.clone())
            .with_cert_resolver(resolver.clone());
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_webpki_verifier(of_servers.clone())
            .with_client_cert_resolver(resolver);
        client.resumption = Resumption::disabled();
        // The name would be sent unencrypted, and no server needs it.
        client.enable_sni = false;
        let (server, client) = (Arc::new(server), Arc::new(client));
        Ok(Self { server, client, of_clients, of_servers, own, server_name })
    }

    /// Completes the handshake of a client's connection.
    ///
    /// # Errors
    /// If it fails, or does not complete in time.
    pub async fn accept(&self, stream: TcpStream) -> Result<TlsConnection, FailedHandshake> {
        let handshake = TlsAcceptor::from(self.server.clone()).accept(stream).into_fallible();
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(tls)) => Ok(TlsConnection::new(tls)),
            Ok(Err((error, stream))) => Err(FailedHandshake { error, stream: Some(stream) }),
            Err(late) => Err(FailedHandshake { error: late.into(), stream: None }),
        }
    }

    /// Completes the handshake of a connection to the server at this address.
    ///
    /// # Errors
    /// If it fails.
    pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        server: IpAddr,
        stream: IO,
    ) -> io::Result<client::TlsStream<IO>> {
        TlsConnector::from(self.client.clone()).connect(self.name_of(server), stream).await
    }

    /// Returns the name that the certificate of the server at this address must have.
    fn name_of(&self, server: IpAddr) -> ServerName<'static> {
        self.server_name.clone().unwrap_or(ServerName::IpAddress(server.to_canonical().into()))
    }

    /// Returns the time from which on and the time until which the own certificate is valid, if it can be read.
    #[must_use]
    pub fn validity(&self) -> Option<(SystemTime, SystemTime)> {
        // Verification at an impossible time states the possible ones, so that the certificate needs no second parser.
        let error_at = |time| self.verify_client(UnixTime::since_unix_epoch(Duration::from_secs(time))).err();
        let (early, late) = (error_at(0)?, error_at(u64::MAX)?);
        match (certificate_error(&early)?, certificate_error(&late)?) {
            (
                CertificateError::NotValidYetContext { not_before, .. },
                CertificateError::ExpiredContext { not_after, .. },
            ) => Some((system_time(*not_before)?, system_time(*not_after)?)),
            _ => None,
        }
    }

    /// Returns the reason why other nodes with the same files refuse this node, whose address is `own`, if they do.
    #[must_use]
    pub fn own_problem(&self, own: IpAddr) -> Option<TlsRefusal> {
        let (now, chain) = (UnixTime::now(), &self.own.cert);
        let as_client = self.verify_client(now);
        let verified = as_client.and_then(|()| {
            let (certificate, between) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
            let verified =
                self.of_servers.verify_server_cert(certificate, between, &self.name_of(own), &[], now);
            verified.map(drop)
        });
        verified.err().and_then(|error| TlsRefusal::of(&error))
    }

    /// Verifies the own certificate as a server does.
    fn verify_client(&self, now: UnixTime) -> Result<(), rustls::Error> {
        let (certificate, between) =
            self.own.cert.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.of_clients.verify_client_cert(certificate, between, now).map(drop)
    }
}

impl fmt::Debug for MutualTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MutualTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// A handshake that has failed, with the connection on which the client is told the reason.
#[derive(Debug)]
pub struct FailedHandshake {
    error: io::Error,
    stream: Option<TcpStream>,
}

impl FailedHandshake {
    /// Returns the error.
    #[must_use]
    pub fn error(&self) -> &io::Error {
        &self.error
    }

    /// Waits until the client has received the reason, for a second at most.
    pub async fn told(self) -> io::Error {
        if let Some(stream) = self.stream {
            let _ = timeout(REFUSAL_LINGER, discard(stream)).await;
        }
        self.error
    }
}

/// Ends a connection after the other side has received what was sent.
async fn discard(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    io::copy(&mut stream, &mut sink()).await.map(drop)
}

fn certificate_error(error: &rustls::Error) -> Option<&CertificateError> {
    match error {
        rustls::Error::InvalidCertificate(error) => Some(error),
        _ => None,
    }
}

fn system_time(time: UnixTime) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs()))
}

#[cfg(test)]
#[path = "mutual_tls_tests.rs"]
mod tests;
