//! Body type of all requests and responses.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use hyper::{
    Response,
    body::{Frame, Incoming, SizeHint},
};
use lota_s3::headers::keep_end_to_end_trailers;
use thiserror::Error;
use tokio::time::{Instant, Sleep, sleep};

use super::Slices;

/// Error in the middle of a body. The connection is then reset, so that the body does not look complete.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct BodyError(Box<dyn std::error::Error + Send + Sync>);

impl BodyError {
    /// Wraps an error.
    pub fn new(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self(Box::new(error))
    }

    /// Returns the wrapped error if it has this type.
    #[must_use]
    pub fn downcast_ref<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }
}

/// Body from a connection, memory or a cached file.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Returns an empty body.
#[must_use]
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Returns a body from memory.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Returns a body that forwards a received one, with only its end-to-end trailers.
#[must_use]
pub fn incoming(body: Incoming) -> Body {
    let body = body.map_frame(|mut frame| {
        if let Some(trailers) = frame.trailers_mut() {
            keep_end_to_end_trailers(trailers);
        }
        frame
    });
    body.map_err(BodyError::new).boxed_unsync()
}

/// Longest pause of a server in the body of its response. An extension of the response.
#[derive(Clone, Copy, Debug)]
pub struct BodyTimeout(pub Duration);

/// A server has paused for too long in the middle of a body.
#[derive(Debug, Error)]
#[error("no byte of the body has arrived for {} s", .0.as_secs_f64())]
pub(super) struct BodyStalled(Duration);

/// Returns a response with the body that a server sends, like [`incoming`], with the timeout that its [`BodyTimeout`] states.
#[must_use]
pub fn relayed(answer: Response<Incoming>) -> Response<Body> {
    timed(answer.map(incoming), Slices::default())
}

/// Returns a response whose body fails after the pause that its [`BodyTimeout`] states. Only the time in which the next frame
/// is awaited counts, and none in which the client has not taken all of `slices`, which may come from the same body.
#[must_use]
pub fn timed(answer: Response<Body>, slices: Slices) -> Response<Body> {
    let Some(&BodyTimeout(longest)) = answer.extensions().get() else { return answer };
    answer.map(|body| match hyper::body::Body::is_end_stream(&body) {
        true => body,
        false => TimedBody { body, slices, longest, waiting: None, is_waiting: false }.boxed_unsync(),
    })
}

/// A body that may pause only for a limited time.
struct TimedBody {
    body: Body,
    slices: Slices,
    longest: Duration,
    /// The end of the pause; made at the first one, and reset for others.
    waiting: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl hyper::body::Body for TimedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if polled.is_ready() {
            this.is_waiting = false;
            return polled;
        }
        let longest = this.longest;
        let waiting = this.waiting.get_or_insert_with(|| Box::pin(sleep(longest)));
        if !this.is_waiting {
            this.is_waiting = true;
            waiting.as_mut().reset(Instant::now() + longest);
        }
        loop {
            ready!(waiting.as_mut().poll(cx));
            if this.slices.is_empty() {
                return Poll::Ready(Some(Err(BodyError::new(BodyStalled(longest)))));
            }
            waiting.as_mut().reset(Instant::now() + longest);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
