//! Decides whether a 304 proves that the stored headers of an object are current.
//!
//! A 304 proves that the headers are current only if it shows that nothing was written since they were learned. `ETag`
//! alone does not: the same bytes may have been written again with other metadata. `Last-Modified` does, to a resolution
//! of a second. A server whose 304 does not state it gets two requests at once, both with `If-None-Match`: "unless
//! modified since the date held" must be 304, and "unless modified since the second before" must be 412 (RFC 9110,
//! section 13.2.2, evaluates the date first). Together they prove that the date is the stored one. Where neither works,
//! the whole object is requested, and the response's own headers are served.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, UNIX_EPOCH},
};

use hyper::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};
use lota_s3::ObjectMeta;
use parking_lot::Mutex;

use crate::http::upstream::UpstreamServer;

const VERSION_ID: HeaderName = HeaderName::from_static("x-amz-version-id");
/// Maximum number of servers whose methods are remembered.
const MAX_SERVERS: usize = 256;
/// Average interval, in requests, at which a remembered method is ignored, in case the server has changed.
const PROBE_INTERVAL: u8 = 64;

/// Result of comparing a 304 with the stored headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotModifiedProof {
    /// The headers are current.
    Current,
    /// The headers are not current, or the 304 cannot prove it.
    Nothing,
    /// The 304 states no `Last-Modified`: a request about the date is needed.
    NoDate,
}

/// Method by which a server's 304 proves that the stored headers are current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProvesBy {
    /// The 304 states `Last-Modified`.
    LastModified,
    /// The server evaluates `If-Unmodified-Since`.
    IfUnmodifiedSince,
    /// No method: a 304 proves nothing.
    Nothing,
}

impl ProvesBy {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::LastModified => "last-modified",
            Self::IfUnmodifiedSince => "if-unmodified-since",
            Self::Nothing => "nothing",
        }
    }
}

/// Returns whether any 304 can prove that the stored headers are current. They must have been learned at least two
/// seconds after the object was written, since a second write within the same second has the same date.
pub(super) fn is_provable(held: &ObjectMeta) -> bool {
    held.is_settled()
}

/// Evaluates a 304 to `If-None-Match` with the stored ETag.
pub(super) fn of_304(held: &ObjectMeta, answer: &HeaderMap) -> NotModifiedProof {
    if !is_provable(held)
        || !held.version.validator.agrees_with_etag(answer)
        || !agrees_on_version(held, answer)
    {
        return NotModifiedProof::Nothing;
    }
    match answer.get(header::LAST_MODIFIED) {
        Some(stated) if held.headers.get(header::LAST_MODIFIED) == Some(stated) => NotModifiedProof::Current,
        Some(_) => NotModifiedProof::Nothing,
        None => NotModifiedProof::NoDate,
    }
}

/// Returns whether the 304 refers to the stored version. A request without a version returns the newest one, and an
/// older version may have the same bytes and date. A named version is immutable.
fn agrees_on_version(held: &ObjectMeta, answer: &HeaderMap) -> bool {
    let (had, stated) = (held.headers.get(VERSION_ID), answer.get(VERSION_ID));
    match stated {
        Some(_) => had == stated,
        None => had.is_none() || held.version.name.version_id.is_some(),
    }
}

/// Returns whether the headers have a version that a 304 must state, because the request named none.
pub(super) fn needs_version(held: &ObjectMeta) -> bool {
    held.headers.contains_key(VERSION_ID) && held.version.name.version_id.is_none()
}

pub(super) fn states_version(answer: &HeaderMap) -> bool {
    answer.contains_key(VERSION_ID)
}

/// Returns the two dates to ask about: that of the stored headers, and the second before.
pub(super) fn dates(held: &ObjectMeta) -> Option<[HeaderValue; 2]> {
    let modified = held.version.validator.modified()?;
    let date = |seconds| {
        let date = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
        HeaderValue::from_str(&httpdate::fmt_http_date(date)).ok()
    };
    Some([date(modified)?, date(modified.checked_sub(1)?)?])
}

/// Returns whether a client's request leaves `If-Unmodified-Since` to LOTA.
pub(super) fn leaves_dates_free(request: &HeaderMap) -> bool {
    !request.contains_key(header::IF_MATCH) && !request.contains_key(header::IF_UNMODIFIED_SINCE)
}

/// Remembers the method of proof of each server, which selects the first question. Each proof still rests on its own
/// responses.
#[derive(Debug, Default)]
pub(super) struct ConditionalSupport {
    servers: Mutex<HashMap<UpstreamServer, ProvesBy>>,
    /// Method of the last response: 0 for none.
    last: AtomicU8,
    /// Whether the last 304 about an object with a version stated it: 0 unknown, 1 yes, 2 no.
    versions: AtomicU8,
}

impl ConditionalSupport {
    pub(super) fn note(&self, front: Option<&UpstreamServer>, proves_by: ProvesBy) {
        let code = match proves_by {
            ProvesBy::LastModified => 1,
            ProvesBy::IfUnmodifiedSince => 2,
            ProvesBy::Nothing => 3,
        };
        self.last.store(code, Ordering::Relaxed);
        let Some(front) = front else { return };
        let mut servers = self.servers.lock();
        if servers.get(front) != Some(&proves_by) {
            if servers.len() >= MAX_SERVERS {
                servers.clear();
            }
            servers.insert(front.clone(), proves_by);
        }
    }

    pub(super) fn note_version(&self, is_stated: bool) {
        self.versions.store(if is_stated { 1 } else { 2 }, Ordering::Relaxed);
    }

    /// Returns the method that the next 304 will probably prove by.
    pub(super) fn expected(&self) -> Option<ProvesBy> {
        match self.last.load(Ordering::Relaxed) {
            1 => Some(ProvesBy::LastModified),
            2 => Some(ProvesBy::IfUnmodifiedSince),
            3 if !is_probe_due() => Some(ProvesBy::Nothing),
            _ => None,
        }
    }

    /// Returns whether the next 304 will probably not state the version.
    pub(super) fn hides_versions(&self) -> bool {
        self.versions.load(Ordering::Relaxed) == 2 && !is_probe_due()
    }

    /// Returns the method of one server, if known.
    pub(super) fn of(&self, front: &UpstreamServer) -> Option<ProvesBy> {
        self.servers.lock().get(front).copied()
    }
}

fn is_probe_due() -> bool {
    rand::random::<u8>().is_multiple_of(PROBE_INTERVAL)
}
