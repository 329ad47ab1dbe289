//! Node to node: the client's request travels whole, and the owner authorizes it itself.
//!
//! HTTP/1.1 on a port of its own. Every request carries a MAC by the cluster's secret over who sends it to
//! whom, when, and all of its head; every answer one over its head. Nothing of a grant is ever sent.

mod replay;
mod wire;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
};
use thiserror::Error;

pub use wire::{Refused, Signature};

use self::{replay::Window, wire::Wire};
use crate::{
    config::{Origin, Secret},
    http::{
        Body, Head, empty,
        upstream::{Upstream, chain},
    },
    placement::NodeName,
};

/// Between nodes only: the pod that asks, whose fills are budgeted.
const LOTA_CLIENT: HeaderName = HeaderName::from_static("lota-client");
/// Between nodes only: see [`Peers::is_ping`].
const LOTA_PING: HeaderName = HeaderName::from_static("lota-ping");
/// Between nodes only: see [`Peers::skipped`].
const LOTA_SKIP: HeaderName = HeaderName::from_static("lota-skip");
/// How long a peer that did not answer is left alone.
const REST: Duration = Duration::from_secs(2);
/// Longest wait for an owner's answer. It may have to wait for another request's answer, ask the gateway up to
/// four times (the trial), and hesitate over a fill; giving up earlier would begin a second fill elsewhere.
const PATIENCE: Duration = Duration::from_secs(120);
/// After so long a silence an owner is asked whether it is there at all,
const SILENCE: Duration = Duration::from_secs(3);
/// and has so long to say yes.
const PING_PATIENCE: Duration = Duration::from_secs(2);

/// The other nodes, and the secret shared with them.
#[derive(Debug)]
pub struct Peers {
    wire: Wire,
    window: Mutex<Window>,
    addresses: HashMap<NodeName, Origin>,
    resting: Mutex<HashMap<NodeName, Instant>>,
    upstream: Upstream,
}

/// Why an owner could not be asked. Another node is, then.
#[derive(Debug, Error)]
pub enum PeerError {
    /// It did not answer lately, and is left alone for a moment.
    #[error("it did not answer a moment ago")]
    Resting,
    /// No such node is configured.
    #[error("its address is not known")]
    Unknown,
    /// Nobody is there.
    #[error("no connection: {0}")]
    NoConnection(String),
    /// It does not even say that it is there.
    #[error("it hangs")]
    Hangs,
    /// No answer, or none in time.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// An answer that is not a peer's.
    #[error("its answer is not authentic: {0}")]
    NotAuthentic(#[from] Refused),
}

impl Peers {
    /// The nodes of the cluster, as `me` sees them.
    pub fn new(
        me: NodeName,
        secret: &Secret,
        port: u16,
        nodes: impl IntoIterator<Item = (NodeName, IpAddr)>,
        upstream: Upstream,
    ) -> Self {
        let origin = |address| {
            let authority = SocketAddr::new(address, port).to_string();
            Origin::parse(&format!("http://{authority}")).ok()
        };
        let addresses =
            nodes.into_iter().filter_map(|(name, address)| Some((name, origin(address)?))).collect();
        Self {
            wire: Wire::new(me, secret),
            window: Mutex::new(Window::starting(SystemTime::now())),
            addresses,
            resting: Mutex::default(),
            upstream,
        }
    }

    /// Asks `owner` to answer a client's request, without the first `skip` bytes of the body.
    ///
    /// # Errors
    /// [`PeerError`] if it cannot be asked; its refusals and its errors are answers.
    pub async fn ask(
        &self,
        owner: &NodeName,
        client: IpAddr,
        head: &Head,
        skip: u64,
    ) -> Result<Response<Incoming>, PeerError> {
        let origin = self.addresses.get(owner).ok_or(PeerError::Unknown)?;
        if self.rests(owner) {
            return Err(PeerError::Resting);
        }
        let answer = self.send(owner, origin, client, head, skip).await;
        if let Err(error) = &answer {
            tracing::warn!(peer = %owner.0, %error, "peer unavailable");
        }
        // Slow is not dead, and one odd request says nothing about the next.
        if let Err(PeerError::NoConnection(_)) = &answer {
            self.let_rest(owner);
        }
        answer
    }

    fn let_rest(&self, owner: &NodeName) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.insert(owner.clone(), Instant::now() + REST);
    }

