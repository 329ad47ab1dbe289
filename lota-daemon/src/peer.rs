//! Node to node: the client's request travels whole, and the owner authorizes it itself.
//!
//! HTTP/1.1 on a port of its own. Every request carries a MAC by the cluster's secret over who sends it to
//! whom, when, and all of its head; every answer one over its head. Nothing of a grant is ever sent.

pub mod headers;
pub mod raw;
mod replay;
mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use hyper::{
    Request, Response,
    body::Incoming,
    header::{self, HeaderValue},
};
use thiserror::Error;
use tokio::time::MissedTickBehavior;

pub use wire::{Refused, Signature};

use self::{
    headers::{Told, Wanted},
    replay::Window,
    wire::Wire,
};
use crate::{
    config::{Origin, Secret},
    http::{
        Body, Head, Slices, empty,
        upstream::{Upstream, chain},
    },
    placement::NodeName,
};

/// How often it is seen whether a peer that was lost is back.
const LOOK: Duration = Duration::from_secs(1);
/// A peer that was lost for longer, or is not of the cluster any more, has no share of the objects.
pub const GRACE: Duration = Duration::from_secs(60);
/// How long a peer's word about its load is worth something.
const MOMENT: Duration = Duration::from_secs(1);
/// Lost peers that are looked for at once.
const MOST_LOOKED_FOR: usize = 32;
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
    port: u16,
    nodes: RwLock<HashMap<NodeName, Origin>>,
    states: Mutex<HashMap<NodeName, State>>,
    upstream: Upstream,
}

/// What is known of a peer.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// Since when it does not answer.
    pub lost: Option<Instant>,
    /// Bytes that it had to send when it answered last, and when that was.
    pub load: Option<(u64, Instant)>,
    /// What its cache holds at most, as it said last.
    pub capacity: Option<u64>,
}

/// Why an owner could not be asked. Another node is, then.
#[derive(Debug, Error)]
pub enum PeerError {
    /// It did not answer the last time, and has not been seen since.
    #[error("it is lost")]
    Lost,
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
    /// The peers of `me`, none yet.
    pub fn new(me: NodeName, secret: &Secret, port: u16, upstream: Upstream) -> Self {
        Self {
            wire: Wire::new(me, secret),
            window: Mutex::new(Window::starting(SystemTime::now())),
            port,
            nodes: RwLock::default(),
            states: Mutex::default(),
            upstream,
        }
    }

