//! The S3 gateway, which authorizes each request.
//!
//! Plain S3 is queried by *conditional replay*: the client's own signed request, unchanged (or re-signed, `re_sign`),
//! plus an unsigned `If-None-Match` with the ETag that this node holds. A 304 means "authorized and unchanged" in one
//! round trip without a body. A gateway that speaks the LOTA protocol may answer with a direct path instead.

mod authorize;
mod config;
mod direct;
mod grant;
mod key_groups;
mod proof;
mod questions;
mod re_sign;
mod rechunked;
mod round;
mod trouble;
mod trust;
mod verification;
mod waiting;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{
    Method, Request, Response,
    body::{Body as _, Incoming},
    header::{self, HeaderName, HeaderValue},
};
use serde::{Deserialize, Serialize};

pub use config::{
    AddressingStyle, ClientCredential, GatewayConfig, GatewayName, Protocol, ReSignConfig, TlsConfig,
};
pub use direct::DirectPath;
pub use grant::{FillAuthority, Grant, StripeGrant};
pub use verification::{GatewayTrust, MADE_UP};

use self::{
    key_groups::KeyGroups,
    proof::ConditionalSupport,
    questions::Question,
    re_sign::ReSign,
    round::{MAX_PRIMED, MAX_PRIMED_AGAIN, Verifier},
    trouble::Trouble,
    trust::{Form, RequestShape, RoundResult},
    verification::Verification,
    waiting::{SendingBody, Silence},
};
use crate::{
    cluster::NodeConfig,
    http::{
        Body, ReachabilityProbe, RequestHead, empty, relay_continue,
        upstream::{Upstream, UpstreamServer, chain, is_from_body, is_unreadable, refusal_of_body},
    },
    metrics::{Fault, GatewayCounts, Metrics},
    process::log_limit::LogLimit,
    settings::Reloadable,
};
use lota_s3::{
    Endpoints, NotStorable, ObjectMeta, Origin, S3Error, Validator, signature_location::access_key,
    signing::Signer,
};

/// Minimum timeout for the response to a POST: completing an upload of ten thousand parts takes long.
const POST_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// Maximum time that the client whose hit starts a server's first verification waits for it; then its request is
/// proxied.
const FIRST_VERIFICATION_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 30 } else { 1 });
const LOTA_NODE: HeaderName = HeaderName::from_static("lota-node");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
const LOTA_ACCEPT: HeaderName = HeaderName::from_static("lota-accept");

/// The gateway and the result of its verification.
#[derive(Debug)]
pub struct Gateway {
    upstream: Upstream,
    origin: Origin,
    protocol: Protocol,
    direct_allow: Vec<Origin>,
    node: HeaderValue,
    re_sign: Option<ReSign>,
    /// Signs with LOTA's own credential, for verification.
    own: Option<Reloadable<Signer>>,
    verification: Arc<Verification>,
    conditionals: ConditionalSupport,
    key_groups: KeyGroups,
    trouble: Trouble,
    reach: ReachabilityProbe,
    /// Timeout for a response while the gateway can be reached.
    response_timeout: Duration,
    metrics: Metrics,
    counts: GatewayCounts,
}

/// The gateway's response to a GET of an object.
#[derive(Debug)]
pub enum Authorization {
    /// Authorized; the stored bytes and headers are current.
    Fresh(Grant),
    /// Authorized; this version, whose bytes (or the requested range of them) are arriving.
    Arriving(Grant, Arc<ObjectMeta>, Response<Incoming>),
    /// Authorized; this version, whose bytes are at the direct path.
    Direct(Grant, Arc<ObjectMeta>, DirectPath),
    /// Not authorized or not an object; the response is relayed unchanged.
    Relay(Response<Incoming>),
    /// Authorized, but the response may be for this client alone; it is relayed unchanged.
    Unstorable(NotStorable, Response<Incoming>),
}

/// State of a server that has answered as the gateway.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct GatewayServer {
    /// Address of the server.
    pub address: SocketAddr,
    /// SHA-256 of its certificate in hex, over TLS.
    pub certificate: Option<String>,
    /// Result of its verification; `None` before the first.
    pub trusted: Option<bool>,
    /// Method by which its 304 proves the stored headers: `last-modified`, `if-unmodified-since` or `nothing`; `None` until
    /// it is known.
    #[serde(default)]
    pub proves_by: Option<String>,
    /// Reason why it is not trusted, so that no hits are served; or why its last verification was inconclusive.
    pub why: Option<String>,
}

