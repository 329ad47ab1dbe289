//! An object in the cache: complete, or growing.

use std::{fs::File, io, sync::Arc};

use tokio::sync::watch;

use crate::s3::ObjectMeta;

/// How far a growing object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// So many bytes from the start are there, with their checksums recorded.
    Has(u64),
    /// Nothing more will come.
    Failed,
}

/// An object in the cache. It stays readable for whoever holds it, even when evicted.
#[derive(Debug)]
pub struct Object {
    meta: ObjectMeta,
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
}

impl Object {
    pub(super) fn complete(meta: ObjectMeta, file: File) -> Self {
        let (_, progress) = watch::channel(Progress::Has(meta.size));
        Self { meta, file: Arc::new(file), progress }
    }

    pub(super) fn filling(meta: ObjectMeta, file: File) -> io::Result<(Self, watch::Sender<Progress>)> {
        let (sender, progress) = watch::channel(Progress::Has(0));
        Ok((Self { meta, file: Arc::new(file), progress }, sender))
    }

    /// What it is.
    #[must_use]
    pub fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    /// Is all of it here?
    #[must_use]
    pub fn is_complete(&self) -> bool {
        *self.progress.borrow() == Progress::Has(self.meta.size)
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }
}
