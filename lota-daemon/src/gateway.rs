//! The gateway: the only one who says who may read what, asked for each request.
//!
//! Plain S3 is asked by *conditional replay*: the client's own signed request, unchanged (or signed anew, `resign`),
//! plus an unsigned `If-None-Match` with the ETag this node holds. A 304 says "authorized, and still that content" in
//! one round trip without a body. A gateway that speaks LOTA's protocol may answer with a direct path instead.

mod direct;
mod grant;
mod rechunked;
mod resign;
mod trial;
mod trouble;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{self, HeaderName, HeaderValue},
};
use serde::{Deserialize, Serialize};

pub use direct::DirectPath;
pub use grant::{FillAuthority, Grant};
pub use trial::{MADE_UP, Standing};

use self::{resign::Resign, trial::Trial, trouble::Trouble};
use crate::{
    config::{self, ConfigError, Origin, Protocol},
    http::{
        Body, Head, empty, relay_continue,
        upstream::{Front, Upstream, chain, is_from_body, refusal_of_body},
    },
    metrics::{Fault, Metrics},
    s3::{ObjectMeta, ObjectName, S3Error, Validator, Zone},
};

/// Longest wait for the gateway's word on a GET.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same for anything else.
const SHORT_PATIENCE: Duration = Duration::from_secs(120);
/// The same for an upload, or a request that may be long in the making; the upload itself is watched for standing still.
const LONG_PATIENCE: Duration = Duration::from_secs(6 * 3600);
/// Most bytes of an error that are read for the sake of its connection.
const MOST_OF_AN_ERROR: usize = 64 << 10;
const LOTA_NODE: HeaderName = HeaderName::from_static("lota-node");
const CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");
const LOTA_ACCEPT: HeaderName = HeaderName::from_static("lota-accept");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");

/// The gateway, and how far it is trusted.
#[derive(Debug)]
pub struct Gateway {
    upstream: Upstream,
    origin: Origin,
    protocol: Protocol,
    direct_allow: Vec<Origin>,
    node: HeaderValue,
    resign: Option<Resign>,
    trial: Trial,
    trouble: Trouble,
    metrics: Metrics,
}

/// The gateway's answer to a GET of an object.
#[derive(Debug)]
pub enum Answer {
    /// Authorized; the version this node holds is still the one.
    Fresh(Grant),
    /// Authorized; this version, and its bytes (or the asked range of them) are arriving.
    Arriving(Grant, ObjectMeta, Response<Incoming>),
    /// Authorized; this version, whose bytes the backend has.
    Direct(Grant, ObjectMeta, DirectPath),
    /// No, or nothing that could be cached: to be relayed as it is.
    Relay(Response<Incoming>),
}

/// A server that has answered as the gateway, for people to see.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Server {
    /// Where it is.
    pub address: SocketAddr,
    /// SHA-256 of its certificate in hex, over TLS.
    pub certificate: Option<String>,
    /// What its trial has shown, if there was one.
    pub trusted: Option<bool>,
    /// Why it is not trusted, so that nothing is served from the cache on its word.
    pub why: Option<String>,
}

/// What a node adds to a client's request.
#[derive(Clone, Copy, Debug)]
struct Added<'a> {
    /// The validator of the version it holds.
    held: Option<&'a Validator>,
    /// That the answer may be a direct path.
    direct: bool,
}

/// Nothing: the client's request as it is.
const PLAIN: Added<'_> = Added { held: None, direct: false };

impl Gateway {
    /// The configured gateway; `node` is who asks.
    ///
    /// # Errors
    /// If the node's name or location cannot stand in a header.
    pub fn new(config: &config::Gateway, node: &config::Node, upstream: Upstream) -> Result<Self, String> {
        let location = format!("name={};zone={};region={}", node.name, node.zone, node.region);
        let node = HeaderValue::from_str(&location)
            .map_err(|_| format!("node: `{location}` cannot stand in a header"))?;
        Ok(Self {
            upstream,
            origin: config.endpoint.clone(),
            protocol: config.protocol,
            direct_allow: config.direct_allow.clone(),
            node,
            resign: None,
            trial: Trial::default(),
            trouble: Trouble::default(),
            metrics: Metrics::default(),
        })
    }

