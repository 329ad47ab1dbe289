//! One fetch of a whole object into the cache, which any number of readers follow.
//!
//! What a reader waits for comes first, the rest meanwhile: by ranges of a part each, several at once while the source
//! bears it, or by one stream from the object's beginning beside which only what is wanted elsewhere is asked for.

use std::{
    collections::VecDeque, future::Future, io, ops::Range, os::unix::fs::FileExt as _, sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered},
};
use thiserror::Error;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};

use super::{
    Object,
    disk::Disk,
    pending::Pending,
    progress::{Index, Progress},
    record::{CHUNK, Record},
    store::{Entry, Part},
    verify,
};
use crate::s3::ByteRange;

/// Longest silence of a source.
const PATIENCE: Duration = Duration::from_secs(30);
/// Ranged requests of one fill at once, for what readers wait for, beside the ordinary ones.
const URGENT_LANES: usize = 4;
/// After so many failures in a row, the source is given up.
const MOST_FAILURES: u32 = 4;
/// Wait after the first of them; twice as long after the next.
const PAUSE: Duration = Duration::from_millis(100);

/// Where a fill gets bytes.
pub trait Source: Sync {
    /// A range of the object, or, if there is none, all of it; in pieces, as they come.
    fn fetch(
        &self,
        range: Option<ByteRange>,
    ) -> impl Future<Output = Result<BoxStream<'static, Result<Bytes, String>>, SourceError>> + Send;
}

/// Why a source does not send.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SourceError {
    /// It has another object, or will not give this one: asking again is of no use.
    #[error("{0}")]
    Final(String),
    /// It may the next time.
    #[error("{0}")]
    Passing(String),
}

/// How to bring an object.
pub enum How {
    /// It is arriving from its beginning.
    Arriving(BoxStream<'static, Result<Bytes, String>>),
    /// By one stream from its beginning.
    Stream,
    /// By ranges, several at once.
    Parts,
}

/// The right, and the duty, to bring an object's bytes. Dropped before its end, it leaves nothing behind.
#[derive(Debug)]
pub struct Fill {
    disk: Arc<Disk>,
    entry: Entry,
    object: Arc<Object>,
    progress: Arc<Progress>,
    part: Part,
    committed: bool,
}

/// Why a fill broke off.
#[derive(Debug, Error)]
pub enum FillError {
    /// The source did.
    #[error("the source broke off after {after} of {size} bytes: {reason}")]
    Source {
        /// Bytes that had come.
        after: u64,
        /// Bytes that were to come.
        size: u64,
        /// What it said.
        reason: String,
    },
    /// It said no, or has something else.
    #[error("the source does not send it: {0}")]
    Refused(String),
    /// It sent more bytes than it was asked for.
    #[error("the source sent more than {0} bytes")]
    TooLong(u64),
    /// It sent other bytes than the object's.
    #[error("the source sent a corrupt object: {0}")]
    Corrupt(io::Error),
    /// The disk did.
    #[error("cannot write the cache file: {0}")]
    Disk(#[from] io::Error),
}

/// Chunks that one request is to bring; those that it does not are given back.
struct Claim {
    progress: Arc<Progress>,
    chunks: VecDeque<Index>,
    /// Most of them at once.
    part: usize,
}

impl Fill {
    pub(super) fn new(
        disk: Arc<Disk>,
        entry: Entry,
        object: Arc<Object>,
        progress: Arc<Progress>,
        part: Part,
    ) -> Self {
        Self { disk, entry, object, progress, part, committed: false }
    }

    /// The object that this fill brings.
    #[must_use]
    pub fn object(&self) -> Arc<Object> {
        self.object.clone()
    }

    /// Has it begin with the byte at `position`, if there is one.
    pub fn begin_at(&self, position: u64) {
        self.progress.want(position);
    }

