//! Records each request of a pod in the metrics and in the access log, once.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    Method, Response, StatusCode,
    body::{Frame, SizeHint},
    header,
    http::request::Parts,
};
use lota_s3::address::Resource;

use super::{Proxy, response};
use crate::{
    http::{Body, BodyError},
    metrics::{Fault, Outcome, SentFrom, Size, Value as _},
};

/// Metrics and access log line of one request. Writes the line when it is dropped, which is when the last byte of the
/// response has been sent or the connection has ended.
pub(super) struct RequestRecord {
    proxy: Arc<Proxy>,
    began: Instant,
    /// Whether a response was counted. If the connection ends before, hyper drops the request.
    is_answered: bool,
    /// Bytes of the response's body.
    bytes: u64,
    /// Log line; `None` unless the log level includes it.
    line: Option<Box<AccessLogLine>>,
}

/// Why a response bypassed the cache. An extension of the response.
#[derive(Clone, Copy)]
pub(super) struct BypassReason(pub(super) &'static str);

/// Access log line of a request. Omits the query and the headers, which contain signatures and tokens.
struct AccessLogLine {
    method: Method,
    host: String,
    path: String,
    request_id: String,
    /// Status of the response; `None` without a response.
    status: Option<StatusCode>,
    cache: Outcome,
    why: Option<&'static str>,
    first_byte: Duration,
}

impl RequestRecord {
    pub(super) fn begin(proxy: &Arc<Proxy>, parts: &Parts) -> Self {
        let line = tracing::enabled!(tracing::Level::DEBUG).then(|| {
            let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
            Box::new(AccessLogLine {
                method: parts.method.clone(),
                host: host.or(parts.uri.host()).unwrap_or_default().to_owned(),
                path: parts.uri.path().to_owned(),
                request_id: String::new(),
                status: None,
                cache: Outcome::Bypass,
                why: None,
                first_byte: Duration::ZERO,
            })
        });
        Self { proxy: proxy.clone(), began: Instant::now(), is_answered: false, bytes: 0, line }
    }

    /// Counts a response whose head is sent now, and has its body counted while it is sent.
    pub(super) fn answered(mut self, answer: Response<Body>) -> Response<Body> {
        let (cache, status, took) = (response::outcome(&answer), answer.status(), self.began.elapsed());
        self.is_answered = true;
        let metrics = &self.proxy.metrics;
        metrics.answered(cache, status.as_u16(), took);
        if cache != Outcome::Bypass
            && let Some(size) = response::size_of_object(&answer)
        {
            metrics.object_sizes.of(Size::of(size)).inc();
        }
        if let Some(line) = &mut self.line {
            line.request_id = response::request_id(&answer).unwrap_or_default().to_owned();
            line.why = answer.extensions().get().map(|BypassReason(why)| *why);
            (line.status, line.cache, line.first_byte) = (Some(status), cache, took);
        }
        let from = answer.extensions().get::<SentFrom>().copied();
        answer.map(|body| RecordedBody { body, from, record: self }.boxed_unsync())
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if !self.is_answered {
            self.proxy.metrics.unanswered();
        }
        let Some(line) = self.line.take() else { return };
        let resource = self.proxy.stores.endpoints().resource(&line.host, &line.path);
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
            status = line.status.map(|status| status.as_u16()),
            cache = line.cache.name(),
            why = line.why,
            bytes = self.bytes,
            first_byte_ms = line.status.map(|_| millis(line.first_byte)),
            ms = millis(self.began.elapsed()),
            "request"
        );
    }
}

/// A body that is counted while it is sent.
struct RecordedBody {
    body: Body,
    /// Source of the bytes; `None` for a response of LOTA's own.
    from: Option<SentFrom>,
    record: RequestRecord,
}

impl hyper::body::Body for RecordedBody {
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
                self.record.bytes += length;
                if let Some(from) = self.from {
                    self.record.proxy.metrics.sent_from.of(from).inc_by(length);
                }
            }
            Some(Err(_)) => self.record.proxy.metrics.fault(Fault::ResponseBroken),
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

/// Returns milliseconds, rounded to a microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
