//! The `Range` header (RFC 9110, section 14) as S3 has it: one range of bytes.

use std::ops::Range;

/// Which bytes of an object a request wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// All of it: there is no range, or one that is malformed or manifold and so ignored.
    Whole,
    /// These bytes, within the object and at least one.
    Part(Range<u64>),
    /// 416: none of the bytes asked for exist.
    Unsatisfiable,
}

/// Reads a `Range` header for an object of `size` bytes.
pub(super) fn select(header: Option<&str>, size: u64) -> Selection {
    match header.and_then(|header| parse(header, size)) {
        None => Selection::Whole,
        Some(range) if range.is_empty() => Selection::Unsatisfiable,
        Some(range) => Selection::Part(range),
    }
}

/// The bytes up to the end of the object that a header names, maybe none; `None` if it does
/// not name a single range of bytes.
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
    // Only digits, so all that can go wrong is that there are too many of them.
    Some(text.parse().unwrap_or(u64::MAX))
}
