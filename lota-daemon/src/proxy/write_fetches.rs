//! Owner: fetches objects that clients have written, in the background, so that their first read is a hit.
//!
//! LOTA reads the object with its own credential, in one request that states version and bytes. Nothing is served from it
//! without a grant: the first client to read the object gets the version, the headers and the authorization from the gateway.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use hyper::{Response, body::Incoming};
use lota_cache::{
    AfterWrite, Fill, FillError, FillOptions, FillSource, Join, Object, SourceError,
    shares::{Share, Shares},
};
use lota_s3::{ByteRange, NormalEtag, ObjectMeta, ObjectName};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    FillQuota, Proxy, S3Store,
    fill::{bytes_of, source_error},
    keep_upload::KeepLimits,
    pod_queue::PodQueue,
};
use crate::{
    metrics::{Fault, FillLabels, WriteFetch},
    process::log_limit::LogLimit,
};

/// Maximum number of objects that wait to be fetched. A single pod gets at most half of them.
const MAX_WAITING: u64 = 1024;
/// Maximum number of concurrent fetches, each by one request. A single pod gets at most half of them.
const MAX_FETCHES: u64 = 8;
/// Maximum number of concurrent requests to other owners.
const MAX_CALLS: usize = 64;
/// Maximum number of writes of one object whose ETags are known while it waits.
const MAX_ETAGS: usize = 8;
/// Maximum age of an object when the response to its write has arrived, if the gateway states no ETag. A gateway may complete an
/// upload some time before it responds.
const MAX_WRITE_AGE: Duration = Duration::from_secs(60);

/// Objects that this node fetches because clients have written them, and limits on them that are separate from those of
/// clients' reads.
pub struct WriteFetches {
    mode: AfterWrite,
    pub(super) quota: Arc<FillQuota>,
    /// Limits on uploads that are kept instead of fetched.
    pub(super) keeps: KeepLimits,
    /// Places in the queue.
    places: Arc<Shares>,
    /// Permits for fetches.
    turns: Arc<Shares>,
    waiting: Mutex<WaitingFetches>,
    calls: Arc<Semaphore>,
}

/// An object that a client has written.
pub(super) struct WrittenObject {
    pub(super) name: ObjectName,
    /// ETag that the gateway has stated, if any.
    pub(super) etag: Option<NormalEtag>,
}

/// Objects that wait, and the pods that have written them.
#[derive(Default)]
struct WaitingFetches {
    objects: HashMap<ObjectName, QueuedFetch>,
    order: PodQueue<ObjectName>,
}

struct QueuedFetch {
    store: Arc<S3Store>,
    versions: WrittenVersions,
    _place: Share,
}

/// Versions of an object that clients have written while it waited.
#[derive(Default)]
struct WrittenVersions {
    /// ETags, in the order in which nodes have reported them, which need not be that of the writes.
    etags: Vec<NormalEtag>,
    /// Time of the first write without an ETag.
    unknown: Option<Instant>,
}

/// A fetch that may begin.
struct DueFetch {
    store: Arc<S3Store>,
    pod: IpAddr,
    name: ObjectName,
    versions: WrittenVersions,
}

impl WrittenVersions {
    fn add(&mut self, etag: Option<NormalEtag>, now: Instant) {
        match etag {
            None => drop(self.unknown.get_or_insert(now)),
            Some(etag) if self.etags.contains(&etag) => {}
            Some(etag) => {
                self.etags.push(etag);
                let superfluous = self.etags.len().saturating_sub(MAX_ETAGS);
                self.etags.drain(..superfluous);
            }
        }
    }

    /// Returns whether the backend's object is one of them. Behind one gateway, the same name can lead clients of different tenants
    /// to different objects. Without an ETag, only the age of the object tells them apart.
    fn contain(&self, meta: &ObjectMeta, age: Option<Duration>, now: Instant) -> bool {
        let etag = NormalEtag::parse(&meta.version.validator.etag);
        let is_new = |written: Instant| {
            let since = now.saturating_duration_since(written);
            age.is_some_and(|age| age <= since + MAX_WRITE_AGE)
        };
        etag.is_some_and(|etag| self.etags.contains(&etag)) || self.unknown.is_some_and(is_new)
    }
}

impl WriteFetches {
    /// Makes an empty queue. Objects that were fetched for a pod's writes may have `quota` bytes within an hour.
    #[must_use]
    pub fn new(mode: AfterWrite, quota: u64) -> Self {
        Self {
            mode,
            quota: Arc::new(FillQuota::new(quota)),
            keeps: KeepLimits::default(),
            places: Shares::new(MAX_WAITING),
            turns: Shares::new(MAX_FETCHES),
            waiting: Mutex::default(),
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
        }
    }

    pub(super) fn mode(&self) -> AfterWrite {
        self.mode
    }

    /// Returns a permit for a request to another owner, if one is free.
    pub(super) fn call(&self) -> Option<OwnedSemaphorePermit> {
        self.calls.clone().try_acquire_owned().ok()
    }

