//! A client's SigV4 signature, in the `Authorization` header or in the query: read, and checked against a secret.
//!
//! Only gateways on fixed host names need this; every other gateway checks what it is sent itself. The rules are those
//! of AWS's "Signature Version 4 for Amazon S3" (sigv4-auth-using-authorization-header, sigv4-query-string-auth).

use std::time::{Duration, SystemTime};

use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use hyper::{HeaderMap, Method, header, http::uri::PathAndQuery};
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use time::{OffsetDateTime, PrimitiveDateTime, format_description::StaticFormatDescription, macros};

use super::{
    S3Error,
    chunks::Chain,
    sign::{canonical_path, canonical_query, wants_signature},
};
use crate::config::Secret;

/// The one algorithm there is.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// How far a client's clock may be off.
const SKEW: Duration = Duration::from_secs(15 * 60);
/// Longest that a presigned URL may live: a week.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
const TIMESTAMP: StaticFormatDescription =
    macros::format_description!("[year][month][day]T[hour][minute][second]Z");

/// What a client signed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Who says to have signed it.
    pub access_key: String,
    /// The session it belongs to.
    pub session_token: Option<String>,
    /// What it says of the body.
    pub payload: Payload,
    place: Place,
    timestamp: String,
    time: SystemTime,
    region: String,
    headers: Vec<String>,
    signature: String,
}

/// Where a signature stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Header,
    /// And for how long it is good.
    Query(Duration),
}

/// What a signature says of the body (`x-amz-content-sha256`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing.
    Unsigned,
    /// Its SHA-256 in hex, which whoever takes the body checks.
    Hash(String),
    /// It comes in chunks (`Content-Encoding: aws-chunked`), each signed perhaps, with trailers after them perhaps.
    Chunks {
        /// Is each signed?
        signed: bool,
        /// Do trailers follow?
        trailers: bool,
    },
}

impl Payload {
    fn parse(text: &str) -> Result<Self, S3Error> {
        Ok(match text {
            "UNSIGNED-PAYLOAD" => Self::Unsigned,
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => Self::Chunks { signed: true, trailers: false },
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => Self::Chunks { signed: true, trailers: true },
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Self::Chunks { signed: false, trailers: true },
            hash if is_hex(hash) => Self::Hash(hash.to_owned()),
            _ => {
                return Err(S3Error::invalid_request(
                    "x-amz-content-sha256 is neither a SHA-256 nor a name of S3's",
                ));
            }
        })
    }

    /// As `x-amz-content-sha256` says it.
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

impl Signature {
    /// The signature of a request; `None` if it has none, which makes it anonymous.
    ///
    /// # Errors
    /// [`S3Error`] as S3 gives it, if there is one that cannot be read.
    pub fn of(target: &PathAndQuery, headers: &HeaderMap) -> Result<Option<Self>, S3Error> {
        let query = target.query().unwrap_or_default();
        let in_query = parameters(query).any(|(name, _)| is_signing(name));
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
        let payload = Payload::parse(payload)?;
        Self::new(credential, signed, signature, timestamp, payload, session_token, Place::Header)
            .ok_or_else(malformed)
    }

    fn of_query(query: &str, headers: &HeaderMap) -> Result<Self, S3Error> {
        let malformed = S3Error::malformed_query_authorization;
        let value = |wanted: &str| -> Result<Option<String>, S3Error> {
            let mut values = parameters(query).filter(|(name, _)| is(name, wanted));
            let value = values.next().map(|(_, value)| percent_decode_str(value).decode_utf8());
            if values.next().is_some() {
                return Err(malformed());
            }
            value.transpose().map(|value| value.map(String::from)).map_err(|_| malformed())
        };
        let needed = |wanted: &str| value(wanted)?.ok_or_else(malformed);
        if value("X-Amz-Algorithm")?.is_none_or(|algorithm| algorithm != ALGORITHM) {
            return Err(S3Error::unsupported_authorization());
        }
        let expires = needed("X-Amz-Expires")?.parse().map(Duration::from_secs).map_err(|_| malformed())?;
        if expires.is_zero() || expires > LONGEST {
            return Err(malformed());
        }
        let payload = match (value("X-Amz-Content-Sha256")?, text(headers, "x-amz-content-sha256")?) {
            (Some(said), _) => Payload::parse(&said)?,
            (None, Some(said)) => Payload::parse(said)?,
            (None, None) => Payload::Unsigned,
        };
        Self::new(
            &needed("X-Amz-Credential")?,
            &needed("X-Amz-SignedHeaders")?,
            &needed("X-Amz-Signature")?,
            &needed("X-Amz-Date")?,
            payload,
            value("X-Amz-Security-Token")?,
            Place::Query(expires),
        )
        .ok_or_else(malformed)
    }

