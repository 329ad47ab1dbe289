//! The `Range` header with the semantics of S3 (RFC 9110, section 14).

use std::fmt;

/// Range that a request asks for.
///
/// ```
/// use lota_s3::{ByteRange, RangeRequest, Unsatisfiable};
///
/// let last_five = RangeRequest::parse("bytes=-5");
/// assert_eq!(last_five.resolve(100), Ok(Some(ByteRange { start: 95, end: 100 })));
/// assert_eq!(RangeRequest::parse("bytes=100-").resolve(100), Err(Unsatisfiable));
/// // Servers disagree about lists of ranges: such a request goes to the gateway.
/// assert_eq!(RangeRequest::parse("bytes=0-0,5-9"), RangeRequest::Unusual);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RangeRequest {
    /// No header: the whole object.
    Whole,
    /// `bytes=first-last`, the last byte included.
    FromTo(u64, u64),
    /// `bytes=first-`
    From(u64),
    /// `bytes=-length`
    Last(u64),
    /// Anything but one range in the canonical form. Servers differ in how they parse it, so the gateway answers.
    Unusual,
}

/// Largest size of an object, in bytes: every position fits into a signed 64-bit number, which servers and clients
/// use.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// Existing bytes of an object: `start..end`, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// A range that contains no byte of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsatisfiable;

impl RangeRequest {
    /// Parses a header value. Accepts only the canonical form, which all servers parse alike: `bytes=` in lower case,
    /// then digits without leading zeros that fit into 63 bits. Anything else is [`RangeRequest::Unusual`].
    #[must_use]
    pub fn parse(value: &str) -> Self {
        let range = value.strip_prefix("bytes=").and_then(|set| set.split_once('-'));
        let Some((first, last)) = range else { return Self::Unusual };
        match (position(first), position(last)) {
            (Some(first), Some(last)) if first <= last => Self::FromTo(first, last),
            (Some(first), None) if last.is_empty() => Self::From(first),
            (None, Some(length @ 1..)) if first.is_empty() => Self::Last(length),
            _ => Self::Unusual,
        }
    }

    /// Returns the bytes that this range selects of an object of `size` bytes, at most [`MAX_SIZE`]; `None` for the
    /// whole object.
    ///
    /// # Errors
    /// [`Unsatisfiable`] if it selects none.
    pub fn resolve(self, size: u64) -> Result<Option<ByteRange>, Unsatisfiable> {
        let (start, end) = match self {
            Self::Whole | Self::Unusual => return Ok(None),
            Self::FromTo(first, last) => (first, last.saturating_add(1).min(size)),
            Self::From(first) => (first, size),
            Self::Last(length) => (size.saturating_sub(length), size),
        };
        if start < end { Ok(Some(ByteRange { start, end })) } else { Err(Unsatisfiable) }
    }
}

impl ByteRange {
    /// Returns the number of bytes.
    #[must_use]
    pub fn length(self) -> u64 {
        self.end - self.start
    }

    /// Returns the value of `Content-Range` for an object of `size` bytes.
    #[must_use]
    pub fn content_range(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.start, self.end - 1)
    }

    /// Parses `Content-Range: bytes first-last/size`; returns the range and the object's size.
    #[must_use]
    pub fn parse_content_range(value: &str) -> Option<(Self, u64)> {
        let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (start, last, size) = (number(first)?, number(last)?, number(size)?);
        // `end` is computed only for a valid `last`: `u64::MAX + 1` overflows.
        (start <= last && last < size && size <= MAX_SIZE).then(|| (Self { start, end: last + 1 }, size))
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes={}-{}", self.start, self.end - 1)
    }
}

/// Parses a position in the canonical form: no leading zeros, and within a signed 64-bit number.
fn position(text: &str) -> Option<u64> {
    let is_canonical = text == "0" || !text.starts_with('0');
    number(text).filter(|number| is_canonical && *number <= MAX_SIZE)
}

/// Parses digits. Unlike `u64::from_str`, it allows no sign.
fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
#[path = "range_tests.rs"]
mod tests;
