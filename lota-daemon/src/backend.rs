//! Storage that this node reads directly: whole objects for fills, pinned to the version that was granted.

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
use thiserror::Error;
use tokio::time::timeout;

use crate::{
    config::{self, ConfigError, Origin},
    gateway::{DirectPath, FillAuthority, Gateway},
    http::{Head, empty, upstream::Upstream},
    s3::{ByteRange, ObjectMeta, sign::Signer},
};

/// Longest wait for a backend's answer to begin.
const PATIENCE: Duration = Duration::from_secs(30);

/// Fetches from backends.
#[derive(Debug)]
pub struct Backend {
    upstream: Upstream,
    gateway: Arc<Gateway>,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    endpoints: Vec<Origin>,
    next: AtomicUsize,
    signer: Signer,
}

/// Why a fetch came to nothing. The object passes through uncached then.
#[derive(Debug, Error)]
pub enum FetchError {
    /// It could not even be asked for.
    #[error("cannot make the request: {0}")]
    Request(String),
    /// No answer.
    #[error("no answer: {0}")]
    NoAnswer(#[from] hyper_util::client::legacy::Error),
    /// No answer in time.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    TimedOut,
    /// An answer other than the object's bytes.
    #[error("the backend answered {0}")]
    Status(StatusCode),
    /// Other bytes of it than were asked for.
    #[error("the backend sends another range than it was asked for")]
    OtherRange,
    /// Not the bytes that were granted.
    #[error("the backend has another content than the gateway granted")]
    Changed,
}

impl FetchError {
    /// May the same be asked again with better luck?
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::NoAnswer(_) | Self::TimedOut => true,
            Self::Status(status) => {
                let passing = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
                status.is_server_error() || passing.contains(status)
            }
            Self::Request(_) | Self::OtherRange | Self::Changed => false,
        }
    }
}

impl Backend {
    /// The configured backend, if any; direct paths and clients' own requests need no configuration.
    ///
    /// # Errors
    /// If the credential cannot be read.
    pub fn new(
        config: Option<&config::Backend>,
        gateway: Arc<Gateway>,
        upstream: Upstream,
    ) -> Result<Self, ConfigError> {
        let own = match config {
            None => None,
            Some(config) => Some(Own {
                endpoints: config.endpoints.clone(),
                next: AtomicUsize::new(0),
                signer: Signer::new(&config.credential()?, &config.region),
            }),
        };
        Ok(Self { upstream, gateway, own })
    }

    /// Is there a credential of LOTA's own?
    #[must_use]
    pub fn has_own_credential(&self) -> bool {
        self.own.is_some()
    }

    /// Asks for an object by `authority`, or for `range` of it; returns when the head has arrived and agrees
    /// with `meta`.
    ///
    /// # Errors
    /// [`FetchError`]; an object that has changed meanwhile is one.
    pub async fn fetch(
        &self,
        authority: &FillAuthority,
        meta: &ObjectMeta,
        range: Option<ByteRange>,
        client: &Head,
    ) -> Result<Response<Incoming>, FetchError> {
        let mut request = match authority {
            FillAuthority::Direct(path) => direct(path)?,
            FillAuthority::Own => self.own(Method::GET, meta)?,
            FillAuthority::Client => {
                self.gateway.whole(client).map_err(|error| FetchError::Request(error.message))?
            }
        };
        let headers = request.headers_mut();
        if let Ok(etag) = HeaderValue::from_str(&meta.version.validator.etag) {
            headers.entry(header::IF_MATCH).or_insert(etag);
        }
        if let Some(range) = range.and_then(|range| HeaderValue::from_str(&range.to_string()).ok()) {
            headers.insert(header::RANGE, range);
        }
        let answer =
            timeout(PATIENCE, self.upstream.send(request)).await.map_err(|_| FetchError::TimedOut)??;
        check(meta, range, answer.status(), answer.headers())?;
        Ok(answer)
    }

