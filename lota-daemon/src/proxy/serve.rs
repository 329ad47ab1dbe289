//! What the gateway has granted, served: from the cache, from a fill, or as it arrives.

use std::{sync::Arc, time::Duration};

use hyper::{
    Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use tokio::time::timeout;

use super::{Proxy, answer, get::Get};
use crate::{
    cache::{Join, Object, Reader},
    gateway::{DirectPath, FillAuthority, Grant},
    http::{Body, empty, incoming},
    metrics::{Outcome, SentFrom},
    peer::headers,
    s3::{ByteRange, CacheControl, ObjectMeta, S3Error},
};

/// Longest wait for a fill's first byte before the answer's head goes out all the same.
const HESITATION: Duration = Duration::from_secs(5);
/// A range of so many bytes that arrives may as well come again with the whole: as much would be in buffers.
const CHEAP_TWICE: u64 = 1 << 20;

impl Proxy {
    /// The gateway is sending the object, or the range of it that was asked for.
    pub(super) async fn serve_arriving(
        self: &Arc<Self>,
        get: Get<'_>,
        grant: Grant,
        meta: ObjectMeta,
        answer: Response<Incoming>,
    ) -> Result<Response<Body>, S3Error> {
        if get.is_bodiless() {
            return Ok(self.stage(get, &meta, answer).await);
        }
        if let Some(object) = self.cache.get(&meta.version).await {
            object.learn_checksums(&meta);
            return self.serve(get, grant, object).await;
        }
        let relay = |answer| Ok(answer::relay(answer, Outcome::Miss, &self.node));
        if get.object.cache_control == CacheControl::LookOnly {
            return relay(answer);
        }
        if !get.object.overrides.is_empty() {
            // Its headers are not the object's.
            self.uncached("overrides");
            return relay(answer);
        }
        if answer.status() == StatusCode::OK {
            // The whole of it, on the client's own authority: these bytes are the fill.
            return match self.join(&get, &meta).await {
                Some((Join::Lead(fill), charge)) => {
                    let object = fill.object();
                    self.fill_with(&get, fill, answer, charge);
                    self.serve_as(get, grant, object, Outcome::Miss).await
                }
                Some((Join::Follow(object), _)) => self.serve(get, grant, object).await,
                None => relay(answer),
            };
        }
        let authority = if self.backend.has_own_credential() {
            FillAuthority::Own
        } else if self.gateway.may_ask_for_the_whole(get.object.range_signed) {
            FillAuthority::Client
        } else {
            self.uncached("no-fill-authority");
            return relay(answer);
        };
        let range = get.object.range.resolve(meta.size).ok().flatten();
        if get.skip == 0 && range.is_some_and(|range| range.length() <= CHEAP_TWICE) {
            // It is here sooner than the same bytes of a fill.
            self.begin_fill_from(&get, &meta, authority, None).await;
            return relay(answer);
        }
        match self.fill_from(&get, &meta, authority, None).await {
            // The range that was arriving is dropped with `answer`: it comes with the whole.
            Some((object, outcome)) => self.serve_as(get, grant, object, outcome).await,
            None => relay(answer),
        }
    }

    /// The gateway has answered a HEAD of the first byte: the whole object is brought, if it is not here.
    async fn stage(
        self: &Arc<Self>,
        get: Get<'_>,
        meta: &ObjectMeta,
        answer: Response<Incoming>,
    ) -> Response<Body> {
        let outcome = match self.cache.get(&meta.version).await {
            Some(object) if object.is_complete() => Outcome::Hit,
            Some(_) => Outcome::Fill,
            None if get.object.cache_control != CacheControl::Use => Outcome::Miss,
            None if self.backend.has_own_credential() => {
                let fill = self.fill_from(&get, meta, FillAuthority::Own, None).await;
                fill.map_or(Outcome::Miss, |(_, outcome)| outcome)
            }
            None => {
                self.uncached("no-fill-authority");
                Outcome::Miss
            }
        };
        answer::relay(answer, outcome, &self.node)
    }

    /// The gateway pointed to where the object is.
    pub(super) async fn serve_direct(
        self: &Arc<Self>,
        get: Get<'_>,
        grant: Grant,
        meta: ObjectMeta,
        path: DirectPath,
    ) -> Result<Response<Body>, S3Error> {
        if let Some(object) = self.cache.get(&meta.version).await {
            object.learn_checksums(&meta);
            return self.serve(get, grant, object).await;
        }
        if get.object.cache_control == CacheControl::Use
            && get.object.overrides.is_empty()
            && let Some((object, outcome)) =
                self.fill_from(&get, &meta, FillAuthority::Direct(path.clone()), None).await
        {
            return self.serve_as(get, grant, object, outcome).await;
        }
        self.stream_direct(get, grant, &meta, path, Outcome::Miss).await
    }

    /// Streams from a direct path without storing; if that fails, from the gateway.
    pub(super) async fn stream_direct(
        &self,
        get: Get<'_>,
        grant: Grant,
        meta: &ObjectMeta,
        path: DirectPath,
        outcome: Outcome,
    ) -> Result<Response<Body>, S3Error> {
        let Ok(range) = get.object.range.resolve(meta.size) else {
            return Ok(answer::unsatisfiable(meta, get.head.target.path()));
        };
        match self.backend.fetch(&FillAuthority::Direct(path), meta, range, get.head).await {
            Ok(answer) => {
                let body = incoming(answer.into_body());
                let mut answer = answer::object(grant, meta, range, get.object, body, outcome, &self.node);
                answer.extensions_mut().insert(SentFrom::Gateway);
                Ok(answer)
            }
            Err(error) => {
                tracing::warn!(object = %meta.version.name, %error, "direct path failed; asking the gateway");
                self.around_the_cache(get, "direct-path-failed").await
            }
        }
    }

    /// Serves an object that is here or on its way.
    pub(super) async fn serve(
        &self,
        get: Get<'_>,
        grant: Grant,
        object: Arc<Object>,
    ) -> Result<Response<Body>, S3Error> {
        let outcome = if object.is_complete() { Outcome::Hit } else { Outcome::Fill };
        self.serve_as(get, grant, object, outcome).await
    }

    pub(super) async fn serve_as(
        &self,
        mut get: Get<'_>,
        grant: Grant,
        object: Arc<Object>,
        outcome: Outcome,
    ) -> Result<Response<Body>, S3Error> {
        // Others can find it now.
        get.lead = None;
        let Ok(range) = get.object.range.resolve(object.meta().size) else {
            return Ok(answer::unsatisfiable(object.meta(), get.head.target.path()));
        };
        let rest = get.rest_of(range, object.meta().size);
        let Some(reader) = Reader::new(&grant, object.clone(), rest) else {
            return self.around_the_cache(get, "granted-otherwise").await;
        };
        if get.is_bodiless() {
            return Ok(answer::object(grant, object.meta(), range, get.object, empty(), outcome, &self.node));
        }
        // The head can wait a little for the first byte: if the fill breaks off before, no client notices.
        if let Ok(Err(_)) = timeout(HESITATION, reader.ready()).await {
            return self.around_the_cache(get, "fill-broke-off").await;
        }
        if get.lacks_checksums(&object) {
            return self.around_the_cache(get, "checksums-unknown").await;
        }
        let (debts, pod) = (self.debts.clone(), get.pod);
        // Whoever began the fill was not charged with what it asked for itself.
        let pays_back = outcome != Outcome::Miss;
        let answered = rest.map_or(object.meta().size, ByteRange::length);
        let mut owed = self.load.owe(answered);
        let body = answer::file_body(reader, get.slices.clone(), move |read| {
            owed.sent(read);
            if pays_back {
                debts.credit(pod, read);
            }
        });
        let mut answer = answer::object(grant, object.meta(), range, get.object, body, outcome, &self.node);
        if let Some(rest) = rest.filter(|_| get.skip > 0) {
            answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(rest.length()));
            headers::set_skipped(answer.headers_mut(), get.skip);
        }
        Ok(answer)
    }
}
