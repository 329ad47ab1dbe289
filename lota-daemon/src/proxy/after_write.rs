//! Entry node: recognizes that a client has written an object, and has the object's owner fetch it.
//!
//! Nothing waits for it: the client's response is relayed as it arrives, and the owner is asked once it shows success.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Frame,
    header::{self, HeaderValue},
};
use lota_cache::AfterWrite;
use lota_s3::{NormalEtag, ResultReader, UploadForm, WriteObject, WriteOperation, WriteResult};

use super::{Proxy, S3Store, upload_copy::UploadCopy, write_fetches::WrittenObject};
use crate::{
    cluster::peer::headers::PeerMethod,
    http::{Body, RequestHead},
    metrics::WriteFetch,
};

/// Facts that determine what follows the response to a write.
#[derive(Clone, Copy, Debug)]
struct WriteFacts {
    /// Action that the configuration demands.
    mode: AfterWrite,
    operation: WriteOperation,
    status: StatusCode,
    /// Whether the object is encrypted with the client's key.
    has_customer_key: bool,
    /// Whether LOTA has a credential for the backend of the gateway.
    has_own_credential: bool,
    /// Whether the object is known to be so large that it is cached in stripes.
    is_striped: bool,
}

/// Plan for the response to a write that may have succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WritePlan {
    /// Root element of the body that shows success; `None` if the head does.
    shown_by: Option<&'static str>,
    /// Reason why the object is not fetched; `None` if it is.
    skipped: Option<WriteFetch>,
}

/// Decides what follows the response to a write. Returns `None` if it has failed, or nothing is to be done.
fn plan_write(facts: WriteFacts) -> Option<WritePlan> {
    if facts.mode == AfterWrite::Off || facts.status != StatusCode::OK {
        return None;
    }
    let skipped = match facts {
        WriteFacts { has_own_credential: false, .. } => Some(WriteFetch::NoCredential),
        WriteFacts { has_customer_key: true, .. } => Some(WriteFetch::CustomerKey),
        WriteFacts { is_striped: true, .. } => Some(WriteFetch::Striped),
        _ => None,
    };
    Some(WritePlan { shown_by: facts.operation.result_element(), skipped })
}

/// Reads the result of a write in a response's body as it passes.
struct ResultWatch<F: FnOnce(WriteResult)> {
    reader: ResultReader,
    /// Called once; `None` when it was.
    known: Option<F>,
}

impl<F: FnOnce(WriteResult)> ResultWatch<F> {
    fn new(root: &'static str, known: F) -> Self {
        Self { reader: ResultReader::new(root), known: Some(known) }
    }

    fn pass(&mut self, data: &[u8]) {
        if let Some(result) = self.reader.read(data)
            && let Some(known) = self.known.take()
        {
            known(result);
        }
    }
}

impl<F: FnOnce(WriteResult)> Drop for ResultWatch<F> {
    /// The body has ended, or the connection.
    fn drop(&mut self) {
        if let Some(known) = self.known.take() {
            known(WriteResult::Unrecognized);
        }
    }
}