    /// Brings the whole object. Returns the number of bytes when it is safe on disk.
    ///
    /// # Errors
    /// [`FillError`]; nothing of the object stays then, and its readers are told.
    pub async fn run(self, source: &impl Source, how: How) -> Result<u64, FillError> {
        let mut lanes: FuturesUnordered<BoxFuture<'_, Lane>> = FuturesUnordered::new();
        let part = usize::try_from(self.disk.plan.part / u64::from(CHUNK)).unwrap_or(1).max(1);
        let mut streams = !matches!(how, How::Parts);
        let claim = Claim::first(&self.progress, part);
        match how {
            How::Arriving(stream) => lanes.push(Box::pin(self.stream(async { Ok(stream) }, claim))),
            How::Stream => lanes.push(Box::pin(self.stream(source.fetch(None), claim))),
            // All of it is one part: asked for as a whole.
            How::Parts if self.progress.len() <= part => {
                lanes.push(Box::pin(self.lane(source, claim, 0, None)));
            }
            How::Parts => drop(claim),
        }
        let requests = self.disk.plan.requests;
        let (mut most, mut failures) = (requests.min(2), 0);
        let mut urgent = URGENT_LANES;
        loop {
            let ordinary = if streams { 0 } else { most };
            while lanes.len() < ordinary + urgent + usize::from(streams) {
                // Each fill has one request to itself, any more as long as there are seats.
                let seat = self.disk.lanes.clone().try_acquire_owned().ok();
                if seat.is_none() && !lanes.is_empty() {
                    break;
                }
                let only_wanted = lanes.len() >= ordinary;
                let Some(claim) = Claim::next(&self.progress, part, only_wanted) else { break };
                lanes.push(Box::pin(self.lane(source, claim, failures, seat)));
            }
            let ended = tokio::select! {
                ended = lanes.next() => ended,
                () = self.progress.wanted() => continue,
            };
            let Some(Lane { streamed, failures_before, end }) = ended else { break };
            streams &= !streamed;
            match end {
                Ok(()) => (most, failures) = ((most + 1).min(requests), 0),
                // Those that were under way when one failed have failed with it.
                Err(FillError::Source { .. }) if failures_before < failures => {}
                Err(FillError::Source { .. }) if failures + 1 < MOST_FAILURES => {
                    (most, failures) = ((most / 2).max(1), failures + 1);
                }
                // What is wanted comes by the stream, in its time.
                Err(_) if streams => urgent = 0,
                Err(error) => return Err(error),
            }
        }
        drop(lanes);
        self.commit().await
    }

    /// Brings what was claimed, by one ranged request; after so many failures, not at once.
    async fn lane(
        &self,
        source: &impl Source,
        mut claim: Claim,
        failures: u32,
        _seat: Option<OwnedSemaphorePermit>,
    ) -> Lane {
        if failures > 0 {
            sleep(PAUSE * 2u32.pow(failures - 1)).await;
        }
        let bring = async {
            let chunks = claim.span();
            let range = self.progress.bytes(chunks.clone());
            let whole = range.start == 0 && range.end == self.object.meta().size;
            let stream = source.fetch(Some(range).filter(|_| !whole)).await;
            self.bring(self.begun(stream)?, chunks, &mut claim, false).await
        };
        Lane { streamed: false, failures_before: failures, end: bring.await }
    }

    /// Brings everything that others do not, from the beginning on.
    async fn stream(
        &self,
        stream: impl Future<Output = Result<BoxStream<'static, Result<Bytes, String>>, SourceError>>,
        mut claim: Claim,
    ) -> Lane {
        let bring = async {
            let stream = self.begun(stream.await)?;
            self.bring(stream, 0..self.progress.len(), &mut claim, true).await
        };
        Lane { streamed: true, failures_before: 0, end: bring.await }
    }

    fn begun<S>(&self, stream: Result<S, SourceError>) -> Result<S, FillError> {
        stream.map_err(|error| match error {
            SourceError::Final(why) => FillError::Refused(why),
            SourceError::Passing(why) => self.broke_off(why),
        })
    }

    fn broke_off(&self, reason: String) -> FillError {
        FillError::Source { after: self.progress.so_far(), size: self.object.meta().size, reason }
    }

    /// Takes the bytes of these chunks from a stream. Those that another was to bring are kept, too: it may fail yet.
    async fn bring(
        &self,
        mut stream: BoxStream<'static, Result<Bytes, String>>,
        chunks: Range<Index>,
        claim: &mut Claim,
        claims_more: bool,
    ) -> Result<(), FillError> {
        let all = self.progress.bytes(chunks.clone());
        let (mut pending, first) = (Pending::default(), chunks.start);
        for chunk in chunks {
            if claims_more {
                claim.extend(chunk);
            }
            let ByteRange { start, end } = self.progress.bytes(chunk..chunk + 1);
            let length = usize::try_from(end - start).unwrap_or(usize::MAX);
            while pending.length() < length {
                let piece = self.piece(&mut stream).await?;
                let piece = piece.ok_or_else(|| self.broke_off("it ended".into()))?;
                // Someone may be waiting for the first bytes that were asked for.
                if chunk == first {
                    let (before, after) = (pending.length(), length - pending.length());
                    self.progress.arriving(chunk, before, piece.slice(..after.min(piece.len())));
                }
                pending.push(piece);
            }
            if end == all.end && pending.length() > length {
                return Err(FillError::TooLong(all.length()));
            }
            let pieces = pending.take(length);
            if !self.progress.is_there(chunk) {
                let checksum = self.write(start, pieces).await?;
                self.progress.arrived(chunk, checksum);
                self.allocate().await;
            }
            claim.passed(chunk);
        }
        match self.piece(&mut stream).await? {
            None if pending.length() == 0 => Ok(()),
            _ => Err(FillError::TooLong(all.length())),
        }
    }

