//! The road of one request, from the pod's connection to the last byte of its answer.
//!
//! At the entry node: parse, then pass it through, or find the owner. At the owner: have the gateway
//! authorize the client's own request, then serve the version it named from the cache, from a fill under way,
//! or from a fill begun here. Whatever goes wrong with caching costs speed; whatever goes wrong with
//! authorization costs the answer.

mod answer;
mod crowds;
mod debts;
mod fill;
mod get;
mod owner;
mod resume;
mod serve;
mod tally;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};

pub use self::{crowds::Crowds, debts::Debts, owner::Load};

use self::{get::Get, tally::Tally};
use crate::{
    backend::Backend,
    cache::Cache,
    cluster::Cluster,
    gateway::{Answer, Gateway},
    http::{
        Body, Head, Slices, empty, incoming,
        server::{Connection, NoAnswer},
    },
    metrics::{Fault, Locality, Metrics, Outcome, PeerLabels, UncachedLabels},
    peer::{
        Peers,
        headers::{self, Told, Wanted},
        raw,
    },
    placement::NodeName,
    s3::{CacheControl, ObjectName, Operation, RangeRequest, S3Error, Zone},
    top::Top,
};

/// Everything on the road.
pub struct Proxy {
    /// This node.
    pub node: NodeName,
    /// The zone that pods address.
    pub zone: Zone,
    /// Who authorizes.
    pub gateway: Arc<Gateway>,
    /// Where fills come from.
    pub backend: Backend,
    /// What is here already.
    pub cache: Arc<Cache>,
    /// Who the nodes are, and which should have what.
    pub cluster: Arc<Cluster>,
    /// The other nodes, if there are any.
    pub peers: Option<Arc<Peers>>,
    /// Objects that many want at once.
    pub crowds: Crowds,
    /// Bytes that this node still has to send.
    pub load: Load,
    /// What fills have brought for each pod beyond what it reads.
    pub debts: Arc<Debts>,
    /// What happened.
    pub metrics: Metrics,
    /// What is asked for most, and by whom.
    pub top: Top,
}

