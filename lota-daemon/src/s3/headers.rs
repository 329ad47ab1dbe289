//! Which headers travel, which are stored, and which are never replayed.

use hyper::{
    HeaderMap,
    header::{self, HeaderName},
};

/// Prefix of LOTA's own headers; what a client sends under it is stripped.
const LOTA_PREFIX: &str = "lota-";
/// On successes: what the cache did, and on which node.
pub const LOTA_CACHE: HeaderName = HeaderName::from_static("lota-cache");

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

/// Headers that belong to an object (those with a final hyphen are prefixes): they change only with it, and are
/// the same for whoever may read it. Object lock, tagging count, replication and expiration are not.
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

/// Removes what does not travel past this node: what belongs to one connection, and what only LOTA may say.
pub fn keep_end_to_end(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    strip_lota(headers);
}

/// Removes what belongs to one connection, including whatever `Connection` itself names.
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

/// Removes `Lota-*`: only LOTA itself speaks under that prefix.
fn strip_lota(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(LOTA_PREFIX)).cloned().collect();
    for name in ours {
        headers.remove(&name);
    }
}

/// The headers of an answer that belong to the object and may be served to whoever is granted it.
#[must_use]
pub fn of_the_object(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        let belongs = OF_THE_OBJECT.iter().any(|known| match known.ends_with('-') {
            true => name.as_str().starts_with(known),
            false => name == known,
        });
        if belongs {
            kept.append(name, value.clone());
        }
    }
    kept
}

/// Is this the name of an object checksum, which S3 gives only to whoever asks for it, and never on a range?
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
    fn connection_names_what_else_goes() {
        let mut map =
            headers(&[("connection", "close, X-Secret"), ("x-secret", "1"), ("te", "gzip"), ("host", "h")]);
        strip_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("host", "h")]));
    }

    #[test]
    fn only_lota_speaks_as_lota() {
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
        fn any_connection_header_is_survived(value in "[ -~]*") {
            let mut map = HeaderMap::new();
            map.insert(header::CONNECTION, HeaderValue::from_str(&value).unwrap());
            strip_hop_by_hop(&mut map);
            prop_assert!(map.get(header::CONNECTION).is_none());
        }
    }
}
