//! Finds objects on a disk and opens them.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use lota_s3::{ObjectMeta, RangeRequest};
use nix::errno::Errno;

use super::{
    disk::Disk,
    ids::{NameId, VersionId},
    index::CachedLocation,
    object::Object,
    partial_objects::PartialObject,
    progress::Progress,
    record::Record,
    store::StoreEntry,
    verify,
};

impl Disk {
    /// Returns the version of an object that the gateway named last, if it is cached or being filled.
    pub(super) async fn find(self: &Arc<Self>, name: NameId) -> Option<Arc<Object>> {
        let version = self.index().newest(name)?;
        self.get(version).await
    }

    /// Returns a version, if it is cached or being filled.
    pub(super) async fn get(self: &Arc<Self>, version: VersionId) -> Option<Arc<Object>> {
        let place = self.index().look_up(version)?;
        let (entry, unverified) = match place {
            CachedLocation::AtHand(object) if !object.file().has_failed() => return Some(object),
            CachedLocation::AtHand(_) => {
                tracing::warn!(file = %version, "cannot read a cached object; dropping it");
                self.drop_object(version);
                return None;
            }
            CachedLocation::Partial(partial) => return self.open_partial(version, partial).await,
            CachedLocation::OnDisk { entry, unverified } => (entry, unverified),
        };
        let disk = self.clone();
        let loaded = tokio::task::spawn_blocking(move || disk.store.load(&entry)).await.ok()?;
        match loaded {
            Ok((record, file)) if unverified => {
                let progress = Arc::new(Progress::new(entry.size));
                let Record { meta, stripe, checksums } = record;
                let object = Arc::new(Object::unverified(meta, stripe, file, progress.clone()));
                let open = self.index().opened(version, object.clone());
                if Arc::ptr_eq(&open, &object) {
                    tokio::spawn(self.clone().check(entry, object, progress, checksums));
                }
                Some(open)
            }
            Ok((record, file)) => Some(
                self.index().opened(version, Arc::new(Object::complete(record.meta, record.stripe, file))),
            ),
            Err(error) => {
                tracing::warn!(file = %version, %error, "cannot read a cached object");
                // A lack of descriptors or memory is temporary and does not mean that the object is damaged.
                let code = error.raw_os_error().map(Errno::from_raw);
                if !matches!(code, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) {
                    self.drop_object(version);
                }
                self.notice(&error);
                None
            }
        }
    }

    /// Compares an object with its checksums, beginning with the chunks that readers wait for.
    async fn check(
        self: Arc<Self>,
        entry: StoreEntry,
        object: Arc<Object>,
        progress: Arc<Progress>,
        checksums: Vec<u32>,
    ) {
        while let Some(chunks) = progress.claim(1, false) {
            let (file, chunk) = (object.file().clone(), chunks.start);
            let (range, expected) = (progress.bytes(chunks), checksums[chunk]);
            let compared = tokio::task::spawn_blocking(move || verify::chunk(&file, range, expected)).await;
            match compared.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(()) => progress.arrived(chunk, expected),
                Err(error) => {
                    progress.end();
                    return self.found_corrupt(&entry, &error);
                }
            }
            self.verified.fetch_add(range.length(), Ordering::Relaxed);
        }
        self.trust(&entry);
    }

    /// Returns a version, if all of it is cached or arrives. A fill takes the place of other partial objects.
    pub(super) async fn get_whole(self: &Arc<Self>, version: VersionId) -> Option<Arc<Object>> {
        self.get(version).await.filter(|object| object.serves(RangeRequest::Whole))
    }

    /// Opens the file of a partial object.
    async fn open_partial(
        self: &Arc<Self>,
        version: VersionId,
        PartialObject { meta, ranges, file, .. }: PartialObject,
    ) -> Option<Arc<Object>> {
        let opened = tokio::task::spawn_blocking(move || file.open()).await;
        match opened.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(file) => {
                let object = Arc::new(Object::partial(ObjectMeta::clone(&meta), file, ranges.clone()));
                Some(self.index().opened_partial(version, &ranges, object))
            }
            Err(error) => {
                tracing::warn!(file = %version, %error, "cannot open a partial object");
                let code = error.raw_os_error().map(Errno::from_raw);
                if !matches!(code, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) {
                    self.index().discard_partial_of(version, &ranges);
                }
                self.notice(&error);
                None
            }
        }
    }
}
