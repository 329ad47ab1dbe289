//! The `Range` header (RFC 9110, section 14) with the semantics of S3: one range of bytes.

use std::ops::Range;

/// Bytes of an object that a request selects.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// The whole object: no range, or one that is ignored because it is malformed or multiple.
    Whole,
    /// A non-empty range within the object.
    Part(Range<u64>),
    /// 416: the range is outside the object.
    Unsatisfiable,
}

/// Parses a `Range` header for an object of `size` bytes.
pub(super) fn select(header: Option<&str>, size: u64) -> Selection {
    match header.and_then(|header| parse(header, size)) {
        None => Selection::Whole,
        Some(range) if range.is_empty() => Selection::Unsatisfiable,
        Some(range) => Selection::Part(range),
    }
}

/// Returns the range of a header, limited to the object and possibly empty; `None` if it is not a single range of
/// bytes.
fn parse(header: &str, size: u64) -> Option<Range<u64>> {
    let (unit, range) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    if first.is_empty() {
        let length = number(last)?;
        return Some(size.saturating_sub(length)..size);
    }
    let first = number(first)?;
    if last.is_empty() {
        return Some(first..size);
    }
    let last = number(last)?;
    (first <= last).then(|| first..last.saturating_add(1).min(size))
}

fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // It consists of digits, so only an overflow can fail.
    Some(text.parse().unwrap_or(u64::MAX))
}
