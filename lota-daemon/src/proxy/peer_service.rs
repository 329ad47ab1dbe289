//! Owner: answers the requests of peers.

use std::{net::IpAddr, sync::Arc, time::Duration};

use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use lota_cache::AfterWrite;
use lota_s3::S3Error;

use super::{
    Proxy, fill::pieces_of, get::Get, is_content, keep_upload::IncomingUpload, response,
    write_fetches::WrittenObject,
};
use crate::{
    cluster::peer::{
        ForwardedCall, MessageMac, PeerCall, PeerRequest, Peers, WireVersion,
        headers::{BodyDigest, PeerHints, Skipped, StripedSize},
        raw, read_pins, write_pins,
    },
    http::{
        Body, empty, full,
        server::{Connection, NoAnswer},
    },
    process::log_limit::LogLimit,
};

static UNAUTHENTICATED: LogLimit = LogLimit::new(Duration::from_secs(10));

impl Proxy {
    /// Answers a request on the peer port, and signs the response. This node acts as the owner even if its own placement
    /// names another node, so that a request is forwarded only once.
    ///
    /// # Errors
    /// [`NoAnswer`] if the request is not an authentic message of a peer.
    pub async fn own(
        self: &Arc<Self>,
        connection: Connection,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, NoAnswer> {
        let Some(peers) = &self.peers else { return Err(NoAnswer) };
        let mac = self.verify_peer(peers, &connection, &request)?;
        let (parts, body) = request.into_parts();
        let call = PeerCall::decode(parts, self.stores.endpoints()).ok_or(NoAnswer)?;
        // The load does not include this response.
        let mut hints = PeerHints {
            load: self.load.bytes(),
            capacity: Some(self.cluster.capacity()),
            owners: None,
            wire: Some(WireVersion::NEWEST),
        };
        let (mut answer, accepts_raw) = match call {
            PeerCall::Ping => (acknowledgment(), false),
            PeerCall::Pins(digest) => (self.exchange_pins(body, digest, &connection).await?, false),
            PeerCall::Forward(call) => {
                let accepts_raw = call.accepts_raw;
                (self.serve_peer((call, body), &connection, &mut hints).await, accepts_raw)
            }
        };
        response::write_cache_header(&mut answer);
        Skipped::write(&mut answer);
        StripedSize::write(&mut answer);
        hints.write(answer.headers_mut());
        if accepts_raw {
            answer = raw::switch(answer, &connection.raw);
        }
        peers.sign(&mac, &mut answer);
        Ok(answer)
    }

    /// Verifies that a request is a peer's, and returns what its response is signed with.
    fn verify_peer(
        &self,
        peers: &Peers,
        connection: &Connection,
        request: &Request<Incoming>,
    ) -> Result<MessageMac, NoAnswer> {
        peers.verify(request).map_err(|refused| {
            self.count_peer_request("refused");
            if let Some(left_out) = UNAUTHENTICATED.admit() {
                tracing::warn!(client = %connection.client, %refused, left_out, "refused an unauthenticated message on the peer port");
            }
            NoAnswer
        })
    }

    /// Merges the pins in a verified request, and responds with all pins.
    async fn exchange_pins(
        &self,
        body: Incoming,
        digest: BodyDigest,
        connection: &Connection,
    ) -> Result<Response<Body>, NoAnswer> {
        let received = read_pins(body, digest).await.map_err(|error| {
            static LINES: LogLimit = LogLimit::every_ten_seconds();
            if let Some(left_out) = LINES.admit() {
                tracing::warn!(peer = %connection.client.ip(), error, left_out, "cannot read the pins of a peer");
            }
            NoAnswer
        })?;
        let pins = self.pins.merge(received).await;
        let mut answer = Response::new(empty());
        *answer.body_mut() = full(write_pins(&pins, answer.headers_mut()));
        Ok(answer)
    }

    /// Dispatches a request that forwards a client's; errors become responses.
    async fn serve_peer(
        self: &Arc<Self>,
        (call, body): (ForwardedCall, Incoming),
        connection: &Connection,
        hints: &mut PeerHints,
    ) -> Response<Body> {
        self.count_peer_request("served");
        let ForwardedCall { pod, path, request, gateway, .. } = call;
        let pod = pod.unwrap_or_else(|| connection.client.ip().to_canonical());
        let answer = match request {
            // During a rollout, the peer may have another gateway for the host. It serves the request itself then.
            Ok(request) if gateway.is_none() || gateway != request.head().gateway => {
                Err(S3Error::unavailable("This node has another gateway for the host"))
            }
            Ok(request) => self.serve_peer_request(pod, (request, body), connection, hints).await,
            Err(wrong) => Err(S3Error::invalid_request(wrong)),
        };
        let answer = answer.unwrap_or_else(|error| response::owner_error(&error, &path));
        tracing::debug!(
            request_id = response::request_id(&answer),
            peer = %connection.client.ip(),
            %pod,
            status = answer.status().as_u16(),
            "request of a peer"
        );
        answer
    }

    async fn serve_peer_request(
        self: &Arc<Self>,
        pod: IpAddr,
        (request, body): (PeerRequest, Incoming),
        connection: &Connection,
        hints: &mut PeerHints,
    ) -> Result<Response<Body>, S3Error> {
        let skip = request.skip();
        // A peer with a newer configuration may know more endpoints than this node, and serves the request itself then.
        let unknown = |_| S3Error::unavailable("This node does not know the endpoint");
        let (_, store) = self.stores.find(&request.head().host).map_err(unknown)?;
        let get = |head, object| Get::new(pod, store, head, object, &connection.slices).skipping(skip);
        let answer = match &request {
            PeerRequest::Part { head, object, range, scope } => {
                self.part(get(head, object).of(*scope), *range).await?
            }
            PeerRequest::Get { head, object, scope, .. } => {
                self.get_for_peer(get(head, object).of(*scope), hints).await?
            }
            PeerRequest::Written { .. } if self.write_fetches.mode() == AfterWrite::Off => {
                return Err(S3Error::unavailable("This node does not fetch what clients write"));
            }
            PeerRequest::Written { object, etag, .. } => {
                let object = WrittenObject { name: object.name.clone(), etag: etag.clone() };
                self.fetch_later(store, object, pod);
                acknowledgment()
            }
            PeerRequest::Keep { .. } if self.write_fetches.mode() != AfterWrite::Keep => {
                return Err(S3Error::unavailable("This node does not keep what clients write"));
            }
            PeerRequest::Keep { object, size, .. } => {
                let (store, name) = (store.clone(), object.name.clone());
                let upload = IncomingUpload { store, name, size: *size, pod };
                let kept = self.keep_upload(upload, pieces_of(body)).await;
                let is_settled = kept.map_err(|error| S3Error::incomplete_body(error.to_string()))?;
                let mut answer = acknowledgment();
                *answer.status_mut() = if is_settled { StatusCode::CREATED } else { StatusCode::ACCEPTED };
                answer
            }
            PeerRequest::Pass { head, .. } => self.pass(&store.gateway, head, empty()).await?,
        };
        match Skipped::of(&answer) == Skipped(skip) {
            true => Ok(answer),
            false => Err(S3Error::unavailable("Cannot resume: the object is not cached")),
        }
    }

    /// Serves a client's GET that a peer forwards.
    async fn get_for_peer(
        self: &Arc<Self>,
        get: Get<'_>,
        hints: &mut PeerHints,
    ) -> Result<Response<Body>, S3Error> {
        let (name, has_replicas) = (&get.object.name, get.stripe().is_none() && self.can_replicate(&get));
        let answer = self.authorize_and_serve(get).await;
        // Refused requests must not create replicas.
        if has_replicas && is_content(&answer) && self.is_first(name) {
            hints.owners = Some(self.hot_objects.count_request(name));
        }
        answer
    }
}

/// Returns the response to a request that asks for no bytes.
fn acknowledgment() -> Response<Body> {
    let mut answer = Response::new(empty());
    // hyper would add the length after the MAC is computed over the headers.
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(0));
    answer
}
