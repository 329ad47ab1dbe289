//! Headers that nodes add to the client's request and to the response to it.

use std::net::IpAddr;

use hyper::{
    HeaderMap, Response,
    header::{HeaderName, HeaderValue},
};
use lota_cache::{Stripe, StripeLength};
use lota_s3::{ByteRange, GatewayId, Learned, NormalEtag, ObjectMeta, RangeRequest};
use sha2::{Digest as _, Sha256};

use super::version::WireVersion;

/// Address of the pod whose request it is, and whose quota fills use.
const CLIENT: HeaderName = HeaderName::from_static("lota-client");
/// Gateway that the requesting node has configured for the host.
const GATEWAY: HeaderName = HeaderName::from_static("lota-gateway");
const PING: HeaderName = HeaderName::from_static("lota-ping");
const SKIP: HeaderName = HeaderName::from_static("lota-skip");
const PART: HeaderName = HeaderName::from_static("lota-part");
const STRIPE: HeaderName = HeaderName::from_static("lota-stripe");
const STRIPED: HeaderName = HeaderName::from_static("lota-striped");
const WRITTEN: HeaderName = HeaderName::from_static("lota-written");
/// Size of an upload, and the gateway that the requesting node has configured for the host.
const KEEP: HeaderName = HeaderName::from_static("lota-keep");
const PINS: HeaderName = HeaderName::from_static("lota-pins");
const LEARNED: HeaderName = HeaderName::from_static("lota-learned");
const CHECKSUMS: HeaderName = HeaderName::from_static("lota-checksums");
const LOAD: HeaderName = HeaderName::from_static("lota-load");
const CAPACITY: HeaderName = HeaderName::from_static("lota-capacity");
const OWNERS: HeaderName = HeaderName::from_static("lota-owners");
const WIRE: HeaderName = HeaderName::from_static("lota-wire");

/// Part of the response to a client's GET that a node asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GetScope {
    /// All of it.
    #[default]
    Whole,
    /// All of it, unless the owner places the object in stripes; then only the size of the object.
    WholeUnlessStriped,
    /// The bytes of this stripe. The response is all of it nevertheless if it does not state the size of the object
    /// ([`StripedSize`]).
    Stripe(Stripe),
}

impl GetScope {
    /// Returns the stripe, if the scope is one.
    #[must_use]
    pub fn stripe(self) -> Option<Stripe> {
        match self {
            Self::Stripe(stripe) => Some(stripe),
            Self::Whole | Self::WholeUnlessStriped => None,
        }
    }

    fn header(self) -> Option<HeaderValue> {
        match self {
            Self::Whole => None,
            Self::WholeUnlessStriped => Some(HeaderValue::from_static("unless-striped")),
            Self::Stripe(stripe) => {
                HeaderValue::from_str(&format!("{}/{}", stripe.index(), stripe.length().bytes())).ok()
            }
        }
    }

    fn parse(value: &HeaderValue) -> Option<Self> {
        let value = value.to_str().ok()?;
        if value == "unless-striped" {
            return Some(Self::WholeUnlessStriped);
        }
        let (index, length) = value.split_once('/')?;
        let length = StripeLength::new(length.parse().ok()?)?;
        Stripe::new(index.parse().ok()?, length).map(Self::Stripe)
    }
}

/// Size in bytes of an object that its owner places in stripes. An extension of the response inside of a node, and a header
/// between nodes. A response without content (204) states nothing else; any other contains the bytes of one stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripedSize(pub u64);

impl StripedSize {
    /// Returns the size that a response inside of this node states.
    #[must_use]
    pub fn of<B>(response: &Response<B>) -> Option<Self> {
        response.extensions().get().copied()
    }

    /// Writes the header of a response to another node.
    pub fn write<B>(response: &mut Response<B>) {
        let size = Self::of(response);
        let headers = response.headers_mut();
        // Only this node may state it.
        headers.remove(STRIPED);
        if let Some(Self(size)) = size {
            headers.insert(STRIPED, HeaderValue::from(size));
        }
    }

    /// Makes the header of another node's verified response an extension.
    pub(super) fn read<B>(response: &mut Response<B>) {
        let size = number(response.headers(), &STRIPED).map(Self);
        response.headers_mut().remove(STRIPED);
        if let Some(size) = size {
            response.extensions_mut().insert(size);
        }
    }
}

