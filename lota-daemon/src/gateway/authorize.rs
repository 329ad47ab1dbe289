//! Authorizes GET requests, and verifies that the cached object is what the gateway would serve now.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    HeaderMap, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
};
use lota_s3::{NotStorable, ObjectMeta, ObjectName, S3Error, Validator};

use super::{
    Added, Authorization, Gateway, GatewayTrust, Grant, PLAIN, Protocol, REQUEST_ID, direct, front,
    key_groups,
    proof::{self, NotModifiedProof, ProvesBy},
    questions,
};
use crate::http::{RequestHead, upstream::UpstreamServer};

/// Maximum number of bytes of a response body that are read so that its connection can be reused.
const MAX_ERROR_BODY: usize = 64 << 10;
/// Timeout for reading such a body.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
const CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");

impl Gateway {
    /// Asks the gateway whether a GET may be answered, given the version that this node holds.
    ///
    /// # Errors
    /// [`S3Error`] if the gateway does not answer; nothing is served then.
    pub async fn authorize(
        &self,
        head: &RequestHead,
        name: &ObjectName,
        held: Option<&Arc<ObjectMeta>>,
    ) -> Result<Authorization, S3Error> {
        if matches!(self.verification.trust(), GatewayTrust::Distrusted(_)) {
            let now = Instant::now();
            let shape = questions::shape_of(&head.target, &head.headers);
            if let (Some(held), Some(shape)) = (held, shape)
                && let Some(front) = self.verification.retry(shape, now)
            {
                self.begin_verification(head, held, &front, shape);
            }
            return Ok(Authorization::Relay(self.replay(head, PLAIN).await?));
        }
        let asker =
            || key_groups::asker(head, name, |client| self.re_sign.as_ref()?.access_key_at_gateway(client));
        for _ in 0..2 {
            let asked_by = asker();
            let answer = self.authorize_as(asked_by, head, name, held).await?;
            // If the client's credential was replaced meanwhile, the answer may be that to either.
            if asker() == asked_by {
                self.join_groups(asked_by, held, &answer);
                return Ok(answer);
            }
        }
        Err(S3Error::unavailable("The client's credential is being replaced; retry later"))
    }

    /// Notes that two access keys get the same description of an object, if the answer shows it.
    fn join_groups(&self, asker: u64, held: Option<&Arc<ObjectMeta>>, answer: &Authorization) {
        if let (Some(held), Authorization::Arriving(_, meta, _) | Authorization::Direct(_, meta, _)) =
            (held, answer)
            // Otherwise, the gateway has not described it.
            && held.learned().at.is_some()
            && held.agrees_with(meta)
        {
            self.key_groups.join(held.learned().by, asker);
        }
    }

    async fn authorize_as(
        &self,
        asker: u64,
        head: &RequestHead,
        name: &ObjectName,
        held: Option<&Arc<ObjectMeta>>,
    ) -> Result<Authorization, S3Error> {
        if let Some(held) = held.filter(|held| self.can_prove(held, asker))
            && let Some(answer) = self.prove(head, name, held, asker).await?
        {
            return Ok(answer);
        }
        self.ask_in_full(head, name, asker).await
    }

    /// Returns whether a 304 for this access key can prove that the stored headers are current.
    fn can_prove(&self, held: &ObjectMeta, asker: u64) -> bool {
        self.key_groups.see_the_same(held.learned().by, asker)
            && self.conditionals.expected() != Some(ProvesBy::Nothing)
            && !(proof::needs_version(held) && self.conditionals.hides_versions())
    }

    /// Asks the gateway to prove that the stored version is current. Returns `None` if a full request is needed.
    async fn prove(
        &self,
        head: &RequestHead,
        name: &ObjectName,
        held: &Arc<ObjectMeta>,
        asker: u64,
    ) -> Result<Option<Authorization>, S3Error> {
        let dates = proof::dates(held)
            .filter(|_| proof::is_provable(held) && proof::leaves_dates_free(&head.headers));
        let validator = &held.version.validator;
        if self.conditionals.expected() != Some(ProvesBy::IfUnmodifiedSince) || dates.is_none() {
            let direct = self.protocol == Protocol::Lota;
            let answer = self.replay(head, Added { held: Some(validator), direct }).await?;
            if answer.status() != StatusCode::NOT_MODIFIED {
                return self.classify(name, head, answer, asker).await.map(Some);
            }
            match self.evaluate_304(head, held, &answer).await? {
                Err(relayed) => return Ok(Some(relayed)),
                Ok(NotModifiedProof::Current) => return Ok(Some(fresh(held, &answer))),
                Ok(NotModifiedProof::Nothing) => return Ok(None),
                Ok(NotModifiedProof::NoDate) if !proof::is_provable(held) => return Ok(None),
                Ok(NotModifiedProof::NoDate) => {}
            }
        }
        let Some([current, before]) = dates else { return Ok(None) };
        let (answer, earlier) =
            tokio::join!(self.ask_since(head, validator, current), self.ask_since(head, validator, before));
        let (answer, earlier) = (answer?, earlier?);
        let was_earlier = earlier.status();
        drain(earlier);
        match answer.status() {
            StatusCode::NOT_MODIFIED => match self.evaluate_304(head, held, &answer).await? {
                Err(relayed) => Ok(Some(relayed)),
                Ok(NotModifiedProof::Current) => Ok(Some(fresh(held, &answer))),
                Ok(NotModifiedProof::NoDate) if was_earlier == StatusCode::PRECONDITION_FAILED => {
                    self.conditionals.note(front(&answer).as_ref(), ProvesBy::IfUnmodifiedSince);
                    Ok(Some(fresh(held, &answer)))
                }
                Ok(_) => {
                    self.learn_conditional_support(head, name, held, asker, front(&answer)).await.map(Some)
                }
            },
            StatusCode::PRECONDITION_FAILED => {
                let front = front(&answer);
                drain(answer);
                self.learn_conditional_support(head, name, held, asker, front).await.map(Some)
            }
            _ => self.classify(name, head, answer, asker).await.map(Some),
        }
    }

