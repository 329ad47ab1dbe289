//! What follows an answer that switches protocols: bytes, and the end of the connection.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Buf as _;
use http_body_util::BodyExt as _;
use hyper::rt::Write;
use tokio::time::timeout;

use super::{Body, stream::ClientStream};

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

/// Writes a body as it is, and waits for the other side to have it: closed at once, the kernel would give up the last
/// bytes after a few minutes if they are not taken. A body that breaks off is an error.
pub(super) async fn write(io: &mut ClientStream, mut body: Body, patience: Duration) -> io::Result<()> {
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame.map_err(io::Error::other)?.into_data() else { continue };
        while data.has_remaining() {
            let written = poll_fn(|cx| Pin::new(&mut *io).poll_write(cx, &data)).await?;
            data.advance(written);
        }
    }
    poll_fn(|cx| Pin::new(&mut *io).poll_flush(cx)).await?;
    let _ = timeout(patience, io.closed()).await;
    Ok(())
}
