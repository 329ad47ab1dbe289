//! Stores one range of a partial object from a response.

use std::{io, net::IpAddr, os::unix::fs::FileExt as _, sync::Arc};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use lota_s3::ByteRange;

use super::{
    FillError, NoRoom, Object,
    chunk::CHUNK,
    chunker::{ChunkError, Chunker},
    disk::Disk,
    fill::Fill,
    ids::VersionId,
    new_file::{Allocation, NewFile},
    ranges::{ArrivalId, Ranges},
    room,
    shares::Share,
    store::StoreEntry,
};

/// One response with a range of a partial object. If it is dropped before its end, the bytes that have arrived stay stored,
/// and readers of the others fail.
#[derive(Debug)]
pub struct RangeFill {
    disk: Arc<Disk>,
    entry: StoreEntry,
    object: Arc<Object>,
    pod: IpAddr,
    range: ByteRange,
    arrival: Arrival,
    allocation: Allocation,
    share: Share,
}

/// An announced response. When it is dropped, bytes that have not arrived no longer count.
#[derive(Debug)]
pub(super) struct Arrival {
    disk: Arc<Disk>,
    version: VersionId,
    ranges: Arc<Ranges>,
    id: ArrivalId,
}

impl Arrival {
    /// Announces a response with this range.
    ///
    /// # Errors
    /// If the object would have too many separate ranges.
    pub(super) fn begin(
        disk: &Arc<Disk>,
        version: VersionId,
        ranges: &Arc<Ranges>,
        range: ByteRange,
    ) -> Result<Self, NoRoom> {
        let id = ranges.begin(range).ok_or_else(NoRoom::fragments)?;
        Ok(Self { disk: disk.clone(), version, ranges: ranges.clone(), id })
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.ranges.end(self.id);
        self.disk.index().shrink_partial(self.version, &self.ranges);
    }
}

impl RangeFill {
    pub(super) fn new(
        (disk, (entry, pod), object, range): (Arc<Disk>, (StoreEntry, IpAddr), Arc<Object>, ByteRange),
        arrival: Arrival,
        (allocation, share): (Allocation, Share),
    ) -> Self {
        Self { disk, entry, object, pod, range, arrival, allocation, share }
    }

    /// Returns the partial object.
    #[must_use]
    pub fn object(&self) -> Arc<Object> {
        self.object.clone()
    }

    /// Stores the range from a response body. If the object is complete then, makes it durable. Returns the number of bytes
    /// received, too.
    ///
    /// Errors are those of a fill; bytes that were stored before stay stored, unless the completed object is corrupt.
    pub async fn run(self, body: BoxStream<'static, Result<Bytes, String>>) -> (u64, Result<(), FillError>) {
        let mut chunker = Chunker::new(body, self.range.length(), self.disk.plan.silence);
        let stored = self.store(&mut chunker).await;
        let received = chunker.received();
        // The connection can be used again while the object is completed.
        drop(chunker);
        let committed = self.complete().await;
        (received, stored.and(committed))
    }

    /// Makes the object durable if all of its bytes are stored.
    async fn complete(self) -> Result<(), FillError> {
        let Self { disk, entry, object, pod, arrival, share, .. } = self;
        let ranges = arrival.ranges.clone();
        drop(arrival);
        if ranges.is_whole()
            && let Some((entry, part)) = promote(&disk, entry, &ranges, &object)
        {
            let md5_max_size = disk.plan.md5_max_size;
            let fill = (disk, (entry, pod), object);
            Fill::of_stored(fill, (part, share)).await?.commit(md5_max_size).await?;
        }
        Ok(())
    }

    /// Stores the range from a response body, in pieces that end where chunks do.
    async fn store(&self, chunker: &mut Chunker) -> Result<(), FillError> {
        let (ranges, id) = (&self.arrival.ranges, self.arrival.id);
        let ByteRange { start, end } = self.range;
        let mut position = start;
        while position < end {
            let chunk_end = (position - position % u64::from(CHUNK) + u64::from(CHUNK)).min(end);
            let early = |_, piece| {
                // A reader may be waiting for the first bytes of the response.
                if position == start {
                    ranges.received(id, piece);
                }
            };
            let next = chunker.next(chunk_end - position, early).await;
            let pieces = next.map_err(|error| self.failed(chunker, error))?;
            self.write(position, chunk_end, pieces).await?;
            position = chunk_end;
        }
        let end = chunker.end().await;
        end.map_err(|error| self.failed(chunker, error))
    }

    /// Writes the bytes of `start..end` that are not stored yet.
    async fn write(&self, start: u64, end: u64, pieces: Vec<Bytes>) -> io::Result<()> {
        let (ranges, id, object) = (self.arrival.ranges.clone(), self.arrival.id, self.object.clone());
        let written = tokio::task::spawn_blocking(move || {
            ranges.store(id, end, |missing| {
                let mut offset = start;
                for piece in &pieces {
                    let piece_end = offset + piece.len() as u64;
                    let (from, to) = (missing.start.max(offset), missing.end.min(piece_end));
                    if from < to {
                        let bytes = &piece[index(from - offset)..index(to - offset)];
                        object.file().write_all_at(bytes, from)?;
                    }
                    offset = piece_end;
                }
                Ok(())
            })
        });
        let written = written.await.map_err(io::Error::other)?;
        self.allocation.written(end - start);
        self.disk.index().touch_partial(self.entry.version, &self.arrival.ranges);
        written.inspect_err(|error| self.disk.notice(error))
    }

    fn failed(&self, chunker: &Chunker, error: ChunkError) -> FillError {
        let size = self.range.length();
        match error {
            ChunkError::Source(reason) => FillError::SourceFailed { after: chunker.received(), size, reason },
            ChunkError::TooLong => FillError::TooLong(size),
        }
    }
}

/// Turns a partial object of which all bytes are stored into a fill that must only be committed. Returns `None` if it
/// was evicted, does not fit, or another request does this.
fn promote(
    disk: &Arc<Disk>,
    entry: StoreEntry,
    ranges: &Arc<Ranges>,
    object: &Arc<Object>,
) -> Option<(StoreEntry, NewFile)> {
    let entry = StoreEntry { disk: room::estimate(entry.size), ..entry };
    let promoted = disk.index().promote(&entry, ranges, object);
    let Some((partial, evicted)) = promoted else {
        tracing::debug!(file = %entry.version, "not completing a partial object");
        return None;
    };
    disk.remove_meanwhile(evicted);
    Some((entry, disk.store.kept(object.file().clone(), &partial.file, entry.size)))
}

/// Converts a distance within a piece or a chunk.
fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}