/// Headers that LOTA adds to a client's request.
#[derive(Clone, Copy, Debug)]
struct Added<'a> {
    /// Validator of the version that this node holds.
    held: Option<&'a Validator>,
    /// Whether the gateway may answer with a direct path.
    direct: bool,
}

/// Result of sending a request.
type Sent = Result<Response<Incoming>, hyper_util::client::legacy::Error>;

/// No added headers.
const PLAIN: Added<'_> = Added { held: None, direct: false };

impl Gateway {
    /// Returns the configured gateway for requests of `node`.
    ///
    /// # Errors
    /// If the node's name or location contains characters that are not allowed in an HTTP header.
    pub fn new(config: &GatewayConfig, node: &NodeConfig, upstream: Upstream) -> Result<Self, String> {
        let location = format!("name={};zone={};region={}", node.name, node.zone, node.region);
        let node = HeaderValue::from_str(&location).map_err(|_| {
            format!("node: `{location}` contains characters that are not allowed in an HTTP header")
        })?;
        Ok(Self {
            upstream,
            origin: config.endpoint.clone(),
            protocol: config.protocol,
            direct_allow: config.direct_allow.clone(),
            node,
            re_sign: None,
            own: None,
            verification: Arc::default(),
            conditionals: ConditionalSupport::default(),
            key_groups: KeyGroups::default(),
            trouble: Trouble::default(),
            reach: ReachabilityProbe::new(&config.endpoint),
            response_timeout: Duration::from_secs(config.response_timeout_seconds),
            metrics: Metrics::default(),
            counts: GatewayCounts::default(),
        })
    }

    /// Returns the gateway with these metrics, in which it has this name.
    #[must_use]
    pub fn counting(self, metrics: Metrics, name: &str) -> Self {
        let counts = metrics.of_gateway(name);
        Self { metrics, counts, ..self }
    }

    /// Returns the gateway with re-signing of requests of `clients`. They address one of `endpoints`; `memory` is the number of
    /// bytes for buffered parts of bodies.
    #[must_use]
    pub fn re_signing(
        self,
        config: &ReSignConfig,
        clients: Reloadable<HashMap<String, ClientCredential>>,
        endpoints: &Endpoints,
        memory: u64,
    ) -> Self {
        let re_sign = ReSign::new(config, clients, &self.origin, endpoints, memory);
        Self { re_sign: Some(re_sign), ..self }
    }

    /// Returns the gateway with verification by LOTA's own credential. Without one, or if the gateway refuses it,
    /// verification uses clients' requests.
    #[must_use]
    pub fn tried_by(self, own: Reloadable<Signer>) -> Self {
        Self { own: Some(own), ..self }
    }

    /// Lets verification use LOTA's own credential, which was replaced, even if the gateway has refused the previous one.
    pub fn own_credential_changed(&self) {
        self.verification.own_is_replaced();
    }

    /// Returns whether the gateway may answer with a direct path to the storage backend.
    pub fn gives_direct_paths(&self) -> bool {
        self.protocol == Protocol::Lota
    }

    /// Returns whether a fill may omit the `Range` of the client's own request.
    pub fn may_ask_for_the_whole(&self, range_signed: bool) -> bool {
        !range_signed || self.re_sign.is_some()
    }

    /// Returns the client's own request for the whole object, without its `Range`, for a fill.
    ///
    /// # Errors
    /// [`S3Error`] if it cannot be re-signed.
    pub fn whole(&self, head: &RequestHead) -> Result<Request<Body>, S3Error> {
        let mut request = self.request(head, empty())?;
        request.headers_mut().remove(header::RANGE);
        Ok(request)
    }

    /// Returns the result of the gateway's verification so far.
    pub fn trust(&self) -> GatewayTrust {
        self.verification.trust()
    }

    /// Returns each server that has answered as the gateway, and how far it is trusted.
    pub fn servers(&self) -> Vec<GatewayServer> {
        let servers = self.verification.trust_by_server().into_iter().map(|(front, trust, inconclusive)| {
            GatewayServer {
                address: front.address,
                proves_by: self.conditionals.of(&front).map(|proves_by| proves_by.name().to_owned()),
                certificate: front.certificate.map(hex::encode),
                trusted: match &trust {
                    GatewayTrust::Unverified => None,
                    GatewayTrust::Trusted => Some(true),
                    GatewayTrust::Distrusted(_) => Some(false),
                },
                why: match trust {
                    GatewayTrust::Distrusted(why) => Some(why),
                    GatewayTrust::Unverified => inconclusive.map(str::to_owned),
                    GatewayTrust::Trusted => None,
                },
            }
        });
        servers.collect()
    }