    /// The other nodes of the cluster from now on, all of them.
    pub fn set_nodes<'a>(&self, nodes: impl IntoIterator<Item = (&'a NodeName, IpAddr)>) {
        let origin = |address| {
            let authority = SocketAddr::new(address, self.port).to_string();
            Origin::parse(&format!("http://{authority}")).ok()
        };
        let nodes: HashMap<NodeName, Origin> =
            nodes.into_iter().filter_map(|(name, address)| Some((name.clone(), origin(address)?))).collect();
        self.states().retain(|name, _| nodes.contains_key(name));
        *self.nodes.write().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    fn origin(&self, peer: &NodeName) -> Option<Origin> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(peer).cloned()
    }

    /// Asks `owner` for what is wanted of the answer to a client's request.
    ///
    /// # Errors
    /// [`PeerError`] if it cannot be asked; its refusals and its errors are answers.
    pub async fn ask(
        &self,
        owner: &NodeName,
        client: IpAddr,
        head: &Head,
        wanted: Wanted,
    ) -> Result<Response<Incoming>, PeerError> {
        let origin = self.origin(owner).ok_or(PeerError::Unknown)?;
        if self.is_lost(owner) {
            return Err(PeerError::Lost);
        }
        let answer = self.send(owner, &origin, client, head, wanted).await;
        match &answer {
            Ok(answer) => self.is_here(owner, Told::of(answer.headers())),
            Err(error) => {
                tracing::warn!(peer = %owner.0, %error, "peer unavailable");
                // Slow is not dead, and one odd request says nothing about the next.
                if let PeerError::NoConnection(_) = error {
                    self.lose(owner);
                }
            }
        }
        answer
    }

    /// The same, with a body to be passed on over a connection with these `slices`.
    ///
    /// # Errors
    /// Likewise.
    pub async fn ask_and_relay(
        &self,
        owner: &NodeName,
        client: IpAddr,
        head: &Head,
        wanted: Wanted,
        slices: &Slices,
    ) -> Result<Response<Body>, PeerError> {
        let answer = self.ask(owner, client, head, wanted).await?;
        raw::answer(answer, slices).await.map_err(|error| PeerError::NoAnswer(error.to_string()))
    }

    async fn send(
        &self,
        owner: &NodeName,
        origin: &Origin,
        client: IpAddr,
        head: &Head,
        wanted: Wanted,
    ) -> Result<Response<Incoming>, PeerError> {
        let mut request =
            head.request(origin, empty()).map_err(|error| PeerError::NoAnswer(error.to_string()))?;
        headers::set_client(request.headers_mut(), client);
        wanted.write(request.headers_mut());
        if let Wanted::All | Wanted::Rest(_) = wanted {
            raw::accept(request.headers_mut());
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
                // One that answers is only slow, however long.
                if !alive {
                    self.lose(owner);
                }
                return Err(PeerError::Hangs);
            }
        }
    }

    /// Does it answer at all, as a peer does?
    pub async fn is_alive(&self, owner: &NodeName) -> bool {
        let Some(origin) = self.origin(owner) else { return false };
        let Ok(mut ping) = Request::builder().uri(format!("{origin}/")).body(empty()) else { return false };
        if let Ok(host) = HeaderValue::from_str(origin.authority.as_str()) {
            ping.headers_mut().insert(header::HOST, host);
        }
        Wanted::Ping.write(ping.headers_mut());
        let nonce = self.wire.sign_request(owner, &mut ping, SystemTime::now());
        match tokio::time::timeout(PING_PATIENCE, self.upstream.send(ping)).await {
            Ok(Ok(answer)) => {
                let is_its = self.wire.verify_answer(&nonce, answer.status(), answer.headers()).is_ok();
                if is_its {
                    self.is_here(owner, Told::of(answer.headers()));
                }
                is_its
            }
            _ => false,
        }
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

    /// Looks for peers that were lost or have never said anything, for as long as it is polled.
    pub async fn look_for_the_lost(&self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let sought = {
                let (nodes, states) = (self.names(), self.states());
                let is_sought = |name: &NodeName| states.get(name).is_none_or(|state| state.lost.is_some());
                nodes.into_iter().filter(is_sought).collect::<Vec<_>>()
            };
            let looked = stream::iter(&sought).for_each_concurrent(MOST_LOOKED_FOR, async |peer| {
                let was_lost = self.is_lost(peer);
                match self.is_alive(peer).await {
                    true if was_lost => tracing::info!(peer = %peer.0, "peer is back"),
                    true => {}
                    false => self.lose(peer),
                }
            });
            looked.await;
        }
    }

    fn names(&self) -> Vec<NodeName> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// What each peer that has said so holds at most, in bytes.
    #[must_use]
    pub fn capacities(&self) -> BTreeMap<NodeName, u64> {
        let states = self.states();
        states.iter().filter_map(|(name, state)| Some((name.clone(), state.capacity?))).collect()
    }

    /// Did it not answer the last time?
    #[must_use]
    pub fn is_lost(&self, peer: &NodeName) -> bool {
        self.states().get(peer).is_some_and(|state| state.lost.is_some())
    }

    /// How many peers there are.
    #[must_use]
    pub fn known(&self) -> usize {
        self.names().len()
    }

    /// How many peers are not lost.
    #[must_use]
    pub fn active(&self) -> usize {
        self.names().iter().filter(|peer| !self.is_lost(peer)).count()
    }

    /// The peers that have been lost for so long that others have their shares.
    #[must_use]
    pub fn gone(&self) -> Vec<NodeName> {
        let is_gone = |state: &State| state.lost.is_some_and(|since| since.elapsed() > GRACE);
        let states = self.states();
        states.iter().filter(|(_, state)| is_gone(state)).map(|(name, _)| name.clone()).collect()
    }

    /// Bytes that it had to send a moment ago; none, if it has not said lately: it is asked again then.
    #[must_use]
    pub fn load(&self, peer: &NodeName) -> u64 {
        match self.states().get(peer).and_then(|state| state.load) {
            Some((load, said)) if said.elapsed() < MOMENT => load,
            _ => 0,
        }
    }

    /// Each peer: its name, where it answers, and what is known of it.
    #[must_use]
    pub fn each(&self) -> Vec<(NodeName, String, State)> {
        let (nodes, states) = (self.nodes.read().unwrap_or_else(PoisonError::into_inner), self.states());
        let state = |name| states.get(name).copied().unwrap_or_default();
        nodes.iter().map(|(name, origin)| (name.clone(), origin.authority.to_string(), state(name))).collect()
    }

    fn is_here(&self, peer: &NodeName, told: Told) {
        let mut states = self.states();
        let state = match states.get_mut(peer) {
            Some(state) => state,
            None => states.entry(peer.clone()).or_default(),
        };
        let capacity = told.capacity.or(state.capacity);
        *state = State { lost: None, load: Some((told.load, Instant::now())), capacity };
    }

    fn lose(&self, peer: &NodeName) {
        let mut states = self.states();
        states.entry(peer.clone()).or_default().lost.get_or_insert_with(Instant::now);
    }

    fn states(&self) -> MutexGuard<'_, HashMap<NodeName, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "peer/tests.rs"]
mod tests;
