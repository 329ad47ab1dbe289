//! Decides whether a response may be stored: only if a plain GET by any client would get the same.

use std::fmt;

use hyper::{
    HeaderMap, StatusCode,
    header::{self, HeaderName},
};

use crate::{
    Validator,
    range::{ByteRange, MAX_SIZE},
};

/// Reason why a response is relayed and not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStorable {
    /// The status is neither 200 nor 206.
    Status,
    /// There is no strong `ETag`, or more than one.
    Validator,
    /// The object's size is missing or contradictory.
    Length,
    /// The response contains another range than requested, or several.
    Range,
    /// `Vary` names a header of the request, or everything.
    Vary,
    /// The body is encoded and the request accepts encodings, so it may have been encoded for this client.
    Encoding,
    /// The bytes are not in the response (S3 over RDMA).
    BesideTheAnswer,
}

impl NotStorable {
    /// Every reason, for documentation and tests.
    pub const ALL: [Self; 7] = [
        Self::Status,
        Self::Validator,
        Self::Length,
        Self::Range,
        Self::Vary,
        Self::Encoding,
        Self::BesideTheAnswer,
    ];

    /// Returns the value of the label `reason` of `lota_uncached_total`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "response-status",
            Self::Validator => "response-etag",
            Self::Length => "response-length",
            Self::Range => "response-range",
            Self::Vary => "response-vary",
            Self::Encoding => "response-encoding",
            Self::BesideTheAnswer => "response-rdma",
        }
    }
}

impl fmt::Display for NotStorable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the validator and the size of the whole object from the response to a GET or HEAD with the headers `request`.
///
/// ```
/// use hyper::{
///     HeaderMap, StatusCode,
///     header::{CONTENT_LENGTH, ETAG, ORIGIN, VARY},
/// };
/// use lota_s3::{NotStorable, storable::check_storable};
///
/// let request = HeaderMap::from_iter([(ORIGIN, "https://example.com".parse().unwrap())]);
/// let mut response = HeaderMap::from_iter([
///     (ETAG, "\"5d41402abc4b2a76b9719d911017c592\"".parse().unwrap()),
///     (CONTENT_LENGTH, "5".parse().unwrap()),
/// ]);
/// assert!(check_storable(&request, StatusCode::OK, &response).is_ok());
///
/// response.insert(VARY, "Origin".parse().unwrap());
/// assert_eq!(check_storable(&request, StatusCode::OK, &response), Err(NotStorable::Vary));
/// ```
///
/// # Errors
/// [`NotStorable`] if the response depends on the client or lacks data that a cache needs.
pub fn check_storable(
    request: &HeaderMap,
    status: StatusCode,
    answer: &HeaderMap,
) -> Result<(Validator, u64), NotStorable> {
    if status != StatusCode::OK && status != StatusCode::PARTIAL_CONTENT {
        return Err(NotStorable::Status);
    }
    let validator = check_description(request, answer);
    if let Err(reason @ (NotStorable::BesideTheAnswer | NotStorable::Vary)) = validator {
        return Err(reason);
    }
    if is_encoded(answer) && accepts_encodings(request) {
        return Err(NotStorable::Encoding);
    }
    let size = size(request, status, answer)?;
    Ok((validator?, size))
}

/// Returns the validator from a response without any bytes of the object.
///
/// # Errors
/// [`NotStorable`] if the response depends on the client or lacks data that a cache needs.
pub fn check_description(request: &HeaderMap, answer: &HeaderMap) -> Result<Validator, NotStorable> {
    if answer.keys().any(|name| name.as_str().starts_with("x-amz-rdma-")) {
        return Err(NotStorable::BesideTheAnswer);
    }
    if varies(request, answer) {
        return Err(NotStorable::Vary);
    }
    let validator = match only(answer, &header::ETAG) {
        Ok(Some(_)) => Validator::of(answer),
        _ => None,
    };
    validator.ok_or(NotStorable::Validator)
}

fn size(request: &HeaderMap, status: StatusCode, answer: &HeaderMap) -> Result<u64, NotStorable> {
    let length = only(answer, &header::CONTENT_LENGTH).map_err(|_| NotStorable::Length)?;
    let length = length.map(parse_length).transpose()?;
    let part = only(answer, &header::CONTENT_RANGE).map_err(|_| NotStorable::Range)?;
    let kind = only(answer, &header::CONTENT_TYPE).unwrap_or_default().unwrap_or_default();
    match (status, part) {
        (StatusCode::OK, Some(_)) => Err(NotStorable::Range),
        (StatusCode::OK, None) => length.ok_or(NotStorable::Length),
        (_, None) => Err(NotStorable::Range),
        // A part that was not requested, or several.
        _ if !request.contains_key(header::RANGE) || kind.starts_with("multipart/byteranges") => {
            Err(NotStorable::Range)
        }
        (_, Some(part)) => {
            let (range, size) = ByteRange::parse_content_range(part).ok_or(NotStorable::Length)?;
            if length.is_some_and(|length| length != range.length()) {
                return Err(NotStorable::Length);
            }
            Ok(size)
        }
    }
}

/// Parses `Content-Length`: digits (RFC 9110, section 8.6), at most [`MAX_SIZE`].
fn parse_length(text: &str) -> Result<u64, NotStorable> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let length = text.parse().ok().filter(|length| is_number && *length <= MAX_SIZE);
    length.ok_or(NotStorable::Length)
}

/// Returns the value of a header that may occur once; an error if it is repeated or is not text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| ()),
        (Some(_), Some(_)) => Err(()),
    }
}

/// Returns whether `Vary` names a header of the request, or `*`.
fn varies(request: &HeaderMap, answer: &HeaderMap) -> bool {
    let varies_by = |name: &str| match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if name == header::ACCEPT_ENCODING => accepts_encodings(request),
        Ok(name) => name == "*" || request.contains_key(name),
        Err(_) => true,
    };
    answer.get_all(header::VARY).iter().any(|value| {
        let Ok(names) = value.to_str() else { return true };
        names.split(',').map(str::trim).filter(|name| !name.is_empty()).any(varies_by)
    })
}

fn is_encoded(answer: &HeaderMap) -> bool {
    answer.get_all(header::CONTENT_ENCODING).iter().any(|value| {
        let codings = value.to_str().unwrap_or("unreadable").split(',');
        codings.map(str::trim).any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"))
    })
}

/// Returns whether the request accepts any coding but `identity`.
fn accepts_encodings(request: &HeaderMap) -> bool {
    request.get_all(header::ACCEPT_ENCODING).iter().any(|value| {
        let codings = value.to_str().unwrap_or("unreadable").split(',');
        codings.map(str::trim).filter(|coding| !coding.is_empty()).any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let is_refused = parts.filter_map(|part| part.split_once('=')).any(|(name, weight)| {
                name.trim().eq_ignore_ascii_case("q") && weight.trim().parse() == Ok(0.0)
            });
            !name.eq_ignore_ascii_case("identity") && !is_refused
        })
    })
}

#[cfg(test)]
#[path = "storable_tests.rs"]
mod tests;
