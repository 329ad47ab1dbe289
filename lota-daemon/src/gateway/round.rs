//! Runs verification rounds beside clients' requests.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
};
use lota_s3::invalid_signature::{with_broken_signature, without_signature};
use tokio::time::{sleep, timeout};

use super::{
    REQUEST_ID,
    questions::Question,
    trust::{Form, NextRound, RangeForm, RequestShape, RoundResult},
    verification::{MADE_UP, Running, Verification},
};
use crate::{
    http::{
        empty,
        upstream::{Upstream, UpstreamServer},
    },
    metrics::GatewayCounts,
};

/// Timeout for the head of a response, and for the next bytes of its body.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Delay before the request is repeated, in which a cache may store the first response.
const REPEAT_DELAY: Duration = if cfg!(test) { Duration::from_millis(2) } else { Duration::from_millis(100) };
/// Maximum number of consecutive rounds.
const MAX_ROUNDS: u32 = 6;
/// Maximum number of attempts to have a request answered by the server under verification, if several share the
/// gateway's name.
const ATTEMPTS: u32 = 16;
/// Maximum number of bytes of a response that are read so that its connection can be reused.
pub(super) const MAX_DRAINED: u64 = 64 << 10;
/// Largest object that is read in full for a server that was trusted before, or for a shape that no client requests.
pub(super) const MAX_PRIMED_AGAIN: u64 = 1 << 20;
/// Largest object that is read in full for the first verification. A larger one has already passed a cache in front
/// of the gateway when it was filled, unless LOTA has another path to the storage; reading it again would double the
/// gateway's traffic.
pub(super) const MAX_PRIMED: u64 = 8 << 20;
/// An invalid signature, added beside that of a presigned URL.
const DECOY: HeaderValue = HeaderValue::from_static(
    "AWS4-HMAC-SHA256 Credential=LOTATRIALNOBODY00000/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, \
     Signature=f000000000000000000000000000000000000000000000000000000000000000",
);

/// Runs verification rounds.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) upstream: Upstream,
    pub(super) verification: Arc<Verification>,
    pub(super) counts: GatewayCounts,
}

/// A response without its body.
struct ProbeResponse {
    status: StatusCode,
    headers: HeaderMap,
    /// Whether the body was cut short.
    is_broken: bool,
}

/// Result of a step, or the result of the round if the step ends it.
type Ended<T> = Result<T, RoundResult>;

impl Verifier {
    /// Runs rounds of each request, with and without a `Range`. Skips this client for a while if hits of its shape are
    /// not trusted afterwards.
    pub(super) async fn run(
        self,
        running: Running,
        questions: Vec<Question>,
        hit: RequestShape,
        etag: HeaderValue,
    ) {
        let front = &running.front;
        for question in questions {
            if question.is_own && !self.verification.may_use_own(Instant::now()) {
                continue;
            }
            let failed_by = self.verification.contrary_range(front);
            let forms = [Some(RangeForm::Part), failed_by.filter(|range| *range == RangeForm::FromStart)];
            let ranged = forms.into_iter().flatten().filter_map(|range| question.ranged(range));
            let all: Vec<Question> = ranged.chain([question.clone()]).collect();
            join_all(all.iter().map(|question| self.decide(front, question, &etag))).await;
        }
        if !self.verification.trusts(front, hit) {
            running.skip(Instant::now());
        }
    }

    /// Runs rounds of a request, if one is due, until it is decided or inconclusive.
    async fn decide(&self, front: &UpstreamServer, question: &Question, etag: &HeaderValue) {
        if !self.verification.is_due(front, question.shape, Instant::now()) {
            return;
        }
        let was_trusted = self.verification.trusts(front, question.shape);
        let mut is_primed = false;
        for _ in 0..MAX_ROUNDS {
            let result = self.round(front, question, etag, was_trusted, &mut is_primed).await;
            if question.is_own && result == OWN_REFUSED {
                // A gateway may refuse only a `Range` that was added after signing.
                if question.shape.range == RangeForm::Whole {
                    self.verification.own_is_refused(Instant::now());
                }
                return;
            }
            if self.verification.record_round(front, question.shape, result, Instant::now())
                == NextRound::Later
            {
                return;
            }
            sleep(REPEAT_DELAY).await;
        }
    }

    async fn round(
        &self,
        front: &UpstreamServer,
        question: &Question,
        etag: &HeaderValue,
        was_trusted: bool,
        is_primed: &mut bool,
    ) -> RoundResult {
        let ended = self.try_round(front, question, etag, was_trusted, is_primed).await;
        ended.err().unwrap_or(RoundResult::Passed)
    }

