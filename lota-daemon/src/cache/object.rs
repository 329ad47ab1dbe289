//! An object in the cache: complete, or growing.

use std::{
    fs::File,
    sync::{Arc, OnceLock},
};

use tokio::sync::watch;

use crate::s3::ObjectMeta;

/// An object in the cache. It stays readable for whoever holds it, even when evicted.
#[derive(Debug)]
pub struct Object {
    meta: ObjectMeta,
    /// The same with checksums, if they were told later.
    told: OnceLock<ObjectMeta>,
    file: Arc<File>,
    /// So many bytes from the start are there, with their checksums recorded.
    progress: watch::Receiver<u64>,
}

impl Object {
    pub(super) fn complete(meta: ObjectMeta, file: File) -> Self {
        let (_, progress) = watch::channel(meta.size);
        Self { meta, told: OnceLock::new(), file: Arc::new(file), progress }
    }

    /// A growing object, and where its growth is told. A sender dropped before the end means that nothing
    /// more will come.
    pub(super) fn filling(meta: ObjectMeta, file: Arc<File>) -> (Self, watch::Sender<u64>) {
        let (sender, progress) = watch::channel(0);
        (Self { meta, told: OnceLock::new(), file, progress }, sender)
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
        *self.progress.borrow() == self.meta.size
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn progress(&self) -> watch::Receiver<u64> {
        self.progress.clone()
    }
}
