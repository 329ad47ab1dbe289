//! Body type of all requests and responses.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use lota_s3::headers::keep_end_to_end_trailers;
use thiserror::Error;

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
