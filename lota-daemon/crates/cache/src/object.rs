//! An object in the cache: complete, or being filled.

use std::{fs::File, sync::Arc};

use lota_s3::{ByteRange, ObjectMeta, RangeRequest};
use parking_lot::RwLock;

use super::{
    progress::{Here, Progress},
    reader::{Broken, FIRST},
};
use crate::BodyFile;

/// An object in the cache. It stays readable as long as it is referenced, even after its eviction.
#[derive(Debug)]
pub struct Object {
    /// The description that the gateway gave last.
    meta: RwLock<Arc<ObjectMeta>>,
    size: u64,
    file: Arc<BodyFile>,
    /// Progress of the fill, or of the verification of an unverified object; `None` if the object was complete and
    /// verified when it was opened.
    progress: Option<Arc<Progress>>,
    /// Whether it was being filled when it was created.
    grows: bool,
}

impl Object {
    pub(super) fn complete(meta: ObjectMeta, file: File) -> Self {
        Self::new(meta, BodyFile::new(file), None, false)
    }

    /// Creates a complete object that must be verified before its bytes are served.
    pub(super) fn suspect(meta: ObjectMeta, file: File, progress: Arc<Progress>) -> Self {
        Self::new(meta, BodyFile::new(file), Some(progress), false)
    }

    pub(super) fn filling(meta: ObjectMeta, file: Arc<BodyFile>, progress: Arc<Progress>) -> Self {
        Self::new(meta, file, Some(progress), true)
    }

    fn new(meta: ObjectMeta, file: Arc<BodyFile>, progress: Option<Arc<Progress>>, grows: bool) -> Self {
        let size = meta.size;
        Self { meta: RwLock::new(Arc::new(meta)), size, file, progress, grows }
    }

    /// Returns the description that the gateway gave last. Responses use the headers of the request's grant instead.
    #[must_use]
    pub fn meta(&self) -> Arc<ObjectMeta> {
        self.meta.read().clone()
    }

    /// Merges the description from another response about the same version; returns whether it changed.
    pub fn learn(&self, told: &ObjectMeta) -> bool {
        let mut held = self.meta.write();
        let updated = held.updated_by(told);
        let changed = updated.is_some();
        if let Some(updated) = updated {
            *held = Arc::new(updated);
        }
        changed
    }

    /// Returns whether all bytes are cached.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.grows || self.progress.as_ref().is_none_or(|progress| progress.is_whole())
    }

    /// Returns the number of bytes that are cached.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.progress.as_ref().map_or_else(|| self.meta().size, |progress| progress.so_far())
    }

    pub(super) fn file(&self) -> &Arc<BodyFile> {
        &self.file
    }

    /// Starts to read the beginning of a range from disk into the page cache, while the request is being authorized.
    pub fn read_ahead(&self, range: RangeRequest) {
        if !self.is_complete() {
            return;
        }
        if let Ok(range) = range.resolve(self.size) {
            let ByteRange { start, end } = range.unwrap_or(ByteRange { start: 0, end: self.size });
            self.file.read_ahead(start, (end - start).min(FIRST as u64));
        }
    }

    /// Returns the cached bytes from `position` on; waits for the first byte.
    pub(super) async fn available(&self, position: u64) -> Result<Here, Broken> {
        match &self.progress {
            Some(progress) => progress.available(position).await,
            None => Ok(Here::File(self.size)),
        }
    }
}
