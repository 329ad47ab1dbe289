//! Sends raw bytes after a response that switches protocols. The connection can then carry further requests.

use std::{future::poll_fn, io, pin::Pin, sync::Arc};

use bytes::Buf as _;
use http_body_util::BodyExt as _;
use hyper::rt::Write;
use parking_lot::Mutex;

use super::{Body, stream::ClientStream};

/// Body to send after the response, if any.
#[derive(Clone, Debug, Default)]
pub struct Raw(Arc<Mutex<Option<RawBody>>>);

/// A body with the length that the response states.
#[derive(Debug)]
pub(super) struct RawBody {
    body: Body,
    length: u64,
}

impl Raw {
    /// Sets the body to send after the response, which states its `length` in bytes.
    pub fn send(&self, body: Body, length: u64) {
        *self.0.lock() = Some(RawBody { body, length });
    }

    pub(super) fn take(&self) -> Option<RawBody> {
        self.0.lock().take()
    }
}

/// Writes a body without framing.
///
/// # Errors
/// If the body or the connection fails, or if the body has another length.
pub(super) async fn write(io: &mut ClientStream, RawBody { mut body, length }: RawBody) -> io::Result<()> {
    let mut left = length;
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame.map_err(io::Error::other)?.into_data() else { continue };
        let more = data.remaining() as u64;
        left = left.checked_sub(more).ok_or_else(|| io::Error::other("the body is longer than stated"))?;
        while data.has_remaining() {
            let written = poll_fn(|cx| Pin::new(&mut *io).poll_write(cx, &data)).await?;
            data.advance(written);
        }
    }
    poll_fn(|cx| Pin::new(&mut *io).poll_flush(cx)).await?;
    if left == 0 { Ok(()) } else { Err(io::Error::other("the body is shorter than stated")) }
}
