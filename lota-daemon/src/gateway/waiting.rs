//! Waits for the gateway's response as long as the gateway can be reached, up to a configured timeout.
//!
//! Clients have their own timeouts, and a client restarts a copy of 5 GiB that is cut short. Silence alone therefore
//! does not end a request; it triggers a probe of the gateway on a separate connection.

use std::{pin::pin, sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::{Request, body::Body as _};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::http::{Body, LastProgress, ReachabilityProbe};

/// Silence after which the gateway is probed, and the interval between probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// Number of consecutive failed probes after which the gateway counts as unreachable; a single connection may fail
/// for other reasons.
const MAX_FAILED_PROBES: u32 = 2;

/// Reason to stop waiting for a response.
#[derive(Debug)]
pub(super) enum Silence {
    /// The gateway cannot be reached any more, for this reason.
    Away(String),
    /// The gateway can be reached, but has not answered within this time.
    Late(Duration),
}

/// Waits for `answer` to a request whose body is `sending`; until it is sent, only its pauses are limited. Calls
/// `silent` at each successful probe.
pub(super) async fn while_alive<T>(
    reach: &ReachabilityProbe,
    longest: Duration,
    sending: SendingBody,
    answer: impl Future<Output = T>,
    silent: impl Fn(Duration),
) -> Result<T, Silence> {
    let mut answer = pin!(answer);
    let watch = async {
        if let Err(pause) = sending.sent().await {
            return Silence::Late(pause);
        }
        let (began, mut missed) = (Instant::now(), 0);
        loop {
            let left = longest.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Silence::Late(longest);
            }
            sleep(PROBE_INTERVAL.min(left)).await;
            match reach.problem().await {
                None => {
                    missed = 0;
                    silent(began.elapsed());
                }
                Some(why) => {
                    missed += 1;
                    if missed == MAX_FAILED_PROBES {
                        return Silence::Away(why);
                    }
                }
            }
        }
    };
    tokio::select! {
        biased;
        answered = &mut answer => Ok(answered),
        silence = watch => Err(silence),
    }
}

/// A request's body on its way.
pub(super) struct SendingBody {
    sent: oneshot::Receiver<()>,
    /// When a part of it was taken last.
    last: Arc<LastProgress>,
    longest_pause: Duration,
}

impl SendingBody {
    /// Watches the body of `request`, of which a part must be taken within each `longest_pause`.
    pub(super) fn of(request: &mut Request<Body>, longest_pause: Duration) -> Self {
        let (is_sent, sent) = oneshot::channel::<()>();
        let last = Arc::<LastProgress>::default();
        if !request.body().is_end_stream() {
            let (body, passed) = (std::mem::take(request.body_mut()), last.clone());
            // The sender is dropped with the body.
            *request.body_mut() = body
                .map_frame(move |frame| {
                    let _ = &is_sent;
                    passed.note();
                    frame
                })
                .boxed_unsync();
        }
        Self { sent, last, longest_pause }
    }

    /// Waits until the body has been sent, or is not needed any more.
    ///
    /// # Errors
    /// The longest pause, if the gateway takes nothing for that long; a client that sends nothing has a timeout of its own.
    async fn sent(mut self) -> Result<(), Duration> {
        tokio::select! {
            biased;
            _ = &mut self.sent => Ok(()),
            () = self.last.stalled(self.longest_pause) => Err(self.longest_pause),
        }
    }
}
