//! Parses and verifies a client's SigV4 signature, in the `Authorization` header or in the query.
//!
//! Needed only for gateways with fixed host names; any other gateway verifies the client's signature itself. The rules
//! are those of AWS's "Signature Version 4 for Amazon S3" (sigv4-auth-using-authorization-header,
//! sigv4-query-string-auth).

use std::time::{Duration, SystemTime};

use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use hyper::{HeaderMap, Method, header, http::uri::PathAndQuery};
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use time::PrimitiveDateTime;

use crate::{
    S3Error, Secret,
    canonical::{
        TIMESTAMP, canonical_path, canonical_query, is_named, is_signature_parameter, parameters,
        wants_signature,
    },
    chunks::ChunkChain,
};

/// The only supported algorithm.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Maximum difference between the clocks of a client and a server, as S3 servers allow it.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(15 * 60);
/// Maximum validity of a presigned URL.
const MAX_VALIDITY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Parsed signature of a request.
///
/// ```
/// use std::time::SystemTime;
///
/// use hyper::Method;
/// use lota_s3::{Credential, Origin, Secret, signing::Signer, verification::RequestSignature};
///
/// let credential = Credential {
///     access_key: "AK".into(),
///     secret_key: "the secret".to_owned().into(),
///     session_token: None,
/// };
/// let origin = Origin::parse("http://10.0.0.5:9000").unwrap();
/// let request = Signer::new(&credential, "us-east-1").request(Method::GET, &origin, "/bucket/key", &[]).unwrap();
///
/// let target = request.uri().path_and_query().unwrap();
/// let signature = RequestSignature::of(target, request.headers()).unwrap().expect("not anonymous");
/// assert_eq!(signature.access_key, "AK");
/// let verify = |secret: &str| {
///     let parts = (request.method(), target, request.headers());
///     signature.verify(&Secret::from(secret.to_owned()), parts, SystemTime::now())
/// };
/// assert!(verify("the secret").is_ok() && verify("another").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestSignature {
    /// Access key of the signer.
    pub access_key: String,
    /// Session token, if any.
    pub session_token: Option<String>,
    /// Signed description of the body.
    pub payload: SignedPayload,
    place: SignaturePlace,
    timestamp: String,
    time: SystemTime,
    region: String,
    headers: Vec<String>,
    signature: String,
}

/// Place of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SignaturePlace {
    Header,
    /// A presigned URL, with its validity.
    Query(Duration),
}

/// Signed description of the body (`x-amz-content-sha256`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignedPayload {
    /// The body is not signed.
    Unsigned,
    /// SHA-256 hash in hex, which the receiver of the body verifies.
    Hash(String),
    /// The body is in chunks (`Content-Encoding: aws-chunked`).
    Chunks {
        /// Whether each chunk is signed.
        signed: bool,
        /// Whether trailers follow.
        trailers: bool,
    },
}

impl SignedPayload {
    fn parse(text: &str) -> Result<Self, S3Error> {
        Ok(match text {
            "UNSIGNED-PAYLOAD" => Self::Unsigned,
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => Self::Chunks { signed: true, trailers: false },
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => Self::Chunks { signed: true, trailers: true },
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Self::Chunks { signed: false, trailers: true },
            hash if is_hex(hash) => Self::Hash(hash.to_owned()),
            _ => {
                return Err(S3Error::invalid_request(
                    "x-amz-content-sha256 is neither a SHA-256 hash nor a known keyword",
                ));
            }
        })
    }

    /// Returns the value of `x-amz-content-sha256`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Unsigned => "UNSIGNED-PAYLOAD",
            Self::Hash(hash) => hash,
            Self::Chunks { signed: true, trailers: false } => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
            Self::Chunks { signed: true, trailers: true } => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
            Self::Chunks { signed: false, .. } => "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        }
    }
}

impl RequestSignature {
    /// Parses the signature of a request; `None` for an anonymous request.
    ///
    /// # Errors
    /// The [`S3Error`] that S3 returns, if the signature cannot be parsed.
    pub fn of(target: &PathAndQuery, headers: &HeaderMap) -> Result<Option<Self>, S3Error> {
        let query = target.query().unwrap_or_default();
        let in_query = parameters(query).any(|(name, _)| is_signature_parameter(name));
        match (headers.get(header::AUTHORIZATION), in_query) {
            (None, false) => Ok(None),
            (Some(_), true) => Err(S3Error::invalid_request(
                "Only one of Authorization and a signature in the query is allowed",
            )),
            (Some(authorization), false) => {
                let text = authorization.to_str().map_err(|_| S3Error::malformed_authorization())?;
                Self::of_header(text, headers).map(Some)
            }
            (None, true) => Self::of_query(query, headers).map(Some),
        }
    }