    /// Makes servers that failed verification eligible for it again.
    pub fn try_again(&self) {
        self.verification.again();
    }

    /// Returns how long the gateway has not answered any request, and why, if so.
    pub fn silent(&self) -> Option<(Duration, String)> {
        self.trouble.now()
    }

    /// Forwards a request that is not a cacheable GET, and returns the response.
    ///
    /// # Errors
    /// [`S3Error`] if the gateway does not answer.
    pub async fn forward(&self, head: &RequestHead, body: Body) -> Result<Response<Incoming>, S3Error> {
        let mut request = self.request(head, body)?;
        relay_continue(&mut request);
        let is_timed = request.body().is_end_stream() && request.method() != Method::POST;
        match self.send(request, is_timed).await {
            Ok(Err(error)) if refusal_of_body(&error).is_some() => {
                Err(refusal_of_body(&error).cloned().unwrap_or_else(S3Error::wrong_signature))
            }
            Ok(Err(error)) if is_from_body(&error) => {
                Err(S3Error::incomplete_body(format!("The body was cut short: {}", chain(&error))))
            }
            answer => self.answered(answer),
        }
    }

    /// Sends the client's own request with LOTA's headers.
    async fn replay(&self, head: &RequestHead, added: Added<'_>) -> Result<Response<Incoming>, S3Error> {
        self.ask(self.question(head, added)?).await
    }

    fn question(&self, head: &RequestHead, added: Added<'_>) -> Result<Request<Body>, S3Error> {
        let mut request = self.request(head, empty())?;
        if added.direct {
            request.headers_mut().insert(LOTA_ACCEPT, HeaderValue::from_static("direct"));
        }
        if let Some(etag) = added.held.and_then(|held| HeaderValue::from_str(&held.etag).ok()) {
            request.headers_mut().insert(header::IF_NONE_MATCH, etag);
        }
        Ok(request)
    }

    /// Returns whether a 304 of this server proves that the request is authorized. Starts a verification if one is
    /// due.
    async fn trusts(&self, head: &RequestHead, held: &ObjectMeta, answer: &Response<Incoming>) -> bool {
        let Some(front) = front(answer) else { return false };
        let Some(hit) = questions::shape_of(&head.target, &head.headers) else { return false };
        if answer.headers().contains_key(header::AGE) {
            // RFC 9111, section 5.1: a cache has answered that did not ask the gateway.
            let why = RoundResult::Contrary("it answered from a cache (header Age)".to_owned());
            self.verification.record_round(&front, hit, why, Instant::now());
        }
        let is_trusted = self.verification.trusts(&front, hit);
        let verification = self.begin_verification(head, held, &front, hit);
        if is_trusted {
            return true;
        }
        // Requests that arrive in the meantime are proxied.
        let Some(verification) = verification else { return false };
        let _ = tokio::time::timeout(FIRST_VERIFICATION_TIMEOUT, verification).await;
        self.verification.trusts(&front, hit)
    }

    /// Starts a verification of a server beside the current request, if one is due.
    fn begin_verification(
        &self,
        head: &RequestHead,
        held: &ObjectMeta,
        front: &UpstreamServer,
        hit: RequestShape,
    ) -> Option<tokio::task::JoinHandle<()>> {
        let now = Instant::now();
        if !self.verification.is_due_at(front, hit, held.size, now) {
            return None;
        }
        let etag = HeaderValue::from_str(&held.version.validator.etag).ok()?;
        let access_key = access_key(&head.target, &head.headers);
        let running = self.verification.begin(front, hit, &access_key, now)?;
        let questions = self.questions(head, hit, now);
        if questions.is_empty() {
            return None;
        }
        let (upstream, verification, counts) =
            (self.upstream.clone(), self.verification.clone(), self.counts.clone());
        Some(tokio::spawn(Verifier { upstream, verification, counts }.run(running, questions, hit, etag)))
    }

