//! Makes responses: relayed, served under a grant, or LOTA's own errors.

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    HeaderMap, Response, StatusCode,
    body::{Frame, Incoming},
    header::{self, HeaderName, HeaderValue},
};
use lota_cache::{Piece, Reader, placement::NodeName};
use lota_s3::{
    ByteRange, GetObject, ObjectMeta, S3Error,
    headers::{LOTA_CACHE, keep_end_to_end},
};

use crate::{
    cluster::peer::headers::StripedSize,
    gateway::Grant,
    http::{Body, BodyError, Meter, Reject, Slice, Slices, empty, full, relayed},
    metrics::{Outcome, SentFrom, Value as _},
};

/// Marks an owner's own error; between nodes only.
const LOTA_OWNER: HeaderName = HeaderName::from_static("lota-owner");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");

/// Outcome of the cache for a response, and the node of that cache. An extension of the response inside of this node, and its
/// `Lota-Cache` header outside.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CacheResult {
    outcome: Outcome,
    node: NodeName,
}

impl CacheResult {
    /// Reads the header of another node's response.
    fn parse(header: &HeaderValue) -> Option<Self> {
        let (outcome, node) = header.to_str().ok()?.split_once("; node=")?;
        let outcome = Outcome::ALL.iter().copied().find(|known| known.name() == outcome)?;
        Some(Self { outcome, node: NodeName(node.to_owned()) })
    }

    fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&format!("{}; node={}", self.outcome.name(), self.node.0)).ok()
    }
}

/// Request ID that the client receives, which is also the gateway's if the gateway was involved. An extension of the
/// response.
#[derive(Clone)]
struct RequestId(HeaderValue);

/// Size of the object that a response contains, or contains a part of. An extension of the response.
#[derive(Clone, Copy)]
struct ObjectSize(u64);

impl RequestId {
    fn random() -> Self {
        let id = hex::encode_upper(rand::random::<[u8; 8]>());
        Self(HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("0")))
    }
}

/// Relays the gateway's response. A success also reports what the cache did.
pub(super) fn relay(answer: Response<Incoming>, outcome: Outcome, node: &NodeName) -> Response<Body> {
    let mut answer = relayed(answer);
    keep_end_to_end(answer.headers_mut());
    describe(&mut answer);
    if answer.status().is_success() {
        answer.extensions_mut().insert(CacheResult { outcome, node: node.clone() });
    }
    answer.extensions_mut().insert(SentFrom::Gateway);
    answer
}

/// Relays an owner's response, which reports what the owner's cache did.
pub(super) fn relay_from_owner(mut answer: Response<Body>) -> Response<Body> {
    let result = answer.headers().get(LOTA_CACHE).and_then(CacheResult::parse);
    keep_end_to_end(answer.headers_mut());
    describe(&mut answer);
    if let Some(result) = result {
        answer.extensions_mut().insert(result);
    }
    answer.extensions_mut().insert(SentFrom::Remote);
    answer
}

/// Adds what the headers of a relayed response state to its extensions.
fn describe(answer: &mut Response<Body>) {
    let (id, size) =
        (answer.headers().get(REQUEST_ID).cloned(), stated_size(answer.status(), answer.headers()));
    if let Some(id) = id {
        answer.extensions_mut().insert(RequestId(id));
    }
    if let Some(size) = size {
        answer.extensions_mut().insert(ObjectSize(size));
    }
}

/// Makes a response with bytes of an object, and ends the gateway's grant for it.
pub(super) fn object(
    grant: Grant,
    range: Option<ByteRange>,
    object: &GetObject,
    body: Body,
    outcome: Outcome,
    node: &NodeName,
) -> Response<Body> {
    let (status, mut headers) = grant.meta().answer(range, object.wants_checksums);
    let size = ObjectSize(grant.meta().size);
    let id = grant.into_request_id().map_or_else(RequestId::random, RequestId);
    for (name, value) in &object.overrides {
        headers.insert(name, value.clone());
    }
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    set_request_id(&mut answer, id);
    answer.extensions_mut().insert(size);
    answer.extensions_mut().insert(CacheResult { outcome, node: node.clone() });
    let from = if outcome == Outcome::Hit { SentFrom::Local } else { SentFrom::Fill };
    answer.extensions_mut().insert(from);
    answer
}

