//! Bounds the bytes that fills fetch for a pod in excess of what the pod reads.
//!
//! A request for one byte can make a fill fetch a whole object, and so can a GET of the whole object that the client
//! aborts after its first byte. A fill therefore reserves the whole object of the quota of the pod that starts it. Bytes
//! that are written to a client's socket are refunded; bytes that the fill did not fetch are, too. The rest is excess,
//! which expires with time.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::http::Meter;
use parking_lot::{Mutex, MutexGuard};

/// Time in which an excess as large as the limit expires.
const EXCESS_TTL: Duration = Duration::from_secs(3600);

/// Quota of each pod, and the usage of those that use any.
#[derive(Debug)]
pub struct FillQuota {
    /// Maximum excess of a pod in bytes. Excess and responses in progress together may have twice as many.
    limit: u64,
    usage: Mutex<HashMap<IpAddr, PodUsage>>,
}

/// Bytes that the fills of one pod have fetched or will fetch.
#[derive(Clone, Copy, Debug)]
struct PodUsage {
    /// Not requested, or not sent to the client.
    excess: u64,
    /// Belong to a response in progress, and are not sent yet.
    reserved: u64,
    /// Time at which excess expired last.
    since: Instant,
}

/// One fill's share of its pod's usage, which the fill and the response that started it have in common.
#[derive(Debug)]
struct QuotaReservation {
    fill_quota: Arc<FillQuota>,
    pod: IpAddr,
    state: Mutex<QuotaReservationState>,
}

#[derive(Debug)]
struct QuotaReservationState {
    /// Bytes that this reservation has added to the pod's excess.
    excess: u64,
    /// Bytes of the response that are not sent yet.
    reserved: u64,
    /// Bytes that the fill did not fetch, and that are not refunded yet because the response still reserves them.
    pending_refund: u64,
}

/// The fill's half of a reservation. Refunds the bytes that the fill did not fetch when it is dropped.
#[derive(Debug)]
pub struct FillReservation {
    reservation: Arc<QuotaReservation>,
    /// Bytes that have not been fetched.
    missing: u64,
}

/// The response's half of a reservation. Turns the bytes that were not sent into excess when it is dropped.
#[derive(Debug)]
pub struct ResponseReservation(Arc<QuotaReservation>);

impl FillReservation {
    /// Notes how many bytes the fill has fetched.
    pub fn fetched(&mut self, bytes: u64) {
        self.missing = self.missing.saturating_sub(bytes);
    }
}

impl Drop for FillReservation {
    fn drop(&mut self) {
        let mut state = lock(&self.reservation.state);
        let now = self.missing.min(state.excess);
        state.excess -= now;
        state.pending_refund += self.missing - now;
        self.reservation.fill_quota.refund(self.reservation.pod, now);
    }
}

impl ResponseReservation {
    /// Returns the meter that counts bytes sent to the client.
    #[must_use]
    pub fn meter(self) -> Meter {
        Meter::new(move |bytes| self.sent(bytes))
    }

    fn sent(&self, bytes: u64) {
        let mut state = lock(&self.0.state);
        let sent = bytes.min(state.reserved);
        state.reserved -= sent;
        self.0.fill_quota.update(self.0.pod, |usage| usage.reserved = usage.reserved.saturating_sub(sent));
    }
}

impl Drop for ResponseReservation {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        let unsent = std::mem::take(&mut state.reserved);
        let excess = unsent.saturating_sub(state.pending_refund);
        state.pending_refund -= unsent - excess;
        state.excess += excess;
        self.0.fill_quota.release(self.0.pod, unsent, excess, Instant::now());
    }
}

