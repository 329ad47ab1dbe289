//! A gateway is tried before it is trusted.
//!
//! All rests on "304 means authorized". A cache in front of the gateway breaks that: it answers 304 to anyone.
//! So before the first hit is served, the client's own request is sent twice more: with a broken signature,
//! which must be refused, and with an ETag that no object has, which must not be 304. A 200 needs no trial: by it
//! the gateway hands out these very bytes itself.

use std::sync::atomic::{AtomicU8, Ordering};

use hyper::{StatusCode, header, http::uri::PathAndQuery};
use tokio::sync::MutexGuard;

use crate::http::Head;

/// An ETag that no object has.
pub(super) const MADE_UP: &str = "\"lota-trial-no-such-etag\"";

/// How far the gateway is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not tried yet: nothing is served from the cache.
    Untried,
    /// It passed.
    Trusted,
    /// It failed: requests are proxied, and nothing is served from the cache.
    Distrusted,
}

#[derive(Debug, Default)]
pub(super) struct Trial {
    standing: AtomicU8,
    running: tokio::sync::Mutex<()>,
}

impl Trial {
    pub(super) fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Acquire) {
            0 => Standing::Untried,
            1 => Standing::Trusted,
            _ => Standing::Distrusted,
        }
    }

    /// Begins the trial, unless it has been held; one at a time.
    pub(super) async fn begin(&self) -> Option<Running<'_>> {
        if self.standing() != Standing::Untried {
            return None;
        }
        let one = self.running.lock().await;
        (self.standing() == Standing::Untried).then_some(Running { trial: self, _one: one })
    }
}

/// A trial being held.
pub(super) struct Running<'a> {
    trial: &'a Trial,
    _one: MutexGuard<'a, ()>,
}

impl Running<'_> {
    /// Judges by the answers to a broken signature and to an ETag that no object has; is a 304 to be trusted?
    pub(super) fn judge(self, refused: StatusCode, changed: StatusCode) -> bool {
        let failure = if refused.is_success() || refused == StatusCode::NOT_MODIFIED {
            format!("it answered {refused} to a broken signature")
        } else if changed == StatusCode::NOT_MODIFIED {
            format!("it answered {changed} to an ETag that no object has")
        } else if matches!(refused.as_u16(), 400 | 401 | 403) && changed.is_success() {
            tracing::info!("the gateway passed its trial: hits will be served from the cache");
            self.trial.standing.store(1, Ordering::Release);
            return true;
        } else {
            // The object has changed meanwhile, the range lies outside it, the gateway has troubles of its own:
            // this proves nothing. Another request will.
            return false;
        };
        tracing::error!(
            "the gateway failed its trial: {failure}. Is there a cache in front of it? Requests are proxied, and \
             nothing is served from the cache"
        );
        self.trial.standing.store(2, Ordering::Release);
        false
    }
}

/// The same request with one digit of its signature changed; `None` if it has none.
pub(super) fn break_signature(head: &Head) -> Option<Head> {
    let mut broken = head.clone();
    if let Some(authorization) = head.headers.get(header::AUTHORIZATION) {
        let text = authorization.to_str().ok()?;
        // Of another scheme, it may be nothing to the gateway, and the request anonymous.
        if !text.starts_with("AWS4-HMAC-SHA256 ") && !text.starts_with("AWS ") {
            return None;
        }
        let value = text.find("Signature=").map_or(0, |at| at + "Signature=".len());
        let end = text[value..].find(',').map_or(text.len(), |length| value + length);
        broken.headers.insert(header::AUTHORIZATION, change_before(text, end)?.parse().ok()?);
        return Some(broken);
    }
    let target = head.target.as_str();
    let query = target.find('?')?;
    let lower = target.to_ascii_lowercase();
    let value = ["x-amz-signature=", "&signature=", "?signature="]
        .into_iter()
        .find_map(|name| lower[query..].find(name).map(|at| query + at + name.len()))?;
    let end = target[value..].find('&').map_or(target.len(), |length| value + length);
    // SigV2 ends in base64 padding, written `%3D`: change what comes before it.
    let digits = target[value..end].trim_end_matches("%3D").trim_end_matches('=').len();
    broken.target = change_before(target, value + digits)?.parse::<PathAndQuery>().ok()?;
    Some(broken)
}

/// Changes the character before `end` into another that is a digit in hex and in base64.
fn change_before(text: &str, end: usize) -> Option<String> {
    let last = text.get(..end)?.chars().next_back()?;
    let at = end - last.len_utf8();
    let other = if last == '0' { '1' } else { '0' };
    Some(format!("{}{other}{}", &text[..at], &text[end..]))
}

#[cfg(test)]
#[path = "trial_tests.rs"]
mod tests;
