//! Starts fills and runs them to their end.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use http_body_util::BodyStream;
use hyper::{HeaderMap, Response, StatusCode, body::Incoming, header};
use lota_cache::{
    Fill, FillError, FillOptions, FillSource, Join, NoRoom, Object, SourceError, placement::NodeName,
};
use lota_s3::{ByteRange, ObjectMeta, ObjectName, Validator};
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::oneshot, time::timeout};

use super::{
    Proxy, S3Store,
    fill_quota::{FillReservation, ResponseReservation},
    get::Get,
    owner::{ZONE_TIMEOUT, part_headers},
    response,
};
use crate::{
    cluster::peer::headers::{GetScope, PeerMethod},
    gateway::{Authorization, DirectPath, FillAuthority},
    http::{RequestHead, upstream::chain},
    metrics::{Fault, FillLabels, Outcome},
    process::log_limit::LogLimit,
    storage::{self as backend, FIRST_ANSWER_TIMEOUT, FetchError},
};

impl FillAuthority {
    /// Chooses the authority for a fill without a direct path: LOTA's own credential, otherwise the client's request
    /// without its `Range`. Returns `None` if there is no credential and the client's request cannot be sent that way.
    pub(super) fn choose(get: &Get<'_>) -> Option<Self> {
        let S3Store { backend, gateway, .. } = &**get.store;
        if backend.has_own_credential() {
            return Some(Self::Own);
        }
        let may_ask_as_client = !get.is_bodiless() && gateway.may_ask_for_the_whole(get.object.range_signed);
        may_ask_as_client.then_some(Self::Client)
    }
}

impl Proxy {
    /// Starts a fill of a version, or joins the one in progress. Returns `None` if the object must pass through uncached.
    pub(super) async fn join(&self, get: &Get<'_>, meta: &ObjectMeta) -> Option<(Join, FillReservation)> {
        let pod = get.pod;
        let (needed, stripe) = (get.needed_and_received(meta.size), get.stripe());
        let size = stripe.map_or(meta.size, |stripe| stripe.range(meta.size).length());
        let (reservation, response) = self.reserve_fill(pod, &meta.version.name, size, needed)?;
        match self.cache.begin_fill(meta, stripe, pod).await {
            Ok(join) => {
                if let Join::Lead(_) = join {
                    let _ = get.reservation.set(response);
                }
                Some((join, reservation))
            }
            Err(no_room) => {
                self.not_cached(pod, &meta.version.name, &no_room);
                None
            }
        }
    }

    /// Reserves a fill of `size` bytes in a pod's quota, as [`FillQuota::reserve`](super::FillQuota::reserve) does. Counts and
    /// logs a refusal.
    pub(super) fn reserve_fill(
        &self,
        pod: IpAddr,
        object: &ObjectName,
        size: u64,
        (requested, received): (u64, u64),
    ) -> Option<(FillReservation, ResponseReservation)> {
        static LINES: LogLimit = LogLimit::new(Duration::from_secs(1));
        let reserved = self.fill_quota.reserve(pod, size, requested, received);
        if reserved.is_none() {
            if let Some(held_back) = LINES.admit() {
                tracing::info!(%pod, %object, held_back, "pod exceeded limits.fill_overread; not caching this object");
            }
            self.uncached("fill-overread");
        }
        reserved
    }

    /// Counts and logs an object that the cache does not take.
    pub(super) fn not_cached(&self, pod: IpAddr, object: &ObjectName, NoRoom { why, reason }: &NoRoom) {
        static LINES: LogLimit = LogLimit::new(Duration::from_secs(1));
        if let Some(held_back) = LINES.admit() {
            tracing::info!(%pod, %object, why, held_back, "not cached");
        }
        self.uncached(reason);
    }

    /// Starts a fill under `authority` and waits until its source has agreed, or joins the fill in progress. Reads from
    /// `owner` as long as that has the object. Returns `None` if the object must pass through uncached.
    pub(super) async fn fill_from(
        self: &Arc<Self>,
        get: &Get<'_>,
        meta: &ObjectMeta,
        authority: FillAuthority,
        owner: Option<NodeName>,
    ) -> Option<(Arc<Object>, Outcome)> {
        match self.begin_fill_from(get, meta, authority, owner).await? {
            (object, Some(agreed)) => agreed.await.ok().map(|()| (object, Outcome::Miss)),
            (object, None) => Some((object, Outcome::Fill)),
        }
    }

