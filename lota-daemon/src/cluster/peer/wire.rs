//! The `Lota-Peer` header and its MACs.
//!
//! In a request: `v=1;from=n1;to=n2;time=<unix seconds>;nonce=<hex>;mac=<hex>`. In a response: `v=1;mac=<hex>`, with the
//! version of the request.
//!
//! A request has a `mac` for each of the sender's keys for the receiver, and one that is right under any of the receiver's keys
//! for the sender suffices. The response is signed with that key. During a rotation, two nodes therefore understand each other as
//! long as they have one key in common. The receiver selects its keys by the `from` claim, so that with keys of pairs of nodes
//! only, no node can send as another one.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hmac::{Hmac, Mac as _};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use lota_cache::placement::NodeName;
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq as _};
use thiserror::Error;

use super::version::{SpokenVersions, WireVersion};
use crate::cluster::peer_keys::{MessageKeys, PeerKeys};

const LOTA_PEER: HeaderName = HeaderName::from_static("lota-peer");

type HmacSha256 = Hmac<Sha256>;
/// A MAC as in a message.
type MacBytes = [u8; 32];

/// Reason why a message is not accepted as a peer's.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RejectedMessage {
    /// The `Lota-Peer` header is missing or malformed.
    #[error("no peer header")]
    NoHeader,
    /// This build does not speak the message's wire version, or a response has another one than its request.
    #[error("another wire version")]
    Version,
    /// The message is for another node.
    #[error("meant for another node")]
    Destination,
    /// No MAC matches a key for messages with the sender.
    #[error("a wrong MAC")]
    Mac,
    /// No public key of the node that the message names as its sender is known, and there is no cluster key.
    #[error("no public key of its sender is known; see peers.nodes.public_keys")]
    UnknownSender,
    /// The time is too far in the past or future, or before the first time for which nonces are known.
    #[error("a stale time; compare the nodes' clocks")]
    Stale,
    /// Another process of this node verifies messages now.
    #[error("handed over to another daemon")]
    HandedOver,
    /// The nonce was seen before.
    #[error("a replay")]
    Replay,
}

/// Version and nonce of a request, to which the MAC of its response is bound, and the keys for that MAC. They stay the same if the
/// node's keys are replaced meanwhile.
#[derive(Clone, Debug)]
pub struct MessageMac {
    version: WireVersion,
    nonce: String,
    keys: MessageKeys,
    /// Index of the receiver's key that matched.
    matched: usize,
}

impl MessageMac {
    #[cfg(test)]
    pub(super) fn version(&self) -> WireVersion {
        self.version
    }

    /// Returns the same with other keys.
    #[cfg(test)]
    pub(super) fn under(self, keys: MessageKeys) -> Self {
        Self { keys, ..self }
    }

    pub(super) fn nonce(&self) -> &str {
        &self.nonce
    }
}

#[derive(Debug)]
pub(super) struct Wire {
    me: NodeName,
    keys: PeerKeys,
    versions: SpokenVersions,
}

impl Wire {
    pub(super) fn new(me: NodeName, keys: impl Into<PeerKeys>) -> Self {
        Self { me, keys: keys.into(), versions: SpokenVersions::OWN }
    }

    /// Sets the versions that this node speaks.
    #[cfg(test)]
    pub(super) fn speaking(self, versions: SpokenVersions) -> Self {
        Self { versions, ..self }
    }

    pub(super) fn versions(&self) -> SpokenVersions {
        self.versions
    }

    pub(super) fn keys(&self) -> &PeerKeys {
        &self.keys
    }

