//! Verifies a gateway before it is trusted, and periodically afterwards.
//!
//! Hits rely on "304 means authorized". A cache in front of the gateway breaks that: it answers 304 to anyone. Each
//! server that answers as the gateway therefore gets the requests that hits will send, and the same ones with a
//! broken signature (which must be refused) and with a made-up ETag (which must not return 304): see
//! [`round`](super::round). A 200 needs no verification, since the gateway itself sends the bytes.
//!
//! A server is identified by its address and certificate: another server under the gateway's name is verified
//! separately. [`TrustState`] holds the state of a server; [`questions`](super::questions) builds the requests.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    round::MAX_PRIMED_AGAIN,
    trust::{NextRound, RangeForm, RequestShape, RoundResult, TrustState},
};
use crate::http::upstream::UpstreamServer;
use parking_lot::{Mutex, MutexGuard};

/// An ETag that no object has.
pub const MADE_UP: &str = "\"lota-verification-no-such-etag\"";
/// Maximum number of remembered servers. Beyond it, all are forgotten and verified again.
const MAX_SERVERS: usize = 256;
/// Maximum number of remembered access keys whose requests were inconclusive.
const MAX_ACCESS_KEYS: usize = 1024;
/// Duration for which such an access key is skipped, so that one client cannot prevent the verification of a server.
const SKIP_TIME: Duration = Duration::from_secs(10);
/// Maximum time that a trusted server waits for a hit of a small object once a round is due. Large responses are
/// expensive, since they are cut off only when the socket buffers are full.
const SMALL_OBJECT_WAIT: Duration = Duration::from_secs(60);
/// Duration for which LOTA's own credential is not used after the gateway refused it.
const OWN_REFUSED_TTL: Duration = Duration::from_secs(600);

/// Trust in the gateway, or in one server of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayTrust {
    /// Not verified yet: nothing is served from the cache.
    Unverified,
    /// It passed verification.
    Trusted,
    /// It failed for this reason: requests are proxied, and nothing is served from the cache.
    Distrusted(String),
}

/// All servers that have answered as the gateway.
#[derive(Debug, Default)]
pub(super) struct Verification {
    inner: Mutex<VerificationTable>,
}

#[derive(Debug, Default)]
struct VerificationTable {
    servers: HashMap<UpstreamServer, ServerRecord>,
    /// When the requests of an access key are used again.
    skipped: HashMap<String, Instant>,
    own_refused_until: Option<Instant>,
}

#[derive(Debug, Default)]
struct ServerRecord {
    state: TrustState,
    /// Whether rounds are in progress; only one client's at a time.
    is_running: bool,
}

/// Exclusive right to verify one server.
#[derive(Debug)]
pub(super) struct Running {
    verification: Arc<Verification>,
    pub(super) front: UpstreamServer,
    access_key: String,
}

impl Verification {
    /// Returns the trust in the gateway as a whole: trusted if any server is, distrusted if all known servers failed.
    pub(super) fn trust(&self) -> GatewayTrust {
        let inner = self.lock();
        let (mut unverified, mut failed) = (false, None);
        for server in inner.servers.values() {
            match trust(&server.state) {
                GatewayTrust::Trusted => return GatewayTrust::Trusted,
                GatewayTrust::Unverified => unverified = true,
                trust @ GatewayTrust::Distrusted(_) => failed = Some(trust),
            }
        }
        failed.filter(|_| !unverified).unwrap_or(GatewayTrust::Unverified)
    }

    /// Returns the trust in each server, and why its last round was inconclusive, if it was.
    pub(super) fn trust_by_server(&self) -> Vec<(UpstreamServer, GatewayTrust, Option<&'static str>)> {
        let inner = self.lock();
        let servers = inner.servers.iter();
        let servers = servers
            .map(|(front, server)| (front.clone(), trust(&server.state), server.state.last_inconclusive()));
        servers.collect()
    }

    /// Remembers a server that has answered.
    pub(super) fn meet(&self, front: &UpstreamServer) {
        self.lock().server(front);
    }

    /// Returns whether a 304 of this server may serve a hit of this shape.
    pub(super) fn trusts(&self, front: &UpstreamServer, hit: RequestShape) -> bool {
        self.lock().servers.get(front).is_some_and(|server| server.state.trusts(hit))
    }

    /// Returns whether a round of this shape is due.
    pub(super) fn is_due(&self, front: &UpstreamServer, shape: RequestShape, now: Instant) -> bool {
        self.lock().servers.get(front).is_none_or(|server| server.state.is_due(shape, now))
    }

    /// Returns whether a round is due, for a hit of this shape and of an object of so many bytes.
    pub(super) fn is_due_at(
        &self,
        front: &UpstreamServer,
        hit: RequestShape,
        size: u64,
        now: Instant,
    ) -> bool {
        let waits = size > MAX_PRIMED_AGAIN && self.trusts(front, hit);
        let due_by = if waits { now.checked_sub(SMALL_OBJECT_WAIT).unwrap_or(now) } else { now };
        self.is_due(front, hit, due_by)
    }