impl FillQuota {
    /// Makes a quota of `limit` bytes for each pod. A pod without excess may have one object of any size.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, usage: Mutex::default() }
    }

    /// Reserves a fill of `size` bytes in a pod's quota. The pod's response needs `requested` of them, and no longer needs
    /// `received`, which the client has from elsewhere. Returns `None` if the quota does not suffice.
    #[must_use]
    pub fn reserve(
        self: &Arc<Self>,
        pod: IpAddr,
        size: u64,
        requested: u64,
        received: u64,
    ) -> Option<(FillReservation, ResponseReservation)> {
        self.reserve_at(pod, size, requested, received, Instant::now())
    }

    fn reserve_at(
        self: &Arc<Self>,
        pod: IpAddr,
        size: u64,
        requested: u64,
        received: u64,
        now: Instant,
    ) -> Option<(FillReservation, ResponseReservation)> {
        let mut all = lock(&self.usage);
        all.retain(|_, usage| {
            usage.expire(self.limit, now);
            usage.excess > 0 || usage.reserved > 0
        });
        let new = PodUsage { excess: 0, reserved: 0, since: now };
        if !all.get(&pod).unwrap_or(&new).allows(size, self.limit) {
            return None;
        }
        let requested = requested.min(size);
        let not_requested = (size - requested).saturating_sub(received);
        let usage = all.entry(pod).or_insert(new);
        usage.consume(not_requested, now);
        usage.reserved = usage.reserved.saturating_add(requested);
        drop(all);
        let state = Mutex::new(QuotaReservationState {
            excess: not_requested,
            reserved: requested,
            pending_refund: 0,
        });
        let reservation = Arc::new(QuotaReservation { fill_quota: self.clone(), pod, state });
        let fill = FillReservation { reservation: reservation.clone(), missing: size };
        Some((fill, ResponseReservation(reservation)))
    }

    /// Returns whether a pod's quota has any byte left, so that a fill of unknown size may begin.
    #[must_use]
    pub fn has_left(&self, pod: IpAddr) -> bool {
        self.has_left_at(pod, Instant::now())
    }

    fn has_left_at(&self, pod: IpAddr, now: Instant) -> bool {
        let mut all = lock(&self.usage);
        all.get_mut(&pod).is_none_or(|usage| {
            usage.expire(self.limit, now);
            usage.allows(1, self.limit)
        })
    }

    /// Refunds bytes that a pod has read, whichever pod's fill fetched them.
    pub fn refund(&self, pod: IpAddr, bytes: u64) {
        self.update(pod, |usage| usage.excess = usage.excess.saturating_sub(bytes));
    }

    /// Returns the meter for a response that no fill was started for.
    pub fn refund_meter(self: &Arc<Self>, pod: IpAddr) -> Meter {
        let fill_quota = self.clone();
        Meter::new(move |bytes| fill_quota.refund(pod, bytes))
    }

    /// Releases what an ended response had reserved: `unsent` bytes, of which `excess` were fetched.
    fn release(&self, pod: IpAddr, unsent: u64, excess: u64, now: Instant) {
        let mut all = lock(&self.usage);
        if let Some(usage) = all.get_mut(&pod) {
            usage.expire(self.limit, now);
            usage.reserved = usage.reserved.saturating_sub(unsent);
            usage.consume(excess, now);
        }
    }

    fn update(&self, pod: IpAddr, update: impl FnOnce(&mut PodUsage)) {
        if let Some(usage) = lock(&self.usage).get_mut(&pod) {
            update(usage);
        }
    }
}

impl PodUsage {
    /// Returns whether a fill of `size` bytes does not exceed the limit.
    fn allows(&self, size: u64, limit: u64) -> bool {
        // The client may still abort a response in progress. It counts, but toward twice the limit, which readers of whole
        // objects do not reach as long as they read.
        let exceeds_limit = self.excess > 0 && self.excess.saturating_add(size) > limit;
        let used = self.excess.saturating_add(self.reserved);
        let exceeds_twice = used > 0 && used.saturating_add(size) > limit.saturating_mul(2);
        size == 0 || !(exceeds_limit || exceeds_twice)
    }

    /// Adds excess, which begins to expire now if there was none.
    fn consume(&mut self, bytes: u64, now: Instant) {
        if self.excess == 0 {
            self.since = now;
        }
        self.excess = self.excess.saturating_add(bytes);
    }

    /// Removes the excess that has expired.
    fn expire(&mut self, limit: u64, now: Instant) {
        let share = now.saturating_duration_since(self.since).as_millis() * u128::from(limit);
        let expired = u64::try_from(share / EXCESS_TTL.as_millis()).unwrap_or(u64::MAX);
        if expired > 0 {
            (self.excess, self.since) = (self.excess.saturating_sub(expired), now);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
#[path = "fill_quota_tests.rs"]
mod tests;
