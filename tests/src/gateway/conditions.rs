//! Conditional requests (RFC 9110, section 13) with the semantics of S3.

use std::time::SystemTime;

use hyper::HeaderMap;
use hyper::header::{HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
use s3s::dto::{CopyObjectInput, ETagCondition, Timestamp, TimestampFormat};
use s3s::{S3Result, s3_error};

use super::store::Object;

/// Result of the conditions of a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Respond as if there were no conditions.
    Proceed,
    /// 304: the client's copy is current.
    NotModified,
    /// 412: the client requires another version.
    Failed,
}

/// Evaluates the conditions of a read of the version with `etag` (without quotes) and this modification time.
///
/// `If-Match` overrules `If-Unmodified-Since`, and `If-None-Match` overrules
/// `If-Modified-Since`. A date that is not in HTTP's preferred format counts as absent.
pub(super) fn evaluate(headers: &HeaderMap, etag: &str, modified: SystemTime) -> Verdict {
    let holds = match tags_match(headers, &IF_MATCH, etag, Comparison::Strong) {
        Some(matches) => matches,
        None => date(headers, &IF_UNMODIFIED_SINCE).is_none_or(|date| modified_by(modified, &date)),
    };
    if !holds {
        return Verdict::Failed;
    }
    let unchanged = match tags_match(headers, &IF_NONE_MATCH, etag, Comparison::Weak) {
        Some(matches) => matches,
        None => date(headers, &IF_MODIFIED_SINCE).is_some_and(|date| modified_by(modified, &date)),
    };
    if unchanged {
        return Verdict::NotModified;
    }
    Verdict::Proceed
}

/// Returns whether `Range` applies: not if `If-Range` names another version.
pub(super) fn range_applies(headers: &HeaderMap, etag: &str, modified: SystemTime) -> bool {
    if !headers.contains_key(IF_RANGE) {
        return true;
    }
    match date(headers, &IF_RANGE) {
        Some(date) => date == Timestamp::from(modified),
        None => tags_match(headers, &IF_RANGE, etag, Comparison::Strong) == Some(true),
    }
}

/// Evaluates the conditions of a write; `current` is the existing object.
///
/// # Errors
///
/// `PreconditionFailed` if a condition does not hold; `NoSuchKey` if `If-Match` finds no object.
pub(super) fn check_write(
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
    current: Option<&Object>,
) -> S3Result<()> {
    if let Some(condition) = if_match {
        let current = current.ok_or_else(|| s3_error!(NoSuchKey))?;
        if !names(condition, current) {
            return Err(failed());
        }
    }
    match (if_none_match, current) {
        (Some(condition), Some(current)) if names(condition, current) => Err(failed()),
        _ => Ok(()),
    }
}

/// Evaluates the conditions of a copy on its source.
///
/// # Errors
///
/// `PreconditionFailed` if one does not hold.
pub(super) fn check_copy(input: &CopyObjectInput, source: &Object) -> S3Result<()> {
    let if_match = input.copy_source_if_match.as_ref();
    let unmodified_since = input.copy_source_if_unmodified_since.as_ref();
    let if_none_match = input.copy_source_if_none_match.as_ref();
    let modified_since = input.copy_source_if_modified_since.as_ref();
    let holds = match if_match {
        Some(condition) => names(condition, source),
        None => unmodified_since.is_none_or(|date| modified_by(source.modified, date)),
    };
    let unchanged = match if_none_match {
        Some(condition) => names(condition, source),
        None => modified_since.is_some_and(|date| modified_by(source.modified, date)),
    };
    if holds && !unchanged { Ok(()) } else { Err(failed()) }
}

/// Returns the error of a condition that does not hold.
pub(super) fn failed() -> s3s::S3Error {
    s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Returns whether one of the tags in the header `name` is `etag`; `None` without the header.
fn tags_match(headers: &HeaderMap, name: &HeaderName, etag: &str, comparison: Comparison) -> Option<bool> {
    if !headers.contains_key(name) {
        return None;
    }
    let lines = headers.get_all(name).iter();
    let mut tags =
        lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).map(str::trim);
    Some(tags.any(|tag| tag == "*" || tag_is(tag, etag, comparison)))
}

fn tag_is(tag: &str, etag: &str, comparison: Comparison) -> bool {
    let (weak, opaque) = match tag.strip_prefix("W/") {
        Some(opaque) => (true, opaque),
        None => (false, tag),
    };
    // S3 also accepts a tag without quotes.
    let unquoted = opaque.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
    unquoted.unwrap_or(opaque) == etag && !(weak && comparison == Comparison::Strong)
}

fn names(condition: &ETagCondition, object: &Object) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(tag) => tag.value() == object.etag,
    }
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<Timestamp> {
    let text = headers.get(name)?.to_str().ok()?;
    Timestamp::parse(TimestampFormat::HttpDate, text).ok()
}

fn modified_by(modified: SystemTime, date: &Timestamp) -> bool {
    Timestamp::from(modified) <= *date
}