    /// Starts or joins a fill like `fill_from`, without waiting for the source. For a new fill, also returns a channel that reports
    /// when the source has agreed.
    pub(super) async fn begin_fill_from(
        self: &Arc<Self>,
        get: &Get<'_>,
        meta: &ObjectMeta,
        authority: FillAuthority,
        owner: Option<NodeName>,
    ) -> Option<(Arc<Object>, Option<oneshot::Receiver<()>>)> {
        let (fill, reservation) = match self.join(get, meta).await? {
            (Join::Lead(fill), reservation) => (fill, reservation),
            (Join::Follow(object), _) => return Some((object, None)),
        };
        let object = fill.object();
        if let Ok(Some(range)) = get.object.range.resolve(meta.size) {
            fill.begin_at(range.start);
        }
        // A client's signature expires within 15 minutes. A single request for the whole object outlives that.
        let how = match authority {
            _ if owner.is_some() => FillOptions::Parts,
            FillAuthority::Own | FillAuthority::Direct(_) if meta.size > 0 => FillOptions::Parts,
            _ => FillOptions::Stream,
        };
        let (agree, agreed) = oneshot::channel();
        let mut supply = Supply::new(self, get, object.clone(), authority, Some(agree));
        supply.owner = Mutex::new(owner);
        // Not a part of this request's task: other requests may wait for the fill when this client is gone.
        tokio::spawn(supply.see_through(fill, how, reservation));
        Some((object, Some(agreed)))
    }

    /// Fills the cache with the response that the gateway is sending.
    pub(super) fn fill_with(
        self: &Arc<Self>,
        get: &Get<'_>,
        fill: Fill,
        arriving: Response<Incoming>,
        reservation: FillReservation,
    ) {
        // The client's own request fetched these bytes, even if no other authority exists for the rest.
        let authority = FillAuthority::choose(get).unwrap_or(FillAuthority::Client);
        let how = FillOptions::Arriving(bytes_of(arriving));
        let supply = Supply::new(self, get, fill.object(), authority, None);
        tokio::spawn(supply.see_through(fill, how, reservation));
    }
}

/// Source of a fill's bytes, with the authority to read them.
struct Supply {
    proxy: Arc<Proxy>,
    pod: IpAddr,
    store: Arc<S3Store>,
    object: Arc<Object>,
    /// Another owner that has the object; `None` once it has failed to send a part.
    owner: Mutex<Option<NodeName>>,
    authority: Mutex<FillAuthority>,
    /// Lets one request at a time renew a direct path.
    renewing: tokio::sync::Mutex<()>,
    client: RequestHead,
    /// Whether responses for the whole object include its checksums.
    sends_checksums: bool,
    /// Reports that the source has agreed: it has sent a response. `None` once it has.
    agree: Mutex<Option<oneshot::Sender<()>>>,
}

impl Supply {
    fn new(
        proxy: &Arc<Proxy>,
        get: &Get<'_>,
        object: Arc<Object>,
        authority: FillAuthority,
        agree: Option<oneshot::Sender<()>>,
    ) -> Self {
        let sends_checksums = match &authority {
            FillAuthority::Own => true,
            FillAuthority::Client => get.object.wants_checksums,
            FillAuthority::Direct(_) => false,
        };
        Self {
            proxy: proxy.clone(),
            pod: get.pod,
            store: get.store.clone(),
            object,
            owner: Mutex::default(),
            authority: Mutex::new(authority),
            renewing: tokio::sync::Mutex::default(),
            client: get.head.clone(),
            sends_checksums,
            agree: Mutex::new(agree),
        }
    }

    /// Runs a fill to its end, whether or not a request still waits for it.
    async fn see_through(self, fill: Fill, how: FillOptions, mut reservation: FillReservation) {
        let proxy = self.proxy.clone();
        let authority = match (&how, &*lock(&self.authority)) {
            _ if lock(&self.owner).is_some() => "owner",
            (FillOptions::Arriving(_), _) | (_, FillAuthority::Client) => "client",
            (_, FillAuthority::Direct(_)) => "direct",
            (_, FillAuthority::Own) => "own",
        };
        let name = self.object.meta().version.name.clone();
        let end = fill.run(&self, how).await;
        reservation.fetched(self.object.arrived());
        // Returns the unused part of the reservation before the request to the gateway.
        drop(reservation);
        // Without it, requests that wait for the source go on.
        let has_agreed = lock(&self.agree).take().is_none();
        let end = match end {
            Err(FillError::Replaced) if self.differs_from_gateway().await => {
                Err(FillError::Refused(FetchError::Changed.to_string()))
            }
            end => end,
        };
        let end = match end {
            Ok(bytes) => {
                proxy.metrics.fill_bytes.inc_by(bytes);
                "complete"
            }
            Err(FillError::Replaced) => {
                static LINES: LogLimit = LogLimit::every_ten_seconds();
                if let Some(left_out) = LINES.admit() {
                    tracing::info!(object = %name, authority, left_out, "object was replaced while it was being filled");
                }
                if !has_agreed {
                    proxy.uncached("replaced");
                }
                "replaced"
            }
            Err(error) if !has_agreed => {
                static LINES: LogLimit = LogLimit::every_ten_seconds();
                if let Some(left_out) = LINES.admit() {
                    tracing::warn!(object = %name, authority, %error, left_out, "cannot fill; not cached");
                }
                proxy.uncached("fill-refused");
                proxy.metrics.fault(Fault::SourceRefused);
                return;
            }
            Err(error) => {
                static LINES: LogLimit = LogLimit::every_ten_seconds();
                if let Some(left_out) = LINES.admit() {
                    tracing::warn!(object = %name, authority, %error, left_out, "fill failed");
                }
                proxy.metrics.fault(Fault::FillBroken);
                "broken"
            }
        };
        proxy.metrics.fills.get_or_create(&FillLabels { authority, end }).inc();
    }

