//! Owner: has the gateway authorize a request, and selects how to serve it.

use std::sync::Arc;

use hyper::Response;
use lota_s3::{ObjectMeta, S3Error};

use super::{Proxy, get::Get, response};
use crate::{
    cluster::peer::headers::GetScope,
    gateway::{Authorization, FillAuthority},
    http::Body,
    metrics::Outcome,
};

impl Proxy {
    /// Returns whether the requesting node must ask for the stripes of an object instead, or for other stripes, since the
    /// object does not have the requested one.
    async fn must_ask_otherwise(&self, get: &Get<'_>, meta: &ObjectMeta, is_direct: bool) -> bool {
        match get.scope {
            GetScope::Whole => false,
            GetScope::Stripe(stripe) => stripe.range(meta.size).length() == 0,
            GetScope::WholeUnlessStriped => {
                self.striping.applies(meta.size)
                    && self.striping.may_apply(get)
                    // Stripes are fetched by ranges that the client has not signed.
                    && (is_direct || get.store.backend.has_own_credential())
                    && self.cache.get(&meta.version, None).await.is_none()
            }
        }
    }

    /// Returns the description of an object of which this node was asked for another stripe recently. The gateway then has no
    /// need to send the object, which LOTA reads with its own credential.
    fn described_by_other_stripes(&self, get: &Get<'_>) -> Option<Arc<ObjectMeta>> {
        let may_fill = get.stripe().is_some() && get.store.backend.has_own_credential();
        let known =
            self.striping.known(&get.object.name).filter(|_| may_fill && self.striping.may_apply(get))?;
        (!get.lacks_checksums(&known)).then_some(known)
    }

    /// Has the gateway authorize the request, and serves the version that it names: from the cache, from a fill, or from
    /// the gateway's own response.
    pub(super) async fn authorize_and_serve(
        self: &Arc<Self>,
        mut get: Get<'_>,
    ) -> Result<Response<Body>, S3Error> {
        let (name, stripe) = (&get.object.name, get.stripe());
        let mut held = self.cache.find(name, stripe).await;
        if held.is_none() {
            // Of many requests for an unknown object, one asks the gateway; the others then find what it learned.
            get.lead_or_wait(&self.cache, None).await;
            held = self.cache.find(name, stripe).await;
        }
        if held.as_ref().is_some_and(|object| !get.is_bodiless() && !object.serves(get.object.range)) {
            // Likewise for a range that a partial object lacks.
            get.lead_or_wait(&self.cache, Some(get.object.range)).await;
            held = self.cache.find(name, stripe).await;
        }
        // A partial object without the requested bytes is as good as none.
        let held = held.filter(|object| object.serves(get.object.range));
        // The gateway's 304 does not suffice for a HEAD, which gets the gateway's own headers, nor for checksums that are
        // not known yet.
        let known = held.as_ref().filter(|object| !get.is_bodiless() && !get.lacks_checksums(&object.meta()));
        let described = known.map(|object| object.meta());
        if let Some(object) = known {
            // The disk reads while the gateway authorizes.
            object.read_ahead(get.object.range);
        }
        let copy = match &held {
            None => self.ask_earlier_owner(&get).await,
            Some(_) => None,
        };
        let described = described.or_else(|| copy.as_ref().map(|copy| copy.meta.clone()));
        let described = described.or_else(|| self.described_by_other_stripes(&get));
        let answer = get.store.gateway.authorize(get.head, name, described.as_ref()).await?;
        if !matches!(answer, Authorization::Relay(_)) {
            // Refused requests must not decide which objects are admitted.
            self.cache.count_read(name, stripe);
        }
        if let Authorization::Arriving(_, meta, _) | Authorization::Direct(_, meta, _) = &answer {
            if stripe.is_some() {
                self.striping.learn(meta);
            }
            if self.must_ask_otherwise(&get, meta, matches!(answer, Authorization::Direct(..))).await {
                return Ok(response::striped(meta.size));
            }
        }
        match (answer, held) {
            (Authorization::Fresh(grant), Some(object)) => {
                self.cache.learn(&object, grant.meta());
                self.serve(get, grant, object).await
            }
            (Authorization::Fresh(grant), None) => match copy {
                Some(copy) => self.serve_from_copy(get, grant, copy).await,
                None if stripe.is_some_and(|stripe| stripe.range(grant.meta().size).length() == 0) => {
                    Ok(response::striped(grant.meta().size))
                }
                None if stripe.is_some() => self.fill_and_serve(get, grant, FillAuthority::Own).await,
                None => Err(S3Error::unavailable("Unexpected response from the gateway; retry later")),
            },
            (Authorization::Arriving(grant, meta, answer), _) => {
                self.serve_arriving(get, grant, meta, answer).await
            }
            (Authorization::Direct(grant, meta, path), _) => self.serve_direct(get, grant, meta, path).await,
            (Authorization::Unstorable(reason, answer), _) => {
                self.uncached(reason.name());
                Ok(response::relay(answer, Outcome::Miss, &self.node))
            }
            // Even a 404 says nothing about the object: gateways with tenants have several buckets of one name.
            (Authorization::Relay(answer), _) => Ok(response::relay(answer, Outcome::Miss, &self.node)),
        }
    }
}
