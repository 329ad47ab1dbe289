//! An object in the cache: complete, or growing.

use std::{
    fs::File,
    sync::{Arc, OnceLock},
};

use super::{
    progress::{Here, Progress},
    reader::{Broken, FIRST},
};
use crate::{
    http::BodyFile,
    s3::{ByteRange, ObjectMeta, RangeRequest},
};

/// An object in the cache. It stays readable for whoever holds it, even when evicted.
#[derive(Debug)]
pub struct Object {
    meta: ObjectMeta,
    /// The same with checksums, if they were told later.
    told: OnceLock<ObjectMeta>,
    file: Arc<BodyFile>,
    /// Of an object that grows, or did when it was first met; or whose bytes are being checked.
    progress: Option<Arc<Progress>>,
    /// Did it grow when it was first met?
    grows: bool,
}

impl Object {
    pub(super) fn complete(meta: ObjectMeta, file: File) -> Self {
        Self::new(meta, BodyFile::new(file), None, false)
    }

    /// Complete, but not to be trusted before it is checked.
    pub(super) fn suspect(meta: ObjectMeta, file: File, progress: Arc<Progress>) -> Self {
        Self::new(meta, BodyFile::new(file), Some(progress), false)
    }

    pub(super) fn filling(meta: ObjectMeta, file: Arc<BodyFile>, progress: Arc<Progress>) -> Self {
        Self::new(meta, file, Some(progress), true)
    }

    fn new(meta: ObjectMeta, file: Arc<BodyFile>, progress: Option<Arc<Progress>>, grows: bool) -> Self {
        Self { meta, told: OnceLock::new(), file, progress, grows }
    }

    /// What it is.
    #[must_use]
    pub fn meta(&self) -> &ObjectMeta {
        self.told.get().unwrap_or(&self.meta)
    }

    /// Notes the checksums that another answer about the same version has told, if it has and none had before.
    pub fn learn_checksums(&self, told: &ObjectMeta) {
        if told.checksums_known && told.version == self.meta.version && !self.meta.checksums_known {
            let _ = self.told.set(self.meta.clone().with_checksums(&told.headers));
        }
    }

    /// Is all of it here?
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.grows || self.progress.as_ref().is_none_or(|progress| progress.is_whole())
    }

    pub(super) fn file(&self) -> &Arc<BodyFile> {
        &self.file
    }

    /// Begins to read the first of these bytes from disk, in case they will be granted.
    pub fn read_ahead(&self, range: RangeRequest) {
        if !self.is_complete() {
            return;
        }
        if let Ok(range) = range.resolve(self.meta.size) {
            let ByteRange { start, end } = range.unwrap_or(ByteRange { start: 0, end: self.meta.size });
            self.file.read_ahead(start, (end - start).min(FIRST as u64));
        }
    }

    /// What is here from `position` on; waits for the first byte.
    pub(super) async fn available(&self, position: u64) -> Result<Here, Broken> {
        match &self.progress {
            Some(progress) => progress.available(position).await,
            None => Ok(Here::File(self.meta.size)),
        }
    }
}
