//! Reads whole objects from the storage backend for fills, pinned to the authorized version.

mod config;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderValue},
};
use lota_s3::{ByteRange, Learned, NotStorable, ObjectMeta, ObjectName, Origin, signing::Signer};
use thiserror::Error;
use tokio::time::timeout;

pub use self::config::BackendConfig;
use crate::{
    gateway::{DirectPath, FillAuthority, Gateway},
    http::{RequestHead, empty, upstream::Upstream},
    settings::Reloadable,
};

/// Timeout for the head of a backend's response while the object can still be relayed uncached.
pub const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Fetches objects from storage backends.
#[derive(Debug)]
pub struct Storage {
    upstream: Upstream,
    gateway: Arc<Gateway>,
    own: Option<Own>,
    /// Timeout for the head of a response once readers depend on the fill.
    response_timeout: Duration,
}

#[derive(Debug)]
struct Own {
    endpoints: Vec<Origin>,
    next: AtomicUsize,
    signer: Reloadable<Signer>,
}

/// Reason why a fetch failed. The object is relayed uncached in that case.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The request could not be built.
    #[error("cannot make the request: {0}")]
    Request(String),
    /// The backend did not answer.
    #[error("no response: {0}")]
    NoAnswer(#[from] hyper_util::client::legacy::Error),
    /// The backend did not answer in time.
    #[error("no response in time")]
    TimedOut,
    /// The backend answered with an unexpected status.
    #[error("the backend answered {0}")]
    Status(StatusCode),
    /// The response contains another range than the requested one.
    #[error("the backend sent another range than the requested one")]
    OtherRange,
    /// The response must not be stored.
    #[error("the backend's response cannot be stored ({0})")]
    Unstorable(NotStorable),
    /// The object is not the authorized version.
    #[error("the backend has another content than the gateway granted")]
    Changed,
}

impl FetchError {
    /// Returns whether a retry may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer(_) | Self::TimedOut => true,
            Self::Status(status) => {
                let passing = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
                status.is_server_error() || passing.contains(status)
            }
            Self::Request(_) | Self::OtherRange | Self::Unstorable(_) | Self::Changed => false,
        }
    }
}

impl Storage {
    /// Returns a client of the configured backend with LOTA's own credential, if any; direct paths and clients' own requests
    /// need no configuration.
    #[must_use]
    pub fn new(
        own: Option<(&BackendConfig, Reloadable<Signer>)>,
        gateway: Arc<Gateway>,
        upstream: Upstream,
        response_timeout: Duration,
    ) -> Self {
        let own = own.map(|(config, signer)| Own {
            endpoints: config.endpoints.clone(),
            next: AtomicUsize::new(0),
            signer,
        });
        Self { upstream, gateway, own, response_timeout }
    }

    /// Returns whether LOTA has a credential of its own.
    #[must_use]
    pub fn has_own_credential(&self) -> bool {
        self.own.is_some()
    }

    /// Returns the timeout for the head of a response once readers depend on the fill.
    #[must_use]
    pub fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    /// Requests an object, or `range` of it, by `authority`. Returns when the head of the response has arrived within
    /// `longest` and agrees with `meta`.
    ///
    /// # Errors
    /// [`FetchError`], also if the object has changed.
    pub async fn fetch(
        &self,
        authority: &FillAuthority,
        meta: &ObjectMeta,
        range: Option<ByteRange>,
        client: &RequestHead,
        longest: Duration,
    ) -> Result<Response<Incoming>, FetchError> {
        let request = match authority {
            FillAuthority::Direct(path) => direct(path)?,
            FillAuthority::Own => return self.fetch_own(meta, range, longest).await,
            FillAuthority::Client => {
                self.gateway.whole(client).map_err(|error| FetchError::Request(error.message))?
            }
        };
        self.fetch_by(request, meta, range, longest).await
    }

    /// Requests an object, or `range` of it, like [`Storage::fetch`], with LOTA's own credential.
    ///
    /// # Errors
    /// [`FetchError`], also if the object has changed.
    pub async fn fetch_own(
        &self,
        meta: &ObjectMeta,
        range: Option<ByteRange>,
        longest: Duration,
    ) -> Result<Response<Incoming>, FetchError> {
        self.fetch_by(self.own(Method::GET, &meta.version.name)?, meta, range, longest).await
    }

    async fn fetch_by(
        &self,
        mut request: Request<crate::http::Body>,
        meta: &ObjectMeta,
        range: Option<ByteRange>,
        longest: Duration,
    ) -> Result<Response<Incoming>, FetchError> {
        let headers = request.headers_mut();
        if let Ok(etag) = HeaderValue::from_str(&meta.version.validator.etag) {
            headers.entry(header::IF_MATCH).or_insert(etag);
        }
        if let Some(range) = range.and_then(|range| HeaderValue::from_str(&range.to_string()).ok()) {
            headers.insert(header::RANGE, range);
        }
        let request_headers = request.headers().clone();
        let answer =
            timeout(longest, self.upstream.send(request)).await.map_err(|_| FetchError::TimedOut)??;
        check(meta, &request_headers, range, answer.status(), answer.headers())?;
        Ok(answer)
    }

    /// Requests the current version of an object, which no client has requested, with LOTA's own credential. Returns its metadata,
    /// its age if the backend states it, and the response with all of its bytes. A 304 never proves that these metadata are the gateway's: they count as learned at
    /// no time, so that the first client to read the object receives the gateway's own.
    ///
    /// # Errors
    /// [`FetchError`], also if the object does not exist or its response cannot be stored.
    pub async fn fetch_current(
        &self,
        name: &ObjectName,
    ) -> Result<(ObjectMeta, Option<Duration>, Response<Incoming>), FetchError> {
        self.request_current(Method::GET, name).await
    }

