//! Validators, which distinguish versions of an object.

use hyper::{HeaderMap, header};

/// Validator that distinguishes versions of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Validator {
    /// The ETag, with its quotes, as the gateway sent it.
    pub etag: String,
    /// `Last-Modified` as the gateway sent it. It changes when the same bytes are written again with other metadata.
    pub last_modified: Option<String>,
}

impl Validator {
    /// Returns the validator of a response; `None` for a weak ETag, which does not distinguish contents byte for byte
    /// (RFC 9110, section 8.8.1).
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let etag = text(headers, &header::ETAG)?;
        let strong = etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"');
        let last_modified = text(headers, &header::LAST_MODIFIED);
        strong.then(|| Self { etag: etag.to_owned(), last_modified: last_modified.map(str::to_owned) })
    }

    /// Returns `Last-Modified` in seconds since 1970.
    #[must_use]
    pub fn modified(&self) -> Option<u64> {
        seconds(self.last_modified.as_deref()?)
    }

    /// Returns whether the ETag of a response is this one or missing, since a 304 response need not repeat it.
    #[must_use]
    pub fn agrees_with_etag(&self, headers: &HeaderMap) -> bool {
        headers.get(header::ETAG).is_none_or(|etag| etag.as_bytes() == self.etag.as_bytes())
    }
}

/// Parses an HTTP date; returns seconds since 1970.
pub(super) fn seconds(date: &str) -> Option<u64> {
    let date = httpdate::parse_http_date(date).ok()?;
    Some(date.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs())
}

/// Returns the value of a header; `None` if it is missing or not text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
