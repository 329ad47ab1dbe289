//! Classification of requests: served by the cache, or relayed to the gateway.

use hyper::{
    HeaderMap, Method,
    header::{self, HeaderName, HeaderValue},
    http::uri::PathAndQuery,
};
use percent_encoding::percent_decode_str;

use crate::{
    address::{ObjectName, Resource},
    cache_control::CacheControl,
    canonical::{is_signature_parameter, parameters},
    endpoint::Endpoint,
    range::RangeRequest,
    request_headers,
    signature_location::SignedBy,
};

/// Class of a request.
///
/// ```
/// use hyper::{HeaderMap, Method};
/// use lota_s3::{Endpoint, Operation, Zone};
///
/// let zone = Zone::parse("cwlota.com").unwrap();
/// let endpoint = Endpoint::of_zone(zone, "http://10.0.0.5:9000".into());
/// let classify = |target: &str| {
///     let target = target.parse().unwrap();
///     Operation::classify(&endpoint, &Method::GET, "models.cwlota.com", &target, &HeaderMap::new(), false)
/// };
/// let Operation::Get(get) = classify("/llama/00.safetensors?x-id=GetObject") else { panic!("not cacheable") };
/// assert_eq!((get.name.bucket.as_str(), get.name.key.as_str()), ("models", "llama/00.safetensors"));
/// assert_eq!(classify("/?list-type=2"), Operation::Pass("not-an-object"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A GET of an object that the cache may serve; or a HEAD of one byte of it, which prefetches the whole object, or the
    /// stripe with that byte.
    Get(GetObject),
    /// Any other request, which is relayed to the gateway unchanged. The reason is for metrics and logs.
    Pass(&'static str),
}

/// A GET of an object that the cache may serve, if the gateway authorizes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetObject {
    /// Name of the object.
    pub name: ObjectName,
    /// Requested range.
    pub range: RangeRequest,
    /// Whether the client's signature covers `Range`, so that a fill cannot remove the header.
    pub range_signed: bool,
    /// Use of the cache.
    pub cache_control: CacheControl,
    /// Whether the client requested checksums (`x-amz-checksum-mode: ENABLED`).
    pub wants_checksums: bool,
    /// Response headers that replace those of the object (`response-content-type=…`).
    pub overrides: Vec<(HeaderName, HeaderValue)>,
}

/// Query parameters that do not change the response to a GET, beside those of signatures: the checksum of the body
/// and the name of the operation, which some SDKs add. With any other parameter, the request is relayed.
const HARMLESS: [&str; 4] = ["expires", "versionid", "x-amz-content-sha256", "x-id"];

/// Query parameters that replace a response header, in signed requests.
const OVERRIDES: [(&str, HeaderName); 6] = [
    ("response-cache-control", header::CACHE_CONTROL),
    ("response-content-disposition", header::CONTENT_DISPOSITION),
    ("response-content-encoding", header::CONTENT_ENCODING),
    ("response-content-language", header::CONTENT_LANGUAGE),
    ("response-content-type", header::CONTENT_TYPE),
    ("response-expires", header::EXPIRES),
];

impl Operation {
    /// Classifies a request by its request line and end-to-end headers. `host` is the host that the client addressed,
    /// which is one of `endpoint`; `chunked` is true if a body of unknown length follows.
    #[must_use]
    pub fn classify(
        endpoint: &Endpoint,
        method: &Method,
        host: &str,
        target: &PathAndQuery,
        headers: &HeaderMap,
        chunked: bool,
    ) -> Self {
        if method != Method::GET && method != Method::HEAD {
            return Self::Pass("method");
        }
        let Resource::Object(bucket, key) = endpoint.resource(host, target.path()) else {
            return Self::Pass("not-an-object");
        };
        if chunked || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0") {
            return Self::Pass("body");
        }
        let query = target.query().unwrap_or_default();
        let (mut version_id, mut overrides) = (None, Vec::new());
        for (name, value) in parameters(query) {
            if name == "versionId" {
                // Servers differ in whether a plus sign is a space, and in which of two values counts.
                if version_id.is_some() || value.contains('+') {
                    return Self::Pass("version");
                }
                version_id = Some(percent_decode_str(value).decode_utf8_lossy().into_owned());
            }
            if let Some((_, header)) = OVERRIDES.iter().find(|(parameter, _)| *parameter == name) {
                // Servers differ in how they read plus signs, empty values and repeated parameters.
                let value = percent_decode_str(value).collect::<Vec<u8>>();
                let twice = overrides.iter().any(|(other, _)| other == header);
                let known = !value.is_empty() && !value.contains(&b'+') && !twice;
                let Some(value) = HeaderValue::from_bytes(&value).ok().filter(|_| known) else {
                    return Self::Pass("overrides");
                };
                overrides.push((header.clone(), value));
                continue;
            }
            if !is_signature_parameter(name)
                && !HARMLESS.iter().any(|harmless| name.eq_ignore_ascii_case(harmless))
            {
                return Self::Pass("query");
            }
        }
        if let Some(why) = request_headers::reason_to_pass(headers) {
            return Self::Pass(why);
        }
        if SignedBy::of(target, headers) == SignedBy::Several {
            return Self::Pass("signatures");
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
            (Some(_), Some(_)) => RangeRequest::Unusual,
        };
        if range == RangeRequest::Unusual {
            return Self::Pass("ranges");
        }
        let is_one_byte = matches!(range, RangeRequest::FromTo(first, last) if first == last);
        if method == Method::HEAD && (!is_one_byte || !overrides.is_empty()) {
            return Self::Pass("method");
        }
        Self::Get(GetObject {
            name: ObjectName { gateway: endpoint.gateway.clone(), bucket, key, version_id },
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

/// Returns whether `range` is among the signed headers. Of a GET's headers, SigV2 signs only `x-amz-*`.
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

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
#[path = "operation_tests.rs"]
mod tests;
