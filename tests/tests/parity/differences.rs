//! Allowed differences between the gateway's response and LOTA's.

use hyper::{HeaderMap, StatusCode};
use lota_tests::lab::raw::Reply;

/// Headers of a single response, a connection or a server.
const OF_THE_ANSWER: [&str; 8] = [
    "connection",
    "date",
    "keep-alive",
    "lota-cache",
    "server",
    "transfer-encoding",
    "x-amz-id-2",
    "x-amz-request-id",
];

/// Headers that are missing on hits: they describe the bucket, the requester or the gateway, and may change without a
/// new `ETag` (object lock, tagging count, replication, expiration, CORS). They are not replayed from another
/// client's fill.
const NOT_OF_THE_OBJECT: [&str; 11] = [
    "accept-ranges",
    "access-control-",
    "seaweed-",
    "vary",
    "x-amz-bucket-region",
    "x-amz-expiration",
    "x-amz-object-lock-",
    "x-amz-replication-status",
    "x-amz-restore",
    "x-amz-tagging-count",
    // RGW: whether the object can be appended to.
    "x-rgw-object-type",
];

/// Returns every difference as `what: expected, got`.
pub(crate) fn between(expected: &Reply, got: &Reply) -> Vec<String> {
    let mut found = Vec::new();
    let mut differ = |what: &str, expected: String, got: String| {
        if expected != got {
            found.push(format!("{what}: expected `{expected}`, got `{got}`"));
        }
    };
    differ("status", expected.status.to_string(), got.status.to_string());
    if expected.status.is_success() {
        differ("body", digest(&expected.body), digest(&got.body));
    } else {
        // LOTA itself refuses ranges outside of cached objects, with another message.
        differ("code", expected.code(), got.code());
    }
    let served = got.status.is_success() || got.status == StatusCode::RANGE_NOT_SATISFIABLE;
    for name in names(&expected.headers, &got.headers) {
        let not_replayed = NOT_OF_THE_OBJECT.iter().any(|other| name.starts_with(other));
        let length_of_an_error = name == "content-length" && !expected.status.is_success();
        if OF_THE_ANSWER.contains(&name.as_str()) || (served && not_replayed) || length_of_an_error {
            continue;
        }
        if name == "content-type" && got.status == StatusCode::RANGE_NOT_SATISFIABLE {
            continue;
        }
        differ(&format!("header {name}"), values(&expected.headers, &name), values(&got.headers, &name));
    }
    found
}

fn digest(body: &[u8]) -> String {
    let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
    format!("{} bytes, crc {:08x}, {shown:?}", body.len(), crc32c::crc32c(body))
}

fn names(one: &HeaderMap, other: &HeaderMap) -> Vec<String> {
    let mut names: Vec<String> = one.keys().chain(other.keys()).map(ToString::to_string).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn values(headers: &HeaderMap, name: &str) -> String {
    let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    values.collect::<Vec<_>>().join(" | ")
}
