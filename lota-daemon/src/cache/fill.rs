//! One whole-object fetch into the cache, which any number of readers follow.

use std::{io, os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use thiserror::Error;
use tokio::{sync::watch, time::timeout};

use super::{
    Cache, Object,
    record::{CHUNK, Record},
    store::{NameId, Part, VersionId},
};

/// Longest silence of a source.
const PATIENCE: Duration = Duration::from_secs(30);

/// The right, and the duty, to bring an object's bytes. Dropped before its end, it leaves nothing behind.
#[derive(Debug)]
pub struct Fill {
    cache: Arc<Cache>,
    id: VersionId,
    name: NameId,
    object: Arc<Object>,
    progress: watch::Sender<u64>,
    part: Part,
    pending: BytesMut,
    written: u64,
    checksums: Vec<u32>,
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
    /// The source stopped sending, without ending.
    #[error("the source sent nothing for {} s after {after} of {size} bytes", PATIENCE.as_secs())]
    Stalled {
        /// Bytes that had come.
        after: u64,
        /// Bytes that were to come.
        size: u64,
    },
    /// The source sent another number of bytes than the gateway had said.
    #[error("the source sent {got} bytes of an object of {size}")]
    Length {
        /// Bytes that came; or one more than were to come.
        got: u64,
        /// Bytes that were to come.
        size: u64,
    },
    /// The disk did.
    #[error("cannot write the cache file: {0}")]
    Disk(#[from] io::Error),
}

impl Fill {
    pub(super) fn new(
        cache: Arc<Cache>,
        id: VersionId,
        name: NameId,
        object: Arc<Object>,
        progress: watch::Sender<u64>,
        part: Part,
    ) -> Self {
        Self {
            cache,
            id,
            name,
            object,
            progress,
            part,
            pending: BytesMut::new(),
            written: 0,
            checksums: Vec::new(),
            committed: false,
        }
    }

    /// The object that this fill brings.
    #[must_use]
    pub fn object(&self) -> Arc<Object> {
        self.object.clone()
    }

    /// Brings the whole object from `source`. Returns the number of bytes when it is safe on disk.
    ///
    /// # Errors
    /// [`FillError`]; nothing of the object stays then, and its readers are told.
    pub async fn run<E: std::fmt::Display>(
        mut self,
        source: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<u64, FillError> {
        let size = self.object.meta().size;
        let mut source = std::pin::pin!(source);
        loop {
            let after = self.written + self.pending.len() as u64;
            let stalled = |_| FillError::Stalled { after, size };
            let Some(bytes) = timeout(PATIENCE, source.next()).await.map_err(stalled)? else { break };
            let bytes =
                bytes.map_err(|error| FillError::Source { after, size, reason: error.to_string() })?;
            if after + bytes.len() as u64 > size {
                return Err(FillError::Length { got: after + bytes.len() as u64, size });
            }
            self.pending.extend_from_slice(&bytes);
            while self.pending.len() >= CHUNK as usize {
                let chunk = self.pending.split_to(CHUNK as usize).freeze();
                self.write(chunk).await?;
            }
        }
        if !self.pending.is_empty() {
            let rest = self.pending.split().freeze();
            let whole = self.written + rest.len() as u64 == size;
            if whole {
                self.write(rest).await?;
            } else {
                return Err(FillError::Length { got: self.written + rest.len() as u64, size });
            }
        }
        if self.written != size {
            return Err(FillError::Length { got: self.written, size });
        }
        self.commit().await?;
        Ok(size)
    }

    async fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        let (file, offset) = (self.object.file().clone(), self.written);
        self.written += chunk.len() as u64;
        let checksum = tokio::task::spawn_blocking(move || {
            file.write_all_at(&chunk, offset)?;
            io::Result::Ok(crc32c::crc32c(&chunk))
        })
        .await
        .map_err(io::Error::other)??;
        self.checksums.push(checksum);
        self.progress.send_replace(self.written);
        Ok(())
    }

    async fn commit(mut self) -> io::Result<()> {
        if self.cache.is_handed_over() {
            return Err(io::Error::other("another daemon has the cache now; its readers had it all"));
        }
        let checksums = std::mem::take(&mut self.checksums);
        let record = Record { meta: self.object.meta().clone(), checksums };
        let (store, id, part) = (self.cache.store.clone(), self.id, self.part.clone());
        tokio::task::spawn_blocking(move || store.commit(&id, &part, &record))
            .await
            .map_err(io::Error::other)??;
        self.committed = true;
        self.cache.fill_committed(self.id, self.name, &self.object);
        Ok(())
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        if !self.committed {
            // The sender goes with this: readers of what did not come are told.
            self.cache.fill_abandoned(self.id, self.name, self.object.meta().size);
        }
    }
}
