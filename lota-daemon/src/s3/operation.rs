//! What a request asks for, as far as the road it takes depends on it.

use hyper::{
    HeaderMap, Method,
    header::{self, HeaderName, HeaderValue},
    http::uri::PathAndQuery,
};
use percent_encoding::percent_decode_str;

use super::{
    address::{ObjectName, Resource, Zone},
    cache_control::CacheControl,
    range::RangeRequest,
    signature::is_signing,
};

/// How a request travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A GET of an object that the cache may answer; or a HEAD of its first byte, by which LOTA's users have the
    /// whole of it brought into the cache ahead of time.
    Get(GetObject),
    /// Everything else: to the gateway and back, byte for byte. Says why, for metrics and logs.
    Pass(&'static str),
}

/// A GET of an object that the cache may answer, if the gateway agrees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetObject {
    /// Which object.
    pub name: ObjectName,
    /// Which bytes of it.
    pub range: RangeRequest,
    /// Is `Range` covered by the client's signature, so that a fill cannot drop it?
    pub range_signed: bool,
    /// What the client wants of the cache.
    pub cache_control: CacheControl,
    /// Did the client ask for the object's checksums (`x-amz-checksum-mode: ENABLED`)?
    pub wants_checksums: bool,
    /// Headers that the answer is to have instead of the object's own (`response-content-type=…`).
    pub overrides: Vec<(HeaderName, HeaderValue)>,
}

/// Query parameters that do not change what an object's GET returns: what belongs to signatures of either version, and
/// the operation's name that some SDKs add. Any other keeps the request out of the cache.
const HARMLESS: [&str; 4] = ["expires", "versionid", "x-amz-content-sha256", "x-id"];

/// Query parameters that replace a header of the answer, in signed requests.
const OVERRIDES: [(&str, HeaderName); 6] = [
    ("response-cache-control", header::CACHE_CONTROL),
    ("response-content-disposition", header::CONTENT_DISPOSITION),
    ("response-content-encoding", header::CONTENT_ENCODING),
    ("response-content-language", header::CONTENT_LANGUAGE),
    ("response-content-type", header::CONTENT_TYPE),
    ("response-expires", header::EXPIRES),
];

/// Headers whose requests only the gateway can answer: conditionals that an added `If-None-Match` would
/// override, keys that come with the request, and requests that are billed to their sender.
const GATEWAY_ONLY: [(&str, &str); 5] = [
    ("if-modified-since", "conditional"),
    ("if-none-match", "conditional"),
    ("if-range", "conditional"),
    ("x-amz-request-payer", "requester-pays"),
    ("x-amz-server-side-encryption-customer-algorithm", "sse-c"),
];

impl Operation {
    /// Classifies a request by its line and end-to-end headers. `host` is what the client addressed; `chunked`,
    /// whether a body of unknown length follows.
    #[must_use]
    pub fn classify(
        zone: &Zone,
        method: &Method,
        host: &str,
        target: &PathAndQuery,
        headers: &HeaderMap,
        chunked: bool,
    ) -> Self {
        if method != Method::GET && method != Method::HEAD {
            return Self::Pass("method");
        }
        let Resource::Object(bucket, key) = zone.resource(host, target.path()) else {
            return Self::Pass("not-an-object");
        };
        if chunked || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0") {
            return Self::Pass("body");
        }
        let query = target.query().unwrap_or_default();
        let (mut version_id, mut overrides) = (None, Vec::new());
        for (name, value) in parameters(query) {
            if name == "versionId" {
                // A plus sign is a space to some servers; twice said, either may count.
                if version_id.is_some() || value.contains('+') {
                    return Self::Pass("version");
                }
                version_id = Some(percent_decode_str(value).decode_utf8_lossy().into_owned());
            }
            if let Some((_, header)) = OVERRIDES.iter().find(|(parameter, _)| *parameter == name) {
                // A plus sign is a space to some servers; an empty value, twice the same one: the gateway knows.
                let value = percent_decode_str(value).collect::<Vec<u8>>();
                let twice = overrides.iter().any(|(other, _)| other == header);
                let known = !value.is_empty() && !value.contains(&b'+') && !twice;
                let Some(value) = HeaderValue::from_bytes(&value).ok().filter(|_| known) else {
                    return Self::Pass("overrides");
                };
                overrides.push((header.clone(), value));
                continue;
            }
            if !is_signing(name) && !HARMLESS.iter().any(|harmless| name.eq_ignore_ascii_case(harmless)) {
                return Self::Pass("query");
            }
        }
        if let Some((_, why)) = GATEWAY_ONLY.iter().find(|(name, _)| headers.contains_key(*name)) {
            return Self::Pass(why);
        }
        let authorization = text(headers, "authorization");
        if authorization.starts_with("AWS4-ECDSA") || query.contains("AWS4-ECDSA") {
            return Self::Pass("sigv4a");
        }
        let is_signed =
            || authorization.starts_with("AWS") || query.to_ascii_lowercase().contains("signature=");
        if !overrides.is_empty() && !is_signed() {
            return Self::Pass("overrides");
        }
        let mut ranges = headers.get_all(header::RANGE).iter();
        let range = match (ranges.next(), ranges.next()) {
            (None, _) => RangeRequest::Whole,
            (Some(range), None) => RangeRequest::parse(range.to_str().unwrap_or_default()),
            (Some(_), Some(_)) => RangeRequest::Several,
        };
        if range == RangeRequest::Several {
            return Self::Pass("ranges");
        }
        if method == Method::HEAD && (range != RangeRequest::FromTo(0, 0) || !overrides.is_empty()) {
            return Self::Pass("method");
        }
        Self::Get(GetObject {
            name: ObjectName { bucket, key, version_id },
            range,
            range_signed: headers.contains_key(header::RANGE) && signs_range(authorization, query),
            cache_control: CacheControl::parse(
                headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok()),
            ),
            wants_checksums: text(headers, "x-amz-checksum-mode").eq_ignore_ascii_case("enabled"),
            overrides,
        })
    }
}

/// Is `range` among the signed headers? SigV2 signs none of the headers a GET has but `x-amz-*`.
fn signs_range(authorization: &str, query: &str) -> bool {
    let in_header = authorization
        .split([',', ' '])
        .find_map(|part| part.trim().strip_prefix("SignedHeaders="))
        .is_some_and(|names| names.split(';').any(|name| name == "range"));
    let in_query =
        parameters(query).find(|(name, _)| name.eq_ignore_ascii_case("x-amz-signedheaders")).is_some_and(
            |(_, names)| percent_decode_str(names).decode_utf8_lossy().split(';').any(|name| name == "range"),
        );
    in_header || in_query
}

fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
#[path = "operation_tests.rs"]
mod tests;