impl Proxy {
    /// Has the owner of a written object fetch it, if the response shows that the write has succeeded. Returns the response,
    /// whose body may show that only later.
    pub(super) fn after_write(
        self: &Arc<Self>,
        store: &Arc<S3Store>,
        head: &RequestHead,
        (write, copy): (WriteObject, Option<UploadCopy>),
        answer: Response<Body>,
    ) -> Response<Body> {
        let plan = plan_write(WriteFacts {
            mode: self.write_fetches.mode(),
            operation: write.operation,
            status: answer.status(),
            has_customer_key: write.has_customer_key,
            has_own_credential: store.backend.has_own_credential(),
            is_striped: write.operation == WriteOperation::Put
                && UploadForm::of(&head.headers).is_some_and(|form| self.striping.applies(form.size)),
        });
        // Without a plan, the copy is dropped, since the write has failed.
        let Some(WritePlan { shown_by, skipped }) = plan else { return answer };
        let (proxy, store, head) = (self.clone(), store.clone(), head.clone());
        let WriteObject { name, operation, .. } = write;
        let known = move |result| {
            let etag = match result {
                WriteResult::Failed => return,
                WriteResult::Unrecognized => return proxy.count_write_fetch(WriteFetch::Unrecognized),
                // This is how Ceph RGW reports that a copy has failed, whose response had begun.
                WriteResult::NoEtag if operation == WriteOperation::Copy => {
                    return proxy.count_write_fetch(WriteFetch::NoEtag);
                }
                WriteResult::NoEtag => None,
                WriteResult::Written(etag) => Some(etag),
            };
            match (skipped, copy) {
                (Some(reason), _) => proxy.count_write_fetch(reason),
                (None, Some(copy)) if etag.is_some() => {
                    proxy.end_copy(copy, store, head, WrittenObject { name, etag });
                }
                (None, _) => proxy.have_fetched(&store, &head, WrittenObject { name, etag }),
            }
        };
        let Some(root) = shown_by else {
            known(NormalEtag::of(answer.headers()).map_or(WriteResult::NoEtag, WriteResult::Written));
            return answer;
        };
        let mut watch = ResultWatch::new(root, known);
        let watched = move |frame: Frame<Bytes>| {
            frame.data_ref().into_iter().for_each(|data| watch.pass(data));
            frame
        };
        answer.map(|body| body.map_frame(watched).boxed_unsync())
    }

    /// Has the first reachable owner of an object fetch it, for the pod that has written it by the request `head`.
    pub(super) fn have_fetched(
        self: &Arc<Self>,
        store: &Arc<S3Store>,
        head: &RequestHead,
        object: WrittenObject,
    ) {
        let owner = self.first_owner(&object.name);
        let (Some(owner), Some(peers)) = (owner, &self.peers) else {
            return self.fetch_later(store, object, head.pod);
        };
        let (Some(place), Some(written)) = (self.write_fetches.call(), written(head)) else {
            return self.count_write_fetch(WriteFetch::QueueFull);
        };
        let (proxy, peers) = (self.clone(), peers.clone());
        tokio::spawn(async move {
            let method = PeerMethod::Written(object.etag);
            let answer = peers.ask(&owner, written.pod, &written, method).await;
            drop(place);
            match answer {
                Ok(answer) if answer.status().is_success() => proxy.count_peer_request("sent"),
                _ => {
                    proxy.count_peer_request("unavailable");
                    proxy.count_write_fetch(WriteFetch::OwnerUnavailable);
                }
            }
        });
    }
}

