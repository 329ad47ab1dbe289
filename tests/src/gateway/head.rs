//! The headers of objects: what is kept of a request, and what an answer has.

use hyper::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES,
    HeaderName, HeaderValue,
};
use hyper::{HeaderMap, StatusCode};
use s3s::{Body, S3Error, S3Response, S3Result};

use super::names::{http_date, query_value};
use super::store::Object;

/// Kept with an object as they are, as is its user metadata.
const KEPT: [HeaderName; 5] = [CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES];

/// The headers of an object that a signed query may replace, each by `response-<name>`.
const REPLACEABLE: [&str; 6] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
];

/// The headers that a client stores with an object, as it sent them.
#[derive(Clone, Debug)]
pub(super) struct OwnHeaders(pub(super) HeaderMap);

impl OwnHeaders {
    /// Picks them from the headers of a request.
    pub(super) fn of(request: &HeaderMap) -> OwnHeaders {
        let mut own = HeaderMap::new();
        for (name, value) in request {
            if name == CONTENT_ENCODING {
                own.extend(without_chunking(value).map(|value| (CONTENT_ENCODING, value)));
            } else if KEPT.contains(name) || name.as_str().starts_with("x-amz-meta-") {
                own.append(name, value.clone());
            }
        }
        OwnHeaders(own)
    }
}

/// All headers of an object but those that say how much of it is sent.
pub(super) fn of(object: &Object, query: &str) -> S3Result<HeaderMap> {
    let mut headers = validators(object)?;
    insert(&mut headers, "accept-ranges", "bytes")?;
    insert(&mut headers, "content-type", "binary/octet-stream")?;
    headers.extend(object.headers.0.clone());
    for name in REPLACEABLE {
        if let Some(value) = query_value(query, &format!("response-{name}")) {
            insert(&mut headers, name, &value)?;
        }
    }
    Ok(headers)
}

/// 304.
pub(super) fn not_modified(object: &Object) -> S3Result<S3Response<Body>> {
    let mut headers = validators(object)?;
    if let Some(value) = object.headers.0.get(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, value.clone());
    }
    Ok(response(StatusCode::NOT_MODIFIED, headers, Body::empty()))
}

/// 307, the answer that LOTA's gateway protocol adds.
pub(super) fn redirect(object: &Object, query: &str, location: &str) -> S3Result<S3Response<Body>> {
    let mut headers = of(object, query)?;
    insert(&mut headers, "location", location)?;
    insert(&mut headers, "lota-object-size", &object.size.to_string())?;
    insert(&mut headers, "content-length", "0")?;
    Ok(response(StatusCode::TEMPORARY_REDIRECT, headers, Body::empty()))
}

pub(super) fn response(status: StatusCode, headers: HeaderMap, body: Body) -> S3Response<Body> {
    let mut response = S3Response::with_status(body, status);
    response.headers = headers;
    response
}

/// # Errors
///
/// `InternalError` if the name or the value cannot be in a header.
pub(super) fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> S3Result<()> {
    let name = HeaderName::try_from(name).map_err(S3Error::internal_error)?;
    // Not `from_str`, which refuses UTF-8.
    let value = HeaderValue::from_bytes(value.as_bytes()).map_err(S3Error::internal_error)?;
    headers.insert(name, value);
    Ok(())
}

fn validators(object: &Object) -> S3Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    insert(&mut headers, "etag", &format!("\"{}\"", object.etag))?;
    insert(&mut headers, "last-modified", &http_date(object.modified))?;
    Ok(headers)
}

/// `aws-chunked` tells how a body was sent; it is not the encoding of the object.
fn without_chunking(encoding: &HeaderValue) -> Option<HeaderValue> {
    let text = encoding.to_str().ok()?;
    let all = text.split(',').map(str::trim);
    let kept: Vec<_> = all.filter(|one| !one.is_empty() && *one != "aws-chunked").collect();
    HeaderValue::try_from(kept.join(",")).ok().filter(|kept| !kept.is_empty())
}
