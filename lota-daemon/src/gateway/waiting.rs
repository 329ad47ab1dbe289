//! Waits for the gateway's response as long as the gateway can be reached, up to a configured timeout.
//!
//! Clients have their own timeouts, and a client restarts a copy of 5 GiB that is cut short. Silence alone therefore
//! does not end a request; it triggers a probe of the gateway on a separate connection.

use std::{pin::pin, time::Duration};

use http_body_util::BodyExt as _;
use hyper::{Request, body::Body as _};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::http::{Body, ReachabilityProbe};

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

/// Waits for `answer` to a request whose body is complete when `sent` resolves; until then there is no timeout. Calls
/// `silent` at each successful probe.
pub(super) async fn while_alive<T>(
    reach: &ReachabilityProbe,
    longest: Duration,
    sent: impl Future<Output = ()>,
    answer: impl Future<Output = T>,
    silent: impl Fn(Duration),
) -> Result<T, Silence> {
    let mut answer = pin!(answer);
    let watch = async {
        sent.await;
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

/// Resolves when the body of `request` has been sent, or is not needed any more.
pub(super) fn sent(request: &mut Request<Body>) -> impl Future<Output = ()> + use<> {
    let (is_sent, sent) = oneshot::channel::<()>();
    if !request.body().is_end_stream() {
        let body = std::mem::take(request.body_mut());
        // The sender is dropped with the body.
        *request.body_mut() = body
            .map_frame(move |frame| {
                let _ = &is_sent;
                frame
            })
            .boxed_unsync();
    }
    async move { drop(sent.await) }
}