    async fn try_round(
        &self,
        front: &UpstreamServer,
        question: &Question,
        etag: &HeaderValue,
        was_trusted: bool,
        is_primed: &mut bool,
    ) -> Ended<()> {
        let good = &question.good;
        let Some(broken) = with_broken_signature(good) else {
            return inconclusive("the request at hand has no signature that LOTA supports");
        };
        // After this request, a cache in front of the gateway has stored the object, if it stores such objects.
        if !*is_primed {
            let max_bytes = if was_trusted { MAX_PRIMED_AGAIN } else { question.max_bytes };
            let whole = self.ask(front, good.clone(), max_bytes).await?;
            if question.is_own && is_refusal(whole.status) {
                return Err(OWN_REFUSED);
            }
            is_object(&whole, question, etag)?;
            if whole.is_broken && !was_trusted {
                return inconclusive("the response was cut short");
            }
            *is_primed = true;
        }
        let conditional =
            |request: &Request<()>, etag: &HeaderValue| with(request, header::IF_NONE_MATCH, etag.clone());
        let mut ids = Vec::new();
        for _ in 0..2 {
            let fresh = self.ask(front, conditional(good, etag), MAX_DRAINED).await?;
            if fresh.status != StatusCode::NOT_MODIFIED {
                return inconclusive("the object at hand has changed, or the client lost its permission");
            }
            ids.push(fresh.headers.get(REQUEST_ID).cloned());
        }
        self.expect_refusal(front, good, &conditional(&broken, etag)).await?;
        let changed =
            self.ask(front, conditional(good, &HeaderValue::from_static(MADE_UP)), MAX_DRAINED).await?;
        if changed.status == StatusCode::NOT_MODIFIED {
            return contrary(format!("it answered {} to a made-up ETag", changed.status));
        }
        is_object(&changed, question, etag)?;
        if question.shape.form == Form::Presigned {
            // A cache may store each URL with its signature. A broken signature is another URL then and proves
            // nothing.
            let decoy = with(&conditional(good, etag), header::AUTHORIZATION, DECOY);
            let is_asked_itself = matches!(&*ids, [Some(first), Some(second)] if first != second)
                || is_refusal(self.ask(front, decoy, MAX_DRAINED).await?.status);
            if !is_asked_itself {
                return inconclusive("cannot determine whether a cache stores presigned URLs");
            }
        }
        sleep(REPEAT_DELAY).await;
        self.expect_refusal(front, good, &conditional(&broken, etag)).await
    }

    /// Sends a request with a broken signature and expects a refusal.
    async fn expect_refusal(
        &self,
        front: &UpstreamServer,
        good: &Request<()>,
        broken: &Request<()>,
    ) -> Ended<()> {
        let refused = self.ask(front, broken.clone(), MAX_DRAINED).await?.status;
        if is_refusal(refused) {
            return Ok(());
        }
        if !is_accepted(refused) {
            return inconclusive("the gateway neither accepts nor refuses a broken signature");
        }
        // Anyone may read some objects, with some gateways even with a wrong signature. A URL that no cache has
        // stored shows whether the gateway itself answers so.
        let parameter = format!("lota-verification={:016x}", rand::random::<u64>());
        let Some(anyone) = without_signature(good, &parameter) else {
            return inconclusive("the request cannot be sent without its signature");
        };
        let anyone = with(&anyone, header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let anyone = self.ask(front, anyone, MAX_DRAINED).await?.status;
        if !is_refusal(anyone) {
            return inconclusive("anyone may read the object at hand");
        }
        // The object might have become private just now.
        if is_accepted(self.ask(front, broken.clone(), MAX_DRAINED).await?.status) {
            return contrary(format!("it answered {refused} to a broken signature"));
        }
        inconclusive("the permissions of the object at hand change")
    }

    /// Sends a request until this server answers, and reads up to `max_bytes` of the response.
    async fn ask(
        &self,
        front: &UpstreamServer,
        question: Request<()>,
        max_bytes: u64,
    ) -> Ended<ProbeResponse> {
        for _ in 0..ATTEMPTS {
            let response =
                timeout(ANSWER_TIMEOUT, self.upstream.send(question.clone().map(|()| empty()))).await;
            let answer = response.ok().and_then(Result::ok);
            self.counts.count_request(answer.as_ref().map(|answer| answer.status().as_u16()), None);
            let Some(answer) = answer else { return inconclusive("cannot reach the gateway") };
            let is_from_server = answer.extensions().get::<UpstreamServer>() == Some(front);
            let seen = read(answer, if is_from_server { max_bytes } else { MAX_DRAINED }).await;
            if !is_from_server {
                continue;
            }
            if seen.headers.contains_key(header::AGE) && is_accepted(seen.status) {
                return contrary("it answered from a cache (header Age)".to_owned());
            }
            return Ok(seen);
        }
        inconclusive("other servers of the gateway answer instead")
    }
}

const OWN_REFUSED: RoundResult = RoundResult::Inconclusive("the gateway refuses LOTA's own credential");

fn inconclusive<T>(why: &'static str) -> Ended<T> {
    Err(RoundResult::Inconclusive(why))
}

fn contrary<T>(why: String) -> Ended<T> {
    Err(RoundResult::Contrary(why))
}

fn is_refusal(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 401 | 403)
}

fn is_accepted(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::NOT_MODIFIED
}

/// Verifies that a response is the object.
fn is_object(answer: &ProbeResponse, question: &Question, etag: &HeaderValue) -> Ended<()> {
    let expected = match question.shape.range {
        RangeForm::Whole => StatusCode::OK,
        RangeForm::Part | RangeForm::FromStart => StatusCode::PARTIAL_CONTENT,
    };
    if answer.status == expected && answer.headers.get(header::ETAG) == Some(etag) {
        return Ok(());
    }
    inconclusive("the gateway does not send the object at hand")
}

fn with(request: &Request<()>, name: HeaderName, value: HeaderValue) -> Request<()> {
    let mut request = request.clone();
    request.headers_mut().insert(name, value);
    request
}

/// Reads up to `max_bytes` of the body, or nothing if its stated length is larger.
async fn read(answer: Response<Incoming>, max_bytes: u64) -> ProbeResponse {
    let (parts, mut body) = answer.into_parts();
    let mut seen = ProbeResponse { status: parts.status, headers: parts.headers, is_broken: false };
    let length =
        seen.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > max_bytes) && seen.status != StatusCode::NOT_MODIFIED {
        return seen;
    }
    let mut left = max_bytes;
    loop {
        match timeout(ANSWER_TIMEOUT, body.frame()).await {
            Ok(None) => return seen,
            Ok(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(rest) = left.checked_sub(length) else { return seen };
                left = rest;
            }
            Ok(Some(Err(_))) | Err(_) => {
                seen.is_broken = true;
                return seen;
            }
        }
    }
}
