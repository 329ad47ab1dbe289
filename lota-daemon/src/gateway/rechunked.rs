//! Chunked uploads on their way to a gateway that needs re-signed requests.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use lota_cache::shares::{Share, Shares, Taking};
use lota_s3::{S3Error, chunks::Chunks};
use tokio::time::{Instant, timeout_at};

use crate::http::{Body, BodyError};

/// Timeout for the rest of a chunk whose memory is allocated.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout for memory while others use it.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(30);

/// Verifies and re-signs a chunked body while it streams. Memory for unverified chunks is taken from `pod`'s share of
/// `memory`.
pub(super) fn rechunked(body: Body, chunks: Chunks, memory: Arc<Shares>, pod: IpAddr) -> Body {
    let state = Rechunked { body, chunks, memory, pod, held: None, input: BytesMut::new() };
    let frames = stream::try_unfold(state, async |mut state| {
        // The buffered chunk was sent with the previous piece.
        if state.chunks.buffers() == 0 {
            state.held = None;
        }
        let next = state.next().await?;
        Ok(next.map(|bytes| (Frame::data(bytes), state)))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn too_slow() -> BodyError {
    let seconds = CHUNK_TIMEOUT.as_secs();
    BodyError::new(S3Error::request_timeout(format!("A signed chunk took more than {seconds} s to arrive")))
}

struct Rechunked {
    body: Body,
    chunks: Chunks,
    memory: Arc<Shares>,
    pod: IpAddr,
    held: Option<Held>,
    input: BytesMut,
}

/// Memory for a chunk that is buffered, and its deadline.
struct Held {
    _memory: Share,
    until: Instant,
}

impl Rechunked {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            if let Some(output) = self.chunks.next(&mut self.input).map_err(BodyError::new)? {
                return Ok(Some(output));
            }
            self.hold().await.map_err(BodyError::new)?;
            let frame = match &self.held {
                Some(held) => timeout_at(held.until, self.body.frame()).await.map_err(|_| too_slow())?,
                // The connection's own timeout applies.
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

    /// Allocates the memory for a chunk that must be buffered, unless it is allocated. While it waits, it does not
    /// read from the body, so that the client waits, too.
    async fn hold(&mut self) -> Result<(), S3Error> {
        let buffers = self.chunks.buffers();
        if self.held.is_none() && buffers > 0 {
            let memory = self.memory.wait(self.pod, buffers, MEMORY_TIMEOUT).await.map_err(|taking| {
                S3Error::slow_down(match taking {
                    Taking::All => "Uploads on this node have used up limits.body_memory; retry later",
                    Taking::Pod => {
                        "This pod's uploads have used up its share of limits.body_memory; retry later"
                    }
                })
            })?;
            self.held = Some(Held { _memory: memory, until: Instant::now() + CHUNK_TIMEOUT });
            self.input.reserve(usize::try_from(buffers).unwrap_or_default().saturating_sub(self.input.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use hyper::{HeaderMap, header::HeaderValue};

    use super::*;
    use lota_s3::chunks::{Chains, ChunkChain};

    /// Returns a chunk of 2,000,000 bytes that stalls after its first line.
    fn stalled(memory: &Arc<Shares>, pod: u8) -> Body {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-decoded-content-length", HeaderValue::from_static("2000000"));
        let chain = || ChunkChain::new(b"key", "20130524T000000Z".into(), "us-east-1", String::new());
        let chains = Chains { client: chain(), ours: chain() };
        let line = format!("1e8480;chunk-signature={}\r\n", "0".repeat(64));
        let stalls = stream::once(std::future::ready(Ok(Frame::data(Bytes::from(line)))));
        let stalls = StreamBody::new(stalls.chain(stream::pending())).boxed_unsync();
        let chunks = Chunks::new(&headers, Some(chains), false).unwrap();
        rechunked(stalls, chunks, memory.clone(), [10, 0, 0, pod].into())
    }

    async fn end(body: Body) -> &'static str {
        body.collect().await.unwrap_err().downcast_ref::<S3Error>().unwrap().code
    }

    #[tokio::test(start_paused = true)]
    async fn buffered_chunks_are_counted_and_time_out() {
        for (memory, code) in [(1_000_000, "SlowDown"), (2_000_200, "RequestTimeout")] {
            let memory = Shares::new(memory);
            let before = memory.free();
            assert_eq!(end(stalled(&memory, 1)).await, code);
            assert_eq!(memory.free(), before, "the memory is released");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_chunks_of_one_pod_leave_memory_to_others() {
        let memory = Shares::new(20 << 20);
        let stalling: Vec<_> = (0..20).map(|_| tokio::spawn(end(stalled(&memory, 1)))).collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let free = memory.free();
        assert!(free >= 10 << 20, "{free} bytes are left");
        assert!(memory.take([10, 0, 0, 2].into(), 2 << 20).is_ok());
        for stalled in stalling {
            // Chunks that waited got no memory, since the others did not end before.
            assert!(["SlowDown", "RequestTimeout"].contains(&stalled.await.unwrap()));
        }
    }
}
