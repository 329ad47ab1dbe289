//! Detects servers that send a body where HTTP allows none: after the head of a `304`, or of the response to a `HEAD`.
//!
//! Bytes after such a head would be parsed as the beginning of the next response, which may be another client's. A
//! connection is therefore reused after a response without a body only if its server is known to send nothing more:
//! the first such connections, and samples of later ones, are observed for a while instead. Once a server has sent more,
//! no connection to it is reused after such a response.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use hyper::{Method, StatusCode};
use parking_lot::{Mutex, MutexGuard};

use super::upstream::UpstreamServer;

/// Number of responses of each kind without further bytes after which a server is clean.
const CLEAN_RESPONSES: u32 = 16;
/// One in this many responses of clean servers is observed.
const SAMPLE_INTERVAL: u64 = 1024;
/// Maximum number of servers in memory. Beyond it, all are removed and observed again.
const MAX_SERVERS: usize = 256;

/// Kind of a response that has no body, whatever its headers state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bodyless {
    /// Response to a `HEAD`.
    Head,
    /// Response with status `304` or `204`.
    Status,
}

impl Bodyless {
    /// Returns the kind of a response; `None` if it has a body.
    pub(super) fn of(method: &Method, status: StatusCode) -> Option<Self> {
        match status {
            StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT => Some(Self::Status),
            _ if *method == Method::HEAD => Some(Self::Head),
            _ => None,
        }
    }
}

/// Observations of each server.
#[derive(Clone, Debug, Default)]
pub(super) struct StrayBytes(Arc<StrayState>);

#[derive(Debug, Default)]
struct StrayState {
    /// Whether all known servers are clean.
    all_clean: AtomicBool,
    requests: AtomicU64,
    servers: Mutex<HashMap<UpstreamServer, StrayCounts>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct StrayCounts {
    clean_heads: u32,
    clean_statuses: u32,
    /// The server has sent bytes where none are allowed.
    stray: bool,
}

impl StrayCounts {
    fn is_clean(self, kind: Bodyless) -> bool {
        let clean = match kind {
            Bodyless::Head => self.clean_heads,
            Bodyless::Status => self.clean_statuses,
        };
        !self.stray && clean >= CLEAN_RESPONSES
    }
}

impl StrayBytes {
    /// Records a connection to this server.
    pub(super) fn meet(&self, server: &UpstreamServer) {
        let mut servers = self.servers();
        if servers.len() >= MAX_SERVERS && !servers.contains_key(server) {
            servers.clear();
        }
        servers.entry(server.clone()).or_default();
        self.update(&servers);
    }

    /// Returns whether the next response may have to be observed. Cheap once all servers are clean.
    pub(super) fn is_watching(&self) -> bool {
        let is_sample = self.0.requests.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE_INTERVAL);
        is_sample || !self.0.all_clean.load(Ordering::Relaxed)
    }

    /// Returns whether the connection of a response without a body must be observed instead of reused. Called only if
    /// [`StrayBytes::is_watching`] was true; for a clean server, these are the samples.
    pub(super) fn is_to_watch(&self, server: &UpstreamServer, kind: Bodyless) -> bool {
        let servers = self.servers();
        let is_clean = servers.get(server).is_some_and(|seen| seen.is_clean(kind));
        !is_clean || self.0.all_clean.load(Ordering::Relaxed)
    }

    /// Records that no bytes followed such a response of this server.
    pub(super) fn clean(&self, server: &UpstreamServer, kind: Bodyless) {
        let mut servers = self.servers();
        let seen = servers.entry(server.clone()).or_default();
        let clean = match kind {
            Bodyless::Head => &mut seen.clean_heads,
            Bodyless::Status => &mut seen.clean_statuses,
        };
        *clean = clean.saturating_add(1);
        self.update(&servers);
    }

    /// Records that bytes followed such a response, or arrived before a request was sent.
    pub(super) fn stray(&self, server: &UpstreamServer) {
        let mut servers = self.servers();
        let seen = servers.entry(server.clone()).or_default();
        if !std::mem::replace(&mut seen.stray, true) {
            tracing::warn!(
                server = %server.address,
                "the server sends bytes that belong to no response, perhaps after a 304 or the response to a HEAD; its \
                 connections are not used again after such responses"
            );
        }
        self.update(&servers);
    }

    fn update(&self, servers: &HashMap<UpstreamServer, StrayCounts>) {
        let is_clean = |seen: &StrayCounts| seen.is_clean(Bodyless::Head) && seen.is_clean(Bodyless::Status);
        self.0.all_clean.store(servers.values().all(is_clean), Ordering::Relaxed);
    }

    fn servers(&self) -> MutexGuard<'_, HashMap<UpstreamServer, StrayCounts>> {
        self.0.servers.lock()
    }
}

#[cfg(test)]
#[path = "stray_tests.rs"]
mod tests;