    /// The next bytes of a stream, which are some; `None` at its end.
    async fn piece(
        &self,
        stream: &mut BoxStream<'static, Result<Bytes, String>>,
    ) -> Result<Option<Bytes>, FillError> {
        loop {
            let silent = |_| self.broke_off(format!("nothing came for {} s", PATIENCE.as_secs()));
            match timeout(PATIENCE, stream.next()).await.map_err(silent)? {
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(Ok(piece)) => return Ok(Some(piece)),
                Some(Err(reason)) => return Err(self.broke_off(reason)),
                None => return Ok(None),
            }
        }
    }

    /// Writes a chunk; its CRC-32C.
    async fn write(&self, mut offset: u64, pieces: Vec<Bytes>) -> io::Result<u32> {
        let (disk, file) = (self.disk.clone(), self.object.file().clone());
        let checksum = tokio::task::spawn_blocking(move || {
            let mut checksum = 0;
            for piece in pieces {
                file.write_all_at(&piece, offset).inspect_err(|error| disk.notice(error))?;
                offset += piece.len() as u64;
                checksum = crc32c::crc32c_append(checksum, &piece);
            }
            Ok(checksum)
        });
        checksum.await.map_err(io::Error::other)?
    }

    /// Takes the disk for all of it. Not before the first bytes are there: their reader would have to wait.
    async fn allocate(&self) {
        if self.progress.len() > 1 && self.part.is_to_allocate() {
            let part = self.part.clone();
            let _ = tokio::task::spawn_blocking(move || part.allocate()).await;
        }
    }

    async fn commit(mut self) -> Result<u64, FillError> {
        if self.disk.is_handed_over() {
            return Err(io::Error::other("another daemon has the cache now; its readers had it all").into());
        }
        let checksums = self.progress.checksums();
        let checksums = checksums.ok_or_else(|| self.broke_off("not all of it was brought".into()))?;
        let record = Record { meta: self.object.meta().clone(), checksums };
        let (disk, entry, part) = (self.disk.clone(), self.entry, self.part.clone());
        let committed = tokio::task::spawn_blocking(move || {
            verify::whole(&part.file(), &record, disk.plan.md5_up_to).map_err(FillError::Corrupt)?;
            disk.store.commit(&entry, &part, &record).inspect_err(|error| disk.notice(error))?;
            Result::<_, FillError>::Ok(())
        });
        committed.await.map_err(io::Error::other)??;
        self.committed = true;
        self.disk.index().committed(&self.entry, &self.object);
        Ok(self.entry.size)
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        // Readers of what did not come are told.
        self.progress.end();
        if !self.committed {
            self.disk.index().abandoned(&self.entry);
        }
    }
}

/// How one request ended.
struct Lane {
    /// Was it the stream from the beginning?
    streamed: bool,
    /// Failures in a row when it began.
    failures_before: u32,
    end: Result<(), FillError>,
}

impl Claim {
    /// The first part.
    fn first(progress: &Arc<Progress>, part: usize) -> Self {
        let mut claim = Self { progress: progress.clone(), chunks: VecDeque::new(), part };
        claim.extend(0);
        claim
    }

    /// A part of what is missing: what readers wait for first, or nothing but that.
    fn next(progress: &Arc<Progress>, part: usize, only_wanted: bool) -> Option<Self> {
        let chunks = progress.claim(part, only_wanted)?;
        Some(Self { progress: progress.clone(), chunks: chunks.collect(), part })
    }

    /// Claims what is missing of a part from `chunk` on.
    fn extend(&mut self, chunk: Index) {
        let after = self.chunks.back().map_or(chunk, |last| last + 1);
        self.chunks.extend(self.progress.claim_in(after.max(chunk)..chunk + self.part));
    }

    fn span(&self) -> Range<Index> {
        let first = self.chunks.front().copied().unwrap_or_default();
        first..first + self.chunks.len()
    }

    /// This chunk is there.
    fn passed(&mut self, chunk: Index) {
        self.chunks.pop_front_if(|next| *next == chunk);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.chunks.is_empty() {
            self.progress.give_back(self.chunks.iter().copied());
        }
    }
}

#[cfg(test)]
#[path = "fill_tests.rs"]
mod tests;
