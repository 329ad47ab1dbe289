//! Reads cached objects, including those that are being filled.

use std::sync::Arc;

use bytes::Bytes;
use lota_s3::ByteRange;

use super::{
    available::{Available, Broken},
    file::FIRST_SLICE,
};
use crate::{FileSlice, MAX_SLICE, Object, ReadPermit};

/// Reads a range of an object and waits for bytes that are still being filled.
#[derive(Debug)]
pub struct Reader {
    object: Arc<Object>,
    /// Position of the next byte in the object's file.
    position: u64,
    /// Position in the file at which the range ends.
    end: u64,
    /// Maximum size of the next piece, in bytes.
    most: usize,
}

impl Reader {
    /// Creates a reader of a range of an object, or of all of it. Bytes leave the cache only here, so it requires a
    /// permit for this version; returns `None` if the permit is for another version, or the object is a stripe without
    /// all of the range.
    #[must_use]
    pub fn new(permit: &impl ReadPermit, object: Arc<Object>, range: Option<ByteRange>) -> Option<Self> {
        if permit.meta().version != object.meta().version || permit.meta().size != object.meta().size {
            return None;
        }
        let held = object.held();
        let ByteRange { start, end } = range.unwrap_or(held);
        let is_held = held.start <= start && start <= end && end <= held.end;
        is_held.then(|| Self {
            object,
            position: start - held.start,
            end: end - held.start,
            most: FIRST_SLICE,
        })
    }

    /// Waits until the next byte is available, or returns at once at the end.
    ///
    /// # Errors
    /// [`Broken`] if the fill failed.
    pub async fn ready(&self) -> Result<(), Broken> {
        if self.position < self.end { self.object.available(self.position).await.map(|_| ()) } else { Ok(()) }
    }

    /// Returns the next piece, or `None` at the end.
    ///
    /// # Errors
    /// [`Broken`] if the fill failed before it.
    pub async fn next(&mut self) -> Result<Option<Piece>, Broken> {
        if self.position == self.end {
            return Ok(None);
        }
        let left = self.end - self.position;
        let piece = match self.object.available(self.position).await? {
            Available::File(end) => Piece::File(FileSlice {
                file: self.object.file().clone(),
                offset: self.position,
                length: shorter(left.min(end - self.position), self.most),
            }),
            Available::Memory(bytes) => Piece::Memory(bytes.slice(..shorter(left, bytes.len()))),
        };
        self.position += piece.length() as u64;
        self.most = MAX_SLICE;
        Ok(Some(piece))
    }
}

/// Consecutive bytes of an object.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes in the object's file.
    File(FileSlice),
    /// Received bytes that are not in the file yet.
    Memory(Bytes),
}

impl Piece {
    /// Returns the number of bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Self::File(slice) => slice.length,
            Self::Memory(bytes) => bytes.len(),
        }
    }
}

#[cfg(test)]
impl Piece {
    pub(super) fn read_for_tests(&self) -> Vec<u8> {
        use std::os::unix::fs::FileExt as _;
        match self {
            Self::File(slice) => {
                let mut bytes = vec![0; slice.length];
                slice.file.read_exact_at(&mut bytes, slice.offset).unwrap();
                bytes
            }
            Self::Memory(bytes) => bytes.to_vec(),
        }
    }
}

fn shorter(one: u64, other: usize) -> usize {
    usize::try_from(one).map_or(other, |one| one.min(other))
}