    /// Returns the right to verify a server if a round of this shape is due, no other is in progress, and this client
    /// is not skipped.
    pub(super) fn begin(
        self: &Arc<Self>,
        front: &UpstreamServer,
        shape: RequestShape,
        access_key: &str,
        now: Instant,
    ) -> Option<Running> {
        let mut inner = self.lock();
        if inner.skipped.get(access_key).is_some_and(|until| *until > now) {
            return None;
        }
        let server = inner.server(front);
        if server.is_running || !server.state.is_due(shape, now) {
            return None;
        }
        server.is_running = true;
        Some(Running { verification: self.clone(), front: front.clone(), access_key: access_key.to_owned() })
    }

    /// Returns a distrusted server whose next round is due.
    pub(super) fn retry(&self, shape: RequestShape, now: Instant) -> Option<UpstreamServer> {
        let inner = self.lock();
        let due = |server: &ServerRecord| {
            server.state.distrusted().is_some() && !server.is_running && server.state.is_due(shape, now)
        };
        inner.servers.iter().find(|(_, server)| due(server)).map(|(front, _)| front.clone())
    }

    /// Returns the form of the requests by which this server failed, unless it has passed since.
    pub(super) fn contrary_range(&self, front: &UpstreamServer) -> Option<RangeForm> {
        self.lock().servers.get(front)?.state.contrary_range()
    }

    /// Updates the state with the result of a round.
    pub(super) fn record_round(
        &self,
        front: &UpstreamServer,
        shape: RequestShape,
        result: RoundResult,
        now: Instant,
    ) -> NextRound {
        let mut inner = self.lock();
        let state = &mut inner.server(front).state;
        let before = trust(state);
        tracing::debug!(gateway = %front.address, ?shape, ?result, "verification round ended");
        if let (RoundResult::Contrary(why), GatewayTrust::Trusted) = (&result, &before) {
            tracing::warn!(gateway = %front.address, "trusted gateway gave a contrary answer, verifying again: {why}");
        }
        let next = state.record_round(shape, result, now, rand::random_range(0.0..1.0));
        match trust(state) {
            after if after == before => {}
            GatewayTrust::Distrusted(why) => tracing::error!(
                gateway = %front.address,
                "the gateway failed verification: {why}. Requests are proxied and nothing is served from the cache; name the \
                 gateway itself as gateway.endpoint, not a cache in front of it"
            ),
            GatewayTrust::Trusted => {
                tracing::info!(gateway = %front.address, "the gateway passed verification: serving hits");
            }
            GatewayTrust::Unverified => {}
        }
        next
    }

    /// Returns whether LOTA's own credential may be known to the gateway.
    pub(super) fn may_use_own(&self, now: Instant) -> bool {
        self.lock().own_refused_until.is_none_or(|until| until <= now)
    }

    /// Remembers that the gateway has refused LOTA's own credential.
    pub(super) fn own_is_refused(&self, now: Instant) {
        self.lock().own_refused_until = Some(now + OWN_REFUSED_TTL);
    }

    /// Forgets that the gateway has refused LOTA's own credential, which was replaced.
    pub(super) fn own_is_replaced(&self) {
        self.lock().own_refused_until = None;
    }

    /// Forgets distrusted servers, which may have been repaired; they are verified as if new.
    pub(super) fn again(&self) {
        let mut inner = self.lock();
        inner.servers.retain(|_, server| server.state.is_trusted());
        inner.own_refused_until = None;
        inner.skipped.clear();
    }

    /// Makes every round due and skips no client.
    #[cfg(test)]
    pub(super) fn forget_pauses(&self) {
        self.forget_due();
        self.lock().skipped.clear();
    }

    /// Makes every round due.
    #[cfg(test)]
    pub(super) fn forget_due(&self) {
        self.lock().servers.values_mut().for_each(|server| server.state.forget_due());
    }

    fn lock(&self) -> MutexGuard<'_, VerificationTable> {
        self.inner.lock()
    }
}

impl VerificationTable {
    fn server(&mut self, front: &UpstreamServer) -> &mut ServerRecord {
        if self.servers.len() >= MAX_SERVERS && !self.servers.contains_key(front) {
            self.servers.clear();
        }
        self.servers.entry(front.clone()).or_default()
    }
}

impl Running {
    /// Skips this client's requests for a while, since others may be more useful.
    pub(super) fn skip(&self, now: Instant) {
        let mut inner = self.verification.lock();
        if inner.skipped.len() >= MAX_ACCESS_KEYS {
            inner.skipped.clear();
        }
        inner.skipped.insert(self.access_key.clone(), now + SKIP_TIME);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(server) = self.verification.lock().servers.get_mut(&self.front) {
            server.is_running = false;
        }
    }
}

fn trust(state: &TrustState) -> GatewayTrust {
    match state.distrusted() {
        Some(why) => GatewayTrust::Distrusted(why.to_owned()),
        None if state.is_trusted() => GatewayTrust::Trusted,
        None => GatewayTrust::Unverified,
    }
}

#[cfg(test)]
#[path = "verification_tests.rs"]
mod tests;
