//! Protocol between nodes. The entry node forwards the client's whole request, and the owner has the gateway authorize it.
//!
//! HTTP/1.1 on a port of its own. Every request has a MAC under a key of both nodes over sender, receiver, time and its head;
//! every response has one over its head and the request's nonce. Grants are never sent.

pub mod headers;
mod pins;
pub mod raw;
mod replay;
mod request;
mod states;
mod tls;
mod version;
mod wire;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use hyper::{
    Request, Response,
    body::Incoming,
    header::{self, HeaderValue},
};
use parking_lot::{Mutex, MutexGuard, RwLock};
use thiserror::Error;
use tokio::time::MissedTickBehavior;

pub use pins::{read_pins, write_pins};
pub use request::{ForwardedCall, PeerCall, PeerRequest};
pub use states::PeerState;
pub use tls::{OwnCertificate, PeerTls};
pub use version::WireVersion;
pub use wire::{MessageMac, RejectedMessage};

use self::{
    headers::{PeerHints, PeerMethod, Skipped, StripedSize},
    replay::Window,
    wire::Wire,
};
use crate::{
    cluster::{PeerKeys, PublicKeys},
    http::{
        Body, RequestHead, Slices, TlsRefusal, empty,
        upstream::{Upstream, UpstreamError, chain, is_from_body, is_lost},
    },
    process::log_limit::LogLimit,
    settings::Reloadable,
};
use lota_cache::placement::NodeName;
use lota_s3::Origin;

/// Interval at which lost peers are probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which a lost peer has no share of the objects.
pub const LOST_NODE_GRACE: Duration = Duration::from_secs(60);
/// Maximum number of lost peers that are probed concurrently.
const MAX_PROBES: usize = 32;
/// Default timeout for an owner that responds to pings. It is longer than any timeout of the owner, so that the owner's own
/// error response comes first.
const OWNER_TIMEOUT: Duration = Duration::from_secs(3600);
/// Time without data after which an owner is pinged.
const PING_AFTER: Duration = Duration::from_secs(3);
/// Timeout for the response to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

static UNAVAILABLE: LogLimit = LogLimit::every_ten_seconds();

/// The other nodes, and the keys for messages with them.
#[derive(Debug)]
pub struct Peers {
    wire: Wire,
    window: Mutex<Window>,
    port: u16,
    nodes: RwLock<HashMap<NodeName, Origin>>,
    states: Mutex<HashMap<NodeName, PeerState>>,
    upstream: Reloadable<Upstream>,
    tls: Option<PeerTls>,
    owner_timeout: Duration,
}

/// Reason why a request could not be sent to an owner. The caller tries another node.
#[derive(Debug, Error)]
pub enum PeerError {
    /// It did not respond to the last request, and not to a ping since.
    #[error("it is lost")]
    Lost,
    /// No such node is configured.
    #[error("its address is not known")]
    Unknown,
    /// There is no key for messages with it.
    #[error("its public key is not known; see peers.nodes.public_keys")]
    NoKey,
    /// The connection failed.
    #[error("no connection: {0}")]
    NoConnection(String),
    /// It does not respond to pings.
    #[error("no response to pings")]
    Hangs,
    /// One of the two refuses the other's certificate.
    #[error("TLS: {0}")]
    Refused(TlsRefusal),
    /// The request failed.
    #[error("no response: {0}")]
    NoAnswer(String),
    /// The request's body has broken off.
    #[error("the body of the request has broken off")]
    NoBody,
    /// It does not know the message.
    #[error("it runs another version of LOTA")]
    OtherVersion,
    /// The response is not authentic.
    #[error("its response is not authentic: {0}")]
    NotAuthentic(#[from] RejectedMessage),
}

impl From<UpstreamError> for PeerError {
    fn from(error: UpstreamError) -> Self {
        // The body is a client's, with errors of the client's connection.
        if is_from_body(&error) {
            return Self::NoBody;
        }
        if let Some(refusal) = TlsRefusal::of(&error) {
            return Self::Refused(refusal);
        }
        match error.is_connect() {
            true => Self::NoConnection(chain(&error)),
            false => Self::NoAnswer(chain(&error)),
        }
    }
}

impl Peers {
    /// Makes the peers of node `me`, none at first.
    pub fn new(me: NodeName, keys: impl Into<PeerKeys>, port: u16, upstream: Upstream) -> Self {
        Self {
            wire: Wire::new(me, keys),
            window: Mutex::new(Window::starting(SystemTime::now())),
            port,
            nodes: RwLock::default(),
            states: Mutex::default(),
            upstream: Reloadable::new(upstream),
            tls: None,
            owner_timeout: OWNER_TIMEOUT,
        }
    }