    /// Returns the requests of a verification: with LOTA's own credential, and derived from the current request.
    fn questions(&self, head: &RequestHead, hit: RequestShape, now: Instant) -> Vec<Question> {
        let mut questions = Vec::new();
        if let Some(own) = self.own.as_ref().filter(|_| self.verification.may_use_own(now)) {
            let signer = own.get();
            let forms = [Form::Path, Form::Presigned].into_iter();
            let own = forms.filter_map(|form| {
                let (shape, good) = questions::own(&signer, &self.origin, self.re_sign.as_ref(), head, form)?;
                let is_asked_for = shape.covers(RequestShape { range: shape.range, ..hit });
                let max_bytes = if is_asked_for { MAX_PRIMED } else { MAX_PRIMED_AGAIN };
                Some(Question { shape, good, is_own: true, max_bytes })
            });
            questions.extend(own);
        }
        if let Some((shape, head)) = questions::of_client(head)
            && let Ok(request) = self.request(&head, empty())
        {
            let good = request.map(drop);
            questions.push(Question { shape, good, is_own: false, max_bytes: MAX_PRIMED });
        }
        questions
    }

    async fn ask(&self, request: Request<Body>) -> Result<Response<Incoming>, S3Error> {
        let answer = self.answered(self.send(request, true).await)?;
        if let Some(front) = front(&answer) {
            // A new server may be trusted although earlier ones failed.
            self.verification.meet(&front);
        }
        Ok(answer)
    }

    /// Sends a request, and counts the result, with its time if only the gateway determines it.
    async fn send(&self, mut request: Request<Body>, is_timed: bool) -> Result<Sent, Silence> {
        let (began, answers) = (Instant::now(), self.trouble.answers());
        let is_quick = matches!(*request.method(), Method::GET | Method::HEAD);
        let longest = match *request.method() {
            Method::POST => self.response_timeout.max(POST_TIMEOUT),
            _ => self.response_timeout,
        };
        // A client may pause for as long as its own timeout.
        let longest_pause = self.response_timeout.max(self.upstream.idle_timeout());
        let sending = SendingBody::of(&mut request, longest_pause);
        let silent = |waited| {
            // A single slow copy is no failure, but unanswered reads are.
            if is_quick {
                self.trouble.note_silence(answers, waited);
            }
        };
        let answer =
            waiting::while_alive(&self.reach, longest, sending, self.upstream.send(request), silent).await;
        let status = answer.as_ref().ok().and_then(|answer| Some(answer.as_ref().ok()?.status().as_u16()));
        self.counts.count_request(status, is_timed.then(|| began.elapsed()));
        self.trouble.note(&answer);
        answer
    }

    /// Returns the response, or the error for the client.
    fn answered(&self, answer: Result<Sent, Silence>) -> Result<Response<Incoming>, S3Error> {
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if is_unreadable(&error) => {
                self.metrics.fault(Fault::GatewayUnreadable);
                static LINES: LogLimit = LogLimit::every_ten_seconds();
                if let Some(left_out) = LINES.admit() {
                    tracing::warn!(gateway = %self.origin, error = chain(&error), left_out, "cannot read the gateway's answer");
                }
                Err(S3Error::bad_gateway(
                    "The gateway's answer cannot be read: it is malformed, or its head is too large",
                ))
            }
            Ok(Err(error)) => Err(self.unreachable(&chain(&error))),
            Err(Silence::Away(why)) => Err(self.unreachable(&why)),
            Err(Silence::Late(_)) => {
                self.metrics.fault(Fault::GatewayLate);
                Err(S3Error::unavailable("The gateway did not answer in time; try again"))
            }
        }
    }

    fn request(&self, head: &RequestHead, body: Body) -> Result<Request<Body>, S3Error> {
        let mut request = match &self.re_sign {
            Some(re_sign) => re_sign.request(head, body)?,
            None => head.request(&self.origin, body).map_err(|error| {
                S3Error::invalid_request(format!("The request cannot be forwarded: {error}"))
            })?,
        };
        if self.protocol == Protocol::Lota {
            request.headers_mut().insert(LOTA_NODE, self.node.clone());
        }
        Ok(request)
    }

    fn unreachable(&self, error: &str) -> S3Error {
        self.metrics.fault(Fault::GatewayUnreachable);
        static LINES: LogLimit = LogLimit::every_ten_seconds();
        if let Some(left_out) = LINES.admit() {
            tracing::warn!(gateway = %self.origin, error, left_out, "cannot reach the gateway");
        }
        S3Error::unavailable("The gateway cannot be reached; try again")
    }
}

fn front(answer: &Response<Incoming>) -> Option<UpstreamServer> {
    answer.extensions().get().cloned()
}

#[cfg(test)]
mod in_front_tests;
#[cfg(test)]
mod tests;
