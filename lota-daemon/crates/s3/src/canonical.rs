//! Canonical forms of SigV4, which the signer and the verifier of a request must compute in the same way.

use std::time::SystemTime;

use hyper::header::HeaderName;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode, utf8_percent_encode};
use time::{OffsetDateTime, format_description::StaticFormatDescription, macros};

/// Characters that SigV4 escapes in a path ("UriEncode" in AWS's description of Signature Version 4).
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// Characters that SigV4 escapes in a query.
pub const QUERY: &AsciiSet = &PATH.add(b'/');
/// Format of times.
pub(super) const TIMESTAMP: StaticFormatDescription =
    macros::format_description!("[year][month][day]T[hour][minute][second]Z");

/// Returns whether S3 requires this header to be signed. Some servers treat an underscore as a hyphen.
pub(super) fn wants_signature(name: &HeaderName) -> bool {
    let name = name.as_str().replace('_', "-");
    matches!(&*name, "host" | "content-md5") || name.starts_with("x-amz-")
}

/// Returns a raw path in the canonical form of SigV4.
#[must_use]
pub fn canonical_path(raw: &str) -> String {
    percent_encode(&percent_decode_str(raw).collect::<Vec<u8>>(), PATH).to_string()
}

/// Returns a raw name or value of a query, where a plus sign is a space, in the canonical form of SigV4.
#[must_use]
pub fn canonical_query(raw: &str) -> String {
    let raw = raw.replace('+', "%20");
    percent_encode(&percent_decode_str(&raw).collect::<Vec<u8>>(), QUERY).to_string()
}

/// Returns an object's path, in path style and in the canonical form of SigV4.
#[must_use]
pub fn path(bucket: &str, key: &str) -> String {
    format!("/{bucket}/{}", utf8_percent_encode(key, PATH))
}

/// Returns a query without the parameters of a signature, in the canonical form of SigV4.
#[must_use]
pub fn rest_of_query(query: &str) -> String {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let rest = pairs.filter_map(|pair| match pair.split_once('=') {
        Some((name, _)) if is_signature_parameter(name) => None,
        Some((name, value)) => Some(format!("{}={}", canonical_query(name), canonical_query(value))),
        // `?acl` and `?acl=` are equal in SigV4, but servers may distinguish them.
        None => Some(canonical_query(pair)),
    });
    rest.collect::<Vec<_>>().join("&")
}

/// Formats a time for SigV4.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(TIMESTAMP).unwrap_or_default()
}

/// Returns the names and values of a query, as they were sent.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Returns whether this is a query parameter of a SigV2 or SigV4 signature.
pub(super) fn is_signature_parameter(name: &str) -> bool {
    const PARAMETERS: [&str; 9] = [
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
    PARAMETERS.iter().any(|parameter| is_named(name, parameter))
}

/// Compares a raw query parameter with a name, without regard to case and escapes.
pub(super) fn is_named(raw: &str, name: &str) -> bool {
    if !raw.contains('%') {
        return raw.eq_ignore_ascii_case(name);
    }
    percent_decode_str(raw)
        .map(|byte| byte.to_ascii_lowercase())
        .eq(name.bytes().map(|byte| byte.to_ascii_lowercase()))
}