/// Request of one node to another, beside the client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMethod {
    /// The response to the client's request, without its first `skip` bytes, which the client already has.
    Get {
        /// Number of bytes to leave out.
        skip: u64,
        /// Part of the response.
        scope: GetScope,
    },
    /// These bytes of the object, or of a stripe of it, for the cache of the requesting node. The client's request authorizes
    /// them. Another node's cache has them, or fetches them first if it is the owner in an earlier zone.
    Part(ByteRange, GetScope),
    /// To fetch the object into the cache, because a client of the node that asks has written it. The gateway has stated this ETag,
    /// or none. The request names the object, and is no client's.
    Written(Option<NormalEtag>),
    /// To keep the body, a client's upload, as the object, if the body ends and the backend states that it is the object. The
    /// request names the object, and is no client's.
    Keep {
        /// Size of the upload in bytes.
        size: u64,
        /// Gateway of the object. It is stated here and not as for other requests, so that an older node refuses the request,
        /// rather than take it for a client's.
        gateway: GatewayId,
    },
    /// To merge the pins of the cluster in the request's body, which has this digest, and to respond with the result.
    Pins(BodyDigest),
    /// A sign of life.
    Ping,
}

impl PeerMethod {
    /// The whole response to the client's request.
    pub const WHOLE: Self = Self::Get { skip: 0, scope: GetScope::Whole };

    pub(super) fn write(&self, headers: &mut HeaderMap) {
        match self {
            Self::Get { skip, scope } => {
                if *skip > 0 {
                    headers.insert(SKIP, HeaderValue::from(*skip));
                }
                if let Some(scope) = scope.header() {
                    headers.insert(STRIPE, scope);
                }
            }
            Self::Part(range, scope) => {
                if let Ok(part) = HeaderValue::from_str(&range.to_string()) {
                    headers.insert(PART, part);
                }
                if let Some(scope) = scope.header() {
                    headers.insert(STRIPE, scope);
                }
            }
            Self::Written(etag) => {
                let etag = etag.as_ref().map(NormalEtag::to_string).unwrap_or_default();
                if let Ok(etag) = HeaderValue::from_str(&etag) {
                    headers.insert(WRITTEN, etag);
                }
            }
            Self::Keep { size, gateway } => {
                if let Ok(keep) = HeaderValue::from_str(&format!("{size} {}", gateway.as_str())) {
                    headers.insert(KEEP, keep);
                }
            }
            Self::Pins(digest) => digest.write(headers),
            Self::Ping => drop(headers.insert(PING, HeaderValue::from_static("1"))),
        }
    }

    /// Returns what a verified request asks for; `None` if its headers are malformed.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        if headers.contains_key(PING) {
            return Some(Self::Ping);
        }
        if let Some(keep) = headers.get(KEEP) {
            let (size, gateway) = keep.to_str().ok()?.split_once(' ')?;
            return Some(Self::Keep { size: size.parse().ok()?, gateway: GatewayId::from(gateway) });
        }
        if headers.contains_key(PINS) {
            return BodyDigest::of(headers).map(Self::Pins);
        }
        if let Some(etag) = headers.get(WRITTEN) {
            return match etag.to_str().ok()? {
                "" => Some(Self::Written(None)),
                etag => NormalEtag::parse(etag).map(Some).map(Self::Written),
            };
        }
        let scope = headers.get(STRIPE).map_or(Some(GetScope::Whole), GetScope::parse)?;
        let Some(part) = headers.get(PART) else {
            return Some(Self::Get { skip: Skipped::parse(headers).0, scope });
        };
        match RangeRequest::parse(part.to_str().ok()?) {
            RangeRequest::FromTo(first, last) => {
                Some(Self::Part(ByteRange { start: first, end: last.checked_add(1)? }, scope))
            }
            _ => None,
        }
    }
}

/// SHA-256 of the body of a message about pins. MACs cover the headers of messages only; this one extends that to the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyDigest([u8; 32]);

impl BodyDigest {
    /// Computes the digest of a body.
    #[must_use]
    pub fn compute(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }

    /// Adds the digest to the headers of the message.
    pub fn write(self, headers: &mut HeaderMap) {
        if let Ok(digest) = HeaderValue::from_str(&hex::encode(self.0)) {
            headers.insert(PINS, digest);
        }
    }

    /// Returns the digest that a verified message states; `None` if it is malformed, or the message is not about pins.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut digest = [0; 32];
        hex::decode_to_slice(headers.get(PINS)?, &mut digest).ok()?;
        Some(Self(digest))
    }
}

/// Number of bytes that a response leaves out at its beginning, because the client has them. An extension of the
/// response inside of a node, and a header between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped(pub u64);

impl Skipped {
    /// Returns the number of a response inside of this node; 0 if it has no such extension.
    #[must_use]
    pub fn of<B>(response: &Response<B>) -> Self {
        response.extensions().get().copied().unwrap_or_default()
    }

    /// Writes the header of a response to another node.
    pub fn write<B>(response: &mut Response<B>) {
        let Self(skipped) = Self::of(response);
        let headers = response.headers_mut();
        // Only this node may state it.
        headers.remove(SKIP);
        if skipped > 0 {
            headers.insert(SKIP, HeaderValue::from(skipped));
        }
    }