    /// Puts an object that a pod has written into the queue.
    fn enqueue(&self, store: &Arc<S3Store>, object: WrittenObject, pod: IpAddr) -> Result<(), WriteFetch> {
        let WrittenObject { name, etag } = object;
        let mut waiting = self.waiting.lock();
        if let Some(queued) = waiting.objects.get_mut(&name) {
            // The object is read after this write.
            queued.versions.add(etag, Instant::now());
            return Err(WriteFetch::Merged);
        }
        let place = self.places.take(pod, 1).map_err(|_| WriteFetch::QueueFull)?;
        let mut versions = WrittenVersions::default();
        versions.add(etag, Instant::now());
        let queued = QueuedFetch { store: store.clone(), versions, _place: place };
        waiting.objects.insert(name.clone(), queued);
        waiting.order.push(pod, name);
        Ok(())
    }

    /// Returns the next fetch of the pods whose turn it is, and a permit that it holds to its end.
    fn next(&self) -> Option<(DueFetch, Share)> {
        let mut waiting = self.waiting.lock();
        let (pod, name, turn) = waiting.order.pop(|pod| self.turns.take(pod, 1).ok())?;
        let QueuedFetch { store, versions, .. } = waiting.objects.remove(&name)?;
        Some((DueFetch { store, pod, name, versions }, turn))
    }
}

impl Proxy {
    /// Has an object fetched that a pod has written, or drops it if the queue is full.
    pub(super) fn fetch_later(self: &Arc<Self>, store: &Arc<S3Store>, object: WrittenObject, pod: IpAddr) {
        match self.write_fetches.enqueue(store, object, pod) {
            Ok(()) => self.start_fetches(),
            Err(why) => self.count_write_fetch(why),
        }
    }

    /// Starts the fetches that have permits.
    fn start_fetches(self: &Arc<Self>) {
        while let Some((fetch, turn)) = self.write_fetches.next() {
            let proxy = self.clone();
            tokio::spawn(async move {
                let result = proxy.fetch_written(&fetch).await;
                proxy.count_write_fetch(result);
                drop(turn);
                proxy.start_fetches();
            });
        }
    }

    pub(super) fn count_write_fetch(&self, result: WriteFetch) {
        self.metrics.write_fetches.of(result).inc();
    }

    async fn fetch_written(&self, due: &DueFetch) -> WriteFetch {
        static LINES: LogLimit = LogLimit::new(Duration::from_secs(1));
        let DueFetch { store, name, .. } = due;
        let (pod, quota) = (due.pod, &self.write_fetches.quota);
        if !quota.has_left(pod) {
            return WriteFetch::Overread;
        }
        let (meta, age, arriving) = match store.backend.fetch_current(name).await {
            Ok(current) => current,
            Err(error) => {
                if let Some(held_back) = LINES.admit() {
                    tracing::info!(object = %name, %error, held_back, "cannot fetch a written object");
                }
                return WriteFetch::Refused;
            }
        };
        if !due.versions.contain(&meta, age, Instant::now()) {
            tracing::debug!(object = %name, "backend has another object than the written one");
            return WriteFetch::OtherObject;
        }
        if self.striping.applies(meta.size) {
            return WriteFetch::Striped;
        }
        // Nobody has requested any of it yet, so that its bytes are all in excess.
        let Some((mut reservation, _)) = quota.reserve(pod, meta.size, 0, 0) else {
            return WriteFetch::Overread;
        };
        let fill = match self.cache.begin_background_fill(&meta, pod).await {
            Ok(Join::Lead(fill)) => fill,
            Ok(Join::Follow(_)) => return WriteFetch::Present,
            Err(no_room) => {
                tracing::debug!(object = %name, why = no_room.why, "written object not cached");
                return WriteFetch::NoRoom;
            }
        };
        let object = fill.object();
        let result = self.fill_written(store, fill, arriving).await;
        reservation.fetched(object.arrived());
        result
    }

    /// Runs the fill of a written object to its end.
    async fn fill_written(
        &self,
        store: &Arc<S3Store>,
        fill: Fill,
        arriving: Response<Incoming>,
    ) -> WriteFetch {
        let object = fill.object();
        let source = OwnSource { store: store.clone(), object: object.clone() };
        let end = fill.run(&source, FillOptions::Background(bytes_of(arriving))).await;
        let (result, end) = match end {
            Ok(bytes) => {
                self.metrics.fill_bytes.inc_by(bytes);
                (WriteFetch::Fetched, "complete")
            }
            Err(FillError::Replaced) => (WriteFetch::Replaced, "replaced"),
            Err(error) => {
                let name = &object.meta().version.name;
                static LINES: LogLimit = LogLimit::every_ten_seconds();
                if let Some(left_out) = LINES.admit() {
                    tracing::warn!(object = %name, %error, left_out, "cannot fetch all of a written object");
                }
                self.metrics.fault(Fault::FillBroken);
                (WriteFetch::Broken, "broken")
            }
        };
        self.metrics.fills.get_or_create(&FillLabels { authority: "own", end }).inc();
        result
    }
}

/// The backend as source of a fill that no client has requested.
struct OwnSource {
    store: Arc<S3Store>,
    object: Arc<Object>,
}

impl FillSource for OwnSource {
    async fn fetch(
        &self,
        range: Option<ByteRange>,
    ) -> Result<BoxStream<'static, Result<Bytes, String>>, SourceError> {
        let (meta, backend): (Arc<ObjectMeta>, _) = (self.object.meta(), &self.store.backend);
        let answer = backend.fetch_own(&meta, range, backend.response_timeout()).await;
        answer.map(bytes_of).map_err(|error| source_error(error, true))
    }
}

#[cfg(test)]
#[path = "write_fetches_tests.rs"]
mod tests;
