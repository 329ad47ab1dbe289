//! Notices transfers that make no progress.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// Time at which bytes of a transfer passed last; at first, that of its creation.
#[derive(Debug)]
pub struct LastProgress(Mutex<Instant>);

impl Default for LastProgress {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl LastProgress {
    /// Notes that bytes have passed.
    pub fn note(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Waits until no byte has passed for `longest`.
    pub async fn stalled(&self, longest: Duration) {
        loop {
            let end = *self.0.lock() + longest;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}
