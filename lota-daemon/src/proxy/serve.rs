//! Serves granted requests: from the cache, from a fill, or directly from the gateway's response.

use std::{sync::Arc, time::Duration};

use hyper::{
    Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use lota_cache::{Join, Object, Reader};
use lota_s3::{ByteRange, CacheControl, ObjectMeta, S3Error};
use tokio::time::timeout;

use super::{
    Proxy,
    get::Get,
    keep_range::is_range,
    plan::{ArrivingFacts, ArrivingPlan, plan_arriving},
    response,
};
use crate::{
    cluster::peer::headers::{Skipped, StripedSize},
    gateway::{DirectPath, FillAuthority, Grant},
    http::{Body, Meter, empty, relayed},
    metrics::{Outcome, SentFrom},
    process::log_limit::LogLimit,
    storage::FIRST_ANSWER_TIMEOUT,
};

/// Maximum wait for the first byte of a fill before the response's head is sent without it.
pub(super) const FIRST_BYTE_WAIT: Duration = Duration::from_secs(5);

impl Proxy {
    /// Serves a request for which the gateway is sending the object or the requested range.
    pub(super) async fn serve_arriving(
        self: &Arc<Self>,
        mut get: Get<'_>,
        grant: Grant,
        meta: Arc<ObjectMeta>,
        answer: Response<Incoming>,
    ) -> Result<Response<Body>, S3Error> {
        let cached = self
            .cache
            .get(&meta.version, get.stripe())
            .await
            .filter(|object| object.serves(get.object.range));
        let relay = |answer, outcome| Ok(response::relay(answer, outcome, &self.node));
        let range = get.object.range.resolve(meta.size).ok().flatten();
        let is_range = range.is_some_and(|range| is_range(answer.headers(), range, meta.size));
        let is_stripe = get.stripe().is_some();
        // The response to a HEAD states that a stripe is held here, or being fetched.
        let relay_held = |answer, outcome, is_held| {
            let mut relayed = response::relay(answer, outcome, &self.node);
            if is_stripe && is_held {
                relayed.extensions_mut().insert(StripedSize(meta.size));
            }
            Ok(relayed)
        };
        if get.is_bodiless() && cached.is_none() && !is_stripe && self.striping.applies(meta.size) {
            // The node that received the request has the stripe fetched.
            return relay(answer, Outcome::Miss);
        }
        // What is relayed for a stripe must be no more than the stripe.
        let range = range.filter(|range| get.part_of(Some(*range), meta.size) == Some(*range));
        // What the gateway sends is dropped for a stripe, so that its bytes can come from another zone's owner.
        let owner = |get: &Get<'_>| get.stripe().and_then(|_| self.owner_to_fill_from(get, &meta));
        let plan = plan_arriving(ArrivingFacts {
            is_head: get.is_bodiless(),
            is_complete: cached.as_ref().is_some_and(|object| object.is_complete()),
            cached,
            cache_control: get.object.cache_control,
            has_overrides: !get.object.overrides.is_empty(),
            is_whole: answer.status() == StatusCode::OK && !is_stripe,
            // Clients have not signed the ranges by which stripes are fetched.
            authority: FillAuthority::choose(&get)
                .filter(|authority| !is_stripe || matches!(authority, FillAuthority::Own)),
            skip: get.skip,
            range,
            is_range,
            keeps_ranges: self.cache.keeps_ranges() && !is_stripe,
        });
        match plan {
            ArrivingPlan::ServeCached(object) => {
                self.learn(&get, &object, &meta);
                self.serve(get, grant, object).await
            }
            ArrivingPlan::Relay { outcome, uncached } => {
                if let Some(reason) = uncached {
                    self.uncached(reason);
                }
                relay_held(answer, outcome, matches!(outcome, Outcome::Hit | Outcome::Fill))
            }
            ArrivingPlan::Stage(authority) => {
                let fill = self.fill_from(&get, &meta, authority, None).await;
                let is_held = fill.is_some();
                relay_held(answer, fill.map_or(Outcome::Miss, |(_, outcome)| outcome), is_held)
            }
            ArrivingPlan::FillFromThisStream => match self.join(&get, &meta).await {
                Some((Join::Lead(fill), reservation)) => {
                    let object = fill.object();
                    self.fill_with(&get, fill, answer, reservation);
                    self.serve_as(get, grant, object, Outcome::Miss).await
                }
                Some((Join::Follow(object), _)) => self.serve(get, grant, object).await,
                None => relay(answer, Outcome::Miss),
            },
            ArrivingPlan::KeepRange(range) => match self.keep_range(&get, &meta, range).await {
                Some((fill, reservation)) => {
                    let object = fill.object();
                    tokio::spawn(self.clone().store_range(fill, range, answer, reservation));
                    self.serve_as(get, grant, object, Outcome::Miss).await
                }
                None => relay(answer, Outcome::Miss),
            },
            ArrivingPlan::RelayWhileFilling(authority) => {
                self.begin_fill_from(&get, &meta, authority, owner(&get)).await;
                let meter = self.meter(&mut get);
                relay(answer, Outcome::Miss).map(|answer| response::metered(answer, meter))
            }
            ArrivingPlan::FillThenServe(authority) => {
                match self.fill_from(&get, &meta, authority, owner(&get)).await {
                    // The range in `answer` is dropped: the fill fetches it with the whole object.
                    Some((object, outcome)) => self.serve_as(get, grant, object, outcome).await,
                    None if is_stripe => {
                        self.stream_uncached(get, grant, &meta, &FillAuthority::Own, Outcome::Miss).await
                    }
                    None => relay(answer, Outcome::Miss),
                }
            }
        }
    }

    /// Updates the metadata of a cached object from a response to this request.
    fn learn(&self, get: &Get<'_>, object: &Object, response: &ObjectMeta) {
        if let Some(stated) = get.stated(response) {
            self.cache.learn(object, stated);
        }
    }

    /// Serves a request for which the gateway named a direct path to the object.
    pub(super) async fn serve_direct(
        self: &Arc<Self>,
        get: Get<'_>,
        grant: Grant,
        meta: Arc<ObjectMeta>,
        path: DirectPath,
    ) -> Result<Response<Body>, S3Error> {
        let cached = self
            .cache
            .get(&meta.version, get.stripe())
            .await
            .filter(|object| object.serves(get.object.range));
        if let Some(object) = cached {
            self.learn(&get, &object, &meta);
            return self.serve(get, grant, object).await;
        }
        let authority = FillAuthority::Direct(path);
        if get.object.cache_control == CacheControl::Use && get.object.overrides.is_empty() {
            return self.fill_and_serve(get, grant, authority).await;
        }
        self.stream_uncached(get, grant, &meta, &authority, Outcome::Miss).await
    }

    /// Serves a granted request from a fill, or from the storage if the cache has no room for the object.
    pub(super) async fn fill_and_serve(
        self: &Arc<Self>,
        get: Get<'_>,
        grant: Grant,
        authority: FillAuthority,
    ) -> Result<Response<Body>, S3Error> {
        let meta = grant.meta().clone();
        let has_bytes = meta.size > 0 && !get.is_bodiless();
        let owner = has_bytes.then(|| self.owner_to_fill_from(&get, &meta)).flatten();
        match self.fill_from(&get, &meta, authority.clone(), owner).await {
            Some((object, outcome)) => self.serve_as(get, grant, object, outcome).await,
            None => self.stream_uncached(get, grant, &meta, &authority, Outcome::Miss).await,
        }
    }

    /// Streams from the storage without caching; if that fails, from the gateway.
    pub(super) async fn stream_uncached(
        &self,
        get: Get<'_>,
        grant: Grant,
        meta: &ObjectMeta,
        authority: &FillAuthority,
        outcome: Outcome,
    ) -> Result<Response<Body>, S3Error> {
        let Ok(range) = get.object.range.resolve(meta.size) else {
            return Ok(response::unsatisfiable(meta, get.head.target.path()));
        };
        let part = get.part_of(range, meta.size);
        let backend = &get.store.backend;
        match backend.fetch(authority, meta, part, get.head, FIRST_ANSWER_TIMEOUT).await {
            Ok(answer) => {
                let body = relayed(answer).into_body();
                let mut answer = response::object(grant, range, get.object, body, outcome, &self.node);
                answer.extensions_mut().insert(SentFrom::Gateway);
                mark_stripe(&mut answer, &get, meta.size, part);
                Ok(answer)
            }
            Err(error) => {
                static LINES: LogLimit = LogLimit::every_ten_seconds();
                if let Some(left_out) = LINES.admit() {
                    tracing::warn!(object = %meta.version.name, %error, left_out, "direct read from the storage failed; reading from the gateway");
                }
                self.around_the_cache(get, "direct-path-failed").await
            }
        }
    }

    /// Returns the meter for the body of a response.
    pub(super) fn meter(&self, get: &mut Get<'_>) -> Meter {
        match get.reservation.take() {
            Some(reservation) => reservation.meter(),
            None => self.fill_quota.refund_meter(get.pod),
        }
    }

    /// Serves an object that is cached or being filled.
    pub(super) async fn serve(
        &self,
        get: Get<'_>,
        grant: Grant,
        object: Arc<Object>,
    ) -> Result<Response<Body>, S3Error> {
        let outcome = if object.has(get.object.range) { Outcome::Hit } else { Outcome::Fill };
        self.serve_as(get, grant, object, outcome).await
    }

    /// Serves an object that is cached or being filled, and reports `outcome`.
    pub(super) async fn serve_as(
        &self,
        mut get: Get<'_>,
        grant: Grant,
        object: Arc<Object>,
        outcome: Outcome,
    ) -> Result<Response<Body>, S3Error> {
        get.release_leadership();
        let size = grant.meta().size;
        let Ok(range) = get.object.range.resolve(size) else {
            return Ok(response::unsatisfiable(grant.meta(), get.head.target.path()));
        };
        let rest = get.rest_of(range, size);
        let Some(reader) = Reader::new(&grant, object.clone(), rest) else {
            return self.around_the_cache(get, "granted-otherwise").await;
        };
        if get.is_bodiless() {
            return Ok(response::object(grant, range, get.object, empty(), outcome, &self.node));
        }
        // A fill that fails before the head is sent can still be replaced by the gateway's response.
        match timeout(FIRST_BYTE_WAIT, reader.ready()).await {
            Ok(Err(_)) => return self.around_the_cache(get, "fill-broke-off").await,
            // The response to another request brings the range, and may have stopped.
            Err(_) if object.is_partial() && outcome != Outcome::Miss => {
                return self.around_the_cache(get, "range-late").await;
            }
            _ => {}
        }
        if get.lacks_checksums(grant.meta()) {
            return self.around_the_cache(get, "checksums-unknown").await;
        }
        let meter = self.meter(&mut get);
        let answered = rest.map_or(size, ByteRange::length);
        let mut load = self.load.queue(answered);
        let body = response::file_body(reader, get.slices.clone(), Some(meter), move |read| load.sent(read));
        let mut answer = response::object(grant, range, get.object, body, outcome, &self.node);
        if let Some(rest) = rest.filter(|_| get.skip > 0) {
            answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(rest.length()));
            answer.extensions_mut().insert(Skipped(get.skip));
        }
        mark_stripe(&mut answer, &get, size, rest);
        Ok(answer)
    }
}

/// States that a response contains only these bytes, if the request is for a stripe of an object of `size` bytes.
fn mark_stripe(answer: &mut Response<Body>, get: &Get<'_>, size: u64, bytes: Option<ByteRange>) {
    if let Some(bytes) = bytes.filter(|_| get.stripe().is_some()) {
        answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.length()));
        answer.extensions_mut().insert(StripedSize(size));
    }
}
