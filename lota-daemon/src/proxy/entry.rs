//! Entry node: answers the requests of pods.

use std::{net::IpAddr, sync::Arc};

use hyper::{
    Method, Request, Response,
    body::Incoming,
    header::{self, HeaderValue},
};
use lota_cache::placement::NodeName;
use lota_s3::{CacheControl, GatewayId, ObjectName, Operation, RangeRequest, S3Error};

use super::{
    Proxy,
    access_log::{BypassReason, RequestRecord},
    get::Get,
    is_content, response,
};
use crate::{
    cluster::peer::{
        Peers,
        headers::{GetScope, PeerHints, PeerMethod, StripedSize},
    },
    gateway::{Authorization, FillAuthority},
    http::{
        Body, RequestHead, Slices, incoming,
        server::{Connection, NoAnswer},
    },
    metrics::{Fault, Locality, Outcome},
};

impl Proxy {
    /// Answers a pod's request.
    ///
    /// # Errors
    /// None: every failure is a response.
    pub async fn enter(
        self: &Arc<Self>,
        connection: Connection,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, NoAnswer> {
        let (parts, body) = request.into_parts();
        let record = RequestRecord::begin(self, &parts);
        let path = parts.uri.path().to_owned();
        let is_refused = connection.refused.is_some();
        let answer = match (connection.refused, RequestHead::of(parts)) {
            (Some(reject), _) => Err(reject.into()),
            (None, Err(wrong)) => Err(S3Error::invalid_request(wrong)),
            (None, Ok(mut head)) => {
                head.pod = connection.client.ip().to_canonical();
                let endpoint = self.stores.endpoints().find(&head.host);
                head.gateway = endpoint.map(|endpoint| endpoint.gateway.clone());
                self.route(connection.target.as_ref(), &head, body, &connection.slices).await
            }
        };
        let mut answer = answer.unwrap_or_else(|error| {
            self.metrics.fault(Fault::of(&error));
            response::error(&error, &path)
        });
        if is_refused {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response::write_cache_header(&mut answer);
        Ok(record.answered(answer))
    }

    /// Passes a request to the gateway, or has the object's owner serve it.
    async fn route(
        self: &Arc<Self>,
        target: Option<&GatewayId>,
        head: &RequestHead,
        body: Incoming,
        slices: &Slices,
    ) -> Result<Response<Body>, S3Error> {
        let (endpoint, store) = self.stores.find_at(target, &head.host)?;
        let pod = head.pod;
        match endpoint.map_or(Operation::Pass("unknown-host"), |endpoint| head.operation(endpoint)) {
            Operation::Pass(why) => {
                let write = endpoint.and_then(|endpoint| head.write(endpoint));
                let (body, copy) = self.copy_upload(store, head, write.as_ref(), incoming(body));
                let mut answer = self.pass(&store.gateway, head, body).await;
                if let Some(write) = write {
                    answer = answer.map(|answer| self.after_write(store, head, (write, copy), answer));
                }
                self.rank(pod, None, &answer);
                if let Ok(answer) = &mut answer {
                    answer.extensions_mut().insert(BypassReason(why));
                }
                answer
            }
            Operation::Get(object) => {
                if object.range != RangeRequest::Whole {
                    self.metrics.range_requests.inc();
                }
                let get = Get::new(pod, store, head, &object, slices);
                let answer = match object.cache_control {
                    CacheControl::Bypass => self.past_the_cache(get).await,
                    CacheControl::Use | CacheControl::LookOnly => self.serve_from_owner(get).await,
                };
                self.rank(pod, Some(&object.name).filter(|_| head.method == Method::GET), &answer);
                answer
            }
        }
    }

    /// Counts the request for the ranking of pods and, if it read an object, for that of objects.
    fn rank(&self, pod: IpAddr, object: Option<&ObjectName>, answer: &Result<Response<Body>, S3Error>) {
        let Ok(answer) = answer else { return };
        let object = object.filter(|_| answer.status().is_success());
        self.top.count(pod, object, if object.is_some() { response::length(answer) } else { 0 });
    }

    /// Serves a GET with `no-store` from the gateway or the storage that it points to. The cache does not change.
    async fn past_the_cache(&self, get: Get<'_>) -> Result<Response<Body>, S3Error> {
        match get.store.gateway.authorize(get.head, &get.object.name, None).await? {
            Authorization::Direct(grant, meta, path) => {
                self.stream_uncached(get, grant, &meta, &FillAuthority::Direct(path), Outcome::Bypass).await
            }
            Authorization::Arriving(_, _, answer)
            | Authorization::Unstorable(_, answer)
            | Authorization::Relay(answer) => Ok(response::relay(answer, Outcome::Bypass, &self.node)),
            Authorization::Fresh(_) => {
                Err(S3Error::unavailable("Unexpected response from the gateway; retry later"))
            }
        }
    }

    /// Serves a GET in stripes if the object is large, otherwise as a whole.
    async fn serve_from_owner(self: &Arc<Self>, get: Get<'_>) -> Result<Response<Body>, S3Error> {
        let owners = self.candidates(&get);
        if get.is_bodiless() {
            let again = get.again();
            let answer = self.serve_from(get, &owners).await?;
            return self.stage_stripe(again, answer).await;
        }
        if !self.striping.may_apply(&get) {
            return self.serve_from(get, &owners).await;
        }
        let known = self.striping.known(&get.object.name);
        if known.is_some() {
            self.metrics.owners.of(Locality::Remote).inc();
            return self.serve_striped(get, known).await;
        }
        let again = get.again();
        let answer = self.serve_from(get.of(GetScope::WholeUnlessStriped), &owners).await?;
        match StripedSize::of(&answer) {
            Some(_) => self.serve_striped(again, None).await,
            None => Ok(answer),
        }
    }

    /// Asks these owners in order and relays the first response. If this node is the next one, or no other one answers,
    /// this node serves the request itself.
    pub(super) async fn serve_from(
        self: &Arc<Self>,
        get: Get<'_>,
        owners: &[NodeName],
    ) -> Result<Response<Body>, S3Error> {
        for (index, owner) in owners.iter().enumerate() {
            let Some(peers) = self.peers.as_ref().filter(|_| *owner != self.node) else { break };
            if let Some(answer) = self.ask_owner(peers, owner, &get).await {
                return Ok(self.relay_from_owner(&get, answer, owner, &owners[index + 1..]));
            }
        }
        self.serve_as_owner(get).await
    }

    /// Asks `owner` for the response. Returns `None` if it cannot be reached or cannot reach the gateway.
    async fn ask_owner(&self, peers: &Peers, owner: &NodeName, get: &Get<'_>) -> Option<Response<Body>> {
        let method = PeerMethod::Get { skip: 0, scope: get.scope };
        let response = peers.ask_and_relay(owner, get.pod, get.head, method, get.slices).await;
        match response {
            Ok(answer) if response::is_owner_error(&answer) => {
                tracing::debug!(owner = %owner.0, "owner cannot reach the gateway; asking the next");
            }
            Ok(answer) => {
                self.count_peer_request("sent");
                return Some(answer);
            }
            Err(error) => tracing::debug!(owner = %owner.0, %error, "owner unavailable; asking the next"),
        }
        self.count_peer_request("unavailable");
        self.metrics.fault(Fault::OwnerUnavailable);
        None
    }

    /// Relays the response of `owner`. If that fails during the body, `others` or this node continue it.
    fn relay_from_owner(
        self: &Arc<Self>,
        get: &Get<'_>,
        answer: Response<Body>,
        owner: &NodeName,
        others: &[NodeName],
    ) -> Response<Body> {
        if get.stripe().is_none() {
            self.metrics.owners.of(Locality::Remote).inc();
        }
        if let Some(count) = PeerHints::of(answer.headers()).owners {
            self.hot_objects.set_owners(&get.object.name, count);
        }
        self.resumable(get, response::relay_from_owner(answer), owner, others)
    }

    /// Serves a pod's request on this node.
    async fn serve_as_owner(self: &Arc<Self>, get: Get<'_>) -> Result<Response<Body>, S3Error> {
        let (name, is_stripe) = (&get.object.name, get.stripe().is_some());
        if !is_stripe {
            self.metrics.owners.of(Locality::Local).inc();
        }
        let counts = self.peers.is_some() && !is_stripe && self.can_replicate(&get) && self.is_first(name);
        let answer = self.authorize_and_serve(get).await;
        if counts && is_content(&answer) {
            self.hot_objects.set_owners(name, self.hot_objects.count_request(name));
        }
        answer
    }
}
