//! A fill: one fetch of a whole object into the cache, which any number of readers follow.
//!
//! Chunks that a reader waits for are fetched first. The rest comes by concurrent range requests of one part each,
//! fewer after failures; or by one stream from the object's beginning, with range requests only for readers that
//! wait for bytes further on.

use std::{
    collections::VecDeque, future::Future, io, net::IpAddr, ops::Range, os::unix::fs::FileExt as _,
    sync::Arc, time::Duration,
};

use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered},
};
use lota_s3::{ByteRange, ObjectMeta};
use thiserror::Error;
use tokio::time::sleep;

use super::{
    Object,
    chunk::CHUNK,
    chunker::{Body, ChunkError, Chunker},
    disk::Disk,
    new_file::NewFile,
    progress::{Index, Progress},
    record::Record,
    shares::Share,
    store::StoreEntry,
    verify,
};

/// Maximum number of concurrent range requests of one fill for chunks that readers wait for, beside the ordinary
/// ones.
const URGENT_LANES: usize = 4;
/// Number of consecutive failures after which the fill fails.
const MAX_FAILURES: u32 = 4;
/// Delay after the first failure; doubles with each further failure.
const RETRY_BACKOFF: Duration = Duration::from_millis(100);

/// Source of the bytes of a fill.
pub trait FillSource: Sync {
    /// Fetches a range of the whole object, or all of it if `range` is `None`, as a stream of pieces.
    fn fetch(
        &self,
        range: Option<ByteRange>,
    ) -> impl Future<Output = Result<BoxStream<'static, Result<Bytes, String>>, SourceError>> + Send;
}

/// Reason why a source does not send.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SourceError {
    /// The source has another object, or refuses: a retry does not help.
    #[error("{0}")]
    Final(String),
    /// The object was replaced by another version meanwhile.
    #[error("the object was replaced")]
    Replaced,
    /// A temporary failure; a retry may succeed.
    #[error("{0}")]
    Transient(String),
}

