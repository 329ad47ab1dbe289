//! Builds the requests of a verification, which look like the requests of hits.
//!
//! They are signed by LOTA if the gateway knows the backend's credential. Otherwise they are derived from the current
//! client's request, without the parts that only this client sends. Method, path and host are those of the client's
//! request.

use aws_sigv4::http_request::SignableBody;
use hyper::{
    HeaderMap, Method, Request,
    header::{self, HeaderName, HeaderValue},
    http::uri::PathAndQuery,
};
use lota_s3::{
    Origin, SignedBy, invalid_signature::with_target, signature_location::signed_headers, signing::Signer,
};

use super::{
    re_sign::ReSign,
    round::MAX_DRAINED,
    trust::{Form, RangeForm, RequestShape},
};
use crate::http::{RequestHead, empty};

/// Headers that a request keeps even if SigV4 does not sign them: headers that SigV2 signs, and common ones by which
/// a cache may store separate responses (`Vary`).
const KEPT: [HeaderName; 8] = [
    header::HOST,
    header::AUTHORIZATION,
    header::DATE,
    header::CONTENT_TYPE,
    header::USER_AGENT,
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    HeaderName::from_static("content-md5"),
];
/// Headers that control caches. A request that has signed one cannot be used.
const OF_CACHES: [HeaderName; 6] = [
    header::CACHE_CONTROL,
    header::PRAGMA,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
];

/// A request that the gateway should authorize.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) shape: RequestShape,
    pub(super) good: Request<()>,
    /// Whether it is signed with LOTA's own credential.
    pub(super) is_own: bool,
    /// Largest object that is read for it, in bytes.
    pub(super) max_bytes: u64,
}

impl Question {
    /// Returns the same request with a `Range` of this form, or `None` if it has one. No signature covers it: gateways
    /// accept headers that were added after signing.
    pub(super) fn ranged(&self, range: RangeForm) -> Option<Self> {
        let (value, max_bytes) = match (self.shape.range, range) {
            (RangeForm::Whole, RangeForm::Part) => ("bytes=0-0", MAX_DRAINED),
            (RangeForm::Whole, RangeForm::FromStart) => (FROM_START, self.max_bytes),
            _ => return None,
        };
        let mut ranged = Self { max_bytes, ..self.clone() };
        ranged.shape.range = range;
        ranged.good.headers_mut().insert(header::RANGE, HeaderValue::from_static(value));
        Some(ranged)
    }
}

/// Value of a `Range` for the whole object.
const FROM_START: &str = "bytes=0-";

/// Returns the shape of a client's request as a hit, or `None` if it has several signatures.
pub(super) fn shape_of(target: &PathAndQuery, headers: &HeaderMap) -> Option<RequestShape> {
    let has_query = target.query().is_some_and(|query| !query.is_empty());
    let range = match headers.get(header::RANGE) {
        None => RangeForm::Whole,
        Some(range) if range == FROM_START => RangeForm::FromStart,
        Some(_) => RangeForm::Part,
    };
    RequestShape::of(SignedBy::of(target, headers), has_query, range)
}

/// Returns the client's request without unsigned parts that may influence a cache, or `None` if it cannot be used.
pub(super) fn of_client(head: &RequestHead) -> Option<(RequestShape, RequestHead)> {
    shape_of(&head.target, &head.headers).filter(|shape| shape.form != Form::Unsigned)?;
    let signed = signed_headers(&head.target, &head.headers);
    let is_signed = |name: &HeaderName| {
        name.as_str().starts_with("x-amz-")
            || signed.as_ref().is_some_and(|names| names.iter().any(|signed| signed == name.as_str()))
    };
    let mut question = head.clone();
    question.method = Method::GET;
    let unsigned: Vec<HeaderName> =
        head.headers.keys().filter(|name| !KEPT.contains(name) && !is_signed(name)).cloned().collect();
    for name in &unsigned {
        question.headers.remove(name);
    }
    if OF_CACHES.iter().any(|name| question.headers.contains_key(name)) {
        return None;
    }
    let query = head.target.query().unwrap_or_default();
    let name_of = |pair: &str| pair.split('=').next().unwrap_or_default().to_ascii_lowercase();
    if query.split('&').any(|pair| name_of(pair).starts_with("response-")) {
        return None;
    }
    // SigV4 signs the whole query.
    if signed.is_none() && query.split('&').any(|pair| name_of(pair) == "x-id") {
        let rest: Vec<&str> =
            query.split('&').filter(|pair| !pair.is_empty() && name_of(pair) != "x-id").collect();
        let path = head.target.path();
        let target = if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
        question.target = target.parse().ok()?;
    }
    Some((shape_of(&question.target, &question.headers)?, question))
}

/// Returns a request of the same object at the same host, signed with LOTA's own credential.
pub(super) fn own(
    signer: &Signer,
    origin: &Origin,
    re_sign: Option<&ReSign>,
    head: &RequestHead,
    form: Form,
) -> Option<(RequestShape, Request<()>)> {
    let (mut own, origin) = match re_sign {
        Some(re_sign) => {
            let addressed = re_sign.addressed(head).ok()?;
            let origin = re_sign.origin_of(&addressed).ok()?;
            (addressed, origin)
        }
        None => (head.clone(), origin.clone()),
    };
    own.method = Method::GET;
    own.chunked = false;
    own.headers.clear();
    own.headers.insert(header::HOST, HeaderValue::from_str(&own.host).ok()?);
    let mut request = own.request(&origin, empty()).ok()?.map(drop);
    let path = own.target.path();
    let version =
        own.target.query().and_then(|query| query.split('&').find(|pair| pair.starts_with("versionId=")));
    let target = version.map_or_else(|| path.to_owned(), |version| format!("{path}?{version}"));
    with_target(&mut request, &target)?;
    let (body, in_query) = match form {
        Form::Presigned => (SignableBody::UnsignedPayload, true),
        Form::Path | Form::Query | Form::Unsigned => (SignableBody::Bytes(b""), false),
    };
    signer.sign(&mut request, body, in_query).ok()?;
    Some((shape_of(request.uri().path_and_query()?, request.headers())?, request))
}

#[cfg(test)]
#[path = "questions_tests.rs"]
mod tests;