    /// Sends a full request after dates have proved nothing. If the object is the stored one, records that this
    /// server's dates never prove it.
    async fn learn_conditional_support(
        &self,
        head: &RequestHead,
        name: &ObjectName,
        held: &ObjectMeta,
        asker: u64,
        front: Option<UpstreamServer>,
    ) -> Result<Authorization, S3Error> {
        let answer = self.ask_in_full(head, name, asker).await?;
        let grant = match &answer {
            Authorization::Fresh(grant)
            | Authorization::Arriving(grant, ..)
            | Authorization::Direct(grant, ..) => Some(grant),
            Authorization::Relay(_) | Authorization::Unstorable(..) => None,
        };
        if grant.is_some_and(|grant| grant.meta().version == held.version) {
            self.conditionals.note(front.as_ref(), ProvesBy::Nothing);
        }
        Ok(answer)
    }

    /// Evaluates a 304. Returns a response to relay if this server's 304 is not trusted.
    async fn evaluate_304(
        &self,
        head: &RequestHead,
        held: &ObjectMeta,
        answer: &Response<Incoming>,
    ) -> Result<Result<NotModifiedProof, Authorization>, S3Error> {
        if !self.trusts(head, held, answer).await {
            return Ok(Err(Authorization::Relay(self.replay(head, PLAIN).await?)));
        }
        if proof::needs_version(held) {
            self.conditionals.note_version(proof::states_version(answer.headers()));
        }
        if answer.headers().contains_key(header::LAST_MODIFIED) {
            self.conditionals.note(front(answer).as_ref(), ProvesBy::LastModified);
        }
        Ok(Ok(proof::of_304(held, answer.headers())))
    }

    async fn ask_in_full(
        &self,
        head: &RequestHead,
        name: &ObjectName,
        asker: u64,
    ) -> Result<Authorization, S3Error> {
        let direct = self.protocol == Protocol::Lota;
        let answer = self.replay(head, Added { held: None, direct }).await?;
        self.classify(name, head, answer, asker).await
    }

    /// Asks whether the object has other bytes, or was modified since this date.
    async fn ask_since(
        &self,
        head: &RequestHead,
        held: &Validator,
        date: HeaderValue,
    ) -> Result<Response<Incoming>, S3Error> {
        let direct = self.protocol == Protocol::Lota;
        let mut question = self.question(head, Added { held: Some(held), direct })?;
        question.headers_mut().insert(header::IF_UNMODIFIED_SINCE, date);
        self.ask(question).await
    }

    async fn classify(
        &self,
        name: &ObjectName,
        head: &RequestHead,
        answer: Response<Incoming>,
        asker: u64,
    ) -> Result<Authorization, S3Error> {
        if self.protocol == Protocol::Lota && answer.status() == StatusCode::TEMPORARY_REDIRECT {
            return match direct::parse(name, &head.headers, &answer, &self.direct_allow) {
                Some((meta, path)) => {
                    let meta = Arc::new(with_checksums(meta, head, answer.headers()).learned_by(asker));
                    let grant = Grant::new(meta.clone(), request_id(&answer));
                    Ok(Authorization::Direct(grant, meta, path))
                }
                // The redirect answers LOTA's header and may carry an authority, so the client must not see it.
                None => Ok(classify(name, head, self.replay(head, PLAIN).await?, asker)),
            };
        }
        Ok(classify(name, head, answer, asker))
    }
}

/// Returns the request ID in the gateway's log.
fn request_id(answer: &Response<Incoming>) -> Option<HeaderValue> {
    answer.headers().get(REQUEST_ID).cloned()
}

/// Adds the checksums of the whole object, if the client requested them and the response states them.
fn with_checksums(meta: ObjectMeta, request: &RequestHead, answer: &HeaderMap) -> ObjectMeta {
    let requested = request
        .headers
        .get(CHECKSUM_MODE)
        .is_some_and(|mode| mode.as_bytes().eq_ignore_ascii_case(b"enabled"));
    if requested { meta.with_checksums(answer) } else { meta }
}

fn classify(
    name: &ObjectName,
    request: &RequestHead,
    answer: Response<Incoming>,
    asker: u64,
) -> Authorization {
    let meta = match ObjectMeta::of_answer(name, &request.headers, answer.status(), answer.headers()) {
        Ok(meta) if answer.status() == StatusCode::OK => with_checksums(meta, request, answer.headers()),
        Ok(meta) => meta,
        Err(NotStorable::Status) => return Authorization::Relay(answer),
        Err(reason) => return Authorization::Unstorable(reason, answer),
    };
    let meta = Arc::new(meta.learned_by(asker));
    Authorization::Arriving(Grant::new(meta.clone(), request_id(&answer)), meta, answer)
}

fn fresh(held: &Arc<ObjectMeta>, answer: &Response<Incoming>) -> Authorization {
    Authorization::Fresh(Grant::new(held.clone(), request_id(answer)))
}

/// Reads the short body of an unneeded response, so that its connection can be reused.
fn drain(answer: Response<Incoming>) {
    if answer.status().is_client_error() {
        tokio::spawn(tokio::time::timeout(
            DRAIN_TIMEOUT,
            Limited::new(answer.into_body(), MAX_ERROR_BODY).collect(),
        ));
    }
}