    /// Signs a request to `to` in `version` with every key, and returns what its response must be bound to. Returns `None` if there
    /// is no key for messages with `to`.
    pub(super) fn sign_request<B>(
        &self,
        to: &NodeName,
        version: WireVersion,
        request: &mut Request<B>,
        now: SystemTime,
    ) -> Option<MessageMac> {
        let keys = self.keys.with(&to.0);
        if keys.each().is_empty() {
            return None;
        }
        let time = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).to_string();
        let nonce = hex::encode(rand::random::<[u8; 16]>());
        let claims = Claims { version, from: &self.me.0, to: &to.0, time: &time, nonce: &nonce };
        let Claims { version: WireVersion(number), from, to, .. } = claims;
        let mut value = format!("v={number};from={from};to={to};time={time};nonce={nonce}");
        for key in keys.each() {
            // Writing to a String cannot fail.
            let _ = write!(value, ";mac={}", hex::encode(bytes_of(request_mac(key, &claims, request))));
        }
        if let Ok(value) = HeaderValue::from_str(&value) {
            request.headers_mut().insert(LOTA_PEER, value);
        }
        Some(MessageMac { version, nonce, keys, matched: 0 })
    }

    /// Verifies a request's MACs and destination, and returns the time at which it was sent for the caller to check.
    pub(super) fn verify_request<B>(
        &self,
        request: &Request<B>,
    ) -> Result<(MessageMac, SystemTime), RejectedMessage> {
        let value = peer_header(request.headers())?;
        let field = |name| field(value, name);
        let version = version(value)?;
        if !self.versions.contain(version) {
            return Err(RejectedMessage::Version);
        }
        let claims = Claims {
            version,
            from: field("from")?,
            to: field("to")?,
            time: field("time")?,
            nonce: field("nonce")?,
        };
        let macs = macs(value)?;
        let keys = self.keys.with(claims.from);
        let all = keys.each();
        if all.is_empty() {
            return Err(RejectedMessage::UnknownSender);
        }
        let is_right = |key: &[u8]| contains(&macs, &bytes_of(request_mac(key, &claims, request)));
        // Keys of the two nodes come last; they are proof of more.
        let matched = all.into_iter().rposition(is_right).ok_or(RejectedMessage::Mac)?;
        if claims.to != self.me.0 {
            return Err(RejectedMessage::Destination);
        }
        let time: u32 = claims.time.parse().map_err(|_| RejectedMessage::NoHeader)?;
        let sent = UNIX_EPOCH + Duration::from_secs(time.into());
        Ok((MessageMac { version, nonce: claims.nonce.to_owned(), keys, matched }, sent))
    }

    pub(super) fn sign_answer<B>(&self, signature: &MessageMac, answer: &mut Response<B>) {
        let Some(key) = signature.keys.each().get(signature.matched).copied() else { return };
        let mac = bytes_of(answer_mac(key, signature, answer.status(), answer.headers()));
        let WireVersion(number) = signature.version;
        if let Ok(value) = HeaderValue::from_str(&format!("v={number};mac={}", hex::encode(mac))) {
            answer.headers_mut().insert(LOTA_PEER, value);
        }
    }

    pub(super) fn verify_answer(
        &self,
        signature: &MessageMac,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<(), RejectedMessage> {
        let value = peer_header(headers)?;
        if version(value)? != signature.version {
            return Err(RejectedMessage::Version);
        }
        let macs = macs(value)?;
        let is_right = |key| contains(&macs, &bytes_of(answer_mac(key, signature, status, headers)));
        if signature.keys.each().into_iter().any(is_right) { Ok(()) } else { Err(RejectedMessage::Mac) }
    }
}

fn request_mac<B>(key: &[u8], claims: &Claims<'_>, request: &Request<B>) -> HmacSha256 {
    let mut mac = mac_for(key, "lota-peer-request", claims.version);
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    for text in [claims.from, claims.to, claims.time, claims.nonce, request.method().as_str(), target] {
        feed(&mut mac, text.as_bytes());
    }
    feed_headers(&mut mac, request.headers());
    mac
}

fn answer_mac(key: &[u8], signature: &MessageMac, status: StatusCode, headers: &HeaderMap) -> HmacSha256 {
    let mut mac = mac_for(key, "lota-peer-answer", signature.version);
    feed(&mut mac, signature.nonce.as_bytes());
    feed(&mut mac, status.as_str().as_bytes());
    feed_headers(&mut mac, headers);
    mac
}

fn mac_for(key: &[u8], purpose: &str, WireVersion(version): WireVersion) -> HmacSha256 {
    let mut mac =
        HmacSha256::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
    feed(&mut mac, purpose.as_bytes());
    feed(&mut mac, version.to_string().as_bytes());
    mac
}

fn bytes_of(mac: HmacSha256) -> MacBytes {
    mac.finalize().into_bytes().into()
}

struct Claims<'a> {
    version: WireVersion,
    from: &'a str,
    to: &'a str,
    time: &'a str,
    nonce: &'a str,
}

fn peer_header(headers: &HeaderMap) -> Result<&str, RejectedMessage> {
    headers.get(LOTA_PEER).and_then(|value| value.to_str().ok()).ok_or(RejectedMessage::NoHeader)
}

fn field<'a>(value: &'a str, name: &str) -> Result<&'a str, RejectedMessage> {
    value
        .split(';')
        .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
        .ok_or(RejectedMessage::NoHeader)
}

/// Returns the version that a header states.
fn version(value: &str) -> Result<WireVersion, RejectedMessage> {
    field(value, "v")?.parse().map(WireVersion).map_err(|_| RejectedMessage::Version)
}

/// Returns the MACs of a message; further ones than a node can have keys for another are not read.
fn macs(value: &str) -> Result<Vec<MacBytes>, RejectedMessage> {
    let fields = value.split(';').filter_map(|part| part.strip_prefix("mac=")).take(PeerKeys::MAX_MACS);
    let decode = |mac: &str| {
        let mut bytes = MacBytes::default();
        hex::decode_to_slice(mac, &mut bytes).map(|()| bytes)
    };
    let macs = fields.map(decode).collect::<Result<Vec<_>, _>>();
    macs.ok().filter(|macs| !macs.is_empty()).ok_or(RejectedMessage::NoHeader)
}

/// Returns whether one of `macs` is `right`, in a time that does not depend on their bytes.
fn contains(macs: &[MacBytes], right: &MacBytes) -> bool {
    macs.iter().fold(Choice::from(0), |found, mac| found | mac.ct_eq(right)).into()
}

/// Adds a field with its length, so that different lists of fields are different bytes.
fn feed(mac: &mut HmacSha256, bytes: &[u8]) {
    mac.update(&(bytes.len() as u64).to_le_bytes());
    mac.update(bytes);
}

/// Adds all headers in a fixed order, except those that connections or HTTP libraries change.
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
