//! An object in the cache: complete, or growing.

use std::{
    fs::File,
    sync::{Arc, OnceLock},
};

use super::{progress::Progress, reader::Broken};
use crate::s3::ObjectMeta;

/// An object in the cache. It stays readable for whoever holds it, even when evicted.
#[derive(Debug)]
pub struct Object {
    meta: ObjectMeta,
    /// The same with checksums, if they were told later.
    told: OnceLock<ObjectMeta>,
    file: Arc<File>,
    /// Of an object that grows, or did when it was first met.
    progress: Option<Arc<Progress>>,
}

impl Object {
    pub(super) fn complete(meta: ObjectMeta, file: File) -> Self {
        Self { meta, told: OnceLock::new(), file: Arc::new(file), progress: None }
    }

    pub(super) fn filling(meta: ObjectMeta, file: Arc<File>, progress: Arc<Progress>) -> Self {
        Self { meta, told: OnceLock::new(), file, progress: Some(progress) }
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
        self.progress.as_ref().is_none_or(|progress| progress.is_whole())
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Where the bytes end that are here from `position` on; waits for the first of them.
    pub(super) async fn available(&self, position: u64) -> Result<u64, Broken> {
        match &self.progress {
            Some(progress) => progress.available(position).await,
            None => Ok(self.meta.size),
        }
    }
}