/// Makes a body that follows a cached file, sent by `sendfile(2)`. Calls `read` with the number of bytes queued, and
/// `meter` with the number sent.
pub(super) fn file_body(
    reader: Reader,
    slices: Slices,
    meter: Option<Meter>,
    read: impl FnMut(u64) + Send + 'static,
) -> Body {
    let state = (reader, slices, meter, read);
    let frames = stream::try_unfold(state, async |(mut reader, slices, meter, mut read)| {
        let Some(piece) = reader.next().await.map_err(BodyError::new)? else { return Ok(None) };
        read(piece.length() as u64);
        let bytes = match (piece, &meter) {
            (Piece::File(slice), meter) => {
                slice.file.warm(slice.offset, slice.length as u64).await;
                match meter {
                    Some(meter) => slices.queue_metered(Slice::File(slice), meter.clone()),
                    None => slices.queue(Slice::File(slice)),
                }
            }
            // Pieces from memory are small: hyper holds a few of them at most.
            (Piece::Memory(bytes), Some(meter)) => {
                meter.sent(bytes.len() as u64);
                bytes
            }
            (Piece::Memory(bytes), None) => bytes,
        };
        Ok(Some((Frame::data(bytes), (reader, slices, meter, read))))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Counts the bytes of a response's body with `meter`.
pub(super) fn metered(answer: Response<Body>, meter: Meter) -> Response<Body> {
    let count = move |frame: Frame<Bytes>| {
        meter.sent(frame.data_ref().map_or(0, |data| data.len() as u64));
        frame
    };
    answer.map(|body| body.map_frame(count).boxed_unsync())
}

/// Makes the response to a node that asks for an object as a whole, although it is in stripes; also to one that asks for
/// a stripe that the object does not have.
pub(super) fn striped(size: u64) -> Response<Body> {
    let mut answer = Response::new(empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer.extensions_mut().insert(StripedSize(size));
    answer
}

/// Returns whether an owner's response is about a stripe of an object of `size` bytes.
pub(super) fn is_of_stripe<B>(answer: &Response<B>, size: u64) -> bool {
    answer.status().is_success()
        && answer.status() != StatusCode::NO_CONTENT
        && StripedSize::of(answer) == Some(StripedSize(size))
}

/// Makes the response to a granted request for a range outside of the object.
pub(super) fn unsatisfiable(meta: &ObjectMeta, resource: &str) -> Response<Body> {
    let mut answer = error(&S3Error::invalid_range(meta.size), resource);
    if let Ok(range) = HeaderValue::from_str(&format!("bytes */{}", meta.size)) {
        answer.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    answer
}

impl From<Reject> for S3Error {
    fn from(reject: Reject) -> Self {
        let mut message = reject.to_string();
        message[..1].make_ascii_uppercase();
        match reject {
            Reject::HeadTooLarge(_) | Reject::TooManyHeaders(_) => Self::head_too_large(message),
            Reject::Connect => Self::method_not_allowed(),
            Reject::HeadMemory | Reject::TooManyConnections => Self::slow_down(message),
            Reject::BareLineFeed
            | Reject::EmptyLines
            | Reject::EarlyEnd
            | Reject::Malformed(_)
            | Reject::Target
            | Reject::Length
            | Reject::DuplicateLength
            | Reject::TransferEncoding
            | Reject::LengthAndTransferEncoding => Self::invalid_request(message),
        }
    }
}

/// Makes the response for an error of LOTA's own.
pub(super) fn error(error: &S3Error, resource: &str) -> Response<Body> {
    let id = RequestId::random();
    let xml = error.to_xml(resource, id.0.to_str().unwrap_or_default());
    let length = xml.len();
    let mut answer = Response::new(full(xml));
    *answer.status_mut() = error.status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if error.status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    set_request_id(&mut answer, id);
    answer
}

/// Makes an owner's response for an error of LOTA's own. It makes the entry node try another node if this one is
/// unavailable.
pub(super) fn owner_error(error_: &S3Error, resource: &str) -> Response<Body> {
    let mut answer = error(error_, resource);
    if error_.status == StatusCode::SERVICE_UNAVAILABLE {
        answer.headers_mut().insert(LOTA_OWNER, HeaderValue::from_static("unavailable"));
    }
    answer
}

/// Returns whether the response is an owner's own error rather than a response of the gateway.
pub(super) fn is_owner_error<B>(answer: &Response<B>) -> bool {
    answer.headers().contains_key(LOTA_OWNER)
}

/// Returns the `Content-Length` of a response, or 0 without one.
pub(super) fn length<B>(answer: &Response<B>) -> u64 {
    let length = answer.headers().get(header::CONTENT_LENGTH);
    length.and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// Returns what the cache did for a response; [`Outcome::Bypass`] unless a [`CacheResult`] says otherwise.
pub(super) fn outcome<B>(answer: &Response<B>) -> Outcome {
    answer.extensions().get().map_or(Outcome::Bypass, |result: &CacheResult| result.outcome)
}

/// Adds the `Lota-Cache` header to a response with a [`CacheResult`], before the response leaves this node.
pub(super) fn write_cache_header<B>(answer: &mut Response<B>) {
    if let Some(value) = answer.extensions().get().and_then(CacheResult::header) {
        answer.headers_mut().insert(LOTA_CACHE, value);
    }
}

/// States the request ID of a response, in its header and for the access log.
fn set_request_id(answer: &mut Response<Body>, id: RequestId) {
    answer.headers_mut().insert(REQUEST_ID, id.0.clone());
    answer.extensions_mut().insert(id);
}

/// Returns the request ID of a response; `None` if the gateway stated none.
pub(super) fn request_id<B>(answer: &Response<B>) -> Option<&str> {
    answer.extensions().get().and_then(|RequestId(id)| id.to_str().ok())
}

/// Returns the size of the object that a response contains, or contains a part of.
pub(super) fn size_of_object<B>(answer: &Response<B>) -> Option<u64> {
    answer.extensions().get().map(|ObjectSize(size)| *size)
}

/// Returns the size of the object that the headers of a response from elsewhere state.
pub(super) fn stated_size(status: StatusCode, headers: &HeaderMap) -> Option<u64> {
    match status {
        StatusCode::OK => headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok(),
        StatusCode::PARTIAL_CONTENT => {
            let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
            ByteRange::parse_content_range(range).map(|(_, size)| size)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_owner(cache: &'static str) -> Response<Body> {
        let mut answer = Response::new(empty());
        answer.headers_mut().insert(LOTA_CACHE, HeaderValue::from_static(cache));
        let mut answer = relay_from_owner(answer);
        assert!(!answer.headers().contains_key(LOTA_CACHE), "written at the end only");
        write_cache_header(&mut answer);
        answer
    }

    #[test]
    fn an_owners_cache_result_is_relayed() {
        for known in Outcome::ALL.iter().copied() {
            let result = CacheResult { outcome: known, node: NodeName("n2".into()) };
            assert_eq!(CacheResult::parse(&result.header().unwrap()), Some(result));
        }
        let answer = from_owner("fill; node=n2.example");
        assert_eq!(outcome(&answer), Outcome::Fill);
        assert_eq!(answer.headers()[LOTA_CACHE], "fill; node=n2.example");
    }

    #[test]
    fn a_response_without_a_cache_result_is_a_bypass() {
        for malformed in ["", "hit", "hits; node=n2", "hit;node=n2"] {
            let answer = from_owner(malformed);
            assert_eq!(outcome(&answer), Outcome::Bypass);
            assert!(!answer.headers().contains_key(LOTA_CACHE), "{malformed}");
        }
    }
}
