//! Timer for hyper's header timeout that pauses while a response is being sent.
//!
//! hyper starts the timeout for the next request when a response is buffered and the request's body has ended, even if the
//! client has not received the response yet.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};

/// Whether bytes that hyper has buffered are waiting for room in the socket.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsent(Arc<AtomicBool>);

impl Unsent {
    /// Records the outcome of the last write.
    pub(super) fn set(&self, is_unsent: bool) {
        self.0.store(is_unsent, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Timer of one connection.
#[derive(Clone, Debug)]
pub(super) struct HeadTimer(Unsent);

impl HeadTimer {
    /// Returns a timer that pauses while bytes are unsent.
    pub(super) fn new(unsent: Unsent) -> Self {
        Self(unsent)
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        let sleep = Box::pin(tokio::time::sleep(duration));
        Box::pin(HeadSleep { sleep, duration, unsent: self.0.clone() })
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(deadline.saturating_duration_since(self.now()))
    }
}

/// Completes when no bytes have been unsent for `duration`; may take up to twice as long.
struct HeadSleep {
    sleep: Pin<Box<tokio::time::Sleep>>,
    duration: Duration,
    unsent: Unsent,
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if !self.unsent.get() {
                return Poll::Ready(());
            }
            let next = tokio::time::Instant::now() + self.duration;
            self.sleep.as_mut().reset(next);
        }
    }
}
