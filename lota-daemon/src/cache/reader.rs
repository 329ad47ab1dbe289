//! Follows an object's file as far as it has been written.

use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use super::{Object, progress::Here};
use crate::{
    gateway::Grant,
    http::{FileSlice, MAX_SLICE},
    s3::ByteRange,
};

/// Most bytes of a reader's first piece: it may have to be read from disk before any of it is sent.
pub(super) const FIRST: usize = 1 << 20;

/// The fill that a reader followed has ended before the object did.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the fill of this object broke off")]
pub struct Broken;

/// Reads a range of an object, waiting for what is still on its way.
#[derive(Debug)]
pub struct Reader {
    object: Arc<Object>,
    position: u64,
    end: u64,
    /// Most bytes of the next piece.
    most: usize,
}

impl Reader {
    /// Reads `range` of an object, or all of it: this is where bytes leave, so it takes the gateway's grant
    /// for that very version. `None` if it is for another.
    #[must_use]
    pub fn new(grant: &Grant, object: Arc<Object>, range: Option<ByteRange>) -> Option<Self> {
        if *grant.version() != object.meta().version {
            return None;
        }
        let ByteRange { start, end } = range.unwrap_or(ByteRange { start: 0, end: object.meta().size });
        Some(Self { object, position: start, end, most: FIRST })
    }

    /// Waits until the next byte is there, if there is to be one.
    ///
    /// # Errors
    /// [`Broken`] if it never will be.
    pub async fn ready(&self) -> Result<(), Broken> {
        if self.position < self.end { self.object.available(self.position).await.map(|_| ()) } else { Ok(()) }
    }

    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// [`Broken`] if the fill broke off before it.
    pub async fn next(&mut self) -> Result<Option<Piece>, Broken> {
        if self.position == self.end {
            return Ok(None);
        }
        let left = self.end - self.position;
        let piece = match self.object.available(self.position).await? {
            Here::File(end) => Piece::File(FileSlice {
                file: self.object.file().clone(),
                offset: self.position,
                length: shorter(left.min(end - self.position), self.most),
            }),
            Here::Memory(bytes) => Piece::Memory(bytes.slice(..shorter(left, bytes.len()))),
        };
        self.position += piece.length() as u64;
        self.most = MAX_SLICE;
        Ok(Some(piece))
    }
}

/// Some bytes of an object.
#[derive(Clone, Debug)]
pub enum Piece {
    /// They are in its file.
    File(FileSlice),
    /// They have only just come.
    Memory(Bytes),
}

impl Piece {
    /// How many bytes it has.
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
