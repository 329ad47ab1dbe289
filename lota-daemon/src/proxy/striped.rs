//! Entry node: serves an object in stripes. It has the gateway authorize the request, as an owner would, and joins the stripes.

use std::sync::Arc;

use hyper::Response;
use lota_s3::{ByteRange, ObjectMeta, S3Error, headers::LOTA_STRIPE_LENGTH};

use super::{Proxy, get::Get, response, stripe_body::joined, striped_get::StripedGet};
use crate::{
    cluster::peer::headers::GetScope,
    gateway::{Authorization, FillAuthority, Grant},
    http::{Body, empty},
    metrics::Outcome,
    process::log_limit::LogLimit,
};

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

    /// If the response to a HEAD shows that the object is in stripes, has the owner of the stripe with the first requested byte
    /// bring it into its cache. Returns the response to relay, which states the length of stripes if that has begun.
    pub(super) async fn stage_stripe(
        self: &Arc<Self>,
        get: Get<'_>,
        answer: Response<Body>,
    ) -> Result<Response<Body>, S3Error> {
        let size = response::size_of_object(&answer).filter(|_| response::outcome(&answer) == Outcome::Miss);
        let stripe = size.and_then(|size| Some((self.striping.staged_by(&get, size)?, size)));
        // Some gateways ignore the range of a HEAD.
        let Some((stripe, size)) = stripe.filter(|_| answer.status().is_success()) else { return Ok(answer) };
        let owners = self.stripe_candidates(&get.object.name, stripe, size);
        match self.serve_from(get.of(GetScope::Stripe(stripe)), &owners).await {
            Ok(mut staged) if response::is_of_stripe(&staged, size) => {
                staged.headers_mut().insert(LOTA_STRIPE_LENGTH, self.striping.length().bytes().into());
                Ok(staged)
            }
            // The owner has not begun to fetch it.
            _ => Ok(answer),
        }
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
        let whole = ByteRange { start: 0, end: meta.size };
        let get_ = StripedGet::new(self, get, &grant, range.unwrap_or(whole), authority);
        let first = self.striping.length().containing(get_.range.start);
        match get_.clone().ask(first).await {
            Ok(part) => {
                let outcome = part.outcome;
                Ok(response::object(grant, range, get.object, joined(get_, part), outcome, &self.node))
            }
            // Nothing was sent yet. It was overwritten, for example.
            Err(error) => {
                static LINES: LogLimit = LogLimit::every_ten_seconds();
                if let Some(left_out) = LINES.admit() {
                    tracing::info!(object = %get.object.name, %error, left_out, "cannot serve an object in stripes; reading from the gateway");
                }
                self.pass(&get.store.gateway, get.head, empty()).await
            }
        }
    }
}