    fn of_header(authorization: &str, headers: &HeaderMap) -> Result<Self, S3Error> {
        let parts = authorization.strip_prefix(ALGORITHM).ok_or_else(S3Error::unsupported_authorization)?;
        let malformed = S3Error::malformed_authorization;
        if !parts.starts_with(' ') {
            return Err(malformed());
        }
        let [mut credential, mut signed, mut signature] = [None; 3];
        for part in parts.split(',') {
            let (name, value) = part.trim().split_once('=').ok_or_else(malformed)?;
            let place = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed,
                "Signature" => &mut signature,
                _ => return Err(malformed()),
            };
            if place.replace(value).is_some() {
                return Err(malformed());
            }
        }
        let (Some(credential), Some(signed), Some(signature)) = (credential, signed, signature) else {
            return Err(malformed());
        };
        let timestamp = text(headers, "x-amz-date")?
            .ok_or_else(|| S3Error::access_denied("A signed request needs an x-amz-date header"))?;
        let payload = text(headers, "x-amz-content-sha256")?.ok_or_else(|| {
            S3Error::invalid_request("A signed request needs an x-amz-content-sha256 header")
        })?;
        let session_token = text(headers, "x-amz-security-token")?.map(str::to_owned);
        let payload = SignedPayload::parse(payload)?;
        Self::new(credential, signed, signature, timestamp, payload, session_token, SignaturePlace::Header)
            .ok_or_else(malformed)
    }

    fn of_query(query: &str, headers: &HeaderMap) -> Result<Self, S3Error> {
        let malformed = S3Error::malformed_query_authorization;
        let value = |parameter: &str| -> Result<Option<String>, S3Error> {
            let mut values = parameters(query).filter(|(name, _)| is_named(name, parameter));
            let value = values.next().map(|(_, value)| percent_decode_str(value).decode_utf8());
            if values.next().is_some() {
                return Err(malformed());
            }
            value.transpose().map(|value| value.map(String::from)).map_err(|_| malformed())
        };
        let needed = |parameter: &str| value(parameter)?.ok_or_else(malformed);
        if value("X-Amz-Algorithm")?.is_none_or(|algorithm| algorithm != ALGORITHM) {
            return Err(S3Error::unsupported_authorization());
        }
        let expires = needed("X-Amz-Expires")?.parse().map(Duration::from_secs).map_err(|_| malformed())?;
        if expires.is_zero() || expires > MAX_VALIDITY {
            return Err(malformed());
        }
        let payload = match (value("X-Amz-Content-Sha256")?, text(headers, "x-amz-content-sha256")?) {
            (Some(hash), _) => SignedPayload::parse(&hash)?,
            (None, Some(hash)) => SignedPayload::parse(hash)?,
            (None, None) => SignedPayload::Unsigned,
        };
        Self::new(
            &needed("X-Amz-Credential")?,
            &needed("X-Amz-SignedHeaders")?,
            &needed("X-Amz-Signature")?,
            &needed("X-Amz-Date")?,
            payload,
            value("X-Amz-Security-Token")?,
            SignaturePlace::Query(expires),
        )
        .ok_or_else(malformed)
    }

    fn new(
        credential: &str,
        signed: &str,
        signature: &str,
        timestamp: &str,
        payload: SignedPayload,
        session_token: Option<String>,
        place: SignaturePlace,
    ) -> Option<Self> {
        // An access key may contain slashes.
        let mut scope = credential.rsplitn(5, '/');
        let (end, service, region, date) = (scope.next()?, scope.next()?, scope.next()?, scope.next()?);
        let access_key = scope.next().filter(|key| !key.is_empty())?.to_owned();
        let headers: Vec<String> = signed.split(';').map(str::to_ascii_lowercase).collect();
        let sound = end == "aws4_request"
            && service == "s3"
            && (timestamp.len(), date.len()) == (16, 8)
            && timestamp.strip_prefix(date).is_some_and(|rest| rest.starts_with('T'))
            && is_hex(signature)
            && headers.iter().any(|name| name == "host");
        Some(Self {
            access_key,
            session_token,
            payload,
            place,
            timestamp: timestamp.to_owned(),
            time: PrimitiveDateTime::parse(timestamp, TIMESTAMP).ok()?.assume_utc().into(),
            region: region.to_owned(),
            headers,
            signature: signature.to_owned(),
        })
        .filter(|_| sound)
    }

    /// Returns whether the signature is in the query.
    #[must_use]
    pub fn is_presigned(&self) -> bool {
        matches!(self.place, SignaturePlace::Query(_))
    }

    /// Verifies that the request was signed with this secret and that the signature is still valid. Returns the start
    /// of the signature chain for an `aws-chunked` body.
    ///
    /// # Errors
    /// The [`S3Error`] that S3 returns.
    pub fn verify(
        &self,
        secret: &Secret,
        (method, target, headers): (&Method, &PathAndQuery, &HeaderMap),
        now: SystemTime,
    ) -> Result<ChunkChain, S3Error> {
        self.check_time(now)?;
        // The holder of a presigned URL must not be able to change its meaning with unsigned headers.
        let is_covered = |name: &str| self.headers.iter().any(|signed| signed == name);
        if let Some(name) = headers.keys().find(|name| wants_signature(name) && !is_covered(name.as_str())) {
            return Err(S3Error::access_denied(format!("The header {name} is not signed")));
        }
        let request = Sha256::digest(self.canonical_request(method, target, headers));
        let scope = format!("{}/{}/s3/aws4_request", &self.timestamp[..8], self.region);
        let to_sign = format!("{ALGORITHM}\n{}\n{scope}\n{}", self.timestamp, hex::encode(request));
        let key = generate_signing_key(secret.expose(), self.time, &self.region, "s3");
        let expected = calculate_signature(&key, to_sign.as_bytes());
        if !bool::from(expected.as_bytes().ct_eq(self.signature.as_bytes())) {
            return Err(S3Error::wrong_signature());
        }
        Ok(ChunkChain::new(key.as_ref(), self.timestamp.clone(), &self.region, expected))
    }

    fn check_time(&self, now: SystemTime) -> Result<(), S3Error> {
        let (age, ahead) = (
            now.duration_since(self.time).unwrap_or_default(),
            self.time.duration_since(now).unwrap_or_default(),
        );
        match self.place {
            SignaturePlace::Header if age > MAX_CLOCK_SKEW || ahead > MAX_CLOCK_SKEW => {
                Err(S3Error::time_too_skewed())
            }
            SignaturePlace::Query(_) if ahead > MAX_CLOCK_SKEW => {
                Err(S3Error::access_denied("Request is not valid yet"))
            }
            SignaturePlace::Query(expires) if age > expires => {
                Err(S3Error::access_denied("Request has expired"))
            }
            _ => Ok(()),
        }
    }

    fn canonical_request(&self, method: &Method, target: &PathAndQuery, headers: &HeaderMap) -> Vec<u8> {
        let mut query: Vec<(String, String)> = parameters(target.query().unwrap_or_default())
            .filter(|(name, _)| !is_named(name, "x-amz-signature"))
            .map(|(name, value)| (canonical_query(name), canonical_query(value)))
            .collect();
        query.sort_unstable();
        let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let path = canonical_path(target.path());
        let mut request = format!("{method}\n{path}\n{}\n", query.join("&")).into_bytes();
        for name in &self.headers {
            request.extend_from_slice(name.as_bytes());
            request.push(b':');
            for (index, value) in headers.get_all(name).iter().enumerate() {
                if index > 0 {
                    request.push(b',');
                }
                let words = value.as_bytes().split(|byte| *byte == b' ').filter(|word| !word.is_empty());
                request.extend(words.collect::<Vec<_>>().join(&b' '));
            }
            request.push(b'\n');
        }
        let end = format!("\n{}\n{}", self.headers.join(";"), self.payload.as_str());
        request.extend_from_slice(end.as_bytes());
        request
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, S3Error> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| S3Error::malformed_authorization()),
        (Some(_), Some(_)) => Err(S3Error::malformed_authorization()),
    }
}

/// Returns whether a text has the form of a SHA-256 hash in lower-case hex.
fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
#[path = "verification_tests.rs"]
mod tests;
