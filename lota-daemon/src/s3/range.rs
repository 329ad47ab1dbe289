//! The `Range` header, as S3 understands it (RFC 9110, section 14).

use std::fmt;

/// What a request asks for by its `Range` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeRequest {
    /// No header, or one that S3 ignores: the whole object.
    Whole,
    /// `bytes=first-last`, the last byte included.
    FromTo(u64, u64),
    /// `bytes=first-`
    From(u64),
    /// `bytes=-length`
    Last(u64),
    /// Several ranges: rare, and servers differ, so the gateway answers.
    Several,
}

/// Bytes of an object that exist: `start..end`, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// A range that has no byte in common with the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsatisfiable;

impl RangeRequest {
    /// Parses a header value. What is malformed is ignored, as RFC 9110 wants it.
    #[must_use]
    pub fn parse(value: &str) -> Self {
        let Some((unit, set)) = value.split_once('=') else { return Self::Whole };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Self::Whole;
        }
        if set.contains(',') {
            return Self::Several;
        }
        let Some((first, last)) = set.trim().split_once('-') else { return Self::Whole };
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Self::FromTo(first, last),
            (Some(first), None) if last.is_empty() => Self::From(first),
            (None, Some(length)) if first.is_empty() => Self::Last(length),
            _ => Self::Whole,
        }
    }

    /// The bytes this names of an object of `size` bytes; `None` for the whole of it.
    ///
    /// # Errors
    /// [`Unsatisfiable`] if it names none.
    pub fn resolve(self, size: u64) -> Result<Option<ByteRange>, Unsatisfiable> {
        let (start, end) = match self {
            Self::Whole | Self::Several => return Ok(None),
            Self::FromTo(first, last) => (first, last.saturating_add(1).min(size)),
            Self::From(first) => (first, size),
            Self::Last(length) => (size.saturating_sub(length), size),
        };
        if start < end { Ok(Some(ByteRange { start, end })) } else { Err(Unsatisfiable) }
    }
}

impl ByteRange {
    /// Bytes in the range.
    #[must_use]
    pub fn length(self) -> u64 {
        self.end - self.start
    }

    /// The value of `Content-Range` for an object of `size` bytes.
    #[must_use]
    pub fn content_range(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.start, self.end - 1)
    }

    /// Parses `Content-Range: bytes first-last/size`; the range and the object's size.
    #[must_use]
    pub fn parse_content_range(value: &str) -> Option<(Self, u64)> {
        let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (start, last, size) = (number(first)?, number(last)?, number(size)?);
        (start <= last && last < size).then_some((Self { start, end: last + 1 }, size))
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes={}-{}", self.start, self.end - 1)
    }
}

/// Digits only: no sign, no space, which `u64::from_str` would partly allow.
fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
#[path = "range_tests.rs"]
mod tests;