    async fn send(
        &self,
        owner: &NodeName,
        origin: &Origin,
        client: IpAddr,
        head: &Head,
        skip: u64,
    ) -> Result<Response<Incoming>, PeerError> {
        let mut request =
            head.request(origin, empty()).map_err(|error| PeerError::NoAnswer(error.to_string()))?;
        if let Ok(client) = HeaderValue::from_str(&client.to_canonical().to_string()) {
            request.headers_mut().insert(LOTA_CLIENT, client);
        }
        if skip > 0 {
            request.headers_mut().insert(LOTA_SKIP, HeaderValue::from(skip));
        }
        let nonce = self.wire.sign_request(owner, &mut request, SystemTime::now());
        let sent = tokio::time::timeout(PATIENCE, self.while_alive(owner, self.upstream.send(request)));
        let answer = sent.await.map_err(|_| PeerError::NoAnswer("timed out".into()))??;
        let answer = answer.map_err(|error| match error.is_connect() {
            true => PeerError::NoConnection(chain(&error)),
            false => PeerError::NoAnswer(chain(&error)),
        })?;
        self.wire.verify_answer(&nonce, answer.status(), answer.headers())?;
        Ok(answer)
    }

    /// Waits for something of `owner`'s, as long as it is there at all: slow is not dead, and hanging is.
    ///
    /// # Errors
    /// [`PeerError::Hangs`]
    pub async fn while_alive<T>(
        &self,
        owner: &NodeName,
        awaited: impl Future<Output = T>,
    ) -> Result<T, PeerError> {
        let mut awaited = std::pin::pin!(awaited);
        let (mut missed, deadline) = (0, Instant::now() + PATIENCE);
        loop {
            let alive = async {
                tokio::time::sleep(SILENCE).await;
                self.is_alive(owner).await
            };
            let alive = tokio::select! {
                biased;
                come = &mut awaited => return Ok(come),
                alive = alive => alive,
            };
            // One may be lost on the way.
            missed = if alive { 0 } else { missed + 1 };
            if missed == 2 || Instant::now() > deadline {
                self.let_rest(owner);
                return Err(PeerError::Hangs);
            }
        }
    }

    async fn is_alive(&self, owner: &NodeName) -> bool {
        let Some(origin) = self.addresses.get(owner) else { return false };
        let Ok(mut ping) = Request::builder().uri(format!("{origin}/")).body(empty()) else { return false };
        if let Ok(host) = HeaderValue::from_str(origin.authority.as_str()) {
            ping.headers_mut().insert(header::HOST, host);
        }
        ping.headers_mut().insert(LOTA_PING, HeaderValue::from_static("1"));
        let nonce = self.wire.sign_request(owner, &mut ping, SystemTime::now());
        match tokio::time::timeout(PING_PATIENCE, self.upstream.send(ping)).await {
            Ok(Ok(answer)) => self.wire.verify_answer(&nonce, answer.status(), answer.headers()).is_ok(),
            _ => false,
        }
    }

    /// Does a verified request only ask whether this node is there?
    #[must_use]
    pub fn is_ping(headers: &HeaderMap) -> bool {
        headers.contains_key(LOTA_PING)
    }

    /// The pod that a verified request is for.
    #[must_use]
    pub fn client(headers: &HeaderMap) -> Option<IpAddr> {
        headers.get(LOTA_CLIENT)?.to_str().ok()?.parse().ok()
    }

    /// Bytes that an answer is to be, or was, given without: the client has them already, from another node.
    #[must_use]
    pub fn skipped(headers: &HeaderMap) -> u64 {
        headers.get(LOTA_SKIP).and_then(|skip| skip.to_str().ok()?.parse().ok()).unwrap_or_default()
    }

    /// Says in an answer that so many bytes are left out of it.
    pub fn set_skipped(headers: &mut HeaderMap, skip: u64) {
        headers.insert(LOTA_SKIP, HeaderValue::from(skip));
    }

    /// Is this request, as it came in on the peer port, one of a peer's? Returns what its answer is signed
    /// with.
    ///
    /// # Errors
    /// [`Refused`]: whoever sent it gets no answer at all.
    pub fn verify<B>(&self, request: &Request<B>) -> Result<Signature, Refused> {
        let now = SystemTime::now();
        let (signature, sent) = self.wire.verify_request(request)?;
        self.window.lock().unwrap_or_else(PoisonError::into_inner).admit(now, sent, signature.nonce())?;
        Ok(signature)
    }

    /// Signs the answer to a verified request.
    pub fn sign(&self, signature: &Signature, answer: &mut Response<Body>) {
        self.wire.sign_answer(signature, answer);
    }

    fn rests(&self, peer: &NodeName) -> bool {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        match resting.get(peer) {
            Some(until) if *until > Instant::now() => true,
            Some(_) => {
                resting.remove(peer);
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
#[path = "peer/tests.rs"]
mod tests;
