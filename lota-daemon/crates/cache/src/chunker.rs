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

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const SILENCE: Duration = Duration::from_secs(9);

    fn chunker(pieces: &[&'static str], length: u64) -> Chunker {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect();
        Chunker::new(stream::iter(pieces).boxed(), length, SILENCE)
    }

    async fn chunk(chunker: &mut Chunker, length: u64) -> Result<Vec<u8>, ChunkError> {
        chunker.next(length, |_, _| ()).await.map(|pieces| pieces.concat())
    }

    #[tokio::test]
    async fn chunks_and_early_pieces_are_those_of_the_body() {
        let mut chunker = chunker(&["ab", "", "cde", "f"], 6);
        let mut early = Vec::new();
        let first = chunker.next(4, |offset, piece| early.push((offset, piece))).await.unwrap();
        assert_eq!(first.concat(), b"abcd");
        assert_eq!(early, [(0, Bytes::from_static(b"ab")), (2, Bytes::from_static(b"cd"))]);
        assert_eq!(chunk(&mut chunker, 2).await.unwrap(), b"ef");
        assert_eq!((chunker.end().await, chunker.received()), (Ok(()), 6));
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_is_refused_as_soon_as_that_is_known() {
        let mut known = chunker(&["abcd", "efg"], 6);
        assert_eq!(chunk(&mut known, 4).await.unwrap(), b"abcd");
        assert_eq!(chunk(&mut known, 2).await, Err(ChunkError::TooLong), "its last chunk is not stored");
        let mut later = chunker(&["abcdef", "g"], 6);
        assert_eq!(chunk(&mut later, 6).await.unwrap(), b"abcdef");
        assert_eq!(later.end().await, Err(ChunkError::TooLong));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_ends_early_or_stops_fails() {
        let ended = chunk(&mut chunker(&["abc"], 4), 4).await;
        assert_eq!(ended, Err(ChunkError::Source("the response ended early".into())));
        let body = stream::iter([Ok(Bytes::from_static(b"abc"))]).chain(stream::pending()).boxed();
        let stopped = chunk(&mut Chunker::new(body, 4, SILENCE), 4).await;
        assert_eq!(stopped, Err(ChunkError::Source("no data for 9 s".into())));
        let body = stream::iter([Err("reset".to_owned())]).boxed();
        let failed = chunk(&mut Chunker::new(body, 4, SILENCE), 4).await;
        assert_eq!(failed, Err(ChunkError::Source("reset".into())));
    }
}
