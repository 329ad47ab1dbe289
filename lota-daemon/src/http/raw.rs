//! What follows an answer that switches protocols: bytes, and the end of the connection.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Buf as _;
use http_body_util::BodyExt as _;
use hyper::rt::Write;

use super::Body;

/// The body that is to follow on one connection, if any.
#[derive(Clone, Debug, Default)]
pub struct Raw(Arc<Mutex<Option<Body>>>);

impl Raw {
    /// Has `body` follow.
    pub fn send(&self, body: Body) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    pub(super) fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Writes a body as it is. One that breaks off is an error.
pub(super) async fn write(io: &mut (impl Write + Unpin), mut body: Body) -> io::Result<()> {
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame.map_err(io::Error::other)?.into_data() else { continue };
        while data.has_remaining() {
            let written = poll_fn(|cx| Pin::new(&mut *io).poll_write(cx, &data)).await?;
            data.advance(written);
        }
    }
    poll_fn(|cx| Pin::new(&mut *io).poll_flush(cx)).await
}
