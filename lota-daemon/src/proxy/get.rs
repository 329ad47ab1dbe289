//! State of one request for an object.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hyper::Method;
use lota_cache::{Cache, Lead, Stripe};
use lota_s3::{ByteRange, GetObject, ObjectMeta, RangeRequest, Unsatisfiable};
use tokio::time::timeout;

use super::{S3Store, fill_quota::ResponseReservation};
use crate::{
    cluster::peer::headers::GetScope,
    http::{RequestHead, Slices},
};

/// Maximum wait for the request of another client for the same range.
const RANGE_WAIT: Duration = Duration::from_secs(2);

/// A GET of an object, or a HEAD by which a client has an object brought into the cache.
pub(super) struct Get<'a> {
    /// Address of the pod that sent the request.
    pub(super) pod: IpAddr,
    /// Object store of the endpoint that the client addressed.
    pub(super) store: &'a Arc<S3Store>,
    /// The client's request.
    pub(super) head: &'a RequestHead,
    /// Object and range of the request.
    pub(super) object: &'a GetObject,
    /// Queue for the file slices of the response.
    pub(super) slices: &'a Slices,
    /// Part of the response to make.
    pub(super) scope: GetScope,
    /// Bytes of that part that the client already has.
    pub(super) skip: u64,
    /// Single-flight leadership, held while this request alone asks the gateway about an object unknown to this node.
    leadership: Option<Lead>,
    /// Reservation of the response's bytes in the pod's quota; set when a fill starts for it.
    pub(super) reservation: OnceLock<ResponseReservation>,
}

impl<'a> Get<'a> {
    pub(super) fn new(
        pod: IpAddr,
        store: &'a Arc<S3Store>,
        head: &'a RequestHead,
        object: &'a GetObject,
        slices: &'a Slices,
    ) -> Self {
        Self {
            pod,
            store,
            head,
            object,
            slices,
            scope: GetScope::Whole,
            skip: 0,
            leadership: None,
            reservation: OnceLock::new(),
        }
    }

    /// Makes a part of the response.
    pub(super) fn of(self, scope: GetScope) -> Self {
        Self { scope, ..self }
    }

    /// Returns another state for the same request.
    pub(super) fn again(&self) -> Self {
        Self::new(self.pod, self.store, self.head, self.object, self.slices)
    }

    /// Returns the stripe that the response contains bytes of; `None` if it is not limited to one.
    pub(super) fn stripe(&self) -> Option<Stripe> {
        self.scope.stripe()
    }

    /// Leaves out the first `skip` bytes of the part, which the client already has.
    pub(super) fn skipping(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// Takes the single-flight leadership for the object, or for a range of it, if no other request has it; otherwise waits
    /// until that request has released it.
    pub(super) async fn lead_or_wait(&mut self, cache: &Arc<Cache>, range: Option<RangeRequest>) {
        // While it waits, no other request waits for it.
        self.leadership = None;
        let lead = cache.lead(&self.object.name, self.stripe(), range);
        self.leadership = match range {
            // A gateway that is slow for one client must not delay the others.
            Some(_) => timeout(RANGE_WAIT, lead).await.ok().flatten(),
            None => lead.await,
        };
    }

    /// Releases the single-flight leadership: requests that wait for it can now find the object in the cache.
    pub(super) fn release_leadership(&mut self) {
        self.leadership = None;
    }

    /// Returns whether the request asks for checksums of the whole object that are not known yet.
    pub(super) fn lacks_checksums(&self, meta: &ObjectMeta) -> bool {
        self.object.wants_checksums && self.object.range == RangeRequest::Whole && !meta.checksums_known
    }

    /// Returns the metadata of the object that a response to this request states: none if the request overrides headers,
    /// since the response's headers are then not the object's.
    pub(super) fn stated<'m>(&self, response: &'m ObjectMeta) -> Option<&'m ObjectMeta> {
        self.object.overrides.is_empty().then_some(response)
    }

    /// Returns how many bytes of an object of `size` bytes the response still needs, and how many the client already has.
    pub(super) fn needed_and_received(&self, size: u64) -> (u64, u64) {
        let requested = match self.object.range.resolve(size) {
            _ if self.is_bodiless() => 0,
            Ok(range) => self.part_of(range, size).map_or(size, ByteRange::length),
            Err(Unsatisfiable) => 0,
        };
        let had = self.skip.min(requested);
        (requested - had, had)
    }

    /// Returns the bytes of the requested range, or of the whole object, that the response is to contain; `None` for the
    /// whole object.
    pub(super) fn part_of(&self, range: Option<ByteRange>, size: u64) -> Option<ByteRange> {
        let Some(stripe) = self.stripe() else { return range };
        let ByteRange { start, end } = range.unwrap_or(ByteRange { start: 0, end: size });
        let bytes = stripe.range(size);
        let start = start.max(bytes.start);
        Some(ByteRange { start, end: end.min(bytes.end).max(start) })
    }

    /// Returns the bytes of that part that the client does not have yet.
    pub(super) fn rest_of(&self, range: Option<ByteRange>, size: u64) -> Option<ByteRange> {
        let part = self.part_of(range, size);
        if self.skip == 0 {
            return part;
        }
        let ByteRange { start, end } = part.unwrap_or(ByteRange { start: 0, end: size });
        Some(ByteRange { start: start.saturating_add(self.skip).min(end), end })
    }

    /// Returns whether the response has no body because the request is a HEAD.
    pub(super) fn is_bodiless(&self) -> bool {
        self.head.method == Method::HEAD
    }
}

#[cfg(test)]
mod tests {
    use hyper::{HeaderMap, Request, StatusCode, header};
    use lota_s3::{Endpoint, Operation, Zone};

    use super::*;

    #[test]
    fn overridden_headers_are_not_the_objects_own() {
        for (query, is_stated) in [("", true), ("response-content-type=a&", false)] {
            let uri = format!("/b/k?{query}X-Amz-Signature=0");
            let request = Request::get(uri).header(header::HOST, "cwlota.com").body(()).unwrap();
            let head = RequestHead::of(request.into_parts().0).unwrap();
            let endpoint = Endpoint::of_zone(Zone::parse("cwlota.com").unwrap(), "http://gateway".into());
            let Operation::Get(object) = head.operation(&endpoint) else {
                panic!("{query}: not a GET of an object")
            };
            let mut answer = HeaderMap::new();
            answer.insert(header::ETAG, "\"e\"".parse().unwrap());
            answer.insert(header::CONTENT_LENGTH, "1".parse().unwrap());
            let meta = ObjectMeta::of_answer(&object.name, &head.headers, StatusCode::OK, &answer).unwrap();
            let slices = Slices::default();
            let store = Arc::new(S3Store::for_test());
            let get = Get::new(head.pod, &store, &head, &object, &slices);
            assert_eq!(get.stated(&meta).is_some(), is_stated, "{query}");
        }
    }
}
