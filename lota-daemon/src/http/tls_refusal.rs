//! Reasons why one node refuses the TLS connection of another, with what to do.

use std::{
    error::Error,
    fmt, io,
    time::{Duration, SystemTime},
};

use rustls::{AlertDescription, CertificateError, InvalidMessage, pki_types::UnixTime};

/// Reason why a handshake between nodes failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsRefusal {
    /// This node refuses the other.
    Here(String),
    /// The other node refuses this one.
    There(String),
}

impl TlsRefusal {
    /// Returns the reason among the causes of an error; `None` if it is not about TLS.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref() {
                return Some(Self::explain(found));
            }
            cause = match error.downcast_ref::<io::Error>() {
                // Its `source` is that of the error that it contains.
                Some(error) => error.get_ref().map(|inner| inner as _),
                None => error.source(),
            };
        }
        None
    }

    /// Returns whether this node refuses the other.
    #[must_use]
    pub fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    fn explain(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::AlertReceived(alert) => Self::There(match alert {
                AlertDescription::CertificateExpired => {
                    "it is expired or not valid yet; renew it, and compare the clocks".to_owned()
                }
                AlertDescription::CertificateRevoked => "it is revoked; issue a new one".to_owned(),
                AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                    "that node's peers.tls.ca does not contain its issuer; add it there".to_owned()
                }
                AlertDescription::CertificateRequired => "that node received none; set [peers.tls] here".to_owned(),
                AlertDescription::UnsupportedCertificate => {
                    "its usages are not those of a client and a server; issue it for both".to_owned()
                }
                alert => format!("{alert:?}; see the log of that node"),
            }),
            rustls::Error::InvalidCertificate(error) => Self::Here(certificate(error)),
            rustls::Error::NoCertificatesPresented => {
                Self::Here("it has no certificate; set [peers.tls] on that node".to_owned())
            }
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::Here(
                "it does not use TLS; set [peers.tls] on that node, with mode = \"accept\" during the introduction"
                    .to_owned(),
            ),
            rustls::Error::InvalidCertRevocationList(error) => Self::Here(format!(
                "the list in peers.tls.crl does not fit its CA ({error:?}): replace the list here; a new CA needs another name"
            )),
            error => Self::Here(format!("{error}; see the log of that node")),
        }
    }
}

/// Returns the reason why a certificate of another node is refused, and what to do.
fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired => "its certificate is expired; renew it".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate is expired since {}; renew it, or correct the clock", date(*not_after))
        }
        CertificateError::NotValidYet => "its certificate is not valid yet; compare the clocks".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is not valid before {}; compare the clocks", date(*not_before))
        }
        CertificateError::Revoked => "its certificate is revoked; issue a new one".to_owned(),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is from an issuer that is not in peers.tls.ca; add that CA on all nodes, or issue another certificate"
                .to_owned()
        }
        CertificateError::NotValidForName => "its certificate has another name; see peers.tls.server_name".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "its certificate is not valid for `{}` but for [{}]; add that name, or set peers.tls.server_name",
            expected.to_str(),
            presented.join(", ")
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the usages of its certificate are not those of a client and a server; issue it for both".to_owned()
        }
        error => format!("its certificate is not valid ({error}); issue another one"),
    }
}

fn date(time: UnixTime) -> String {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs()));
    at.map_or_else(|| "an unknown time".to_owned(), |at| httpdate::HttpDate::from(at).to_string())
}

impl fmt::Display for TlsRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(why) => f.write_str(why),
            Self::There(why) => write!(f, "it refuses the certificate of this node: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found_among_causes() {
        let expired = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let inside = io::Error::new(io::ErrorKind::InvalidData, expired);
        let outside = io::Error::other(inside);
        let found = TlsRefusal::of(&outside).unwrap();
        assert!(found.is_here() && found.to_string().contains("is expired"), "{found}");
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRevoked);
        let found = TlsRefusal::of(&alert).unwrap();
        assert!(!found.is_here() && found.to_string().contains("certificate of this node: it is revoked"));
        assert_eq!(TlsRefusal::of(&io::Error::from(io::ErrorKind::ConnectionReset)), None);
    }
}
