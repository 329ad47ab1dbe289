//! Request headers that are known not to change the body or the stored headers of the response to a GET.

use hyper::HeaderMap;

/// Headers whose requests only the gateway can answer, with the reason: conditions that an added `If-None-Match` would
/// override, customer-provided keys, and requester-pays requests.
const GATEWAY_ONLY: [(&str, &str); 5] = [
    ("if-modified-since", "conditional"),
    ("if-none-match", "conditional"),
    ("if-range", "conditional"),
    ("x-amz-request-payer", "requester-pays"),
    ("x-amz-server-side-encryption-customer-algorithm", "sse-c"),
];

/// Headers of HTTP and S3 that LOTA evaluates, or that do not change the response to a GET. A response that depends on
/// one of them nevertheless has a `Vary` header and is not stored (see [`super::storable`]).
const HARMLESS: [&str; 46] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "amz-sdk-invocation-id",
    "amz-sdk-request",
    "amz-sdk-retry",
    "authorization",
    "cache-control",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "dnt",
    "expect",
    "from",
    "host",
    "if-match",
    "if-unmodified-since",
    "max-forwards",
    "pragma",
    "priority",
    "range",
    "referer",
    "user-agent",
    "x-amz-api-version",
    "x-amz-checksum-mode",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-expected-bucket-owner",
    "x-amz-security-token",
    "x-amz-user-agent",
    // Tracing.
    "b3",
    "baggage",
    "correlation-id",
    "request-id",
    "sentry-trace",
    "traceparent",
    "tracestate",
    "uber-trace-id",
    "x-amzn-trace-id",
    "x-client-trace-id",
    "x-cloud-trace-context",
    "x-correlation-id",
    "x-request-id",
    "x-request-start",
];

/// Prefixes of harmless headers of tracing and proxies.
const HARMLESS_PREFIXES: [&str; 4] = ["x-b3-", "x-datadog-", "x-envoy-", "x-forwarded-"];

/// Headers that proxies add about the client connection.
const OF_PROXIES: [&str; 5] = ["cdn-loop", "client-ip", "forwarded", "via", "x-real-ip"];

/// Returns the reason why only the gateway can answer a GET with these headers; `None` if the cache may serve it.
#[must_use]
pub fn reason_to_pass(headers: &HeaderMap) -> Option<&'static str> {
    if let Some((_, reason)) = GATEWAY_ONLY.iter().find(|(name, _)| headers.contains_key(*name)) {
        return Some(reason);
    }
    headers.keys().any(|name| !is_harmless(name.as_str())).then_some("header")
}

fn is_harmless(name: &str) -> bool {
    HARMLESS.contains(&name)
        || OF_PROXIES.contains(&name)
        || HARMLESS_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn reason(names: &[&str]) -> Option<&'static str> {
        let headers = names.iter().map(|name| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("value"))
        });
        reason_to_pass(&headers.collect())
    }

    #[test]
    fn requests_with_unknown_headers_are_relayed() {
        for unknown in [
            "x-amz-rdma-token",
            "x-amz-unheard-of",
            "x-amz-meta-a",
            "x-amz-bypass-governance-retention",
            "origin",
            "cookie",
            "access-control-request-method",
            "accept-datetime",
            "x-goog-user-project",
            "x-minio-extract",
            "x-rgw-auth",
            "seaweed-anything",
        ] {
            assert_eq!(reason(&["host", unknown]), Some("header"), "{unknown}");
        }
    }

    #[test]
    fn known_headers_are_harmless() {
        for known in HARMLESS.iter().chain(&OF_PROXIES) {
            assert_eq!(reason(&[known]), None, "{known}");
        }
        assert_eq!(reason(&["x-b3-traceid", "x-forwarded-for", "x-envoy-attempt-count"]), None);
    }

    #[test]
    fn the_specific_reason_is_reported() {
        assert_eq!(reason(&["x-unknown", "if-none-match"]), Some("conditional"));
    }
}
