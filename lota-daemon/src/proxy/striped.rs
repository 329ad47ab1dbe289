//! Entry node: serves an object in stripes.
//!
//! The entry node has the gateway authorize the request, as an owner would, and then asks the owner of each stripe in turn.
//! Each owner has the gateway authorize the client's own request again. Bytes that no owner can supply, for example because
//! the client's signature has expired meanwhile, are read from the storage under the entry node's own grant.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{Response, StatusCode, body::Frame};
use lota_cache::Stripe;
use lota_s3::{ByteRange, GetObject, ObjectMeta, S3Error};
use thiserror::Error;
use tokio::task::JoinHandle;

use super::{Proxy, S3Store, get::Get, response, resume::Version};
use crate::{
    cluster::peer::headers::{GetScope, StripedSize},
    gateway::{Authorization, FillAuthority, Grant},
    http::{Body, BodyError, RequestHead, Slices, incoming},
    metrics::Outcome,
    storage::FetchError,
};

/// Bytes that are left of a stripe when the owner of the next one is asked. Its response waits until then, which must not take
/// longer than the owner's timeout.
const ASK_AHEAD: u64 = 16 << 20;

/// Reason why a response ends early.
#[derive(Debug, Error)]
enum StripeError {
    #[error("{stripe}: no owner could serve it, and the storage: {error}")]
    Storage { stripe: Stripe, error: FetchError },
    #[error("{stripe}: no owner could serve it, and LOTA cannot read the storage itself")]
    NoAuthority { stripe: Stripe },
    #[error("{stripe}: more bytes than it has")]
    TooLong { stripe: Stripe },
}

/// A granted request for an object in stripes.
#[derive(Clone)]
struct StripedGet {
    proxy: Arc<Proxy>,
    pod: IpAddr,
    store: Arc<S3Store>,
    head: RequestHead,
    object: GetObject,
    slices: Slices,
    meta: Arc<ObjectMeta>,
    version: Option<Version>,
    /// Authority to read the storage if an owner fails.
    authority: Option<FillAuthority>,
    /// Requested bytes.
    range: ByteRange,
}

/// The requested bytes of a stripe, from an owner or from the storage.
struct StripePart {
    stripe: Stripe,
    /// Bytes that are still to come.
    left: ByteRange,
    body: Body,
    outcome: Outcome,
    from_storage: bool,
}

/// A stripe whose owner was asked.
struct AskedStripe(JoinHandle<Result<StripePart, StripeError>>);

/// Body of a response that consists of stripes.
struct StripedBody {
    get: StripedGet,
    part: StripePart,
    next: Option<AskedStripe>,
}

impl Proxy {
    /// Serves a request for an object that is in stripes, or was recently: `known`.
    pub(super) async fn serve_striped(
        self: &Arc<Self>,
        get: Get<'_>,
        known: Option<Arc<ObjectMeta>>,
    ) -> Result<Response<Body>, S3Error> {
        let name = &get.object.name;
        let known = known.filter(|meta| !get.lacks_checksums(meta));
        let has_own = get.store.backend.has_own_credential();
        let own = has_own.then_some(FillAuthority::Own);
        let (grant, authority) = match get.store.gateway.authorize(get.head, name, known.as_ref()).await? {
            Authorization::Fresh(grant) => (grant, own),
            // The bytes come from the owners.
            Authorization::Arriving(grant, ..) => (grant, own),
            Authorization::Direct(grant, _, path) => (grant, Some(FillAuthority::Direct(path))),
            Authorization::Unstorable(reason, answer) => {
                self.uncached(reason.name());
                return Ok(response::relay(answer, Outcome::Miss, &self.node));
            }
            Authorization::Relay(answer) => return Ok(response::relay(answer, Outcome::Miss, &self.node)),
        };
        self.striping.learn(grant.meta());
        if !self.striping.applies(grant.meta().size) {
            let owners = self.candidates(&get);
            return self.serve_from(get, &owners).await;
        }
        self.join_stripes(&get, grant, authority).await
    }