    /// What the backend tells of a granted object to LOTA's own credential: its checksums, if it has such.
    ///
    /// # Errors
    /// [`FetchError`]; an object that has changed meanwhile is one.
    pub async fn tell(&self, meta: &ObjectMeta) -> Result<ObjectMeta, FetchError> {
        let request = self.own(Method::HEAD, meta)?;
        let answer =
            timeout(PATIENCE, self.upstream.send(request)).await.map_err(|_| FetchError::TimedOut)??;
        check(meta, None, answer.status(), answer.headers())?;
        Ok(meta.clone().with_checksums(answer.headers()))
    }

    fn own(&self, method: Method, meta: &ObjectMeta) -> Result<Request<crate::http::Body>, FetchError> {
        let own = self.own.as_ref().ok_or_else(|| FetchError::Request("no credential".into()))?;
        let next = own.next.fetch_add(1, Ordering::Relaxed) % own.endpoints.len();
        let request = own.signer.object(method, &own.endpoints[next], &meta.version.name);
        request.map(|request| request.map(|()| empty())).map_err(FetchError::Request)
    }
}

/// A direct path is followed as it is, without anything of the client's.
fn direct(path: &DirectPath) -> Result<Request<crate::http::Body>, FetchError> {
    let uri: Uri = path.uri().clone();
    Request::builder()
        .method(Method::GET)
        .uri(uri)
        .body(empty())
        .map_err(|error| FetchError::Request(error.to_string()))
}

/// Are these the bytes that were asked for, of the content that was granted?
///
/// # Errors
/// [`FetchError`] if not.
pub fn check(
    meta: &ObjectMeta,
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
    let told = headers.get(header::CONTENT_RANGE).and_then(|told| told.to_str().ok());
    if let Some(range) = range
        && told.and_then(ByteRange::parse_content_range) != Some((range, meta.size))
    {
        return Err(FetchError::OtherRange);
    }
    // A backend that ignores `If-Match` is noticed here.
    let found = ObjectMeta::of_answer(&meta.version.name, status, headers).ok_or(FetchError::Changed)?;
    if found.size == meta.size && found.version.validator.etag == meta.version.validator.etag {
        Ok(())
    } else {
        Err(FetchError::Changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::ObjectName;

    fn meta(status: u16, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap) {
        let mut answer = Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        let (parts, ()) = answer.body(()).unwrap().into_parts();
        (parts.status, parts.headers)
    }

    #[test]
    fn only_the_granted_bytes_pass() {
        let name = ObjectName::from_parts("b", "k", None).unwrap();
        let (status, headers) = meta(200, &[("etag", "\"e\""), ("content-length", "9")]);
        let granted = ObjectMeta::of_answer(&name, status, &headers).unwrap();
        let range = ByteRange { start: 1, end: 3 };
        let judge = |range, status, pairs: &[(&str, &str)]| {
            let (status, headers) = meta(status, pairs);
            check(&granted, range, status, &headers)
        };
        assert!(judge(None, 200, &[("etag", "\"e\""), ("content-length", "9")]).is_ok());
        let part = [("etag", "\"e\""), ("content-range", "bytes 1-2/9")];
        assert!(judge(Some(range), 206, &part).is_ok());
        let other = [("etag", "\"e\""), ("content-range", "bytes 2-3/9")];
        assert!(matches!(judge(Some(range), 206, &other), Err(FetchError::OtherRange)));
        assert!(matches!(judge(None, 206, &part), Err(FetchError::Status(_))));
        assert!(matches!(judge(None, 403, &[]), Err(FetchError::Status(_))));
        assert!(matches!(judge(None, 412, &[]), Err(FetchError::Changed)));
        for changed in
            [[("etag", "\"f\""), ("content-length", "9")], [("etag", "\"e\""), ("content-length", "8")]]
        {
            assert!(matches!(judge(None, 200, &changed), Err(FetchError::Changed)));
        }
    }
}
