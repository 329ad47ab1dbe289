//! Owner: has the gateway authorize a request, and selects how to serve it.

use std::sync::Arc;

use hyper::Response;
use lota_s3::S3Error;

use super::{Proxy, get::Get, response};
use crate::{gateway::Authorization, http::Body, metrics::Outcome};

impl Proxy {
    /// Has the gateway authorize the request, and serves the version that it names: from the cache, from a fill, or from
    /// the gateway's own response.
    pub(super) async fn authorize_and_serve(
        self: &Arc<Self>,
        mut get: Get<'_>,
    ) -> Result<Response<Body>, S3Error> {
        let name = &get.object.name;
        let mut held = self.cache.find(name).await;
        if held.is_none() {
            // Of many requests for an unknown object, one asks the gateway; the others then find what it learned.
            get.lead_or_wait(&self.cache, None).await;
            held = self.cache.find(name).await;
        }
        if held.as_ref().is_some_and(|object| !get.is_bodiless() && !object.serves(get.object.range)) {
            // Likewise for a range that a partial object lacks.
            get.lead_or_wait(&self.cache, Some(get.object.range)).await;
            held = self.cache.find(name).await;
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
        let answer = get.store.gateway.authorize(get.head, name, described.as_ref()).await?;
        if !matches!(answer, Authorization::Relay(_)) {
            // Refused requests must not decide which objects are admitted.
            self.cache.count_read(name);
        }
        match (answer, held) {
            (Authorization::Fresh(grant), Some(object)) => {
                self.cache.learn(&object, grant.meta());
                self.serve(get, grant, object).await
            }
            (Authorization::Fresh(grant), None) => match copy {
                Some(copy) => self.serve_from_copy(get, grant, copy).await,
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
