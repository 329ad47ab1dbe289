//! Uploads in chunks on their way to a gateway for which requests are signed anew.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    http::{Body, BodyError},
    s3::{S3Error, chunks::Chunks},
};

/// Memory is counted in pieces of so many bytes.
const PIECE: u64 = 1 << 10;
/// Longest that a chunk's memory waits for the rest of it.
const CHUNK_PATIENCE: Duration = Duration::from_secs(60);

/// Memory for chunks that are held until their signature is checked.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Semaphore>);

impl Memory {
    /// So many bytes.
    pub(super) fn new(bytes: u64) -> Self {
        let pieces = usize::try_from(bytes / PIECE).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(pieces)))
    }

    fn take(&self, bytes: u64) -> Result<OwnedSemaphorePermit, S3Error> {
        let pieces = u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX);
        self.0.clone().try_acquire_many_owned(pieces).map_err(|_| {
            S3Error::slow_down("This node holds as much of uploads as limits.body_memory allows; try again")
        })
    }
}

/// A body in chunks, checked and signed anew as it goes by.
pub(super) fn rechunked(body: Body, chunks: Chunks, memory: Memory) -> Body {
    let state = Rechunked { body, chunks, memory, held: None, input: BytesMut::new() };
    let frames = stream::try_unfold(state, async |mut state| {
        // What was held went on with the piece before.
        if state.chunks.gathers() == 0 {
            state.held = None;
        }
        let next = state.next().await?;
        Ok(next.map(|bytes| (Frame::data(bytes), state)))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn too_slow() -> BodyError {
    let seconds = CHUNK_PATIENCE.as_secs();
    BodyError::new(S3Error::request_timeout(format!("A signed chunk took more than {seconds} s to arrive")))
}

struct Rechunked {
    body: Body,
    chunks: Chunks,
    memory: Memory,
    held: Option<Held>,
    input: BytesMut,
}

/// Memory for a chunk that is gathered, and until when it has to be.
struct Held {
    _memory: OwnedSemaphorePermit,
    until: Instant,
}

impl Rechunked {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            if let Some(output) = self.chunks.next(&mut self.input).map_err(BodyError::new)? {
                return Ok(Some(output));
            }
            self.hold().map_err(BodyError::new)?;
            let frame = match &self.held {
                Some(held) => timeout_at(held.until, self.body.frame()).await.map_err(|_| too_slow())?,
                // The connection has its own clock.
                None => self.body.frame().await,
            };
            match frame.transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => self.input.extend_from_slice(&data),
                Some(Err(_)) => {}
                None if self.chunks.is_done() => return Ok(None),
                None => {
                    return Err(BodyError::new(S3Error::incomplete_body(
                        "The body ended before its last chunk",
                    )));
                }
            }
        }
    }

    /// Takes the memory for a chunk that is to be gathered, unless it has.
    fn hold(&mut self) -> Result<(), S3Error> {
        let gathers = self.chunks.gathers();
        if self.held.is_none() && gathers > 0 {
            let memory = self.memory.take(gathers)?;
            self.held = Some(Held { _memory: memory, until: Instant::now() + CHUNK_PATIENCE });
            self.input.reserve(usize::try_from(gathers).unwrap_or_default().saturating_sub(self.input.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use hyper::{HeaderMap, header::HeaderValue};

    use super::*;
    use crate::s3::chunks::{Chain, Chains};

    #[tokio::test(start_paused = true)]
    async fn chunks_that_are_held_are_counted_and_not_for_ever() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-decoded-content-length", HeaderValue::from_static("2000000"));
        let chains = || Chains { client: Chain::for_tests(), ours: Chain::for_tests() };
        let line = format!("1e8480;chunk-signature={}\r\n", "0".repeat(64));
        for (memory, code) in [(1000 << 10, "SlowDown"), (2000 << 10, "RequestTimeout")] {
            let stalls = stream::once(std::future::ready(Ok(Frame::data(Bytes::from(line.clone())))));
            let stalls = StreamBody::new(stalls.chain(stream::pending())).boxed_unsync();
            let chunks = Chunks::new(&headers, Some(chains()), false).unwrap();
            let memory = Memory::new(memory);
            let before = memory.0.available_permits();
            let error = rechunked(stalls, chunks, memory.clone()).collect().await.unwrap_err();
            assert_eq!(error.downcast_ref::<S3Error>().unwrap().code, code);
            assert_eq!(memory.0.available_permits(), before, "it is given back");
        }
    }
}
