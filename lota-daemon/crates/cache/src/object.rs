//! An object in the cache, or a stripe of one: complete, partial, or being filled.

use std::{fs::File, sync::Arc};

use lota_s3::{ByteRange, ObjectMeta, RangeRequest};
use parking_lot::RwLock;

use super::{
    available::{Available, Broken},
    file::FIRST_SLICE,
    progress::Progress,
    ranges::Ranges,
    stripe::{self, Stripe},
};
use crate::BodyFile;

/// An object in the cache, or a stripe of one. It stays readable as long as it is referenced, even after its eviction.
#[derive(Debug)]
pub struct Object {
    /// The description that the gateway gave last.
    meta: RwLock<Arc<ObjectMeta>>,
    /// Size of the whole object, in bytes.
    size: u64,
    stripe: Option<Stripe>,
    /// Bytes of the object that the file is for, from its beginning on.
    held: ByteRange,
    file: Arc<BodyFile>,
    content: Content,
}

/// The bytes of an object or stripe that its file contains.
#[derive(Debug)]
enum Content {
    /// All bytes, and they were verified when the object was opened.
    Verified,
    /// All bytes; those of verified chunks can be read.
    Unverified(Arc<Progress>),
    /// The bytes that a fill has stored. The fill fetches all others.
    Filling(Arc<Progress>),
    /// The bytes that clients have read. Nothing fetches the others.
    Partial(Arc<Ranges>),
}

impl Object {
    pub(super) fn complete(meta: ObjectMeta, stripe: Option<Stripe>, file: File) -> Self {
        Self::new(meta, stripe, BodyFile::new(file), Content::Verified)
    }

    /// Creates a complete object that must be verified before its bytes are served.
    pub(super) fn unverified(
        meta: ObjectMeta,
        stripe: Option<Stripe>,
        file: File,
        progress: Arc<Progress>,
    ) -> Self {
        Self::new(meta, stripe, BodyFile::new(file), Content::Unverified(progress))
    }

    pub(super) fn filling(
        meta: ObjectMeta,
        stripe: Option<Stripe>,
        file: Arc<BodyFile>,
        progress: Arc<Progress>,
    ) -> Self {
        Self::new(meta, stripe, file, Content::Filling(progress))
    }

    pub(super) fn partial(meta: ObjectMeta, file: Arc<BodyFile>, ranges: Arc<Ranges>) -> Self {
        Self::new(meta, None, file, Content::Partial(ranges))
    }

    fn new(meta: ObjectMeta, stripe: Option<Stripe>, file: Arc<BodyFile>, content: Content) -> Self {
        let size = meta.size;
        let held = stripe::held(stripe, size);
        Self { meta: RwLock::new(Arc::new(meta)), size, stripe, held, file, content }
    }

    /// Returns the stripe that this is; `None` for a whole object.
    #[must_use]
    pub fn stripe(&self) -> Option<Stripe> {
        self.stripe
    }

    /// Returns the bytes of the whole object that this holds or will hold.
    pub(super) fn held(&self) -> ByteRange {
        self.held
    }

    /// Returns the description that the gateway gave last. Responses use the headers of the request's grant instead.
    #[must_use]
    pub fn meta(&self) -> Arc<ObjectMeta> {
        self.meta.read().clone()
    }

    /// Merges the description from another response about the same version; returns whether it changed.
    pub fn learn(&self, later: &ObjectMeta) -> bool {
        let mut held = self.meta.write();
        let updated = held.updated_by(later);
        let changed = updated.is_some();
        if let Some(updated) = updated {
            *held = Arc::new(updated);
        }
        changed
    }

    /// Returns whether all bytes are cached.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match &self.content {
            Content::Verified | Content::Unverified(_) => true,
            Content::Filling(progress) => progress.is_whole(),
            Content::Partial(ranges) => ranges.is_whole(),
        }
    }

    /// Returns whether only some bytes are cached, and nothing fetches the others.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.ranges().is_some_and(|ranges| !ranges.is_whole())
    }

    /// Returns whether all bytes of a range are cached.
    #[must_use]
    pub fn has(&self, range: RangeRequest) -> bool {
        match &self.content {
            Content::Partial(ranges) => self.resolve(range).is_none_or(|range| ranges.has(range)),
            _ => self.is_complete(),
        }
    }

    /// Returns whether all bytes of a range are cached or arrive soon: those of a partial object that clients have read or are
    /// reading; all bytes of other objects.
    #[must_use]
    pub fn serves(&self, range: RangeRequest) -> bool {
        match &self.content {
            Content::Partial(ranges) => self.resolve(range).is_none_or(|range| ranges.covers(range)),
            _ => true,
        }
    }

    /// Returns the number of bytes that are cached.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        match &self.content {
            Content::Verified => self.held.length(),
            Content::Unverified(progress) | Content::Filling(progress) => progress.so_far(),
            Content::Partial(ranges) => ranges.stored_bytes(),
        }
    }

    /// Returns the ranges of a partial object; `None` for other objects.
    pub(super) fn ranges(&self) -> Option<&Arc<Ranges>> {
        match &self.content {
            Content::Partial(ranges) => Some(ranges),
            _ => None,
        }
    }

    /// Returns the bytes that a request selects; `None` if it selects none.
    fn resolve(&self, range: RangeRequest) -> Option<ByteRange> {
        let range = range.resolve(self.size).ok()?;
        Some(range.unwrap_or(ByteRange { start: 0, end: self.size }))
    }

    pub(super) fn file(&self) -> &Arc<BodyFile> {
        &self.file
    }

    /// Starts to read the beginning of a range from disk into the page cache, while the request is being authorized.
    pub fn read_ahead(&self, range: RangeRequest) {
        if self.has(range)
            && let Some(ByteRange { start, end }) = self.resolve(range)
        {
            let (start, end) = (start.max(self.held.start), end.min(self.held.end));
            let length = end.saturating_sub(start).min(FIRST_SLICE as u64);
            self.file.read_ahead(start - self.held.start, length);
        }
    }

    /// Returns the cached bytes from `position` in the file on; waits for the first byte.
    pub(super) async fn available(&self, position: u64) -> Result<Available, Broken> {
        match &self.content {
            Content::Verified => Ok(Available::File(self.held.length())),
            Content::Unverified(progress) | Content::Filling(progress) => progress.available(position).await,
            Content::Partial(ranges) => ranges.available(position).await,
        }
    }
}
