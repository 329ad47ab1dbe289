//! Follows an object's file as far as it has been written.

use std::sync::Arc;

use thiserror::Error;
use tokio::sync::watch;

use super::Object;
use crate::{
    gateway::Grant,
    http::{FileSlice, MAX_SLICE},
    s3::ByteRange,
};

/// The fill that a reader followed has ended before the object did.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the fill of this object broke off")]
pub struct Broken;

/// Reads a range of an object, waiting for what is still on its way.
#[derive(Debug)]
pub struct Reader {
    object: Arc<Object>,
    progress: watch::Receiver<u64>,
    position: u64,
    end: u64,
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
        let progress = object.progress();
        Some(Self { object, progress, position: start, end })
    }

    /// Waits until the next byte is there, if there is to be one.
    ///
    /// # Errors
    /// [`Broken`] if it never will be.
    pub async fn ready(&mut self) -> Result<(), Broken> {
        if self.position < self.end { self.available().await.map(|_| ()) } else { Ok(()) }
    }

    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// [`Broken`] if the fill broke off before it.
    pub async fn next(&mut self) -> Result<Option<FileSlice>, Broken> {
        if self.position == self.end {
            return Ok(None);
        }
        let available = self.available().await?;
        let length = (available.min(self.end) - self.position).min(MAX_SLICE as u64);
        let slice = FileSlice {
            file: self.object.file().clone(),
            offset: self.position,
            length: usize::try_from(length).unwrap_or(usize::MAX),
        };
        self.position += length;
        Ok(Some(slice))
    }

    async fn available(&mut self) -> Result<u64, Broken> {
        let position = self.position;
        // What a sender that is gone said last still counts; nothing more will come.
        self.progress.wait_for(|bytes| *bytes > position).await.map(|bytes| *bytes).map_err(|_| Broken)
    }
}
