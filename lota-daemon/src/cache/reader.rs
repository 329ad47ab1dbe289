//! Follows an object's file as far as it has been written.

use std::sync::Arc;

use thiserror::Error;

use super::Object;
use crate::{
    gateway::Grant,
    http::{FileSlice, MAX_SLICE},
    s3::ByteRange,
};

/// Most bytes of a reader's first piece: it may have to be read from disk before any of it is sent.
pub(super) const FIRST: u64 = 1 << 20;

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
    most: u64,
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
    pub async fn next(&mut self) -> Result<Option<FileSlice>, Broken> {
        if self.position == self.end {
            return Ok(None);
        }
        let available = self.object.available(self.position).await?;
        let length = (available.min(self.end) - self.position).min(self.most);
        let slice = FileSlice {
            file: self.object.file().clone(),
            offset: self.position,
            length: usize::try_from(length).unwrap_or(usize::MAX),
        };
        self.position += length;
        self.most = MAX_SLICE as u64;
        Ok(Some(slice))
    }
}
