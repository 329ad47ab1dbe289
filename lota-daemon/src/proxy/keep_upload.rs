//! Owner: keeps the bytes of uploads, so that the first read of an object is a hit without a read from the backend.
//!
//! Nobody sees the bytes before the backend states, to LOTA's own credential, that they are the object.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use lota_cache::{FillError, StoredUpload, UploadEnd, shares::Shares};
use lota_s3::ObjectName;

use super::{Proxy, S3Store, fill_quota::FillReservation};
use crate::{metrics::WriteFetch, process::log_limit::LogLimit};

/// Maximum number of bytes of all uploads that wait for owners. A single pod gets at most half of them.
pub(super) const COPY_MEMORY: u64 = 128 << 20;
/// Maximum number of uploads that this node stores at once. A single pod gets at most half of them.
const MAX_UPLOADS: u64 = 64;

static LINES: LogLimit = LogLimit::new(Duration::from_secs(1));

/// Limits on uploads whose bytes are kept.
pub(super) struct KeepLimits {
    /// Bytes that wait for owners.
    pub(super) memory: Arc<Shares>,
    /// Uploads that this node stores as owner.
    uploads: Arc<Shares>,
}

impl Default for KeepLimits {
    fn default() -> Self {
        Self { memory: Shares::new(COPY_MEMORY), uploads: Shares::new(MAX_UPLOADS) }
    }
}

/// An upload that arrives.
pub(super) struct IncomingUpload {
    pub(super) store: Arc<S3Store>,
    pub(super) name: ObjectName,
    /// Size in bytes.
    pub(super) size: u64,
    /// Pod that uploads it.
    pub(super) pod: IpAddr,
}

/// Charges the bytes of an upload to its pod as they arrive. What has not arrived is refunded when the body is dropped, however the
/// upload ends.
fn charging(
    body: BoxStream<'static, Result<Bytes, String>>,
    mut reservation: FillReservation,
) -> BoxStream<'static, Result<Bytes, String>> {
    body.inspect_ok(move |bytes| reservation.fetched(bytes.len() as u64)).boxed()
}

impl Proxy {
    /// Stores an upload from `body`, which ends once the gateway has stored it, and makes it the cached object if the backend
    /// states that it is. Returns false if the object is to be fetched instead; the reason is counted.
    ///
    /// # Errors
    /// If the body breaks off: the upload has failed.
    pub(super) async fn keep_upload(
        self: &Arc<Self>,
        upload: IncomingUpload,
        body: BoxStream<'static, Result<Bytes, String>>,
    ) -> Result<bool, FillError> {
        let IncomingUpload { store, name, size, pod } = upload;
        // The fetch counts it. Nodes whose configurations differ may send one.
        if self.striping.applies(size) {
            return Ok(false);
        }
        let quota = &self.write_fetches.quota;
        let no_room = || {
            self.count_write_fetch(WriteFetch::KeepNoRoom);
            Ok(false)
        };
        let Ok(turn) = self.write_fetches.keeps.uploads.take(pod, 1) else { return no_room() };
        // Nobody has requested any of it yet, so that its bytes are all in excess.
        let Some((reservation, _)) = quota.reserve(pod, size, 0, 0) else { return no_room() };
        let begun = match self.cache.begin_upload(&name, size, pod).await {
            Ok(begun) => begun,
            Err(why) => {
                tracing::debug!(object = %name, why = why.why, "upload not kept");
                return no_room();
            }
        };
        let stored = match begun.store(charging(body, reservation)).await {
            Err(FillError::Disk(error)) => {
                static LINES: LogLimit = LogLimit::every_ten_seconds();
                if let Some(left_out) = LINES.admit() {
                    tracing::warn!(object = %name, %error, left_out, "cannot store an upload");
                }
                return no_room();
            }
            stored => stored?,
        };
        let proxy = self.clone();
        // In a task of its own: once begun, it must run to its end.
        let admitted = tokio::spawn(async move {
            let result = proxy.admit_upload(&store, &name, stored).await;
            proxy.count_write_fetch(result);
            if result == WriteFetch::Kept {
                proxy.metrics.write_kept_bytes.inc_by(size);
            }
            drop(turn);
            matches!(result, WriteFetch::Kept | WriteFetch::Present)
        });
        Ok(admitted.await.unwrap_or_default())
    }

    async fn admit_upload(&self, store: &S3Store, name: &ObjectName, stored: StoredUpload) -> WriteFetch {
        let meta = match store.backend.describe_current(name).await {
            Ok(meta) => meta,
            Err(error) => {
                if let Some(held_back) = LINES.admit() {
                    tracing::info!(object = %name, %error, held_back, "cannot keep a written object");
                }
                return WriteFetch::KeepRefused;
            }
        };
        match stored.admit(&meta).await {
            Ok(UploadEnd::Kept) => WriteFetch::Kept,
            Ok(UploadEnd::Present) => WriteFetch::Present,
            Ok(UploadEnd::Differs) | Err(FillError::Corrupt(_)) => {
                tracing::debug!(object = %name, "the backend does not state the bytes of the upload");
                WriteFetch::KeepDiffers
            }
            Err(error) => {
                static LINES: LogLimit = LogLimit::every_ten_seconds();
                if let Some(left_out) = LINES.admit() {
                    tracing::warn!(object = %name, %error, left_out, "cannot keep a written object");
                }
                WriteFetch::KeepNoRoom
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::stream;

    use super::*;
    use crate::proxy::fill_quota::FillQuota;

    #[tokio::test]
    async fn an_upload_that_breaks_off_is_charged_for_what_arrived() {
        let (quota, pod) = (Arc::new(FillQuota::new(10)), IpAddr::from(Ipv4Addr::LOCALHOST));
        let pieces = [Ok(Bytes::from_static(b"abcd")), Err("reset".to_owned())];
        let (reservation, _) = quota.reserve(pod, 10, 0, 0).unwrap();
        let mut body = charging(stream::iter(pieces).boxed(), reservation);
        assert_eq!(body.next().await, Some(Ok(Bytes::from_static(b"abcd"))));
        assert!(!quota.has_left(pod), "all of it is reserved");
        drop(body);
        assert!(quota.reserve(pod, 7, 0, 0).is_none());
        assert!(quota.reserve(pod, 6, 0, 0).is_some());
    }
}