    /// Returns whether the source has another version than the gateway, which still serves the one to fill. Otherwise, the
    /// object was replaced at both.
    async fn differs_from_gateway(&self) -> bool {
        // Parts that came from one endpoint do not show that the others have this version.
        if matches!(&*lock(&self.authority), FillAuthority::Client) {
            return false;
        }
        let meta = self.object.meta();
        match self.store.gateway.authorize(&self.client, &meta.version.name, Some(&meta)).await {
            Ok(Authorization::Fresh(_)) => true,
            Ok(Authorization::Arriving(_, current, _) | Authorization::Direct(_, current, _)) => {
                current.has_content_of(&meta)
            }
            Ok(Authorization::Relay(answer) | Authorization::Unstorable(_, answer)) => {
                is_of_object(&meta, answer.status(), answer.headers())
            }
            Err(_) => false,
        }
    }

    /// Requests the checksums of the whole object, which responses for ranges do not contain.
    fn learn_checksums(&self) {
        let (proxy, store, object) = (self.proxy.clone(), self.store.clone(), self.object.clone());
        let is_whole = object.stripe().is_none();
        if is_whole
            && self.sends_checksums
            && store.backend.has_own_credential()
            && !object.meta().checksums_known
        {
            tokio::spawn(async move {
                if let Ok(updated) = store.backend.request_metadata(&object.meta()).await {
                    proxy.cache.learn(&object, &updated);
                }
            });
        }
    }

    /// Requests `range` of the object, or all of it, from the other owner or the source.
    async fn ask(&self, range: Option<ByteRange>) -> Result<Response<Incoming>, FetchError> {
        let (meta, authority) = (self.object.meta(), lock(&self.authority).clone());
        let owner = lock(&self.owner).clone();
        if let Some(owner) = owner {
            let range = range.unwrap_or(ByteRange { start: 0, end: meta.size });
            match self.ask_owner(&owner, range).await {
                Ok(answer) => return Ok(answer),
                Err(why) => {
                    static LINES: LogLimit = LogLimit::every_ten_seconds();
                    if let Some(left_out) = LINES.admit() {
                        tracing::info!(owner = %owner.0, object = %meta.version.name, why, left_out, "filling from the source");
                    }
                    *lock(&self.owner) = None;
                }
            }
        }
        let longest = match self.has_agreed() {
            true => self.store.backend.response_timeout(),
            false => FIRST_ANSWER_TIMEOUT,
        };
        let response = self.store.backend.fetch(&authority, &meta, range, &self.client, longest).await;
        match (&authority, &response) {
            // The direct path may have expired during a long fill.
            (FillAuthority::Direct(used), Err(FetchError::Status(StatusCode::FORBIDDEN)))
                if self.has_agreed() =>
            {
                match self.renewed(used).await {
                    Some(authority) => {
                        self.store.backend.fetch(&authority, &meta, range, &self.client, longest).await
                    }
                    None => response,
                }
            }
            _ => response,
        }
    }

    /// Requests `range` of the object from the other owner's cache.
    async fn ask_owner(&self, owner: &NodeName, range: ByteRange) -> Result<Response<Incoming>, String> {
        let (meta, peers) = (self.object.meta(), self.proxy.peers.as_ref().ok_or("there are no peers")?);
        let scope = self.object.stripe().map_or(GetScope::Whole, GetScope::Stripe);
        let asked = peers.ask(owner, self.pod, &self.client, PeerMethod::Part(range, scope));
        let response = match self.proxy.cluster.has_owners_per_zone() {
            // Nodes that disagree about zones for a moment could wait for each other.
            true => timeout(ZONE_TIMEOUT, asked).await.map_err(|_| "it has not responded in time")?,
            false => asked.await,
        };
        let answer = response.map_err(|error| error.to_string())?;
        backend::check(&meta, &part_headers(range), Some(range), answer.status(), answer.headers())
            .map_err(|error| error.to_string())?;
        match Validator::of(answer.headers()) {
            Some(validator) if validator == meta.version.validator => Ok(answer),
            _ => Err("it has another version".into()),
        }
    }