    /// Returns the metadata of the current version of an object like [`Storage::fetch_current`], without its bytes.
    ///
    /// # Errors
    /// The errors of [`Storage::fetch_current`].
    pub async fn describe_current(&self, name: &ObjectName) -> Result<ObjectMeta, FetchError> {
        self.request_current(Method::HEAD, name).await.map(|(meta, ..)| meta)
    }

    async fn request_current(
        &self,
        method: Method,
        name: &ObjectName,
    ) -> Result<(ObjectMeta, Option<Duration>, Response<Incoming>), FetchError> {
        let request = self.own(method, name)?;
        let request_headers = request.headers().clone();
        let answer = timeout(FIRST_ANSWER_TIMEOUT, self.upstream.send(request))
            .await
            .map_err(|_| FetchError::TimedOut)??;
        let (status, headers) = (answer.status(), answer.headers());
        if status != StatusCode::OK {
            return Err(FetchError::Status(status));
        }
        let meta = ObjectMeta::of_answer(name, &request_headers, status, headers)
            .map_err(FetchError::Unstorable)?
            .with_checksums(headers);
        let age = meta.age();
        Ok((meta.learned_when(Learned::default()), age, answer))
    }

    /// Returns the backend's metadata of an authorized object, with its checksums if it has any. Uses LOTA's own
    /// credential.
    ///
    /// # Errors
    /// [`FetchError`], also if the object has changed.
    pub async fn request_metadata(&self, meta: &ObjectMeta) -> Result<ObjectMeta, FetchError> {
        let request = self.own(Method::HEAD, &meta.version.name)?;
        let request_headers = request.headers().clone();
        let answer = timeout(FIRST_ANSWER_TIMEOUT, self.upstream.send(request))
            .await
            .map_err(|_| FetchError::TimedOut)??;
        check(meta, &request_headers, None, answer.status(), answer.headers())?;
        meta.with_later_checksums(answer.headers()).ok_or(FetchError::Changed)
    }

    fn own(&self, method: Method, name: &ObjectName) -> Result<Request<crate::http::Body>, FetchError> {
        let own = self.own.as_ref().ok_or_else(|| FetchError::Request("no credential".into()))?;
        let next = own.next.fetch_add(1, Ordering::Relaxed) % own.endpoints.len();
        let request = own.signer.get().object(method, &own.endpoints[next], name);
        request.map(|request| request.map(|()| empty())).map_err(FetchError::Request)
    }
}

/// Returns the request of a direct path, without any of the client's headers.
fn direct(path: &DirectPath) -> Result<Request<crate::http::Body>, FetchError> {
    let uri: Uri = path.uri().clone();
    Request::builder()
        .method(Method::GET)
        .uri(uri)
        .body(empty())
        .map_err(|error| FetchError::Request(error.to_string()))
}

/// Verifies that a response carries the requested bytes of the authorized version, unmodified for this client.
///
/// # Errors
/// [`FetchError`] if it does not.
pub fn check(
    meta: &ObjectMeta,
    request_headers: &HeaderMap,
    range: Option<ByteRange>,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<(), FetchError> {
    let expected = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    if status == StatusCode::PRECONDITION_FAILED {
        return Err(FetchError::Changed);
    }
    if status != expected {
        return Err(FetchError::Status(status));
    }
    let content_range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    if let Some(range) = range
        && content_range.and_then(ByteRange::parse_content_range) != Some((range, meta.size))
    {
        return Err(FetchError::OtherRange);
    }
    // Detects a backend that ignores `If-Match`.
    let found = ObjectMeta::of_answer(&meta.version.name, request_headers, status, headers)
        .map_err(FetchError::Unstorable)?;
    if found.has_content_of(meta) { Ok(()) } else { Err(FetchError::Changed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::answer;
    use lota_s3::ObjectName;

    #[test]
    fn only_the_authorized_bytes_are_accepted() {
        let name = ObjectName::from_parts("http://gateway", "b", "k", None).unwrap();
        let (status, headers) = answer(200, &[("etag", "\"e\""), ("content-length", "9")]);
        let granted = ObjectMeta::of_answer(&name, &HeaderMap::new(), status, &headers).unwrap();
        let range = ByteRange { start: 1, end: 3 };
        let check_response = |range: Option<ByteRange>, status, pairs: &[(&str, &str)]| {
            let (status, headers) = answer(status, pairs);
            let request_headers = range.map(|range| (header::RANGE, range.to_string().parse().unwrap()));
            check(&granted, &request_headers.into_iter().collect(), range, status, &headers)
        };
        assert!(check_response(None, 200, &[("etag", "\"e\""), ("content-length", "9")]).is_ok());
        let part = [("etag", "\"e\""), ("content-range", "bytes 1-2/9")];
        assert!(check_response(Some(range), 206, &part).is_ok());
        let other = [("etag", "\"e\""), ("content-range", "bytes 2-3/9")];
        assert!(matches!(check_response(Some(range), 206, &other), Err(FetchError::OtherRange)));
        assert!(matches!(check_response(None, 206, &part), Err(FetchError::Status(_))));
        assert!(matches!(check_response(None, 403, &[]), Err(FetchError::Status(_))));
        assert!(matches!(check_response(None, 412, &[]), Err(FetchError::Changed)));
        // The body of this object was sent by RDMA.
        let beside = [("etag", "\"e\""), ("content-length", "9"), ("x-amz-rdma-reply", "200")];
        assert!(matches!(check_response(None, 200, &beside), Err(FetchError::Unstorable(_))));
        for changed in
            [[("etag", "\"f\""), ("content-length", "9")], [("etag", "\"e\""), ("content-length", "8")]]
        {
            assert!(matches!(check_response(None, 200, &changed), Err(FetchError::Changed)));
        }
    }
}