/// Method to fetch an object.
pub enum FillOptions {
    /// By this response body, which begins with the object's first byte.
    Arriving(BoxStream<'static, Result<Bytes, String>>),
    /// By this response body, until a reader waits for bytes of a large object; then by concurrent range requests.
    Background(BoxStream<'static, Result<Bytes, String>>),
    /// By one request for the whole object.
    Stream,
    /// By concurrent range requests.
    Parts,
}

/// The fill of one object version. If it is dropped before it has succeeded, the partial file is removed.
#[derive(Debug)]
pub struct Fill {
    disk: Arc<Disk>,
    entry: StoreEntry,
    object: Arc<Object>,
    progress: Arc<Progress>,
    part: NewFile,
    /// The pod whose request started the fill; the fill's requests count toward its share.
    pod: IpAddr,
    /// Permit of the fill; `None` in the background.
    _share: Option<Share>,
    committed: bool,
}

/// Reason why a fill failed.
#[derive(Debug, Error)]
pub enum FillError {
    /// The source failed repeatedly.
    #[error("the source failed after {after} of {size} bytes: {reason}")]
    SourceFailed {
        /// Bytes that had been received.
        after: u64,
        /// Size of the object in bytes.
        size: u64,
        /// Description of the last failure.
        reason: String,
    },
    /// The source refused, or has another object.
    #[error("the source refused: {0}")]
    Refused(String),
    /// The object was replaced by another version meanwhile: an ordinary race.
    #[error("the object was replaced")]
    Replaced,
    /// The source sent more bytes than were requested.
    #[error("the source sent more than {0} bytes")]
    TooLong(u64),
    /// The object does not match its checksum.
    #[error("the source sent a corrupt object: {0}")]
    Corrupt(io::Error),
    /// The cache file could not be written.
    #[error("cannot write the cache file: {0}")]
    Disk(#[from] io::Error),
}

/// Chunks that one request has claimed; those that it does not fetch are released when it is dropped.
struct Claim {
    progress: Arc<Progress>,
    chunks: VecDeque<Index>,
    /// Maximum number of chunks.
    part: usize,
}

impl Fill {
    pub(super) fn new(
        disk: Arc<Disk>,
        (entry, pod): (StoreEntry, IpAddr),
        object: Arc<Object>,
        progress: Arc<Progress>,
        (part, share): (NewFile, Option<Share>),
    ) -> Self {
        Self { disk, entry, object, progress, part, pod, _share: share, committed: false }
    }

    /// Creates a fill of an object of which all bytes are stored, and which must only be committed.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub(super) async fn of_stored(
        (disk, (entry, pod), object): (Arc<Disk>, (StoreEntry, IpAddr), Arc<Object>),
        (part, share): (NewFile, Share),
    ) -> io::Result<Self> {
        let progress = Arc::new(Progress::new(entry.size));
        let fill = Self::new(disk, (entry, pod), object, progress, (part, Some(share)));
        let file = fill.object.file().clone();
        let checksums = tokio::task::spawn_blocking(move || verify::checksums(&file, entry.size)).await;
        let checksums = checksums.map_err(io::Error::other)?.inspect_err(|error| fill.disk.notice(error))?;
        checksums
            .into_iter()
            .enumerate()
            .for_each(|(chunk, checksum)| fill.progress.arrived(chunk, checksum));
        Ok(fill)
    }

    /// Returns the object that is being filled.
    #[must_use]
    pub fn object(&self) -> Arc<Object> {
        self.object.clone()
    }

    /// Requests that the fill begin with the chunk that contains the byte at `position` of the object, if there is one.
    pub fn begin_at(&self, position: u64) {
        self.progress.want(position.saturating_sub(self.object.held().start));
    }

    /// Fetches the whole object or stripe. Returns its size in bytes once it is durable on disk.
    ///
    /// # Errors
    /// [`FillError`]; the partial object is then removed, and its readers fail with [`Broken`](crate::Broken).
    pub async fn run(self, source: &impl FillSource, how: FillOptions) -> Result<u64, FillError> {
        let mut lanes: FuturesUnordered<BoxFuture<'_, Lane>> = FuturesUnordered::new();
        let part = usize::try_from(self.disk.plan.part / u64::from(CHUNK)).unwrap_or(1).max(1);
        let mut streams = !matches!(how, FillOptions::Parts);
        let mut is_background = matches!(how, FillOptions::Background(_)) && self.progress.len() > part;
        let claim = Claim::first(&self.progress, part);
        match how {
            FillOptions::Arriving(stream) | FillOptions::Background(stream) => {
                lanes.push(Box::pin(self.stream(async { Ok(stream) }, claim)));
            }
            FillOptions::Stream => lanes.push(Box::pin(self.stream(source.fetch(None), claim))),
            // An object of one part is fetched as a whole.
            FillOptions::Parts if self.progress.len() <= part => {
                lanes.push(Box::pin(self.lane(source, claim, 0, None)));
            }
            FillOptions::Parts => drop(claim),
        }
        let requests = self.disk.plan.requests;
        let (mut most, mut failures) = (requests.min(2), 0);
        let mut urgent = URGENT_LANES;
        loop {
            let ordinary = if streams { 0 } else { most };
            while lanes.len() < ordinary + urgent + usize::from(streams) {
                // Each fill may have one request; further requests need a permit.
                let permit = self.disk.lanes.take(self.pod, 1).ok();
                if permit.is_none() && !lanes.is_empty() {
                    break;
                }
                let only_wanted = lanes.len() >= ordinary;
                let Some(claim) = Claim::next(&self.progress, part, only_wanted) else { break };
                lanes.push(Box::pin(self.lane(source, claim, failures, permit)));
            }
            let ended = tokio::select! {
                ended = lanes.next() => ended,
                () = self.progress.wanted(), if !is_background => continue,
                () = self.progress.awaited(), if is_background => {
                    // One stream would be slower than the fill that the reader would have started.
                    (is_background, streams) = (false, false);
                    lanes.clear();
                    continue;
                }
            };
            let Some(Lane { streamed, failures_before, end }) = ended else { break };
            streams &= !streamed;
            match end {
                Ok(()) => (most, failures) = ((most + 1).min(requests), 0),
                // Requests that ran when another failed count as the same failure.
                Err(FillError::SourceFailed { .. }) if failures_before < failures => {}
                Err(FillError::SourceFailed { .. }) if failures + 1 < MAX_FAILURES => {
                    (most, failures) = ((most / 2).max(1), failures + 1);
                }
                // The stream fetches the requested chunks later.
                Err(_) if streams => urgent = 0,
                Err(error) => return Err(error),
            }
        }
        drop(lanes);
        let md5_max_size = self.disk.plan.md5_max_size;
        self.commit(md5_max_size).await
    }

    /// Fetches the claimed chunks by one range request, after a delay if there were failures.
    async fn lane(
        &self,
        source: &impl FillSource,
        mut claim: Claim,
        failures: u32,
        _permit: Option<Share>,
    ) -> Lane {
        if failures > 0 {
            sleep(RETRY_BACKOFF * 2u32.pow(failures - 1)).await;
        }
        let store = async {
            let chunks = claim.span();
            let ByteRange { start, end } = self.progress.bytes(chunks.clone());
            let offset = self.object.held().start;
            let range = ByteRange { start: offset + start, end: offset + end };
            let whole = range.start == 0 && range.end == self.object.meta().size;
            let body = source.fetch(Some(range).filter(|_| !whole)).await;
            self.store(self.begun(body)?, chunks, &mut claim, false).await
        };
        Lane { streamed: false, failures_before: failures, end: store.await }
    }

    /// Fetches the whole object from its beginning, except for chunks that range requests have claimed.
    async fn stream(&self, body: impl Future<Output = Result<Body, SourceError>>, mut claim: Claim) -> Lane {
        let store = async {
            let body = self.begun(body.await)?;
            self.store(body, 0..self.progress.len(), &mut claim, true).await
        };
        Lane { streamed: true, failures_before: 0, end: store.await }
    }

    fn begun(&self, body: Result<Body, SourceError>) -> Result<Body, FillError> {
        body.map_err(|error| match error {
            SourceError::Final(why) => FillError::Refused(why),
            SourceError::Replaced => FillError::Replaced,
            SourceError::Transient(why) => self.source_failed(why),
        })
    }

    fn source_failed(&self, reason: String) -> FillError {
        FillError::SourceFailed { after: self.progress.so_far(), size: self.entry.size, reason }
    }

    /// Stores these chunks from a response body, including chunks that another request has claimed, since that request may
    /// fail.
    async fn store(
        &self,
        body: Body,
        chunks: Range<Index>,
        claim: &mut Claim,
        claims_more: bool,
    ) -> Result<(), FillError> {
        let all = self.progress.bytes(chunks.clone()).length();
        let (mut chunker, first) = (Chunker::new(body, all, self.disk.plan.silence), chunks.start);
        let failed = |error| match error {
            ChunkError::Source(reason) => self.source_failed(reason),
            ChunkError::TooLong => FillError::TooLong(all),
        };
        for chunk in chunks {
            if claims_more {
                claim.extend(chunk);
            }
            let range = self.progress.bytes(chunk..chunk + 1);
            let early = |offset, piece| {
                // A reader may be waiting for the first bytes of the request.
                if chunk == first {
                    self.progress.arriving(chunk, offset, piece);
                }
            };
            let pieces = chunker.next(range.length(), early).await.map_err(failed)?;
            if !self.progress.is_there(chunk) {
                let checksum = self.write(range.start, pieces).await?;
                self.progress.arrived(chunk, checksum);
                self.allocate().await;
            }
            claim.passed(chunk);
        }
        chunker.end().await.map_err(failed)
    }

    /// Writes a chunk and returns its CRC-32C.
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

    /// Allocates disk space for the whole object; only after the first chunk, whose reader would otherwise wait.
    async fn allocate(&self) {
        if self.progress.len() > 1 && self.part.is_to_allocate() {
            let part = self.part.clone();
            let _ = tokio::task::spawn_blocking(move || part.allocate()).await;
        }
    }

    /// Verifies the stored bytes, up to `md5_max_size` of them by an ETag, and makes the object durable. Returns its size in bytes.
    pub(super) async fn commit(mut self, md5_max_size: u64) -> Result<u64, FillError> {
        if self.disk.is_handed_over() {
            return Err(
                io::Error::other("another daemon owns the cache; readers received the whole object").into()
            );
        }
        let checksums = self.progress.checksums();
        let checksums = checksums.ok_or_else(|| self.source_failed("some chunks were not fetched".into()))?;
        let (meta, stripe) = (ObjectMeta::clone(&self.object.meta()), self.object.stripe());
        let record = Record { meta, stripe, checksums };
        let (disk, entry, part) = (self.disk.clone(), self.entry, self.part.clone());
        let committed = tokio::task::spawn_blocking(move || {
            verify::whole(&part.file(), &record, md5_max_size).map_err(FillError::Corrupt)?;
            let entry = disk.store.commit(&entry, &part, &record).inspect_err(|error| disk.notice(error))?;
            Result::<_, FillError>::Ok(entry)
        });
        let entry = committed.await.map_err(io::Error::other)??;
        self.committed = true;
        self.disk.index().committed(self.entry.disk, &entry, &self.object);
        Ok(self.entry.size)
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        // Readers of missing chunks fail.
        self.progress.end();
        if !self.committed {
            self.disk.index().abandoned(&self.entry);
        }
    }
}

/// Result of one request of a fill.
struct Lane {
    /// Whether it was the stream from the object's beginning.
    streamed: bool,
    /// Number of consecutive failures when it started.
    failures_before: u32,
    end: Result<(), FillError>,
}

impl Claim {
    /// Claims the first part.
    fn first(progress: &Arc<Progress>, part: usize) -> Self {
        let mut claim = Self { progress: progress.clone(), chunks: VecDeque::new(), part };
        claim.extend(0);
        claim
    }

    /// Claims a missing part, preferably one that readers wait for; only such a part if `only_wanted`.
    fn next(progress: &Arc<Progress>, part: usize, only_wanted: bool) -> Option<Self> {
        let chunks = progress.claim(part, only_wanted)?;
        Some(Self { progress: progress.clone(), chunks: chunks.collect(), part })
    }

    /// Claims the missing chunks of the part that begins with `chunk`.
    fn extend(&mut self, chunk: Index) {
        let after = self.chunks.back().map_or(chunk, |last| last + 1);
        self.chunks.extend(self.progress.claim_in(after.max(chunk)..chunk + self.part));
    }

    fn span(&self) -> Range<Index> {
        let first = self.chunks.front().copied().unwrap_or_default();
        first..first + self.chunks.len()
    }

    /// Removes a chunk that has been stored from the claim.
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
