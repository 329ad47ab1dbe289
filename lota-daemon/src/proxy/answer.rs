//! Answers: relayed, served under a grant, or LOTA's own errors.

use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Response, StatusCode,
    body::{Frame, Incoming},
    header::{self, HeaderName, HeaderValue},
};

use crate::{
    cache::{Piece, Reader},
    gateway::Grant,
    http::{Body, BodyError, Slice, Slices, full, incoming},
    metrics::{Outcome, SentFrom, Value as _},
    placement::NodeName,
    s3::{
        ByteRange, GetObject, ObjectMeta, S3Error,
        headers::{LOTA_CACHE, keep_end_to_end},
    },
};

/// Between nodes only.
const LOTA_OWNER: HeaderName = HeaderName::from_static("lota-owner");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");

/// The gateway's answer, as it is; a success also says what the cache did.
pub(super) fn relay(answer: Response<Incoming>, outcome: Outcome, node: &NodeName) -> Response<Body> {
    let mut answer = answer.map(incoming);
    keep_end_to_end(answer.headers_mut());
    if answer.status().is_success() {
        mark(&mut answer, outcome, node);
    }
    answer.extensions_mut().insert(SentFrom::Gateway);
    answer
}

/// An owner's answer, which says already what its cache did.
pub(super) fn relay_from_owner(mut answer: Response<Body>) -> Response<Body> {
    let cache = answer.headers().get(LOTA_CACHE).cloned();
    keep_end_to_end(answer.headers_mut());
    if let Some(cache) = cache {
        answer.headers_mut().insert(LOTA_CACHE, cache);
    }
    answer.extensions_mut().insert(SentFrom::Remote);
    answer
}

/// Bytes of an object, under the gateway's grant, which ends here.
pub(super) fn object(
    grant: Grant,
    meta: &ObjectMeta,
    range: Option<ByteRange>,
    asked: &GetObject,
    body: Body,
    outcome: Outcome,
    node: &NodeName,
) -> Response<Body> {
    debug_assert_eq!(*grant.version(), meta.version);
    let id = grant.into_request_id();
    let (status, mut headers) = meta.answer(range, asked.wants_checksums);
    for (name, value) in &asked.overrides {
        headers.insert(name, value.clone());
    }
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    answer.headers_mut().insert(REQUEST_ID, id.unwrap_or_else(request_id));
    mark(&mut answer, outcome, node);
    let from = if outcome == Outcome::Hit { SentFrom::Local } else { SentFrom::Fill };
    answer.extensions_mut().insert(from);
    answer
}

/// The body of an answer that follows a cached file, by `sendfile(2)`; `read` is told how many bytes go.
pub(super) fn file_body(reader: Reader, slices: Slices, read: impl FnMut(u64) + Send + 'static) -> Body {
    let frames = stream::try_unfold((reader, slices, read), async |(mut reader, slices, mut read)| {
        let Some(piece) = reader.next().await.map_err(BodyError::new)? else { return Ok(None) };
        read(piece.length() as u64);
        let bytes = match piece {
            Piece::File(slice) => {
                slice.file.warm(slice.offset, slice.length as u64).await;
                slices.queue(Slice::File(slice))
            }
            Piece::Memory(bytes) => bytes,
        };
        Ok(Some((Frame::data(bytes), (reader, slices, read))))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A range outside an object that the gateway has granted.
pub(super) fn unsatisfiable(meta: &ObjectMeta, resource: &str) -> Response<Body> {
    let mut answer = error(&S3Error::invalid_range(meta.size), resource);
    if let Ok(range) = HeaderValue::from_str(&format!("bytes */{}", meta.size)) {
        answer.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    answer
}

/// An error of LOTA's own.
pub(super) fn error(error: &S3Error, resource: &str) -> Response<Body> {
    let id = request_id();
    let xml = error.to_xml(resource, id.to_str().unwrap_or_default());
    let length = xml.len();
    let mut answer = Response::new(full(xml));
    *answer.status_mut() = error.status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(REQUEST_ID, id);
    if error.status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

/// An owner's own error, for the entry node to see as such: it may fare better.
pub(super) fn owner_error(error_: &S3Error, resource: &str) -> Response<Body> {
    let mut answer = error(error_, resource);
    if error_.status == StatusCode::SERVICE_UNAVAILABLE {
        answer.headers_mut().insert(LOTA_OWNER, HeaderValue::from_static("unavailable"));
    }
    answer
}

/// Is this an owner's word that it cannot answer, rather than the gateway's answer?
pub(super) fn is_owner_error<B>(answer: &Response<B>) -> bool {
    answer.headers().contains_key(LOTA_OWNER)
}

/// Bytes that an answer brings, if it says so.
pub(super) fn length<B>(answer: &Response<B>) -> u64 {
    let length = answer.headers().get(header::CONTENT_LENGTH);
    length.and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// What the cache did for an answer, as it says itself.
pub(super) fn outcome<B>(answer: &Response<B>) -> Outcome {
    let told = answer.headers().get(LOTA_CACHE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    [Outcome::Hit, Outcome::Miss, Outcome::Fill]
        .into_iter()
        .find(|outcome| told.starts_with(outcome.name()))
        .unwrap_or(Outcome::Bypass)
}

fn mark(answer: &mut Response<Body>, outcome: Outcome, node: &NodeName) {
    if let Ok(value) = HeaderValue::from_str(&format!("{}; node={}", outcome.name(), node.0)) {
        answer.headers_mut().insert(LOTA_CACHE, value);
    }
}

fn request_id() -> HeaderValue {
    let id = hex::encode_upper(rand::random::<[u8; 8]>());
    HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("0"))
}