    /// Sets the versions that this node speaks.
    #[cfg(test)]
    fn speaking(self, versions: version::SpokenVersions) -> Self {
        Self { wire: self.wire.speaking(versions), ..self }
    }

    /// Sets the timeout for an owner that responds to pings.
    #[must_use]
    pub fn waiting(self, owner_timeout: Duration) -> Self {
        Self { owner_timeout, ..self }
    }

    /// Returns these peers, reached as `tls` states.
    #[must_use]
    pub fn with_tls(mut self, tls: PeerTls) -> Self {
        let upstream = self.upstream.get().with_mutual_tls(tls.current().clone()).without_retries();
        self.upstream = Reloadable::new(upstream);
        self.tls = Some(tls);
        self
    }

    /// Returns TLS between nodes, if it is configured.
    #[must_use]
    pub fn tls(&self) -> Option<&PeerTls> {
        self.tls.as_ref()
    }

    /// Makes new connections for further requests, whose certificates are verified anew. The others end after their current request.
    pub fn renew_connections(&self) {
        self.upstream.set(self.upstream.get().without_retries());
    }

    /// Replaces the set of the cluster's other nodes. Nothing is known of a node at another address.
    pub fn set_nodes<'a>(&self, nodes: impl IntoIterator<Item = (&'a NodeName, IpAddr)>) {
        let scheme = if self.tls.as_ref().is_some_and(PeerTls::is_sent) { "https" } else { "http" };
        let origin = |address| {
            let authority = SocketAddr::new(address, self.port).to_string();
            Origin::parse(&format!("{scheme}://{authority}")).ok()
        };
        let nodes: HashMap<NodeName, Origin> =
            nodes.into_iter().filter_map(|(name, address)| Some((name.clone(), origin(address)?))).collect();
        let mut known = self.nodes.write();
        self.states().retain(|name, _| nodes.contains_key(name) && nodes.get(name) == known.get(name));
        *known = nodes;
    }

    fn origin(&self, peer: &NodeName) -> Option<Origin> {
        self.nodes.read().get(peer).cloned()
    }

    /// Returns the origin of a peer that is not lost.
    async fn reachable(&self, peer: &NodeName) -> Result<Origin, PeerError> {
        let origin = self.origin(peer).ok_or(PeerError::Unknown)?;
        let is_new = !self.states().contains_key(peer);
        // Whoever has the address gets no client's request before an authentic response.
        if is_new
            && let Err(error) = self.ping(peer).await
            && !self.states().contains_key(peer)
        {
            self.lose(peer, &error);
        }
        if self.is_lost(peer) { Err(PeerError::Lost) } else { Ok(origin) }
    }

    /// Sends a client's request to `owner`, and returns the response when its head has arrived and is verified.
    ///
    /// # Errors
    /// [`PeerError`] without an authentic response. Refusals and errors of the owner are responses.
    pub async fn ask(
        &self,
        owner: &NodeName,
        client: IpAddr,
        head: &RequestHead,
        method: PeerMethod,
    ) -> Result<Response<Incoming>, PeerError> {
        self.ask_with_body(owner, client, head, method, empty()).await
    }

    /// Sends a request like [`Peers::ask`], with a body.
    ///
    /// # Errors
    /// The errors of [`Peers::ask`], and [`PeerError::NoBody`].
    pub async fn ask_with_body(
        &self,
        owner: &NodeName,
        client: IpAddr,
        head: &RequestHead,
        method: PeerMethod,
        body: Body,
    ) -> Result<Response<Incoming>, PeerError> {
        let origin = self.reachable(owner).await?;
        let answer = self.send(owner, &origin, client, (head, body), method).await;
        match &answer {
            Ok(answer) => self.is_here(owner, &origin, PeerHints::of(answer.headers())),
            Err(PeerError::NoBody) => {}
            Err(error) => {
                if let Some(left_out) = UNAVAILABLE.admit() {
                    tracing::warn!(peer = %owner.0, %error, left_out, "peer unavailable");
                }
                self.lose_after(owner, error).await;
            }
        }
        answer
    }

    /// Marks a peer as lost if an error of a message shows that it is.
    async fn lose_after(&self, peer: &NodeName, error: &PeerError) {
        let is_lost = match error {
            PeerError::NoConnection(_) | PeerError::NoKey => true,
            // It may concern this message only, or another host may have the address.
            PeerError::NoAnswer(_) | PeerError::Refused(_) | PeerError::NotAuthentic(_) => {
                !self.is_alive(peer).await
            }
            _ => false,
        };
        if is_lost {
            self.lose(peer, error);
        }
    }

    /// Sends a request like [`Peers::ask`]. The response's body is relayed over a connection with these `slices`.
    ///
    /// # Errors
    /// The errors of [`Peers::ask`].
    pub async fn ask_and_relay(
        &self,
        owner: &NodeName,
        client: IpAddr,
        head: &RequestHead,
        method: PeerMethod,
        slices: &Slices,
    ) -> Result<Response<Body>, PeerError> {
        let answer = self.ask(owner, client, head, method).await?;
        raw::answer(answer, slices).await.map_err(|error| PeerError::NoAnswer(error.to_string()))
    }

    async fn send(
        &self,
        owner: &NodeName,
        origin: &Origin,
        client: IpAddr,
        (head, body): (&RequestHead, Body),
        method: PeerMethod,
    ) -> Result<Response<Incoming>, PeerError> {
        let version = self.version_with(owner);
        let mut answer = self.send_once(owner, origin, client, (head, body), &method, version).await?;
        if answer.as_ref().is_err_and(is_lost) {
            // The owner may have closed an idle connection, for example because another daemon replaces its own. That one may be
            // of an older build, which closes the connection of a message in a newer version.
            self.forget_version(owner);
            if matches!(method, PeerMethod::Get { .. } | PeerMethod::Part(..) | PeerMethod::Written(_)) {
                let oldest = self.wire.versions().oldest;
                answer = self.send_once(owner, origin, client, (head, empty()), &method, oldest).await?;
            }
        }
        answer.map_err(PeerError::from)
    }

    /// Sends a request once. The inner error is that of the connection.
    async fn send_once(
        &self,
        owner: &NodeName,
        origin: &Origin,
        client: IpAddr,
        (head, body): (&RequestHead, Body),
        method: &PeerMethod,
        version: WireVersion,
    ) -> Result<Result<Response<Incoming>, UpstreamError>, PeerError> {
        let mut request =
            head.request(origin, body).map_err(|error| PeerError::NoAnswer(error.to_string()))?;
        headers::set_client(request.headers_mut(), client);
        if let Some(gateway) = &head.gateway {
            headers::set_gateway(request.headers_mut(), gateway);
        }
        method.write(request.headers_mut());
        // Bytes of TLS cannot be spliced.
        if let PeerMethod::Get { .. } = method
            && !origin.tls
        {
            raw::accept(request.headers_mut());
        }
        let nonce = self.wire.sign_request(owner, version, &mut request, SystemTime::now());
        let nonce = nonce.ok_or(PeerError::NoKey)?;
        let mut answer = match self.while_alive(owner, self.upstream.get().send(request)).await? {
            Ok(answer) => answer,
            lost => return Ok(lost),
        };
        self.wire.verify_answer(&nonce, answer.status(), answer.headers())?;
        Skipped::read(&mut answer);
        StripedSize::read(&mut answer);
        Ok(Ok(answer))
    }

    /// Waits for `awaited` from `owner` as long as `owner` responds to pings.
    ///
    /// # Errors
    /// [`PeerError::Hangs`] if it misses two pings, or at the timeout.
    pub async fn while_alive<T>(
        &self,
        owner: &NodeName,
        awaited: impl Future<Output = T>,
    ) -> Result<T, PeerError> {
        let mut awaited = std::pin::pin!(awaited);
        let (mut missed, deadline) = (0, Instant::now() + self.owner_timeout);
        loop {
            let alive = async {
                tokio::time::sleep(PING_AFTER).await;
                self.is_alive(owner).await
            };
            let alive = tokio::select! {
                biased;
                come = &mut awaited => return Ok(come),
                alive = alive => alive,
            };
            // One missed ping may be a lost packet.
            missed = if alive { 0 } else { missed + 1 };
            if missed == 2 || Instant::now() > deadline {
                // An owner that responds to pings is slow, not lost.
                if !alive {
                    self.lose(owner, &PeerError::Hangs);
                }
                return Err(PeerError::Hangs);
            }
        }
    }

    /// Pings `owner`, and returns whether it responds authentically.
    pub async fn is_alive(&self, owner: &NodeName) -> bool {
        self.ping(owner).await.is_ok()
    }

    /// Pings `owner`.
    ///
    /// # Errors
    /// [`PeerError`] without an authentic response in time.
    pub async fn ping(&self, owner: &NodeName) -> Result<(), PeerError> {
        let origin = self.origin(owner).ok_or(PeerError::Unknown)?;
        let ping = Request::builder().uri(format!("{origin}/")).body(empty());
        let mut ping = ping.map_err(|error| PeerError::NoAnswer(error.to_string()))?;
        if let Ok(host) = HeaderValue::from_str(origin.authority.as_str()) {
            ping.headers_mut().insert(header::HOST, host);
        }
        PeerMethod::Ping.write(ping.headers_mut());
        // So that the peer is alive whatever build replaces another meanwhile.
        let oldest = self.wire.versions().oldest;
        let nonce = self.wire.sign_request(owner, oldest, &mut ping, SystemTime::now());
        let nonce = nonce.ok_or(PeerError::NoKey)?;
        let answer = tokio::time::timeout(PING_TIMEOUT, self.upstream.get().send(ping)).await;
        let answer = answer.map_err(|_| PeerError::Hangs)??;
        self.wire.verify_answer(&nonce, answer.status(), answer.headers())?;
        self.is_here(owner, &origin, PeerHints::of(answer.headers()));
        Ok(())
    }

    /// Verifies that a request on the peer port is a peer's, and returns what its response is signed with.
    ///
    /// # Errors
    /// [`RejectedMessage`]; the sender must get no response.
    pub fn verify<B>(&self, request: &Request<B>) -> Result<MessageMac, RejectedMessage> {
        let now = SystemTime::now();
        let (signature, sent) = self.wire.verify_request(request)?;
        self.window().admit(now, sent, signature.nonce())?;
        Ok(signature)
    }

    /// Rejects every request from now on, and returns the recently verified ones for [`Peers::adopt_seen`] in the process
    /// that takes over.
    ///
    /// # Errors
    /// If they cannot be serialized.
    pub fn seal(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(&self.window().seal())
    }

    /// Verifies requests again after a handover has failed.
    pub fn unseal(&self) {
        self.window().unseal();
    }

    /// Rejects requests that the previous process has verified, as replays.
    ///
    /// # Errors
    /// If `seen` is not what [`Peers::seal`] returns.
    pub fn adopt_seen(&self, seen: &[u8]) -> Result<(), postcard::Error> {
        self.window().adopt(postcard::from_bytes(seen)?);
        Ok(())
    }

    /// Signs the response to a verified request.
    pub fn sign(&self, signature: &MessageMac, answer: &mut Response<Body>) {
        self.wire.sign_answer(signature, answer);
    }

    /// Pings peers that are lost or have never responded, at an interval, forever.
    pub async fn look_for_the_lost(&self) {
        let mut look = tokio::time::interval(PROBE_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let sought = {
                let (nodes, states) = (self.names(), self.states());
                let is_sought = |name: &NodeName| states.get(name).is_none_or(|state| state.lost.is_some());
                nodes.into_iter().filter(is_sought).collect::<Vec<_>>()
            };
            let looked = stream::iter(&sought).for_each_concurrent(MAX_PROBES, async |peer| {
                let was_lost = self.is_lost(peer);
                match self.ping(peer).await {
                    Ok(()) if was_lost => tracing::info!(peer = %peer.0, "peer available again"),
                    Ok(()) => {}
                    Err(error) => self.lose(peer, &error),
                }
            });
            looked.await;
        }
    }

    fn names(&self) -> Vec<NodeName> {
        self.nodes.read().keys().cloned().collect()
    }

    /// Returns the keys for messages.
    #[must_use]
    pub fn keys(&self) -> &PeerKeys {
        self.wire.keys()
    }

    /// Replaces the public keys of all nodes.
    pub fn publish(&self, keys: PublicKeys) {
        self.keys().publish(keys);
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock()
    }
}

#[cfg(test)]
mod imposter_tests;
#[cfg(test)]
mod node_keys_tests;
#[cfg(test)]
mod rotation_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod version_tests;