    /// Makes the response from those of the stripes' owners.
    async fn join_stripes(
        self: &Arc<Self>,
        get: &Get<'_>,
        grant: Grant,
        authority: Option<FillAuthority>,
    ) -> Result<Response<Body>, S3Error> {
        let meta = grant.meta().clone();
        let Ok(range) = get.object.range.resolve(meta.size) else {
            return Ok(response::unsatisfiable(&meta, get.head.target.path()));
        };
        let get_ = StripedGet {
            proxy: self.clone(),
            pod: get.pod,
            store: get.store.clone(),
            head: get.head.clone(),
            object: get.object.clone(),
            slices: get.slices.clone(),
            version: Version::of(&meta.headers),
            range: range.unwrap_or(ByteRange { start: 0, end: meta.size }),
            meta,
            authority,
        };
        let failed = |error: StripeError| {
            tracing::warn!(object = %get.object.name, %error, "cannot serve an object in stripes");
            S3Error::unavailable("No node could serve the object; retry later")
        };
        let first = self.striping.length().containing(get_.range.start);
        let part = get_.clone().ask(first).await.map_err(failed)?;
        let outcome = part.outcome;
        let body = StripedBody { get: get_, part, next: None };
        let frames =
            stream::try_unfold(body, async |mut body| Ok(body.next().await?.map(|frame| (frame, body))));
        let body = StreamBody::new(frames).boxed_unsync();
        Ok(response::object(grant, range, get.object, body, outcome, &self.node))
    }
}

impl StripedGet {
    /// Asks the owners of a stripe in order, at last this node, and then the storage.
    async fn ask(self, stripe: Stripe) -> Result<StripePart, StripeError> {
        let bytes = stripe.range(self.meta.size);
        let left = ByteRange { start: bytes.start.max(self.range.start), end: bytes.end.min(self.range.end) };
        let Self { proxy, pod, store, head, object, slices, meta, .. } = &self;
        let owners = proxy.stripe_candidates(&object.name, stripe, meta.size);
        let get = Get::new(*pod, store, head, object, slices).of(GetScope::Stripe(stripe));
        match proxy.serve_from(get, &owners).await {
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

    /// Returns whether a response contains exactly these bytes of this version.
    fn is_part(&self, answer: &Response<Body>, bytes: ByteRange) -> bool {
        answer.status().is_success()
            && answer.status() != StatusCode::NO_CONTENT
            && StripedSize::of(answer) == Some(StripedSize(self.meta.size))
            && Version::of(answer.headers()) == self.version
            && response::length(answer) == bytes.length()
    }

    /// Reads bytes of a stripe from the storage, past the cache.
    async fn read_storage(&self, stripe: Stripe, left: ByteRange) -> Result<StripePart, StripeError> {
        self.proxy.uncached("stripe-owner");
        let authority = self.authority.as_ref().ok_or(StripeError::NoAuthority { stripe })?;
        let backend = &self.store.backend;
        let answer = backend.fetch(authority, &self.meta, Some(left), &self.head, backend.response_timeout());
        let answer = answer.await.map_err(|error| StripeError::Storage { stripe, error })?;
        let body = incoming(answer.into_body());
        Ok(StripePart { stripe, left, body, outcome: Outcome::Miss, from_storage: true })
    }
}

impl StripedBody {
    /// Returns the next frame, of the next stripe if the current one has ended.
    async fn next(&mut self) -> Result<Option<Frame<Bytes>>, BodyError> {
        loop {
            let (stripe, left) = (self.part.stripe, self.part.left);
            if left.length() <= ASK_AHEAD && self.next.is_none() && left.end < self.get.range.end {
                self.next = Some(AskedStripe::ask(&self.get, left.end));
            }
            if left.length() == 0 {
                match self.next.take() {
                    Some(mut asked) => self.part = asked.answer().await?,
                    None => return Ok(None),
                }
                continue;
            }
            match self.part.body.frame().await {
                Some(Ok(frame)) => {
                    let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                    if length > left.length() {
                        return Err(BodyError::new(StripeError::TooLong { stripe }));
                    }
                    self.part.left.start += length;
                    return Ok(Some(frame));
                }
                Some(Err(error)) if self.part.from_storage => return Err(error),
                _ => self.part = self.get.read_storage(stripe, left).await.map_err(BodyError::new)?,
            }
        }
    }
}

impl AskedStripe {
    /// Asks for the stripe that begins at `position`.
    fn ask(get: &StripedGet, position: u64) -> Self {
        let stripe = get.proxy.striping.length().containing(position);
        Self(tokio::spawn(get.clone().ask(stripe)))
    }

    async fn answer(&mut self) -> Result<StripePart, BodyError> {
        (&mut self.0).await.map_err(BodyError::new)?.map_err(BodyError::new)
    }
}

impl Drop for AskedStripe {
    fn drop(&mut self) {
        self.0.abort();
    }
}