/// Returns an unsigned request that names the object of the write `head`: the one that prefetches it, for an owner of a version
/// that does not know [`PeerMethod::Written`].
pub(super) fn written(head: &RequestHead) -> Option<RequestHead> {
    let request = Request::builder().method(Method::HEAD).uri(head.target.path());
    let mut request = request.header(header::HOST, &head.host).body(()).ok()?;
    request.headers_mut().insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
    let mut named = RequestHead::of(request.into_parts().0).ok()?;
    (named.pod, named.gateway) = (head.pod, head.gateway.clone());
    Some(named)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn put() -> WriteFacts {
        WriteFacts {
            mode: AfterWrite::Fetch,
            operation: WriteOperation::Put,
            status: StatusCode::OK,
            has_customer_key: false,
            has_own_credential: true,
            is_striped: false,
        }
    }

    #[test]
    fn each_fact_decides_in_its_turn() {
        use WriteOperation::{CompleteMultipart, Copy};
        const COMPLETED: &str = "CompleteMultipartUploadResult";
        let plan = |shown_by, skipped| Some(WritePlan { shown_by, skipped });
        let skip = |reason| plan(None, Some(reason));
        let status = |code| StatusCode::from_u16(code).unwrap();
        let table = [
            ("PutObject", put(), plan(None, None)),
            ("off", WriteFacts { mode: AfterWrite::Off, ..put() }, None),
            (
                "off, without credential",
                WriteFacts { mode: AfterWrite::Off, has_own_credential: false, ..put() },
                None,
            ),
            ("keep", WriteFacts { mode: AfterWrite::Keep, ..put() }, plan(None, None)),
            ("in stripes", WriteFacts { is_striped: true, ..put() }, skip(WriteFetch::Striped)),
            ("CopyObject", WriteFacts { operation: Copy, ..put() }, plan(Some("CopyObjectResult"), None)),
            ("upload", WriteFacts { operation: CompleteMultipart, ..put() }, plan(Some(COMPLETED), None)),
            ("refused", WriteFacts { status: status(403), ..put() }, None),
            ("condition failed", WriteFacts { status: status(412), ..put() }, None),
            ("failed", WriteFacts { status: status(500), ..put() }, None),
            ("failed, SSE-C", WriteFacts { status: status(500), has_customer_key: true, ..put() }, None),
            ("redirected", WriteFacts { status: status(307), ..put() }, None),
            // A status that S3 does not use for a write.
            ("accepted", WriteFacts { status: status(202), ..put() }, None),
            ("SSE-C", WriteFacts { has_customer_key: true, ..put() }, skip(WriteFetch::CustomerKey)),
            (
                "SSE-C, upload",
                WriteFacts { has_customer_key: true, operation: CompleteMultipart, ..put() },
                plan(Some(COMPLETED), Some(WriteFetch::CustomerKey)),
            ),
            (
                "without credential",
                WriteFacts { has_own_credential: false, ..put() },
                skip(WriteFetch::NoCredential),
            ),
            (
                "SSE-C, without credential",
                WriteFacts { has_customer_key: true, has_own_credential: false, ..put() },
                skip(WriteFetch::NoCredential),
            ),
        ];
        for (name, facts, expected) in table {
            assert_eq!(plan_write(facts), expected, "{name}");
        }
    }

    #[test]
    fn each_body_has_one_result() {
        let etag = NormalEtag::parse("e").unwrap();
        for (expected, body) in [
            (WriteResult::Written(etag), "<CopyObjectResult><ETag>e</ETag></CopyObjectResult>\n"),
            (WriteResult::Failed, "<CopyObjectResult><Error/></CopyObjectResult>"),
            (WriteResult::Unrecognized, "<CopyObjectResult><ETag>e</ETag>"),
            (WriteResult::Unrecognized, ""),
        ] {
            let results = Cell::new(Vec::new());
            let mut watch = ResultWatch::new("CopyObjectResult", |result| {
                results.set([results.take(), vec![result]].concat());
            });
            body.as_bytes().chunks(9).for_each(|piece| watch.pass(piece));
            drop(watch);
            assert_eq!(results.take(), [expected], "{body}");
        }
    }

    #[test]
    fn the_owner_is_told_the_object_and_nothing_of_the_write() {
        let put = Request::put("/b/a%20key?x-id=PutObject&X-Amz-Signature=secret")
            .header("host", "cwlota.com:80")
            .header("authorization", "secret")
            .header("content-length", "3");
        let mut head = RequestHead::of(put.body(()).unwrap().into_parts().0).unwrap();
        (head.pod, head.gateway) = ([10, 0, 0, 9].into(), Some("http://gateway".into()));
        let named = written(&head).unwrap();
        assert_eq!((named.method.as_str(), named.target.as_str()), ("HEAD", "/b/a%20key"));
        assert_eq!((&*named.host, named.pod, &named.gateway), ("cwlota.com:80", head.pod, &head.gateway));
        assert!(!format!("{named:?}").contains("secret"));
        assert_eq!(named.headers.len(), 2, "{:?}", named.headers);
    }
}
