//! Sends long bodies between nodes over an upgraded connection, on which the body's bytes follow without framing, so that
//! the entry node can splice them.
//!
//! The response is `101 Switching Protocols` with the head's MAC. LOTA's own headers contain the status and the length.
//! After the body, the connection carries the next request. Nodes of earlier versions, which do not state [`REUSABLE`], close
//! it instead.

use std::io;

use hyper::{
    HeaderMap, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
};

use super::headers::number;
use crate::http::{
    Body, Raw, Slices, empty, incoming, spliced,
    upstream::{self, Switched},
};

/// Minimum length of a body in bytes that is worth a connection of its own.
const MIN_RAW_LENGTH: u64 = 4 << 20;
const PROTOCOL: HeaderValue = HeaderValue::from_static("lota-bytes");
const STATUS: HeaderName = HeaderName::from_static("lota-status");
const LENGTH: HeaderName = HeaderName::from_static("lota-length");
const REUSABLE: HeaderName = HeaderName::from_static("lota-reusable");

/// Adds to a request that its sender accepts a body over an upgraded connection.
pub(super) fn accept(headers: &mut HeaderMap) {
    headers.insert(header::UPGRADE, PROTOCOL);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Returns whether the sender of a request accepts a body over an upgraded connection.
#[must_use]
pub fn is_accepted(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE) == Some(&PROTOCOL)
}

/// Makes a successful response with a long body one whose body follows as `raw`. Returns any other unchanged.
pub fn switch(answer: Response<Body>, raw: &Raw) -> Response<Body> {
    let length = number(answer.headers(), &header::CONTENT_LENGTH);
    let Some(length) = length.filter(|length| *length >= MIN_RAW_LENGTH && answer.status().is_success())
    else {
        return answer;
    };
    let (mut head, body) = answer.into_parts();
    raw.send(body, length);
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(LENGTH, HeaderValue::from(length));
    head.headers.insert(STATUS, HeaderValue::from(head.status.as_u16()));
    head.headers.insert(header::UPGRADE, PROTOCOL);
    head.headers.insert(REUSABLE, HeaderValue::from_static("1"));
    head.status = StatusCode::SWITCHING_PROTOCOLS;
    Response::from_parts(head, empty())
}

/// Returns a verified response of an owner with its body, which may come over an upgraded connection.
///
/// # Errors
/// If the response is malformed, or its connection fails.
pub(super) async fn answer(answer: Response<Incoming>, slices: &Slices) -> io::Result<Response<Body>> {
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(incoming));
    }
    let (mut head, body) = answer.into_parts();
    let headers = &mut head.headers;
    let (status, length) = (number(headers, &STATUS), number(headers, &LENGTH));
    let status = status.and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
    let (Some(status), Some(length)) = (status, length) else {
        return Err(io::Error::other("it sent status 101 without an Upgrade header"));
    };
    let is_reusable = headers.contains_key(REUSABLE);
    for name in [STATUS, LENGTH, REUSABLE, header::UPGRADE] {
        headers.remove(name);
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    head.status = status;
    let mut answer = Response::from_parts(head, body);
    let Switched { connection, first, reuse } = upstream::switched(&mut answer).await?;
    let (head, _) = answer.into_parts();
    let reuse = is_reusable.then_some(reuse);
    Ok(Response::from_parts(head, spliced(connection, first, length, slices.clone(), reuse)))
}

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