impl Proxy {
    /// Answers a pod's request: this is the entry node.
    pub async fn enter(
        self: &Arc<Self>,
        connection: Connection,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, NoAnswer> {
        let (parts, body) = request.into_parts();
        let tally = Tally::begin(&parts);
        let target = parts.uri.path().to_owned();
        let is_refused = connection.refused.is_some();
        let answer = match (connection.refused, Head::of(parts)) {
            (Some(refused), _) => Err(refused),
            (None, Err(wrong)) => Err(S3Error::invalid_request(wrong)),
            (None, Ok(head)) => {
                self.route(connection.client.ip().to_canonical(), &head, body, &connection.slices).await
            }
        };
        let mut answer = answer.unwrap_or_else(|error| {
            self.metrics.fault(Fault::of(&error));
            answer::error(&error, &target)
        });
        if is_refused {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(self.tally(tally, answer))
    }

    /// Answers a peer's request: this is the owner, whatever this node's own placement says. A request
    /// travels one hop.
    pub async fn own(
        self: &Arc<Self>,
        connection: Connection,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, NoAnswer> {
        let count = |role| self.metrics.peer_requests.get_or_create(&PeerLabels { role }).inc();
        let Some(peers) = &self.peers else { return Err(NoAnswer) };
        let signature = match peers.verify(&request) {
            Ok(signature) => signature,
            Err(refused) => {
                count("refused");
                tracing::warn!(client = %connection.client, %refused, "not a peer");
                return Err(NoAnswer);
            }
        };
        let (parts, _) = request.into_parts();
        let Some(wanted) = Wanted::of(&parts.headers) else { return Err(NoAnswer) };
        let mut told =
            Told { load: self.load.bytes(), capacity: Some(self.cluster.capacity()), owners: None };
        if wanted == Wanted::Ping {
            let mut here = Response::new(empty());
            told.write(here.headers_mut());
            // Said here, since the MAC is over it: hyper would add it.
            here.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(0));
            peers.sign(&signature, &mut here);
            return Ok(here);
        }
        count("served");
        let pod = headers::client(&parts.headers).unwrap_or_else(|| connection.client.ip().to_canonical());
        let target = parts.uri.path().to_owned();
        let accepts_raw = parts.method == Method::GET && raw::is_accepted(&parts.headers);
        let skip = if let Wanted::Rest(skip) = wanted { skip } else { 0 };
        let answer = match Head::of(parts) {
            Ok(head) => match self.classify(&head) {
                Operation::Get(object) => {
                    let get = Get { skip, ..Get::new(pod, &head, &object, &connection.slices) };
                    if let Wanted::Part(range) = wanted {
                        self.part(get, range).await
                    } else {
                        told.owners = self.is_first(&object.name).then(|| self.crowds.count(&object.name));
                        self.authorize_and_serve(get).await
                    }
                }
                // A node of another version, or zone, reads the request otherwise.
                Operation::Pass(_) => self.pass(&head, empty()).await,
            },
            Err(wrong) => Err(S3Error::invalid_request(wrong)),
        };
        let answer = answer.and_then(|answer| match headers::skipped(answer.headers()) == skip {
            true => Ok(answer),
            false => Err(S3Error::unavailable("Only what is cached can be gone on with")),
        });
        let mut answer = answer.unwrap_or_else(|error| answer::owner_error(&error, &target));
        tracing::debug!(
            request_id = answer.headers().get(answer::REQUEST_ID).and_then(|id| id.to_str().ok()),
            peer = %connection.client.ip(),
            %pod,
            status = answer.status().as_u16(),
            "request of a peer"
        );
        told.write(answer.headers_mut());
        if accepts_raw {
            answer = raw::switch(answer, &connection.raw);
        }
        peers.sign(&signature, &mut answer);
        Ok(answer)
    }

    async fn route(
        self: &Arc<Self>,
        pod: IpAddr,
        head: &Head,
        body: Incoming,
        slices: &Slices,
    ) -> Result<Response<Body>, S3Error> {
        match self.classify(head) {
            Operation::Pass(why) => {
                let mut answer = self.pass(head, incoming(body)).await;
                self.rank(pod, None, &answer);
                if let Ok(answer) = &mut answer {
                    answer.extensions_mut().insert(tally::Passed(why));
                }
                answer
            }
            Operation::Get(object) => {
                if object.range != RangeRequest::Whole {
                    self.metrics.range_requests.inc();
                }
                let get = Get::new(pod, head, &object, slices);
                let answer = match object.cache_control {
                    CacheControl::Bypass => self.past_the_cache(get).await,
                    CacheControl::Use | CacheControl::LookOnly => self.find_owner(get).await,
                };
                self.rank(pod, Some(&object.name).filter(|_| head.method == Method::GET), &answer);
                answer
            }
        }
    }

    /// Counts for the ranks of pods, and of objects that there are.
    fn rank(&self, pod: IpAddr, object: Option<&ObjectName>, answer: &Result<Response<Body>, S3Error>) {
        let Ok(answer) = answer else { return };
        let object = object.filter(|_| answer.status().is_success());
        self.top.count(pod, object, if object.is_some() { answer::length(answer) } else { 0 });
    }

    fn classify(&self, head: &Head) -> Operation {
        Operation::classify(&self.zone, &head.method, &head.host, &head.target, &head.headers, head.chunked)
    }

    /// To the gateway and back, byte for byte.
    async fn pass(&self, head: &Head, body: Body) -> Result<Response<Body>, S3Error> {
        let answer = self.gateway.forward(head, body).await?;
        Ok(answer::relay(answer, Outcome::Bypass, &self.node))
    }

    /// `no-store`: straight from the backend, the cache untouched.
    async fn past_the_cache(&self, get: Get<'_>) -> Result<Response<Body>, S3Error> {
        match self.gateway.authorize(get.head, &get.object.name, None).await? {
            Answer::Direct(grant, meta, path) => {
                self.stream_direct(get, grant, &meta, path, Outcome::Bypass).await
            }
            Answer::Arriving(_, _, answer) | Answer::Relay(answer) => {
                Ok(answer::relay(answer, Outcome::Bypass, &self.node))
            }
            Answer::Fresh(_) => Err(S3Error::unavailable("The gateway answered a question it was not asked")),
        }
    }

    /// Has the object's owner answer; the next in line if that one cannot; in the end this node itself.
    async fn find_owner(self: &Arc<Self>, get: Get<'_>) -> Result<Response<Body>, S3Error> {
        let count = |role| self.metrics.peer_requests.get_or_create(&PeerLabels { role }).inc();
        let (name, owners) = (&get.object.name, self.candidates(&get.object.name));
        for (index, owner) in owners.iter().enumerate() {
            let Some(peers) = self.peers.as_ref().filter(|_| *owner != self.node) else { break };
            match peers.ask_and_relay(owner, get.pod, get.head, Wanted::All, get.slices).await {
                Ok(answer) if answer::is_owner_error(&answer) => {
                    count("unavailable");
                    self.metrics.fault(Fault::OwnerUnavailable);
                    tracing::debug!(owner = %owner.0, "it cannot reach the gateway; asking the next");
                }
                Ok(answer) => {
                    count("asked");
                    self.metrics.owners.of(Locality::Remote).inc();
                    if let Some(owners) = Told::of(answer.headers()).owners {
                        self.crowds.hear(name, owners);
                    }
                    let answer = answer::relay_from_owner(answer);
                    return Ok(self.resumable(&get, answer, owner, &owners[index + 1..]));
                }
                Err(error) => {
                    count("unavailable");
                    self.metrics.fault(Fault::OwnerUnavailable);
                    tracing::debug!(owner = %owner.0, %error, "asking the next");
                }
            }
        }
        self.metrics.owners.of(Locality::Local).inc();
        if self.peers.is_some() && self.is_first(name) {
            self.crowds.hear(name, self.crowds.count(name));
        }
        self.authorize_and_serve(get).await
    }

    /// The owner's part.
    async fn authorize_and_serve(self: &Arc<Self>, mut get: Get<'_>) -> Result<Response<Body>, S3Error> {
        let name = &get.object.name;
        self.cache.count_read(name);
        let mut held = self.cache.find(name).await;
        if held.is_none() {
            // Of many who want what nobody here knows, one asks; the others then know what to ask about.
            get.lead = self.cache.lead(name).await;
            held = self.cache.find(name).await;
        }
        // A mere yes is not enough for a HEAD, which is answered in the gateway's own words, nor for who wants
        // checksums that nobody has told yet.
        let known = held.as_ref().filter(|object| !get.is_bodiless() && !get.lacks_checksums(object));
        let validator = known.map(|object| object.meta().version.validator.clone());
        if let Some(object) = known {
            // While the gateway thinks.
            object.read_ahead(get.object.range);
        }
        let sibling = match &held {
            None => self.ask_sibling(&get).await,
            Some(_) => None,
        };
        let validator =
            validator.or_else(|| sibling.as_ref().map(|(_, meta)| meta.version.validator.clone()));
        match (self.gateway.authorize(get.head, name, validator.as_ref()).await?, held) {
            (Answer::Fresh(grant), Some(object)) => self.serve(get, grant, object).await,
            (Answer::Fresh(grant), None) => match sibling {
                Some((sibling, meta)) => self.serve_from_sibling(get, grant, meta, sibling).await,
                None => Err(S3Error::unavailable("The gateway answered a question it was not asked")),
            },
            (Answer::Arriving(grant, meta, answer), _) => self.serve_arriving(get, grant, meta, answer).await,
            (Answer::Direct(grant, meta, path), _) => self.serve_direct(get, grant, meta, path).await,
            (Answer::Relay(answer), _) => {
                if answer.status() == StatusCode::NOT_FOUND {
                    self.cache.forget(name);
                }
                Ok(answer::relay(answer, Outcome::Miss, &self.node))
            }
        }
    }

    /// From the gateway itself, since the cache would not do: costs speed, nothing else.
    async fn around_the_cache(&self, get: Get<'_>, reason: &'static str) -> Result<Response<Body>, S3Error> {
        self.uncached(reason);
        self.pass(get.head, empty()).await
    }

    fn uncached(&self, reason: &'static str) {
        self.metrics.uncached.get_or_create(&UncachedLabels { reason }).inc();
    }

    /// Counts and refuses a connection that reached the hidden listener by another way than the datapath.
    pub fn unsteered(&self, client: SocketAddr) {
        self.metrics.unsteered.inc();
        tracing::warn!(%client, "reset a connection that was not steered here");
    }
}
