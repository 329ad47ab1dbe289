//! The header `Lota-Peer`, and the MACs in it.
//!
//! A request's says `v=1;from=n1;to=n2;time=<unix seconds>;nonce=<hex>;mac=<hex>`, an answer's `v=1;mac=<hex>`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac as _};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use sha2::Sha256;
use thiserror::Error;

use crate::{config::Secret, placement::NodeName};

const LOTA_PEER: HeaderName = HeaderName::from_static("lota-peer");
const VERSION: &str = "1";

type HmacSha256 = Hmac<Sha256>;

/// Why a message is not a peer's.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    /// No `Lota-Peer` header, or not one of this form.
    #[error("no peer header")]
    NoHeader,
    /// Another wire version: nodes of a cluster must be upgraded together when it changes.
    #[error("another wire version")]
    Version,
    /// Meant for another node.
    #[error("meant for another node")]
    Destination,
    /// The MAC is not the one that the cluster's secret makes.
    #[error("a wrong MAC")]
    Mac,
    /// Sent too long ago, too far in the future, or before this process began.
    #[error("a stale time: do the nodes' clocks agree?")]
    Stale,
    /// Seen before.
    #[error("a replay")]
    Replay,
}

/// What an answer is bound to: the request it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    nonce: String,
}

impl Signature {
    pub(super) fn nonce(&self) -> &str {
        &self.nonce
    }
}

#[derive(Debug)]
pub(super) struct Wire {
    me: NodeName,
    secret: Secret,
}

impl Wire {
    pub(super) fn new(me: NodeName, secret: &Secret) -> Self {
        Self { me, secret: secret.clone() }
    }

    /// Signs a request to `to`; the nonce that its answer must be bound to.
    pub(super) fn sign_request<B>(
        &self,
        to: &NodeName,
        request: &mut Request<B>,
        now: SystemTime,
    ) -> Signature {
        let time = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).to_string();
        let nonce = hex::encode(rand::random::<[u8; 16]>());
        let claims = Claims { from: &self.me.0, to: &to.0, time: &time, nonce: &nonce };
        let mac = hex::encode(self.request_mac(&claims, request).finalize().into_bytes());
        let Claims { from, to, .. } = claims;
        let value = format!("v={VERSION};from={from};to={to};time={time};nonce={nonce};mac={mac}");
        if let Ok(value) = HeaderValue::from_str(&value) {
            request.headers_mut().insert(LOTA_PEER, value);
        }
        Signature { nonce }
    }

    /// Checks a request's MAC and destination; when it was sent is the caller's to judge.
    pub(super) fn verify_request<B>(&self, request: &Request<B>) -> Result<(Signature, SystemTime), Refused> {
        let value = peer_header(request.headers())?;
        let field = |name| field(value, name);
        if field("v")? != VERSION {
            return Err(Refused::Version);
        }
        let claims =
            Claims { from: field("from")?, to: field("to")?, time: field("time")?, nonce: field("nonce")? };
        let mac = hex::decode(field("mac")?).map_err(|_| Refused::NoHeader)?;
        self.request_mac(&claims, request).verify_slice(&mac).map_err(|_| Refused::Mac)?;
        if claims.to != self.me.0 {
            return Err(Refused::Destination);
        }
        let time: u32 = claims.time.parse().map_err(|_| Refused::NoHeader)?;
        let sent = UNIX_EPOCH + Duration::from_secs(time.into());
        Ok((Signature { nonce: claims.nonce.to_owned() }, sent))
    }

    pub(super) fn sign_answer<B>(&self, signature: &Signature, answer: &mut Response<B>) {
        let mac = self.answer_mac(signature, answer.status(), answer.headers()).finalize().into_bytes();
        if let Ok(value) = HeaderValue::from_str(&format!("v={VERSION};mac={}", hex::encode(mac))) {
            answer.headers_mut().insert(LOTA_PEER, value);
        }
    }

    pub(super) fn verify_answer(
        &self,
        signature: &Signature,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<(), Refused> {
        let value = peer_header(headers)?;
        if field(value, "v")? != VERSION {
            return Err(Refused::Version);
        }
        let mac = hex::decode(field(value, "mac")?).map_err(|_| Refused::NoHeader)?;
        self.answer_mac(signature, status, headers).verify_slice(&mac).map_err(|_| Refused::Mac)
    }

    fn request_mac<B>(&self, claims: &Claims<'_>, request: &Request<B>) -> HmacSha256 {
        let mut mac = self.mac("lota-peer-request");
        let target = request.uri().path_and_query().map_or("", |target| target.as_str());
        for text in [claims.from, claims.to, claims.time, claims.nonce, request.method().as_str(), target] {
            feed(&mut mac, text.as_bytes());
        }
        feed_headers(&mut mac, request.headers());
        mac
    }

    fn answer_mac(&self, signature: &Signature, status: StatusCode, headers: &HeaderMap) -> HmacSha256 {
        let mut mac = self.mac("lota-peer-answer");
        feed(&mut mac, signature.nonce.as_bytes());
        feed(&mut mac, status.as_str().as_bytes());
        feed_headers(&mut mac, headers);
        mac
    }

    fn mac(&self, purpose: &str) -> HmacSha256 {
        let mut mac = HmacSha256::new_from_slice(self.secret.expose().as_bytes())
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        feed(&mut mac, purpose.as_bytes());
        feed(&mut mac, VERSION.as_bytes());
        mac
    }
}

struct Claims<'a> {
    from: &'a str,
    to: &'a str,
    time: &'a str,
    nonce: &'a str,
}

fn peer_header(headers: &HeaderMap) -> Result<&str, Refused> {
    headers.get(LOTA_PEER).and_then(|value| value.to_str().ok()).ok_or(Refused::NoHeader)
}

fn field<'a>(value: &'a str, name: &str) -> Result<&'a str, Refused> {
    value.split(';').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).ok_or(Refused::NoHeader)
}

/// Length-prefixed, so that no two lists of fields are the same bytes.
fn feed(mac: &mut HmacSha256, bytes: &[u8]) {
    mac.update(&(bytes.len() as u64).to_le_bytes());
    mac.update(bytes);
}

/// All headers in a fixed order, but for those that a connection or an HTTP library adds on its way.
fn feed_headers(mac: &mut HmacSha256, headers: &HeaderMap) {
    let ours = [&LOTA_PEER, &header::CONNECTION, &header::DATE, &header::TRANSFER_ENCODING];
    let mut fields: Vec<(&str, &[u8])> = headers
        .iter()
        .filter(|(name, _)| !ours.contains(name))
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    fields.sort_by_key(|(name, _)| *name);
    for (name, value) in fields {
        feed(mac, name.as_bytes());
        feed(mac, value);
    }
}
