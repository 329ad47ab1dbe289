//! Percent-encoding of keys, query parameters, dates and entity tags.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use s3s::dto::{ETag, Timestamp, TimestampFormat};

/// All characters but RFC 3986's unreserved ones and the slash.
const ENCODED_IN_KEYS: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// Encodes a key for the path of a URL, in the canonical form of `SigV4`.
pub(super) fn encode_key(key: &str) -> String {
    utf8_percent_encode(key, ENCODED_IN_KEYS).to_string()
}

/// Decodes the path of a URL; `None` if it is not UTF-8.
pub(super) fn decode_path(path: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(path).decode_utf8().ok()
}

/// Decodes a name or value of a query.
pub(super) fn decode_query_part(part: &str) -> String {
    let spaced = part.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

/// Returns the decoded value of `name` in a query; empty if it has no value.
pub(super) fn query_value(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode_query_part(key) == name).then(|| decode_query_part(value))
    })
}

/// Returns the current time in whole seconds, the resolution of HTTP dates.
pub(super) fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UNIX_EPOCH + Duration::from_secs(since.unwrap_or_default().as_secs())
}

/// Formats an HTTP date.
pub(super) fn http_date(time: SystemTime) -> String {
    let mut text = Vec::new();
    let written = Timestamp::from(time).format(TimestampFormat::HttpDate, &mut text);
    debug_assert!(written.is_ok(), "every time of a file is an HTTP date");
    String::from_utf8_lossy(&text).into_owned()
}

/// Returns a strong entity tag from its text without quotes.
pub(super) fn strong(etag: &str) -> ETag {
    ETag::Strong(etag.to_owned())
}
