//! A certificate authority for tests.

use std::{
    fs, io,
    ops::Range,
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, Error,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};

/// One day, in seconds.
pub const DAY: i64 = 86_400;

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key, in PEM format.
#[derive(Clone, Debug)]
pub struct IssuedCertificate {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// Properties of a certificate.
#[derive(Clone, Debug)]
pub struct CertificatePlan {
    /// Serial number.
    pub serial: u64,
    /// Time for which it is valid, in seconds from now on.
    pub valid: Range<i64>,
    /// Whether it is for clients, too, and not only for servers.
    pub is_client: bool,
}

impl Default for CertificatePlan {
    fn default() -> Self {
        Self { serial: 1, valid: -DAY..90 * DAY, is_client: true }
    }
}

impl Authority {
    /// Makes an authority with a key of its own.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new(name: &str) -> Result<Self, Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// Returns the authority's own certificate in PEM format.
    #[must_use]
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Issues a certificate for these DNS names and addresses.
    ///
    /// # Errors
    /// If a name is invalid.
    pub fn issue(&self, names: &[&str], plan: CertificatePlan) -> Result<IssuedCertificate, Error> {
        let CertificatePlan { serial, valid, is_client } = plan;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        (params.not_before, params.not_after) = (at(valid.start).into(), at(valid.end).into());
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if is_client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(IssuedCertificate { certificate, key: key.serialize_pem() })
    }

    /// Returns a revocation list of these serial numbers in PEM format.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn revoke(&self, serials: &[u64]) -> Result<String, Error> {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: at(-DAY).into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: at(-DAY).into(),
            next_update: at(DAY).into(),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer)?.pem()
    }
}

/// Returns the time in so many seconds.
fn at(seconds: i64) -> SystemTime {
    let (now, distance) = (SystemTime::now(), Duration::from_secs(seconds.unsigned_abs()));
    if seconds < 0 { now - distance } else { now + distance }
}

impl IssuedCertificate {
    /// Writes `tls.crt` and `tls.key` as cert-manager names them, and `ca.crt` with these authorities.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: &Path, authorities: &str) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("tls.crt"), &self.certificate)?;
        fs::write(folder.join("tls.key"), &self.key)?;
        fs::write(folder.join("ca.crt"), authorities)
    }
}
