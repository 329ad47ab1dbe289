//! Partial objects of a disk: objects of which clients have read ranges.
//!
//! LOTA may be unable to fetch the rest of an object, because a client signs its `Range` and LOTA has no credential of
//! its own. The bytes that pass by are then kept, and the object becomes complete once they are all there. Until then,
//! its file has a temporary name, so that a restart removes it.

use std::{io, net::IpAddr, sync::Arc};

use lota_s3::{ByteRange, ObjectMeta};

use super::{
    NoRoom, Object,
    disk::Disk,
    partial_objects::PartialObject,
    range_fill::{Arrival, RangeFill},
    ranges::Ranges,
    store::StoreEntry,
};

impl Disk {
    /// Prepares to store a range of an object from a response.
    pub(super) async fn keep_range(
        self: &Arc<Self>,
        entry: StoreEntry,
        meta: ObjectMeta,
        range: ByteRange,
        pod: IpAddr,
    ) -> Result<RangeFill, NoRoom> {
        let share = self.take_share(pod)?;
        let disk = self.clone();
        let allocated = tokio::task::spawn_blocking(move || disk.allocate(range.length())).await;
        let allocation = allocated.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| {
            self.notice(&error);
            NoRoom::new(format!("cannot store {} bytes: {error}", range.length()))
        })?;
        // Another request may begin the same object meanwhile; its range is then joined by this one.
        for _ in 0..2 {
            let begun = match self.get(entry.version).await {
                Some(object) => Some(self.grow_partial(entry, object, range)?),
                None => self.begin_partial(entry, &meta, range).await?,
            };
            if let Some((object, arrival)) = begun {
                self.named(entry.name, entry.version);
                let fill = (self.clone(), (entry, pod), object, range);
                return Ok(RangeFill::new(fill, arrival, (allocation, share)));
            }
        }
        Err(NoRoom::new("another request has begun to store the object"))
    }

    /// Announces another range of a partial object.
    fn grow_partial(
        self: &Arc<Self>,
        entry: StoreEntry,
        object: Arc<Object>,
        range: ByteRange,
    ) -> Result<(Arc<Object>, Arrival), NoRoom> {
        let not_partial = || NoRoom::new("another request has begun to fill the object");
        let ranges = object.ranges().ok_or_else(not_partial)?.clone();
        if object.meta().size != entry.size {
            return Err(NoRoom::new("the gateway states another size for the same version"));
        }
        let arrival = Arrival::begin(self, entry.version, &ranges, range)?;
        let grown = self.index().grow_partial(&entry, &ranges);
        self.remove_meanwhile(grown?);
        Ok((object, arrival))
    }

    /// Creates a partial object, and announces its first range. Returns `None` if another request has done so meanwhile.
    async fn begin_partial(
        self: &Arc<Self>,
        entry: StoreEntry,
        meta: &ObjectMeta,
        range: ByteRange,
    ) -> Result<Option<(Arc<Object>, Arrival)>, NoRoom> {
        let ranges = Arc::new(Ranges::new(entry.size));
        let arrival = Arrival::begin(self, entry.version, &ranges, range)?;
        let reserved = StoreEntry { disk: ranges.disk(), ..entry };
        let evicted = self.index().reserve(&reserved, &meta.version.name)?;
        // The range's disk space is reserved already.
        let file = self.file_for(entry.size, 0, evicted).await.map_err(|error| {
            self.index().release(reserved.disk);
            self.notice(&error);
            NoRoom::new(format!("cannot create a file: {error}"))
        })?;
        let object = Arc::new(Object::partial(meta.clone(), file.file(), ranges.clone()));
        let partial = PartialObject::new(object.meta(), ranges.clone(), self.store.keep(&file));
        let registered = self.index().register_partial(&reserved, partial, &object);
        let Some(evicted) = registered else { return Ok(None) };
        self.remove_meanwhile(evicted);
        Ok(Some((object, arrival)))
    }
}

#[cfg(test)]
#[path = "partial_tests.rs"]
mod tests;