    /// Makes the header of another node's verified response an extension.
    pub(super) fn read<B>(response: &mut Response<B>) {
        let skipped = Self::parse(response.headers());
        response.headers_mut().remove(SKIP);
        response.extensions_mut().insert(skipped);
    }

    fn parse(headers: &HeaderMap) -> Self {
        Self(number(headers, &SKIP).unwrap_or_default())
    }
}

/// Adds the gateway that this node has configured for the host of a request.
pub(super) fn set_gateway(headers: &mut HeaderMap, gateway: &GatewayId) {
    if let Ok(value) = HeaderValue::from_str(gateway.as_str()) {
        headers.insert(GATEWAY, value);
    }
}

/// Returns the gateway that a node has configured for the host of its request; `None` if it does not say.
pub(super) fn gateway(headers: &HeaderMap) -> Option<GatewayId> {
    headers.get(GATEWAY).and_then(|value| value.to_str().ok()).map(GatewayId::from)
}

/// Adds to a response when, and under which authority, the object's headers in it were learned.
pub fn set_learned(headers: &mut HeaderMap, learned: Learned) {
    let Some(at) = learned.at else { return };
    if let Ok(value) = HeaderValue::from_str(&format!("{at};{}", learned.by)) {
        headers.insert(LEARNED, value);
    }
}

/// Returns when, and under which authority, the object's headers in a response were learned; the default if it does not
/// say.
#[must_use]
pub fn learned(headers: &HeaderMap) -> Learned {
    let value = headers.get(LEARNED).and_then(|value| value.to_str().ok()?.split_once(';'));
    let value = value.and_then(|(at, by)| Some(Learned { at: Some(at.parse().ok()?), by: by.parse().ok()? }));
    value.unwrap_or_default()
}

/// Adds the checksums of the whole object to a response with a part of it, if they are known.
pub fn set_checksums(headers: &mut HeaderMap, object: &ObjectMeta) {
    if object.checksums_known {
        headers.insert(CHECKSUMS, HeaderValue::from_static("1"));
        headers.extend(object.checksums().map(|(name, value)| (name.clone(), value.clone())));
    }
}

/// Returns the metadata with the checksums that a response with a part of the object states, if it states any.
#[must_use]
pub fn with_checksums(object: ObjectMeta, headers: &HeaderMap) -> ObjectMeta {
    if headers.contains_key(CHECKSUMS) { object.with_checksums(headers) } else { object }
}

/// Adds the address of the pod whose request it is.
pub(super) fn set_client(headers: &mut HeaderMap, client: IpAddr) {
    if let Ok(client) = HeaderValue::from_str(&client.to_canonical().to_string()) {
        headers.insert(CLIENT, client);
    }
}

/// Returns the address of the pod whose request a verified request forwards.
#[must_use]
pub fn client(headers: &HeaderMap) -> Option<IpAddr> {
    headers.get(CLIENT)?.to_str().ok()?.parse().ok()
}

/// State of a node that it reports with every response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerHints {
    /// Bytes of responses that it still has to send.
    pub load: u64,
    /// Capacity of its cache in bytes, which is its weight in placement.
    pub capacity: Option<u64>,
    /// Number of owners that the requested object should have; only its first owner reports it.
    pub owners: Option<usize>,
    /// Newest version of the peer protocol that it speaks. Builds that speak the first one only do not report it.
    pub wire: Option<WireVersion>,
}

impl PeerHints {
    /// Adds the hints to a response.
    pub fn write(self, headers: &mut HeaderMap) {
        headers.insert(LOAD, HeaderValue::from(self.load));
        if let Some(capacity) = self.capacity {
            headers.insert(CAPACITY, HeaderValue::from(capacity));
        }
        if let Some(owners) = self.owners {
            headers.insert(OWNERS, HeaderValue::from(owners));
        }
        if let Some(WireVersion(wire)) = self.wire {
            headers.insert(WIRE, HeaderValue::from(wire));
        }
    }

    /// Returns the hints of a verified response.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let owners = number(headers, &OWNERS).and_then(|owners| usize::try_from(owners).ok());
        let load = number(headers, &LOAD).unwrap_or_default();
        let wire = number(headers, &WIRE).map(WireVersion);
        Self { load, capacity: number(headers, &CAPACITY), owners, wire }
    }
}

