//! `GetObject` and `HeadObject`.
//!
//! They are a separate route because s3s refuses with 400 what S3 ignores (a malformed `Range`, an invalid date, a
//! list of entity tags) and fixes the status of its responses.

use std::sync::Arc;

use hyper::header::{HeaderValue, RANGE};
use hyper::http::Extensions;
use hyper::{HeaderMap, Method, StatusCode, Uri};
use s3s::path::{S3Path, parse_path_style, parse_virtual_hosted_style};
use s3s::route::S3Route;
use s3s::{Body, S3Error, S3Request, S3Response, S3Result, s3_error};

use super::Shared;
use super::access::bucket_of_host;
use super::conditions::{self, Verdict};
use super::names::{decode_path, query_value};
use super::range::{Selection, select};
use super::store::Object;
use super::{blob, head, redirect};

/// Query parameters that select another operation than `GetObject`.
const OTHER_OPERATIONS: [&str; 7] =
    ["acl", "attributes", "legal-hold", "retention", "tagging", "torrent", "uploadId"];

/// Serves reads of objects.
pub(super) struct Reads(Arc<Shared>);

impl Reads {
    pub(super) fn new(shared: Arc<Shared>) -> Reads {
        Reads(shared)
    }
}

/// Target of a read, parsed before the signature is verified.
#[derive(Clone)]
struct Target {
    bucket: String,
    key: String,
}

#[async_trait::async_trait]
impl S3Route for Reads {
    fn is_match(&self, method: &Method, uri: &Uri, headers: &HeaderMap, extensions: &mut Extensions) -> bool {
        let query = uri.query().unwrap_or_default();
        let other = |name: &&str| query_value(query, name).is_some();
        if !(method == Method::GET || method == Method::HEAD) || OTHER_OPERATIONS.iter().any(other) {
            return false;
        }
        let target = target(uri, headers, &self.0.zone);
        let found = target.is_some();
        if let Some(target) = target {
            extensions.insert(target);
        }
        found
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        let target = request.extensions.get::<Target>();
        let bucket = target.map(|target| target.bucket.as_str());
        let signer = request.credentials.as_ref();
        self.0.users.check(signer, "GetObject", bucket)
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let target = request.extensions.get::<Target>();
        let target = target.ok_or_else(|| s3_error!(InternalError))?;
        let query = request.uri.query().unwrap_or_default();
        refuse_what_is_not_kept(query)?;
        let object = self.0.store.object(&target.bucket, &target.key)?;
        match conditions::evaluate(&request.headers, &object.etag, object.modified) {
            Verdict::Failed => return Err(conditions::failed()),
            Verdict::NotModified => return head::not_modified(&object),
            Verdict::Proceed => {}
        }
        let wants_direct = request.headers.get("lota-accept").is_some_and(|how| how == "direct");
        if let Some(direct) = self.0.direct().filter(|_| wants_direct) {
            let location = redirect::presign(&direct, &target.bucket, &target.key)
                .map_err(|error| s3_error!(InternalError, "{error:#}"))?;
            return head::redirect(&object, query, &location);
        }
        answer(&request, &object, query).await
    }
}

fn target(uri: &Uri, headers: &HeaderMap, zone: &str) -> Option<Target> {
    let path = decode_path(uri.path())?;
    let host = headers.get(hyper::header::HOST)?.to_str().ok()?;
    let parsed = match bucket_of_host(host, zone) {
        Some(bucket) => parse_virtual_hosted_style(Some(&bucket), &path),
        None => parse_path_style(&path),
    };
    match parsed {
        Ok(S3Path::Object { bucket, key }) => Some(Target { bucket: bucket.into(), key: key.into() }),
        _ => None,
    }
}

fn refuse_what_is_not_kept(query: &str) -> S3Result<()> {
    if query_value(query, "partNumber").is_some() {
        return Err(s3_error!(NotImplemented, "Reading by part is not supported."));
    }
    match query_value(query, "versionId") {
        Some(version) if version != "null" => Err(s3_error!(NoSuchVersion)),
        _ => Ok(()),
    }
}

async fn answer(request: &S3Request<Body>, object: &Object, query: &str) -> S3Result<S3Response<Body>> {
    let applies = conditions::range_applies(&request.headers, &object.etag, object.modified);
    let range = request.headers.get(RANGE).filter(|_| applies);
    let range = range.and_then(|range| range.to_str().ok());
    let mut headers = head::of(object, query)?;
    let (status, range) = match select(range, object.size) {
        Selection::Unsatisfiable => return Err(unsatisfiable(object.size)),
        Selection::Whole => (StatusCode::OK, 0..object.size),
        Selection::Part(range) => {
            let last = range.end - 1;
            let text = format!("bytes {}-{last}/{}", range.start, object.size);
            head::insert(&mut headers, "content-range", &text)?;
            (StatusCode::PARTIAL_CONTENT, range)
        }
    };
    let length = range.end - range.start;
    headers.insert(hyper::header::CONTENT_LENGTH, HeaderValue::from(length));
    let body = match request.method {
        Method::HEAD => Body::empty(),
        _ => blob::read(&object.blob, range).await.map_err(S3Error::internal_error)?,
    };
    Ok(head::response(status, headers, body))
}

fn unsatisfiable(size: u64) -> S3Error {
    let mut error = s3_error!(InvalidRange, "The requested range is not satisfiable");
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/xml"));
    if let Ok(value) = HeaderValue::try_from(format!("bytes */{size}")) {
        headers.insert(hyper::header::CONTENT_RANGE, value);
    }
    error.set_headers(headers);
    error
}
