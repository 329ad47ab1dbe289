//! Entry node: reads one stripe for a granted request.
//!
//! This node serves the stripes that it owns under the grant that it has. It asks the owners of the others, each of which has
//! the gateway authorize the client's own request again. Bytes that no owner can supply, for example because the client's
//! signature has expired meanwhile, are read from the storage under the grant.

use std::{net::IpAddr, sync::Arc};

use hyper::Response;
use lota_cache::{Reader, Stripe};
use lota_s3::{ByteRange, GetObject, ObjectMeta};
use thiserror::Error;
use tokio::time::timeout;

use super::{Proxy, S3Store, get::Get, response, resume::Version, serve::FIRST_BYTE_WAIT};
use crate::{
    cluster::peer::headers::GetScope,
    gateway::{FillAuthority, Grant, StripeGrant},
    http::{Body, RequestHead, Slices, relayed},
    metrics::Outcome,
    storage::FetchError,
};

/// Reason why a response ends early.
#[derive(Debug, Error)]
pub(super) enum StripeError {
    #[error("{stripe}: no owner could serve it, and the storage: {error}")]
    Storage { stripe: Stripe, error: FetchError },
    #[error("{stripe}: no owner could serve it, and LOTA cannot read the storage itself")]
    NoAuthority { stripe: Stripe },
    #[error("{stripe}: more bytes than it has")]
    TooLong { stripe: Stripe },
}

/// A granted request for an object in stripes.
#[derive(Clone)]
pub(super) struct StripedGet {
    pub(super) proxy: Arc<Proxy>,
    pod: IpAddr,
    store: Arc<S3Store>,
    head: RequestHead,
    object: GetObject,
    slices: Slices,
    grant: StripeGrant,
    meta: Arc<ObjectMeta>,
    version: Option<Version>,
    /// Authority to read the storage if an owner fails.
    authority: Option<FillAuthority>,
    /// Requested bytes.
    pub(super) range: ByteRange,
}

/// The requested bytes of a stripe, from an owner or from the storage.
pub(super) struct StripePart {
    pub(super) stripe: Stripe,
    /// Bytes that are still to come.
    pub(super) left: ByteRange,
    pub(super) body: Body,
    pub(super) outcome: Outcome,
    pub(super) from_storage: bool,
}

impl StripedGet {
    /// Makes the state of a request for these bytes of the granted version.
    pub(super) fn new(
        proxy: &Arc<Proxy>,
        get: &Get<'_>,
        grant: &Grant,
        range: ByteRange,
        authority: Option<FillAuthority>,
    ) -> Self {
        let meta = grant.meta().clone();
        Self {
            proxy: proxy.clone(),
            pod: get.pod,
            store: get.store.clone(),
            head: get.head.clone(),
            object: get.object.clone(),
            slices: get.slices.clone(),
            grant: grant.for_stripes(),
            version: Version::of(&meta.headers),
            range,
            meta,
            authority,
        }
    }

    /// Returns the requested bytes of a stripe: from this node if it is the owner, otherwise from the owners in order, and at
    /// last from the storage.
    pub(super) async fn ask(self, stripe: Stripe) -> Result<StripePart, StripeError> {
        let bytes = stripe.range(self.meta.size);
        let left = ByteRange { start: bytes.start.max(self.range.start), end: bytes.end.min(self.range.end) };
        let Self { proxy, object, meta, .. } = &self;
        let owners = proxy.stripe_candidates(&object.name, stripe, meta.size);
        if owners.first().is_none_or(|owner| *owner == proxy.node)
            && let Some(part) = self.serve_own(stripe, left).await
        {
            return Ok(part);
        }
        match proxy.serve_from(self.get(stripe), &owners).await {
            Ok(answer) if self.is_part(&answer, left) => {
                let outcome = response::outcome(&answer);
                Ok(StripePart { stripe, left, body: answer.into_body(), outcome, from_storage: false })
            }
            answer => {
                let why = answer.map_or_else(|error| error.to_string(), |answer| answer.status().to_string());
                tracing::debug!(object = %object.name, %stripe, why, "no owner serves a stripe; reading the storage");
                self.read_storage(stripe, left).await
            }
        }
    }

    fn get(&self, stripe: Stripe) -> Get<'_> {
        let Self { pod, store, head, object, slices, .. } = self;
        Get::new(*pod, store, head, object, slices).of(GetScope::Stripe(stripe))
    }

    /// Serves bytes of a stripe from this node's cache, or from a fill. Returns `None` if neither is possible.
    async fn serve_own(&self, stripe: Stripe, left: ByteRange) -> Option<StripePart> {
        let (proxy, meta, range) = (&self.proxy, &self.meta, self.object.range);
        let mut get = self.get(stripe);
        proxy.cache.count_read(&self.object.name, Some(stripe));
        let cached = proxy.cache.get(&meta.version, Some(stripe)).await.filter(|cached| cached.serves(range));
        let (cached, outcome) = match cached {
            Some(cached) => {
                cached.read_ahead(range);
                let outcome = if cached.has(range) { Outcome::Hit } else { Outcome::Fill };
                (cached, outcome)
            }
            None => {
                let owner = proxy.owner_to_fill_from(&get, meta);
                proxy.fill_from(&get, meta, self.authority.clone()?, owner).await?
            }
        };
        let reader = Reader::new(&self.grant, cached, Some(left))?;
        // A fill that is only slow goes on.
        if let Ok(Err(_)) = timeout(FIRST_BYTE_WAIT, reader.ready()).await {
            return None;
        }
        // Counted when its turn has come.
        let (all, mut queued) = (proxy.load.clone(), None);
        let meter = proxy.meter(&mut get);
        let body = response::file_body(reader, self.slices.clone(), Some(meter), move |read| {
            queued.get_or_insert_with(|| all.queue(left.length())).sent(read);
        });
        Some(StripePart { stripe, left, body, outcome, from_storage: false })
    }

    /// Returns whether a response contains exactly these bytes of this version.
    fn is_part(&self, answer: &Response<Body>, bytes: ByteRange) -> bool {
        response::is_of_stripe(answer, self.meta.size)
            && Version::of(answer.headers()) == self.version
            && response::length(answer) == bytes.length()
    }

    /// Reads bytes of a stripe from the storage, past the cache.
    pub(super) async fn read_storage(
        &self,
        stripe: Stripe,
        left: ByteRange,
    ) -> Result<StripePart, StripeError> {
        self.proxy.uncached("stripe-owner");
        let authority = self.authority.as_ref().ok_or(StripeError::NoAuthority { stripe })?;
        let backend = &self.store.backend;
        let answer = backend.fetch(authority, &self.meta, Some(left), &self.head, backend.response_timeout());
        let answer = answer.await.map_err(|error| StripeError::Storage { stripe, error })?;
        let body = relayed(answer).into_body();
        Ok(StripePart { stripe, left, body, outcome: Outcome::Miss, from_storage: true })
    }
}
