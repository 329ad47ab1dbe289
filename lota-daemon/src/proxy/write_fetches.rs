//! Owner: fetches objects that clients have written, in the background, so that their first read is a hit.
//!
//! LOTA reads the object with its own credential, in one request that states version and bytes. Nothing is served from it
//! without a grant: the first client to read the object gets the version, the headers and the authorization from the gateway.

use std::{collections::HashSet, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use hyper::{Response, body::Incoming};
use lota_cache::{
    AfterWrite, Fill, FillError, FillOptions, FillSource, Join, Object, SourceError,
    shares::{Share, Shares},
};
use lota_s3::{ByteRange, ObjectMeta, ObjectName};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    FillQuota, Proxy, S3Store,
    fill::{bytes_of, source_error},
};
use crate::{
    metrics::{Fault, FillLabels, WriteFetch},
    process::log_limit::LogLimit,
};

/// Maximum number of objects that wait to be fetched. A single pod gets at most half of them.
const MAX_WAITING: u64 = 1024;
/// Maximum number of concurrent fetches, each by one request.
const MAX_FETCHES: usize = 4;
/// Maximum number of concurrent requests to other owners.
const MAX_CALLS: usize = 64;

/// Objects that this node fetches because clients have written them, and limits on them that are separate from those of
/// clients' reads.
pub struct WriteFetches {
    mode: AfterWrite,
    quota: Arc<FillQuota>,
    /// Places in the queue.
    places: Arc<Shares>,
    /// Objects in the queue.
    waiting: Mutex<HashSet<ObjectName>>,
    turns: Semaphore,
    calls: Arc<Semaphore>,
}

impl WriteFetches {
    /// Makes an empty queue. Objects that were fetched for a pod's writes may have `quota` bytes within an hour.
    #[must_use]
    pub fn new(mode: AfterWrite, quota: u64) -> Self {
        Self {
            mode,
            quota: Arc::new(FillQuota::new(quota)),
            places: Shares::new(MAX_WAITING),
            waiting: Mutex::default(),
            turns: Semaphore::new(MAX_FETCHES),
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

    /// Takes a place in the queue for an object that a pod has written.
    fn enqueue(&self, name: &ObjectName, pod: IpAddr) -> Result<Share, WriteFetch> {
        let place = self.places.take(pod, 1).map_err(|_| WriteFetch::QueueFull)?;
        match self.waiting.lock().insert(name.clone()) {
            true => Ok(place),
            // The object is read after this write.
            false => Err(WriteFetch::Merged),
        }
    }
}

impl Proxy {
    /// Has an object fetched that a pod has written, or drops it if the queue is full.
    pub(super) fn fetch_later(self: &Arc<Self>, store: &Arc<S3Store>, name: ObjectName, pod: IpAddr) {
        let place = match self.write_fetches.enqueue(&name, pod) {
            Ok(place) => place,
            Err(why) => return self.count_write_fetch(why),
        };
        let (proxy, store) = (self.clone(), store.clone());
        tokio::spawn(async move {
            let _turn = proxy.write_fetches.turns.acquire().await;
            proxy.write_fetches.waiting.lock().remove(&name);
            drop(place);
            let result = proxy.fetch_written(&store, &name, pod).await;
            proxy.count_write_fetch(result);
        });
    }

    pub(super) fn count_write_fetch(&self, result: WriteFetch) {
        self.metrics.write_fetches.of(result).inc();
    }

    async fn fetch_written(&self, store: &Arc<S3Store>, name: &ObjectName, pod: IpAddr) -> WriteFetch {
        static LINES: LogLimit = LogLimit::new(Duration::from_secs(1));
        let quota = &self.write_fetches.quota;
        if !quota.has_left(pod) {
            return WriteFetch::Overread;
        }
        let (meta, arriving) = match store.backend.fetch_current(name).await {
            Ok(current) => current,
            Err(error) => {
                if let Some(held_back) = LINES.admit() {
                    tracing::info!(object = %name, %error, held_back, "cannot fetch a written object");
                }
                return WriteFetch::Refused;
            }
        };
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
                tracing::warn!(object = %name, %error, "cannot fetch all of a written object");
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
mod tests {
    use super::*;

    #[test]
    fn an_object_waits_once_and_no_pod_fills_the_queue() {
        let fetches = WriteFetches::new(AfterWrite::Fetch, 1 << 30);
        let name = |key: u64| ObjectName::from_parts("http://gateway", "b", &key.to_string(), None).unwrap();
        let pod = |last: u8| IpAddr::from([10, 0, 0, last]);
        let mut places = vec![fetches.enqueue(&name(0), pod(1)).unwrap()];
        assert_eq!(fetches.enqueue(&name(0), pod(2)).unwrap_err(), WriteFetch::Merged);
        places.extend((1..MAX_WAITING).map_while(|key| fetches.enqueue(&name(key), pod(1)).ok()));
        assert_eq!(places.len() as u64, MAX_WAITING / 2, "one pod");
        assert_eq!(fetches.enqueue(&name(MAX_WAITING), pod(1)).unwrap_err(), WriteFetch::QueueFull);
        assert!(fetches.enqueue(&name(MAX_WAITING), pod(2)).is_ok());
    }
}
