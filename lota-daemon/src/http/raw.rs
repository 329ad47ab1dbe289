//! Sends raw bytes after a response that switches protocols. The connection can then carry further requests.

use std::{future::poll_fn, io, pin::Pin, sync::Arc};

use bytes::Buf as _;
use http_body_util::BodyExt as _;
use hyper::rt::Write;
use parking_lot::Mutex;

use super::{Body, stream::ClientStream};

/// Body to send after the response, if any.
#[derive(Clone, Debug, Default)]
pub struct Raw(Arc<Mutex<Option<Body>>>);

impl Raw {
    /// Sets the body to send after the response.
    pub fn send(&self, body: Body) {
        *self.0.lock() = Some(body);
    }

    pub(super) fn take(&self) -> Option<Body> {
        self.0.lock().take()
    }
}

/// Writes a body without framing.
///
/// # Errors
/// If the body or the connection fails.
pub(super) async fn write(io: &mut ClientStream, mut body: Body) -> io::Result<()> {
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame.map_err(io::Error::other)?.into_data() else { continue };
        while data.has_remaining() {
            let written = poll_fn(|cx| Pin::new(&mut *io).poll_write(cx, &data)).await?;
            data.advance(written);
        }
    }
    poll_fn(|cx| Pin::new(&mut *io).poll_flush(cx)).await
}
