//! Cuts a response body into the chunks that are written to disk.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use tokio::time::timeout;

use super::pending::Pending;

/// Body of a response: the stream of its pieces, as they arrive.
pub(super) type Body = BoxStream<'static, Result<Bytes, String>>;

/// A body of known length that is cut into chunks.
pub(super) struct Chunker {
    body: Body,
    /// Expected bytes that were not returned yet.
    left: u64,
    pending: Pending,
    received: u64,
    /// Timeout for a body that stops.
    silence: Duration,
}

/// Reason why a body cannot be cut.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ChunkError {
    /// It ended early, failed, or stopped.
    Source(String),
    /// It is longer than expected.
    TooLong,
}

impl Chunker {
    /// Cuts a body of `length` bytes.
    pub(super) fn new(body: Body, length: u64, silence: Duration) -> Self {
        Self { body, left: length, pending: Pending::default(), received: 0, silence }
    }

    /// Returns the number of bytes received.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Returns the next chunk of `length` bytes. Until then, passes each piece of it to `early` when it arrives, with its
    /// offset in the chunk.
    pub(super) async fn next(
        &mut self,
        length: u64,
        mut early: impl FnMut(usize, Bytes),
    ) -> Result<Vec<Bytes>, ChunkError> {
        self.left -= length;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        while self.pending.length() < length {
            let ended = || ChunkError::Source("the response ended early".into());
            let piece = self.piece().await?.ok_or_else(ended)?;
            let offset = self.pending.length();
            early(offset, piece.slice(..piece.len().min(length - offset)));
            self.pending.push(piece);
        }
        if self.left == 0 && self.pending.length() > length {
            return Err(ChunkError::TooLong);
        }
        Ok(self.pending.take(length))
    }

    /// Waits for the end of the body, which follows the last chunk.
    pub(super) async fn end(&mut self) -> Result<(), ChunkError> {
        match self.piece().await? {
            None if self.pending.length() == 0 => Ok(()),
            _ => Err(ChunkError::TooLong),
        }
    }

    /// Returns the next non-empty piece; `None` at the end of the body.
    async fn piece(&mut self) -> Result<Option<Bytes>, ChunkError> {
        loop {
            let next = timeout(self.silence, self.body.next()).await;
            let stopped = |_| ChunkError::Source(format!("no data for {} s", self.silence.as_secs()));
            match next.map_err(stopped)?.transpose().map_err(ChunkError::Source)? {
                Some(piece) if piece.is_empty() => {}
                Some(piece) => {
                    self.received += piece.len() as u64;
                    return Ok(Some(piece));
                }
                None => return Ok(None),
            }
        }
    }
}
