//! Joins stripes to the body of a response. While the client reads one stripe, the owners of the next ones are asked.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::task::JoinHandle;

use super::striped_get::{StripeError, StripePart, StripedGet};
use crate::http::{Body, BodyError};

/// Minimum and maximum distance in bytes at which the next stripe is asked for. Further ones of several owners keep their links
/// busy at the same time.
const ASK_AHEAD: [u64; 2] = [16 << 20, 64 << 20];
/// Maximum number of stripes that are asked for ahead.
const MAX_ASKED: usize = 3;
/// Time in which the client reads what is asked for ahead. An owner's response waits that long, which must be less than its
/// timeout for a client that has paused.
const WAITS: Duration = Duration::from_secs(2);

/// A stripe that was asked for.
struct AskedStripe(JoinHandle<Result<StripePart, StripeError>>);

/// Body of a response that consists of stripes.
struct StripedBody {
    get: StripedGet,
    /// Stripe that is being sent.
    part: StripePart,
    /// Stripes after that one, in order.
    asked: VecDeque<AskedStripe>,
    /// Position in the object up to which stripes were asked for.
    asked_to: u64,
    began: Instant,
}

/// Returns the body that begins with `first` and continues to the end of the requested range.
pub(super) fn joined(get: StripedGet, first: StripePart) -> Body {
    let asked_to = first.left.end;
    let body = StripedBody { get, part: first, asked: VecDeque::new(), asked_to, began: Instant::now() };
    let frames = stream::try_unfold(body, async |mut body| Ok(body.next().await?.map(|frame| (frame, body))));
    StreamBody::new(frames).boxed_unsync()
}

impl StripedBody {
    /// Returns the next frame, of the next stripe if the current one has ended.
    async fn next(&mut self) -> Result<Option<Frame<Bytes>>, BodyError> {
        loop {
            self.ask_ahead();
            let (stripe, left) = (self.part.stripe, self.part.left);
            if left.length() == 0 {
                match self.asked.pop_front() {
                    Some(mut asked) => self.part = asked.answer().await?,
                    None => return Ok(None),
                }
                continue;
            }
            match self.part.body.frame().await {
                Some(Ok(frame)) => {
                    let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                    if length > left.length() {
                        return Err(BodyError::new(StripeError::TooLong { stripe }));
                    }
                    self.part.left.start += length;
                    return Ok(Some(frame));
                }
                Some(Err(error)) if self.part.from_storage => return Err(error),
                _ => self.part = self.get.read_storage(stripe, left).await.map_err(BodyError::new)?,
            }
        }
    }

    /// Asks for the stripes that the client will soon reach.
    fn ask_ahead(&mut self) {
        let position = self.part.left.start;
        let distance = ask_ahead(position - self.get.range.start, self.began.elapsed());
        while self.asked.len() < MAX_ASKED
            && self.asked_to < self.get.range.end
            && self.asked_to - position <= distance
        {
            let stripe = self.part.stripe.length().containing(self.asked_to);
            self.asked_to = stripe.range(self.get.range.end).end;
            self.asked.push_back(AskedStripe(tokio::spawn(self.get.clone().ask(stripe))));
        }
    }
}

/// Returns the distance in bytes at which the next stripe is asked for, if `sent` bytes have been sent in a time.
fn ask_ahead(sent: u64, time: Duration) -> u64 {
    let seconds = time.as_secs().max(1);
    let [least, most] = ASK_AHEAD;
    (sent / seconds).saturating_mul(WAITS.as_secs()).clamp(least, most)
}

impl AskedStripe {
    async fn answer(&mut self) -> Result<StripePart, BodyError> {
        (&mut self.0).await.map_err(BodyError::new)?.map_err(BodyError::new)
    }
}

impl Drop for AskedStripe {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_client_has_more_stripes_asked_for_ahead() {
        let mib = 1 << 20;
        for (sent, seconds, distance) in [
            (0, 0, 16),
            (5, 0, 16),
            (20, 0, 40),
            (100, 0, 64),
            (100, 100, 16),
            (2000, 100, 40),
            (u64::MAX >> 20, 1, 64),
        ] {
            assert_eq!(
                ask_ahead(sent * mib, Duration::from_secs(seconds)),
                distance * mib,
                "{sent} in {seconds}"
            );
        }
    }
}
