//! Long answers between nodes: an HTTP upgrade, after which nothing but the body's bytes follow, to be passed on without
//! being looked at.
//!
//! The answer's head is all there, and its MAC over it: `101 Switching Protocols`, with the status and the length of the
//! answer in headers of our own. The connection ends with the body.

use std::io;

use hyper::{
    HeaderMap, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
};

use super::headers::number;
use crate::http::{Body, Raw, Slices, empty, incoming, spliced, upstream};

/// Shorter bodies are not worth a connection.
const LONG: u64 = 4 << 20;
const PROTOCOL: HeaderValue = HeaderValue::from_static("lota-bytes");
const STATUS: HeaderName = HeaderName::from_static("lota-status");
const LENGTH: HeaderName = HeaderName::from_static("lota-length");

/// Says that a long answer may come so.
pub(super) fn accept(headers: &mut HeaderMap) {
    headers.insert(header::UPGRADE, PROTOCOL);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Does a request say so?
#[must_use]
pub fn is_accepted(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE) == Some(&PROTOCOL)
}

/// A long answer, made one whose body follows as `raw`; any other as it is.
pub fn switch(answer: Response<Body>, raw: &Raw) -> Response<Body> {
    let length = number(answer.headers(), &header::CONTENT_LENGTH);
    let Some(length) = length.filter(|length| *length >= LONG && answer.status().is_success()) else {
        return answer;
    };
    let (mut head, body) = answer.into_parts();
    raw.send(body);
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(LENGTH, HeaderValue::from(length));
    head.headers.insert(STATUS, HeaderValue::from(head.status.as_u16()));
    head.headers.insert(header::UPGRADE, PROTOCOL);
    head.status = StatusCode::SWITCHING_PROTOCOLS;
    Response::from_parts(head, empty())
}

/// The answer that an owner gave, verified, whichever way its body comes.
///
/// # Errors
/// If it makes no sense, or its connection is lost.
pub(super) async fn answer(answer: Response<Incoming>, slices: &Slices) -> io::Result<Response<Body>> {
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(incoming));
    }
    let (mut head, body) = answer.into_parts();
    let headers = &mut head.headers;
    let (status, length) = (number(headers, &STATUS), number(headers, &LENGTH));
    let status = status.and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
    let (Some(status), Some(length)) = (status, length) else {
        return Err(io::Error::other("it switched protocols without saying to what"));
    };
    for name in [STATUS, LENGTH, header::UPGRADE] {
        headers.remove(name);
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    head.status = status;
    let mut answer = Response::from_parts(head, body);
    let (connection, first) = upstream::switched(&mut answer).await?;
    let (head, _) = answer.into_parts();
    Ok(Response::from_parts(head, spliced(connection, first, length, slices.clone())?))
}
