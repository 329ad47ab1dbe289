//! Starts fills.

use std::{net::IpAddr, sync::Arc};

use lota_s3::ObjectMeta;

use super::{
    disk::Disk, fill::Fill, no_room::NoRoom, object::Object, progress::Progress, store::StoreEntry,
    stripe::Stripe,
};

/// Result of starting or joining a fill.
#[derive(Debug)]
pub enum Join {
    /// The caller fetches the bytes.
    Lead(Fill),
    /// The object is cached, or another fill is fetching it.
    Follow(Arc<Object>),
}

/// Priority of a fill.
#[derive(Clone, Copy, Debug)]
pub(super) enum FillPriority {
    /// A client waits for it.
    Client,
    /// No client waits for it; it needs no permit.
    Background,
}

impl Disk {
    /// Starts a fill and evicts objects to make room for it, or joins the running fill of this version.
    pub(super) async fn begin_or_join(
        self: &Arc<Self>,
        entry: StoreEntry,
        (meta, stripe): (ObjectMeta, Option<Stripe>),
        pod: IpAddr,
        priority: FillPriority,
    ) -> Result<Join, NoRoom> {
        if let Some(object) = self.get_whole(entry.version).await {
            self.named(entry.name, entry.version);
            return Ok(Join::Follow(object));
        }
        let share = match priority {
            FillPriority::Client => Some(self.take_share(pod)?),
            FillPriority::Background => self.refuse_after_handover().map(|()| None)?,
        };
        let evicted = self.index().reserve(&entry, &meta.version.name)?;
        let part = match self.file_for(entry.size, entry.disk, evicted).await {
            Ok(part) => part,
            Err(error) => {
                self.index().release(entry.disk);
                self.notice(&error);
                return Err(NoRoom::new(format!("cannot create a file for {} bytes: {error}", entry.size)));
            }
        };
        let progress = Arc::new(Progress::new(entry.size));
        let object = Arc::new(Object::filling(meta, stripe, part.file(), progress.clone()));
        if self.index().register(&entry, &object) {
            return Ok(Join::Lead(Fill::new(self.clone(), (entry, pod), object, progress, (part, share))));
        }
        // Another request has started the fill meanwhile.
        let other = self.get_whole(entry.version).await;
        other
            .map(Join::Follow)
            .ok_or_else(|| NoRoom::new("another request filled the object, and it was evicted meanwhile"))
    }
}