    fn new(
        credential: &str,
        signed: &str,
        signature: &str,
        timestamp: &str,
        payload: Payload,
        session_token: Option<String>,
        place: Place,
    ) -> Option<Self> {
        // An access key may have slashes itself.
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

    /// Is it in the query?
    #[must_use]
    pub fn is_presigned(&self) -> bool {
        matches!(self.place, Place::Query(_))
    }

    /// Was this request signed with this secret, and is the signature still good? What it begins is the chain of the
    /// body's chunks, should it have such.
    ///
    /// # Errors
    /// [`S3Error`] as S3 gives it.
    pub fn verify(
        &self,
        secret: &Secret,
        (method, target, headers): (&Method, &PathAndQuery, &HeaderMap),
        now: SystemTime,
    ) -> Result<Chain, S3Error> {
        self.check_time(now)?;
        // Whoever holds a presigned URL must not be able to make it mean something else.
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
        Ok(Chain::new(key.as_ref(), self.timestamp.clone(), &self.region, expected))
    }

    fn check_time(&self, now: SystemTime) -> Result<(), S3Error> {
        let (age, ahead) = (
            now.duration_since(self.time).unwrap_or_default(),
            self.time.duration_since(now).unwrap_or_default(),
        );
        match self.place {
            Place::Header if age > SKEW || ahead > SKEW => Err(S3Error::time_too_skewed()),
            Place::Query(_) if ahead > SKEW => Err(S3Error::access_denied("Request is not valid yet")),
            Place::Query(expires) if age > expires => Err(S3Error::access_denied("Request has expired")),
            _ => Ok(()),
        }
    }

    fn canonical_request(&self, method: &Method, target: &PathAndQuery, headers: &HeaderMap) -> Vec<u8> {
        let mut query: Vec<(String, String)> = parameters(target.query().unwrap_or_default())
            .filter(|(name, _)| !is(name, "x-amz-signature"))
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

/// A query without what belongs to a signature, in the form that SigV4 wants.
#[must_use]
pub fn rest_of_query(query: &str) -> String {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let rest = pairs.filter_map(|pair| match pair.split_once('=') {
        Some((name, _)) if is_signing(name) => None,
        Some((name, value)) => Some(format!("{}={}", canonical_query(name), canonical_query(value))),
        // `?acl` and `?acl=` are the same to SigV4, but perhaps not to every server.
        None => Some(canonical_query(pair)),
    });
    rest.collect::<Vec<_>>().join("&")
}

/// A time as SigV4 writes it.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(TIMESTAMP).unwrap_or_default()
}

/// Is this a query parameter of a signature, in either version?
pub(super) fn is_signing(name: &str) -> bool {
    const SIGNING: [&str; 9] = [
        "awsaccesskeyid",
        "signature",
        "x-amz-algorithm",
        "x-amz-credential",
        "x-amz-date",
        "x-amz-expires",
        "x-amz-security-token",
        "x-amz-signature",
        "x-amz-signedheaders",
    ];
    SIGNING.iter().any(|signing| is(name, signing))
}

/// Is this the name of that query parameter, in whatever case and however escaped?
fn is(raw: &str, name: &str) -> bool {
    if !raw.contains('%') {
        return raw.eq_ignore_ascii_case(name);
    }
    percent_decode_str(raw)
        .map(|byte| byte.to_ascii_lowercase())
        .eq(name.bytes().map(|byte| byte.to_ascii_lowercase()))
}

fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, S3Error> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| S3Error::malformed_authorization()),
        (Some(_), Some(_)) => Err(S3Error::malformed_authorization()),
    }
}

/// Is it a SHA-256, or as long as one, in lower-case hex?
fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
