//! Classification of headers: forwarded, stored, or removed.

use hyper::{
    HeaderMap,
    header::{self, HeaderName},
};

/// Prefix of LOTA's own headers, which are removed from client requests.
const LOTA_PREFIX: &str = "lota-";
/// Response header with the cache status and the node.
pub const LOTA_CACHE: HeaderName = HeaderName::from_static("lota-cache");
/// Response header of a prefetch of one stripe, with the length of stripes in bytes.
pub const LOTA_STRIPE_LENGTH: HeaderName = HeaderName::from_static("lota-stripe-length");

/// Headers of one connection, not of the message (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Headers that belong to an object (those with a final hyphen are prefixes): they change only with the object and
/// are the same for every client. Object lock, tagging count, replication and expiration are not.
const OF_THE_OBJECT: [&str; 17] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "etag",
    "expires",
    "last-modified",
    "x-amz-missing-meta",
    "x-amz-mp-parts-count",
    "x-amz-storage-class",
    "x-amz-version-id",
    "x-amz-website-redirect-location",
    "x-amz-checksum-",
    "x-amz-meta-",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-",
];

/// Headers by which proxies state the address of a client; those with a final hyphen are prefixes. A gateway may trust them if
/// they come from a node, so a pod must not set them.
const OF_THE_ADDRESS: [&str; 6] =
    ["forwarded", "x-forwarded-", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip"];

/// Removes headers of a client's request that are not forwarded: those of [`keep_end_to_end`], and those that state the
/// address of a client.
pub fn keep_of_request(headers: &mut HeaderMap) {
    keep_end_to_end(headers);
    let of_address: Vec<HeaderName> = headers.keys().filter(|name| states_address(name)).cloned().collect();
    for name in of_address {
        headers.remove(&name);
    }
}

/// Returns whether a header states the address of a client. Servers that pass headers as variables do not distinguish an underscore
/// from a hyphen.
fn states_address(name: &HeaderName) -> bool {
    let name = name.as_str().replace('_', "-");
    OF_THE_ADDRESS.iter().any(|known| match known.ends_with('-') {
        true => name.starts_with(known),
        false => name == *known,
    })
}

/// Returns whether a header is in a list whose names with a final hyphen are prefixes.
fn is_one_of(name: &HeaderName, known: &[&str]) -> bool {
    known.iter().any(|known| match known.ends_with('-') {
        true => name.as_str().starts_with(known),
        false => name == known,
    })
}

/// Removes headers that are not forwarded: hop-by-hop headers and LOTA's own.
pub fn keep_end_to_end(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    strip_lota(headers);
}

/// Removes trailers that are not forwarded. Names in a `Connection` header are not known here; hyper sends only
/// trailers that the `Trailer` header announces.
pub fn keep_end_to_end_trailers(trailers: &mut HeaderMap) {
    keep_end_to_end(trailers);
    for name in [header::HOST, header::TRAILER, header::CONTENT_LENGTH] {
        trailers.remove(name);
    }
}

/// Removes hop-by-hop headers, including those that `Connection` names.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Removes `Lota-*` headers, which only LOTA itself may send.
fn strip_lota(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(LOTA_PREFIX)).cloned().collect();
    for name in ours {
        headers.remove(&name);
    }
}

/// Returns the headers of a response that belong to the object and may be served to every authorized client.
#[must_use]
pub fn of_the_object(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        if is_one_of(name, &OF_THE_OBJECT) {
            kept.append(name, value.clone());
        }
    }
    kept
}

/// Returns whether a header is an object checksum, which S3 returns only on request, and never for a range.
#[must_use]
pub fn is_checksum(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-amz-checksum-")
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn headers_named_by_connection_are_removed() {
        let mut map =
            headers(&[("connection", "close, X-Secret"), ("x-secret", "1"), ("te", "gzip"), ("host", "h")]);
        strip_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("host", "h")]));
    }

    #[test]
    fn lota_headers_of_clients_are_removed() {
        let mut map = headers(&[("lota-accept", "direct"), ("lota-node", "evil"), ("lotacache", "kept")]);
        strip_lota(&mut map);
        assert_eq!(map, headers(&[("lotacache", "kept")]));
    }

    #[test]
    fn an_object_keeps_its_own_headers_only() {
        let kept = of_the_object(&headers(&[
            ("content-type", "text/plain"),
            ("content-length", "3"),
            ("date", "now"),
            ("etag", "\"e\""),
            ("lota-object-size", "3"),
            ("x-amz-meta-a", "b"),
            ("x-amz-object-lock-mode", "GOVERNANCE"),
            ("x-amz-request-id", "1"),
            ("x-amz-tagging-count", "2"),
            ("access-control-allow-origin", "https://filler.example"),
            ("x-ratelimit-remaining", "7"),
        ]));
        assert_eq!(
            kept,
            headers(&[("content-type", "text/plain"), ("etag", "\"e\""), ("x-amz-meta-a", "b")])
        );
    }

    proptest! {
        #[test]
        fn no_connection_header_panics(value in "[ -~]*") {
            let mut map = HeaderMap::new();
            map.insert(header::CONNECTION, HeaderValue::from_str(&value).unwrap());
            strip_hop_by_hop(&mut map);
            prop_assert!(map.get(header::CONNECTION).is_none());
        }
    }
}
