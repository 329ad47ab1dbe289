//! Files that are sent with `sendfile(2)`, and slices of them.

use std::{
    fs::File,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Largest slice, in bytes. A socket's send buffer usually holds less, which bounds the time for which one connection
/// occupies its thread.
pub const MAX_SLICE: usize = 4 << 20;

/// Maximum size of a reader's first slice, in bytes. It is small because it may have to be read from disk before any of it
/// is sent.
pub(super) const FIRST_SLICE: usize = 1 << 20;

/// A file that is sent without a copy. A read error shows only when its bytes are sent.
#[derive(Debug)]
pub struct BodyFile {
    file: File,
    failed: AtomicBool,
}

impl BodyFile {
    /// Wraps a file to be sent.
    #[must_use]
    pub fn new(file: File) -> Arc<Self> {
        Arc::new(Self { file, failed: AtomicBool::new(false) })
    }

    /// Records that the file could not be read while it was sent.
    pub fn set_failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Returns whether the file could not be read while it was sent.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

impl Deref for BodyFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

/// A slice of a file.
#[derive(Clone, Debug)]
pub struct FileSlice {
    /// The file.
    pub file: Arc<BodyFile>,
    /// Offset of the slice in the file, in bytes.
    pub offset: u64,
    /// Length of the slice in bytes; at most [`MAX_SLICE`].
    pub length: usize,
}
