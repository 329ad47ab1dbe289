//! Stores one range of a partial object from the response that brings it.

use std::{io, net::IpAddr, os::unix::fs::FileExt as _, sync::Arc};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use lota_s3::ByteRange;

use super::{
    FillError, Object,
    disk::Disk,
    fill::{Fill, next_piece},
    ids::VersionId,
    new_file::Allocation,
    pending::Pending,
    ranges::{ArrivalId, Ranges},
    record::CHUNK,
    store::StoreEntry,
};
use crate::shares::Share;

/// One response that brings a range of a partial object. If it is dropped before its end, the bytes that it has brought
/// stay stored, and readers of the others fail.
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
    pub(super) disk: Arc<Disk>,
    pub(super) version: VersionId,
    pub(super) ranges: Arc<Ranges>,
    pub(super) id: ArrivalId,
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
    pub async fn run(
        self,
        mut body: BoxStream<'static, Result<Bytes, String>>,
    ) -> (u64, Result<(), FillError>) {
        let mut received = 0;
        let stored = self.store(&mut body, &mut received).await;
        // The connection can be used again while the object is completed.
        drop(body);
        let committed = self.complete().await;
        (received, stored.and(committed))
    }

    /// Makes the object durable if all of its bytes are stored.
    async fn complete(self) -> Result<(), FillError> {
        let Self { disk, entry, object, pod, arrival, share, .. } = self;
        let ranges = arrival.ranges.clone();
        drop(arrival);
        if ranges.is_whole()
            && let Some((entry, part)) = disk.promote(entry, &ranges, &object)
        {
            let fill = (disk, (entry, pod), object);
            Fill::of_stored(fill, (part, share)).await?.commit().await?;
        }
        Ok(())
    }

    async fn store(
        &self,
        body: &mut BoxStream<'static, Result<Bytes, String>>,
        received: &mut u64,
    ) -> Result<(), FillError> {
        let (ranges, id) = (&self.arrival.ranges, self.arrival.id);
        let ByteRange { start, end } = self.range;
        let silence = self.disk.plan.silence;
        let (mut position, mut pending) = (start, Pending::default());
        while position < end {
            let chunk_end = (position - position % u64::from(CHUNK) + u64::from(CHUNK)).min(end);
            let length = index(chunk_end - position);
            while pending.length() < length {
                let piece = next_piece(body, silence).await;
                let piece =
                    piece.and_then(|piece| piece.ok_or_else(|| "the response ended early".to_owned()));
                let piece = piece.map_err(|reason| self.source_failed(*received, reason))?;
                *received += piece.len() as u64;
                // A reader may be waiting for the first bytes of the response.
                if position == start {
                    ranges.received(id, piece.slice(..piece.len().min(length - pending.length())));
                }
                pending.push(piece);
            }
            self.write(position, chunk_end, pending.take(length)).await?;
            position = chunk_end;
        }
        match next_piece(body, silence).await {
            Ok(None) if pending.length() == 0 => Ok(()),
            Ok(_) => Err(FillError::TooLong(self.range.length())),
            Err(reason) => Err(self.source_failed(*received, reason)),
        }
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

    fn source_failed(&self, after: u64, reason: String) -> FillError {
        FillError::SourceFailed { after, size: self.range.length(), reason }
    }
}

/// Converts a distance within a piece or a chunk.
fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}