pub(super) fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn methods_and_hints_are_read_as_written() {
        let stripe = Stripe::new(3, StripeLength::new(64 << 20).unwrap()).unwrap();
        let part = |scope| PeerMethod::Part(ByteRange { start: 5, end: 6 }, scope);
        let parts = [part(GetScope::Whole), part(GetScope::Stripe(stripe))];
        let rest = PeerMethod::Get { skip: 7, scope: GetScope::Stripe(stripe) };
        let whole = PeerMethod::Get { skip: 0, scope: GetScope::WholeUnlessStriped };
        let written = |etag| PeerMethod::Written(NormalEtag::parse(etag));
        let written = [written("\"e-2\""), written("")];
        let keep = PeerMethod::Keep { size: 1 << 40, gateway: "http://gateway".into() };
        let pins = PeerMethod::Pins(BodyDigest::compute(b"pins"));
        let others = [PeerMethod::WHOLE, whole, rest, keep, pins, PeerMethod::Ping];
        for method in others.into_iter().chain(parts).chain(written) {
            let mut headers = HeaderMap::new();
            method.write(&mut headers);
            assert_eq!(PeerMethod::of(&headers), Some(method));
        }
        let hints =
            PeerHints { load: 9, capacity: Some(1 << 40), owners: Some(3), wire: Some(WireVersion(2)) };
        let mut headers = HeaderMap::new();
        hints.write(&mut headers);
        assert_eq!(PeerHints::of(&headers), hints);
        assert_eq!(PeerHints::of(&HeaderMap::new()), PeerHints::default());
    }

    #[test]
    fn checksums_of_the_whole_object_go_with_a_part() {
        use hyper::StatusCode;
        use lota_s3::ObjectName;
        let name = ObjectName::from_parts("http://gateway", "b", "k", None).unwrap();
        let stated = [("etag", "\"e\""), ("content-length", "9"), ("x-amz-checksum-crc32", "AAAA")];
        let stated: HeaderMap = stated
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        let meta = |status| ObjectMeta::of_answer(&name, &HeaderMap::new(), status, &stated).unwrap();
        let known = meta(StatusCode::OK).with_checksums(&stated);
        let mut sent = HeaderMap::new();
        set_checksums(&mut sent, &known);
        let mut described = known.clone();
        (described.checksums_known, described.headers) = (false, HeaderMap::new());
        let received = with_checksums(described.clone(), &sent);
        assert!(received.checksums_known && received.headers.contains_key("x-amz-checksum-crc32"));
        let mut sent = HeaderMap::new();
        set_checksums(&mut sent, &described);
        assert!(sent.is_empty() && !with_checksums(described, &sent).checksums_known);
    }

    #[test]
    fn the_size_of_a_striped_object_is_written_only_from_the_extension() {
        let mut response = Response::new(());
        response.headers_mut().insert(STRIPED, HeaderValue::from(7));
        assert_eq!(StripedSize::of(&response), None, "a header from elsewhere");
        StripedSize::write(&mut response);
        assert!(!response.headers().contains_key(STRIPED));
        response.extensions_mut().insert(StripedSize(7));
        StripedSize::write(&mut response);
        let mut received = Response::new(());
        *received.headers_mut() = response.headers().clone();
        StripedSize::read(&mut received);
        assert_eq!(StripedSize::of(&received), Some(StripedSize(7)));
        assert!(!received.headers().contains_key(STRIPED));
    }

    #[test]
    fn the_header_of_skipped_bytes_is_written_only_from_the_extension() {
        let mut response = Response::new(());
        response.headers_mut().insert(SKIP, HeaderValue::from(7));
        assert_eq!(Skipped::of(&response), Skipped(0), "a header from elsewhere");
        Skipped::write(&mut response);
        assert!(!response.headers().contains_key(SKIP));
        response.extensions_mut().insert(Skipped(7));
        Skipped::write(&mut response);
        let mut received = Response::new(());
        *received.headers_mut() = response.headers().clone();
        Skipped::read(&mut received);
        assert_eq!(Skipped::of(&received), Skipped(7));
        assert!(!received.headers().contains_key(SKIP));
    }

    proptest! {
        #[test]
        fn malformed_stripes_are_refused(stripe in "[ -~]*", numbers in "[0-9]{1,20}/[0-9]{1,20}") {
            for stripe in [stripe, numbers] {
                let mut headers = HeaderMap::new();
                headers.insert(STRIPE, HeaderValue::from_str(&stripe).unwrap());
                if let Some(PeerMethod::Get { scope: GetScope::Stripe(stripe), .. }) = PeerMethod::of(&headers) {
                    prop_assert!(stripe.range(u64::MAX).length() >= 1 << 20);
                }
            }
        }

        #[test]
        fn malformed_parts_do_not_panic(part in "[ -~]*", numbers in "bytes=[0-9]{1,20}-[0-9]{1,20}") {
            for part in [part, numbers] {
                let mut headers = HeaderMap::new();
                headers.insert(PART, HeaderValue::from_str(&part).unwrap());
                if let Some(PeerMethod::Part(range, _)) = PeerMethod::of(&headers) {
                    prop_assert!(range.start < range.end);
                }
            }
        }
    }
}
