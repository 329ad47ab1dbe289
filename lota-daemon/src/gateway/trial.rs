//! A gateway is tried before it is trusted.
//!
//! All rests on "304 means authorized". A cache in front of the gateway breaks that: it answers 304 to anyone.
//! So before the first hit is served, the client's own request is sent twice more: with a broken signature,
//! which must be refused, and with an ETag that no object has, which must not be 304. A 200 needs no trial: by it
//! the gateway hands out these very bytes itself.
//!
//! What passed is one server, known by its address and certificate: another one that answers under the gateway's
//! name is tried for itself.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hyper::{
    Request, StatusCode, Uri,
    header::{self, HeaderValue},
};

use crate::http::upstream::Front;

/// An ETag that no object has.
pub const MADE_UP: &str = "\"lota-trial-no-such-etag\"";
/// Most servers remembered; a gateway that changes its addresses for ever is tried for ever.
const MOST: usize = 256;

/// How far the gateway, or one server of it, is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not tried yet: nothing is served from the cache.
    Untried,
    /// It passed.
    Trusted,
    /// It failed, for this reason: requests are proxied, and nothing is served from the cache.
    Distrusted(String),
}

#[derive(Debug, Default)]
pub(super) struct Trial {
    fronts: Mutex<HashMap<Front, Standing>>,
    pub(super) running: tokio::sync::Mutex<()>,
}

impl Trial {
    /// The gateway's, as a whole: trusted if any of its servers is, distrusted if all that were met failed.
    pub(super) fn standing(&self) -> Standing {
        let fronts = self.fronts();
        let (mut untried, mut failed) = (false, None);
        for standing in fronts.values() {
            match standing {
                Standing::Trusted => return Standing::Trusted,
                Standing::Untried => untried = true,
                Standing::Distrusted(_) => failed = Some(standing.clone()),
            }
        }
        failed.filter(|_| !untried).unwrap_or(Standing::Untried)
    }

    /// Each server's.
    pub(super) fn standings(&self) -> Vec<(Front, Standing)> {
        self.fronts().iter().map(|(front, standing)| (front.clone(), standing.clone())).collect()
    }

    /// One server's, which from now on is known.
    pub(super) fn standing_of(&self, front: &Front) -> Standing {
        let mut fronts = self.fronts();
        if fronts.len() >= MOST && !fronts.contains_key(front) {
            fronts.clear();
        }
        fronts.entry(front.clone()).or_insert(Standing::Untried).clone()
    }

    /// Forgets who failed, since they may have been mended: they will be tried as if never met.
    pub(super) fn again(&self) {
        self.fronts().retain(|_, standing| !matches!(standing, Standing::Distrusted(_)));
    }

    /// Judges by the answers to a broken signature and to an ETag that no object has, and by who gave them.
    pub(super) fn judge(&self, refused: (&Front, StatusCode), changed: (&Front, StatusCode)) {
        let ((refuser, refused), (changer, changed)) = (refused, changed);
        let failure = if refused.is_success() || refused == StatusCode::NOT_MODIFIED {
            Some((refuser, format!("it answered {refused} to a broken signature")))
        } else if changed == StatusCode::NOT_MODIFIED {
            Some((changer, format!("it answered {changed} to an ETag that no object has")))
        } else {
            None
        };
        if let Some((front, failure)) = failure {
            let address = front.address;
            tracing::error!(
                gateway = %address,
                "the gateway failed its trial: {failure}. Is there a cache in front of it? Requests are proxied, and \
                 nothing is served from the cache"
            );
            self.fronts().insert(front.clone(), Standing::Distrusted(failure));
        } else if matches!(refused.as_u16(), 400 | 401 | 403) && changed.is_success() && refuser == changer {
            tracing::info!(gateway = %refuser.address, "the gateway passed its trial: hits will be served");
            self.fronts().insert(refuser.clone(), Standing::Trusted);
        }
        // Else the object has changed meanwhile, the range lies outside it, the gateway has troubles of its own, or
        // two servers have answered: this proves nothing. Another request will.
    }

    fn fronts(&self) -> MutexGuard<'_, HashMap<Front, Standing>> {
        self.fronts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Changes one digit of a request's signature; `false` if it has none.
pub(super) fn break_signature<B>(request: &mut Request<B>) -> bool {
    let broken = match request.headers().get(header::AUTHORIZATION) {
        Some(authorization) => broken_authorization(authorization)
            .map(|broken| drop(request.headers_mut().insert(header::AUTHORIZATION, broken))),
        None => broken_uri(request.uri()).map(|broken| *request.uri_mut() = broken),
    };
    broken.is_some()
}

fn broken_authorization(authorization: &HeaderValue) -> Option<HeaderValue> {
    let text = authorization.to_str().ok()?;
    // Of another scheme, it may be nothing to the gateway, and the request anonymous.
    if !text.starts_with("AWS4-HMAC-SHA256 ") && !text.starts_with("AWS ") {
        return None;
    }
    let value = text.find("Signature=").map_or(0, |at| at + "Signature=".len());
    let end = text[value..].find(',').map_or(text.len(), |length| value + length);
    change_before(text, end)?.parse().ok()
}

fn broken_uri(uri: &Uri) -> Option<Uri> {
    let uri = uri.to_string();
    let query = uri.find('?')?;
    let lower = uri.to_ascii_lowercase();
    let value = ["x-amz-signature=", "&signature=", "?signature="]
        .into_iter()
        .find_map(|name| lower[query..].find(name).map(|at| query + at + name.len()))?;
    let end = uri[value..].find('&').map_or(uri.len(), |length| value + length);
    // SigV2 ends in base64 padding, written `%3D`: change what comes before it.
    let digits = uri[value..end].trim_end_matches("%3D").trim_end_matches('=').len();
    change_before(&uri, value + digits)?.parse().ok()
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
