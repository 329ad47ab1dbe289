//! What each answer to a pod counts as, and its line in the log.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    body::{Frame, SizeHint},
    header,
    http::request::Parts,
};

use super::{Proxy, answer};
use crate::{
    http::{Body, BodyError},
    metrics::{Fault, Outcome, SentFrom, Size, Value as _},
    s3::{ByteRange, address::Resource},
};

/// One request, from its head on.
pub(super) struct Tally {
    began: Instant,
    /// Only if someone reads it.
    line: Option<Box<Line>>,
}

/// Why an answer was not the cache's to give.
#[derive(Clone, Copy)]
pub(super) struct Passed(pub(super) &'static str);

/// What the log says of a request. Nothing of the query and of the headers: there are signatures and tokens in them.
struct Line {
    method: Method,
    host: String,
    path: String,
    request_id: String,
    status: StatusCode,
    cache: Outcome,
    why: Option<&'static str>,
    first_byte: Duration,
}

impl Tally {
    pub(super) fn begin(parts: &Parts) -> Self {
        let line = tracing::enabled!(tracing::Level::DEBUG).then(|| {
            let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
            Box::new(Line {
                method: parts.method.clone(),
                host: host.or(parts.uri.host()).unwrap_or_default().to_owned(),
                path: parts.uri.path().to_owned(),
                request_id: String::new(),
                status: StatusCode::OK,
                cache: Outcome::Bypass,
                why: None,
                first_byte: Duration::ZERO,
            })
        });
        Self { began: Instant::now(), line }
    }
}

impl Proxy {
    /// Counts an answer whose head goes out now, and has its body counted as it goes.
    pub(super) fn tally(self: &Arc<Self>, mut tally: Tally, answer: Response<Body>) -> Response<Body> {
        let (cache, status, took) = (answer::outcome(&answer), answer.status(), tally.began.elapsed());
        self.metrics.answered(cache, status.as_u16(), took);
        if cache != Outcome::Bypass
            && let Some(size) = object_size(status, answer.headers())
        {
            self.metrics.object_sizes.of(Size::of(size)).inc();
        }
        if let Some(line) = &mut tally.line {
            let id = answer.headers().get(answer::REQUEST_ID).and_then(|id| id.to_str().ok());
            line.request_id = id.unwrap_or_default().to_owned();
            line.why = answer.extensions().get().map(|Passed(why)| *why);
            (line.status, line.cache, line.first_byte) = (status, cache, took);
        }
        let from = answer.extensions().get::<SentFrom>().copied();
        answer.map(|body| Tallied { body, proxy: self.clone(), bytes: 0, from, tally }.boxed_unsync())
    }
}

/// How large the whole object is that an answer brings, or a part of it.
fn object_size(status: StatusCode, headers: &HeaderMap) -> Option<u64> {
    match status {
        StatusCode::OK => headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok(),
        StatusCode::PARTIAL_CONTENT => {
            let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
            ByteRange::parse_content_range(range).map(|(_, size)| size)
        }
        _ => None,
    }
}

/// A body that is counted as it goes.
struct Tallied {
    body: Body,
    proxy: Arc<Proxy>,
    bytes: u64,
    /// Not if it is LOTA's own.
    from: Option<SentFrom>,
    tally: Tally,
}

impl hyper::body::Body for Tallied {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.bytes += length;
                if let Some(from) = self.from {
                    self.proxy.metrics.sent_from.of(from).inc_by(length);
                }
            }
            Some(Err(_)) => self.proxy.metrics.fault(Fault::AnswerBroken),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tallied {
    fn drop(&mut self) {
        let Some(line) = self.tally.line.take() else { return };
        let resource = self.proxy.zone.resource(&line.host, &line.path);
        let (bucket, key) = match &resource {
            Resource::Bucket(bucket) => (Some(bucket.as_str()), None),
            Resource::Object(bucket, key) => (Some(bucket.as_str()), Some(key.as_str())),
            Resource::Service | Resource::Unknown => (None, None),
        };
        tracing::debug!(
            request_id = line.request_id,
            method = line.method.as_str(),
            bucket,
            key,
            status = line.status.as_u16(),
            cache = line.cache.name(),
            why = line.why,
            bytes = self.bytes,
            first_byte_ms = millis(line.first_byte),
            ms = millis(self.tally.began.elapsed()),
            "request"
        );
    }
}

/// To the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
