//! Headers of objects: those stored from a request, and those of a response.

use hyper::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES,
    HeaderName, HeaderValue,
};
use hyper::{HeaderMap, StatusCode};
use s3s::{Body, S3Error, S3Response, S3Result};

use super::names::{http_date, query_value};
use super::store::Object;

/// Headers that are stored with an object unchanged, like its user metadata.
const KEPT: [HeaderName; 5] = [CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES];

/// Headers that a signed query may replace with `response-<name>`.
const REPLACEABLE: [&str; 6] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
];

/// Headers that a client stores with an object.
#[derive(Clone, Debug)]
pub(super) struct OwnHeaders(pub(super) HeaderMap);

impl OwnHeaders {
    /// Selects them from the headers of a request.
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

/// Returns all headers of an object except length and range.
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

/// Returns a 304 response.
pub(super) fn not_modified(object: &Object) -> S3Result<S3Response<Body>> {
    let mut headers = validators(object)?;
    if let Some(value) = object.headers.0.get(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, value.clone());
    }
    Ok(response(StatusCode::NOT_MODIFIED, headers, Body::empty()))
}

/// Returns the 307 response of LOTA's gateway protocol.
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

/// Sets a header.
///
/// # Errors
///
/// `InternalError` if the name or the value is invalid.
pub(super) fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> S3Result<()> {
    let name = HeaderName::try_from(name).map_err(S3Error::internal_error)?;
    // `from_str` would refuse UTF-8.
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

/// Removes `aws-chunked`, which describes the transfer and not the object.
fn without_chunking(encoding: &HeaderValue) -> Option<HeaderValue> {
    let text = encoding.to_str().ok()?;
    let all = text.split(',').map(str::trim);
    let kept: Vec<_> = all.filter(|one| !one.is_empty() && *one != "aws-chunked").collect();
    HeaderValue::try_from(kept.join(",")).ok().filter(|kept| !kept.is_empty())
}
