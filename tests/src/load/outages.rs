//! Times at which the clients of a node cannot be served.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::lab::NODES;

/// An outage that has not ended.
const LASTS: u64 = u64::MAX;

/// Per node, the end of its last outage, in milliseconds since the start of the run.
#[derive(Debug)]
pub struct Outages {
    began: Instant,
    ends: [AtomicU64; NODES as usize],
}

impl Outages {
    pub(super) fn new(began: Instant) -> Self {
        Self { began, ends: Default::default() }
    }

    /// Begins an outage of a node, by its position.
    pub fn begin(&self, node: usize) {
        self.ends[node].store(LASTS, Ordering::Relaxed);
    }

    /// Ends an outage of a node.
    pub fn end(&self, node: usize) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(LASTS);
        self.ends[node].store(now, Ordering::Relaxed);
    }

    /// Ends all outages, whatever became of them.
    pub(super) fn end_all(&self) {
        (0..self.ends.len()).for_each(|node| self.end(node));
    }

    /// Returns the time since the end of a node's last outage, or since `instant` if that is later. Zero in an outage.
    pub(super) fn fine_since(&self, node: usize, instant: Instant) -> Duration {
        match self.ends[node].load(Ordering::Relaxed) {
            LASTS => Duration::ZERO,
            end => instant.max(self.began + Duration::from_millis(end)).elapsed(),
        }
    }
}
