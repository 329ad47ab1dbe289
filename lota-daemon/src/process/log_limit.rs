//! A rate limit for log lines that clients can cause.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Admits one line in each interval, and counts the suppressed ones.
#[derive(Debug)]
pub(crate) struct LogLimit {
    interval: Duration,
    state: Mutex<LimitState>,
}

#[derive(Debug, Default)]
struct LimitState {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogLimit {
    /// Returns a limit that admits the next line, and then one in each `interval`.
    #[must_use]
    pub(crate) const fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::new(LimitState { last: None, suppressed: 0 }) }
    }

    /// Returns a limit of one line in ten seconds.
    #[must_use]
    pub(crate) const fn every_ten_seconds() -> Self {
        Self::new(Duration::from_secs(10))
    }

    /// Returns the number of lines suppressed since the last one, or `None` if no line may be logged now.
    pub(crate) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if state.last.is_some_and(|last| now.duration_since(last) < self.interval) {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn lines_are_suppressed_and_counted() {
        let (limit, now) = (LogLimit::new(INTERVAL), Instant::now());
        assert_eq!(limit.admit_at(now), Some(0));
        assert_eq!((0..100).filter_map(|_| limit.admit_at(now)).count(), 0);
        assert_eq!(limit.admit_at(now + INTERVAL), Some(100));
        assert_eq!(limit.admit_at(now + 2 * INTERVAL), Some(0));
    }
}