    /// Returns a new direct path in place of `used`. Concurrent requests with the same path renew it once.
    async fn renewed(&self, used: &DirectPath) -> Option<FillAuthority> {
        let _one = self.renewing.lock().await;
        match &*lock(&self.authority) {
            FillAuthority::Direct(path) if path.uri() == used.uri() => {}
            renewed => return Some(renewed.clone()),
        }
        let version = self.object.meta().version.clone();
        match self.store.gateway.authorize(&self.client, &version.name, None).await {
            Ok(Authorization::Direct(_, current, path)) if current.version == version => {
                *lock(&self.authority) = FillAuthority::Direct(path.clone());
                Some(FillAuthority::Direct(path))
            }
            _ => None,
        }
    }

    /// Returns whether the source has sent anything yet.
    fn has_agreed(&self) -> bool {
        lock(&self.agree).is_none()
    }
}

impl FillSource for Supply {
    async fn fetch(
        &self,
        range: Option<ByteRange>,
    ) -> Result<BoxStream<'static, Result<Bytes, String>>, SourceError> {
        // Before the source has agreed, requests that wait for the fill have another way: retrying only delays them.
        let answer = self.ask(range).await.map_err(|error| source_error(error, self.has_agreed()))?;
        let whole = answer.status() == StatusCode::OK;
        if whole
            && self.sends_checksums
            && let Some(updated) = self.object.meta().with_later_checksums(answer.headers())
        {
            self.object.learn(&updated);
        }
        if let Some(agree) = lock(&self.agree).take() {
            let _ = agree.send(());
            if !whole {
                self.learn_checksums();
            }
        }
        Ok(bytes_of(answer))
    }
}

/// Returns whether a successful response states the ETag and the size of this object.
fn is_of_object(meta: &ObjectMeta, status: StatusCode, headers: &HeaderMap) -> bool {
    let etag = headers.get(header::ETAG).and_then(|etag| etag.to_str().ok());
    response::stated_size(status, headers) == Some(meta.size) && etag == Some(&*meta.version.validator.etag)
}

/// Returns the error of a fill's source, which is retried if `may_retry` and a retry may succeed.
pub(super) fn source_error(error: FetchError, may_retry: bool) -> SourceError {
    match error {
        FetchError::Changed => SourceError::Replaced,
        error if may_retry && error.is_transient() => SourceError::Transient(error.to_string()),
        error => SourceError::Final(error.to_string()),
    }
}

/// Returns the pieces of a response body.
pub(super) fn bytes_of(answer: Response<Incoming>) -> BoxStream<'static, Result<Bytes, String>> {
    pieces_of(answer.into_body())
}

/// Returns the pieces of a body.
pub(super) fn pieces_of(body: Incoming) -> BoxStream<'static, Result<Bytes, String>> {
    let frames = BodyStream::new(body);
    frames.map_err(|error| chain(&error)).try_filter_map(async |frame| Ok(frame.into_data().ok())).boxed()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::answer;

    #[test]
    fn a_relayed_response_shows_whether_the_gateway_has_the_object() {
        let name = ObjectName::from_parts("http://gateway", "b", "k", None).unwrap();
        let (status, headers) = answer(200, &[("etag", "\"e\""), ("content-length", "9")]);
        let meta = ObjectMeta::of_answer(&name, &HeaderMap::new(), status, &headers).unwrap();
        for (is_same, status, pairs) in [
            (true, 200, [("etag", "\"e\""), ("content-length", "9")]),
            (true, 206, [("etag", "\"e\""), ("content-range", "bytes 1-2/9")]),
            (false, 200, [("etag", "\"f\""), ("content-length", "9")]),
            (false, 200, [("etag", "\"e\""), ("content-length", "8")]),
            (false, 206, [("etag", "\"e\""), ("content-range", "bytes 1-2/8")]),
            // The length of a part is not that of the object.
            (false, 206, [("etag", "\"e\""), ("content-length", "9")]),
            (false, 403, [("etag", "\"e\""), ("content-length", "9")]),
        ] {
            let (status, headers) = answer(status, &pairs);
            assert_eq!(is_of_object(&meta, status, &headers), is_same, "{status} {pairs:?}");
        }
    }
}