    /// The same, with its requests counted here.
    #[must_use]
    pub fn counting(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// The same, with requests signed anew: clients address `zone`; `memory` bytes for parts of bodies that must be held.
    ///
    /// # Errors
    /// [`ConfigError`] if clients' credentials cannot be read.
    pub fn resigning(self, config: &config::Resign, zone: &Zone, memory: u64) -> Result<Self, ConfigError> {
        let resign = Resign::new(config, &self.origin, zone, memory)?;
        Ok(Self { resign: Some(resign), ..self })
    }

    /// May a fill leave out the `Range` of the client's own request?
    pub fn may_ask_for_the_whole(&self, range_signed: bool) -> bool {
        !range_signed || self.resign.is_some()
    }

    /// The client's own request of an object, without its `Range`: for a fill.
    ///
    /// # Errors
    /// [`S3Error`] if it cannot be signed anew.
    pub fn whole(&self, head: &Head) -> Result<Request<Body>, S3Error> {
        let mut request = self.request(head, empty())?;
        request.headers_mut().remove(header::RANGE);
        Ok(request)
    }

    /// What the gateway's trial has shown so far.
    pub fn standing(&self) -> Standing {
        self.trial.standing()
    }

    /// Each server that has answered as the gateway, and how far it is trusted.
    pub fn servers(&self) -> Vec<Server> {
        let servers = self.trial.standings().into_iter().map(|(front, standing)| Server {
            address: front.address,
            certificate: front.certificate.map(hex::encode),
            trusted: match &standing {
                Standing::Untried => None,
                Standing::Trusted => Some(true),
                Standing::Distrusted(_) => Some(false),
            },
            why: match standing {
                Standing::Distrusted(why) => Some(why),
                _ => None,
            },
        });
        servers.collect()
    }

    /// Has servers that failed their trial tried again.
    pub fn try_again(&self) {
        self.trial.again();
    }

    /// For how long it has not answered any request, and why, if so.
    pub fn silent(&self) -> Option<(Duration, String)> {
        self.trouble.now()
    }

    /// Sends a request as it is, and says what came back; the road of everything that is not a cacheable GET.
    ///
    /// # Errors
    /// [`S3Error`] if the gateway does not answer.
    pub async fn forward(&self, head: &Head, body: Body) -> Result<Response<Incoming>, S3Error> {
        let mut request = self.request(head, body)?;
        relay_continue(&mut request);
        // An upload takes its time, and so does putting together ten thousand parts.
        let is_short = request.body().is_end_stream() && request.method() != Method::POST;
        let patience = if is_short { SHORT_PATIENCE } else { LONG_PATIENCE };
        match self.send(request, patience, is_short).await {
            Some(Err(error)) if refusal_of_body(&error).is_some() => {
                Err(refusal_of_body(&error).cloned().unwrap_or_else(S3Error::wrong_signature))
            }
            Some(Err(error)) if is_from_body(&error) => {
                Err(S3Error::incomplete_body(format!("The body broke off: {}", chain(&error))))
            }
            Some(answer) => answer.map_err(|error| self.unreachable(&error)),
            None => Err(self.late()),
        }
    }

    /// Asks whether this GET may be answered, given the version this node holds.
    ///
    /// # Errors
    /// [`S3Error`] if the gateway does not answer: then nobody gets anything.
    pub async fn authorize(
        &self,
        head: &Head,
        name: &ObjectName,
        held: Option<&Validator>,
    ) -> Result<Answer, S3Error> {
        if matches!(self.trial.standing(), Standing::Distrusted(_)) {
            return Ok(Answer::Relay(self.replay(head, PLAIN).await?));
        }
        let direct = self.protocol == Protocol::Lota;
        let answer = self.replay(head, Added { held, direct }).await?;
        let answer = match (answer.status(), held) {
            (StatusCode::NOT_MODIFIED, Some(held)) => {
                if !self.trusts(head, held, &answer).await? {
                    return Ok(Answer::Relay(self.replay(head, PLAIN).await?));
                }
                if held.agrees_with(answer.headers()) {
                    return Ok(Answer::Fresh(Grant::new(name, held, request_id(&answer))));
                }
                // The same ETag, but written again, with other metadata perhaps.
                self.replay(head, Added { held: None, direct }).await?
            }
            _ => answer,
        };
        if direct && answer.status() == StatusCode::TEMPORARY_REDIRECT {
            return match direct::parse(name, &answer, &self.direct_allow) {
                Some((meta, path)) => {
                    let meta = with_checksums(meta, head, answer.headers());
                    let grant = Grant::new(name, &meta.version.validator, request_id(&answer));
                    Ok(Answer::Direct(grant, meta, path))
                }
                // It may carry an authority, and was an answer to LOTA: the client must not see it.
                None => Ok(classify(name, head, self.replay(head, PLAIN).await?)),
            };
        }
        Ok(classify(name, head, answer))
    }

    /// Asks by the client's own request, and what a node adds to it.
    async fn replay(&self, head: &Head, added: Added<'_>) -> Result<Response<Incoming>, S3Error> {
        self.ask(self.question(head, added)?).await
    }

    fn question(&self, head: &Head, added: Added<'_>) -> Result<Request<Body>, S3Error> {
        let mut request = self.request(head, empty())?;
        if added.direct {
            request.headers_mut().insert(LOTA_ACCEPT, HeaderValue::from_static("direct"));
        }
        if let Some(etag) = added.held.and_then(|held| HeaderValue::from_str(&held.etag).ok()) {
            request.headers_mut().insert(header::IF_NONE_MATCH, etag);
        }
        Ok(request)
    }

    /// Is a 304 of this server worth anything? Tried once, with the request at hand.
    async fn trusts(
        &self,
        head: &Head,
        held: &Validator,
        answer: &Response<Incoming>,
    ) -> Result<bool, S3Error> {
        let Some(front) = front(answer) else { return Ok(false) };
        if self.trial.standing_of(&front) == Standing::Untried {
            // While another tries it, this request is only proxied.
            let Ok(_one) = self.trial.running.try_lock() else { return Ok(false) };
            if self.trial.standing_of(&front) == Standing::Untried {
                self.try_gateway(head, held).await?;
            }
        }
        Ok(self.trial.standing_of(&front) == Standing::Trusted)
    }

    async fn try_gateway(&self, head: &Head, held: &Validator) -> Result<(), S3Error> {
        // An anonymous request has no signature to break; a later one will have.
        let mut broken = self.question(head, Added { held: Some(held), direct: false })?;
        if !trial::break_signature(&mut broken) {
            return Ok(());
        }
        let made_up = Validator { etag: MADE_UP.to_owned(), last_modified: None };
        let refused = self.ask(broken).await?;
        let (refused, body) = refused.into_parts();
        // Read, so that the next question may go over the same connection, to the same server.
        let _ = tokio::time::timeout(PATIENCE, Limited::new(body, MOST_OF_AN_ERROR).collect()).await;
        let changed = self.replay(head, Added { held: Some(&made_up), direct: false }).await?;
        if let (Some(refuser), Some(changer)) = (refused.extensions.get(), front(&changed)) {
            self.trial.judge((refuser, refused.status), (&changer, changed.status()));
        }
        Ok(())
    }

    async fn ask(&self, request: Request<Body>) -> Result<Response<Incoming>, S3Error> {
        match self.send(request, PATIENCE, true).await {
            Some(answer) => {
                let answer = answer.map_err(|error| self.unreachable(&error))?;
                if let Some(front) = front(&answer) {
                    // A server that was not met before may deserve more trust than those that failed.
                    self.trial.standing_of(&front);
                }
                Ok(answer)
            }
            None => Err(self.late()),
        }
    }

    /// Sends a request, and counts what becomes of it, with its time if that is the gateway's own; `None` if it takes too
    /// long.
    async fn send(
        &self,
        request: Request<Body>,
        patience: Duration,
        is_timed: bool,
    ) -> Option<Result<Response<Incoming>, hyper_util::client::legacy::Error>> {
        let began = Instant::now();
        let answer = tokio::time::timeout(patience, self.upstream.send(request)).await.ok();
        let status = answer.as_ref().and_then(|answer| Some(answer.as_ref().ok()?.status().as_u16()));
        self.metrics.asked_gateway(status, is_timed.then(|| began.elapsed()));
        self.trouble.note(answer.as_ref(), patience);
        answer
    }

    fn request(&self, head: &Head, body: Body) -> Result<Request<Body>, S3Error> {
        let mut request = match &self.resign {
            Some(resign) => resign.request(head, body)?,
            None => head.request(&self.origin, body).map_err(|error| {
                S3Error::invalid_request(format!("The request cannot be forwarded: {error}"))
            })?,
        };
        if self.protocol == Protocol::Lota {
            request.headers_mut().insert(LOTA_NODE, self.node.clone());
        }
        Ok(request)
    }

    fn late(&self) -> S3Error {
        self.metrics.fault(Fault::GatewayLate);
        S3Error::unavailable("The gateway did not answer in time; try again")
    }

    fn unreachable(&self, error: &hyper_util::client::legacy::Error) -> S3Error {
        self.metrics.fault(Fault::GatewayUnreachable);
        tracing::warn!(gateway = %self.origin, error = chain(error), "the gateway does not answer");
        S3Error::unavailable("The gateway cannot be reached; try again")
    }
}

/// By what id the gateway's log knows a request.
fn request_id(answer: &Response<Incoming>) -> Option<HeaderValue> {
    answer.headers().get(REQUEST_ID).cloned()
}

fn front(answer: &Response<Incoming>) -> Option<Front> {
    answer.extensions().get().cloned()
}

/// What an answer says of the whole object, to a client that asked, includes its checksums.
fn with_checksums(meta: ObjectMeta, asked: &Head, answer: &HeaderMap) -> ObjectMeta {
    let asked =
        asked.headers.get(CHECKSUM_MODE).is_some_and(|mode| mode.as_bytes().eq_ignore_ascii_case(b"enabled"));
    if asked { meta.with_checksums(answer) } else { meta }
}

fn classify(name: &ObjectName, asked: &Head, answer: Response<Incoming>) -> Answer {
    let meta = ObjectMeta::of_answer(name, answer.status(), answer.headers());
    match meta {
        Some(meta) if answer.status() == StatusCode::OK => {
            let meta = with_checksums(meta, asked, answer.headers());
            Answer::Arriving(Grant::new(name, &meta.version.validator, request_id(&answer)), meta, answer)
        }
        Some(meta) => {
            Answer::Arriving(Grant::new(name, &meta.version.validator, request_id(&answer)), meta, answer)
        }
        None => Answer::Relay(answer),
    }
}

#[cfg(test)]
#[path = "gateway/tests.rs"]
mod tests;
