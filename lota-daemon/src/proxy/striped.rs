//! Entry node: serves an object in stripes, each from an owner of its own.
//!
//! The first stripe's owner supplies the head of the response. Each owner has the gateway authorize the client's own
//! request, and all must serve the same version. While one stripe is sent, the next owner is asked already.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Response, StatusCode,
    body::Frame,
    header::{self, HeaderValue},
};
use lota_cache::Stripe;
use lota_s3::{ByteRange, GetObject, S3Error};
use thiserror::Error;
use tokio::task::JoinHandle;

use super::{Proxy, S3Store, get::Get, resume::Version};
use crate::{
    cluster::peer::headers::{GetScope, StripedSize},
    http::{Body, BodyError, RequestHead, Slices},
};

/// Maximum number of sizes to try, in case the object is being replaced.
const MAX_SIZES: usize = 2;

/// Reason why a response ends early.
#[derive(Debug, Error)]
enum StripeError {
    #[error("no node could serve {0}")]
    Failed(Stripe),
    #[error("the object was replaced before {0} was read")]
    Replaced(Stripe),
}

/// A client's request, of which each stripe is asked for.
#[derive(Clone)]
struct StripedGet {
    proxy: Arc<Proxy>,
    pod: IpAddr,
    store: Arc<S3Store>,
    head: RequestHead,
    object: GetObject,
    slices: Slices,
    size: u64,
}

/// Body of a response that consists of several stripes.
struct StripedBody {
    get: StripedGet,
    version: Option<Version>,
    current: Body,
    /// The next stripe, which was asked for.
    next: Option<(Stripe, JoinHandle<Result<Response<Body>, S3Error>>)>,
    others: VecDeque<Stripe>,
}

impl Proxy {
    /// Serves an object of `size` bytes in stripes. Returns `None` if it must be served as a whole.
    pub(super) async fn serve_striped(
        self: &Arc<Self>,
        get: &Get<'_>,
        mut size: u64,
    ) -> Option<Result<Response<Body>, S3Error>> {
        let name = &get.object.name;
        for _ in 0..MAX_SIZES {
            let first = self.stripes(get, size).pop_front()?;
            let answer = match self.ask_for_stripe(get.again(), first, size).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(object = %name, %first, %error, "cannot serve in stripes");
                    return None;
                }
            };
            match StripedSize::of(&answer) {
                // The owner did not treat it as a stripe: this is the response to the client's request.
                None => return Some(Ok(answer)),
                Some(StripedSize(actual)) if answer.status() == StatusCode::NO_CONTENT => {
                    self.striping.set_size(name, actual);
                    if !self.striping.applies(actual) {
                        return None;
                    }
                    size = actual;
                }
                Some(StripedSize(actual)) => {
                    self.striping.set_size(name, actual);
                    return Some(Ok(self.join_stripes(get, first, answer, actual)));
                }
            }
        }
        None
    }

    /// Returns the stripes that contain the requested bytes of an object. If no bytes are requested, the first: its owner
    /// relays the gateway's response to that.
    fn stripes(&self, get: &Get<'_>, size: u64) -> VecDeque<Stripe> {
        let range = get.object.range.resolve(size).ok().flatten();
        self.striping.length().stripes(range.unwrap_or(ByteRange { start: 0, end: size })).collect()
    }

    /// Asks the owners of a stripe in order, at last this node.
    async fn ask_for_stripe(
        self: &Arc<Self>,
        get: Get<'_>,
        stripe: Stripe,
        size: u64,
    ) -> Result<Response<Body>, S3Error> {
        let owners = self.stripe_candidates(&get.object.name, stripe, size);
        self.serve_from(get.of(GetScope::Stripe(stripe)), &owners).await
    }

    /// Makes the response from that of the first stripe.
    fn join_stripes(
        self: &Arc<Self>,
        get: &Get<'_>,
        first: Stripe,
        answer: Response<Body>,
        size: u64,
    ) -> Response<Body> {
        let (mut head, current) = answer.into_parts();
        let others: VecDeque<Stripe> =
            self.stripes(get, size).into_iter().filter(|stripe| stripe.index() > first.index()).collect();
        if others.is_empty() {
            return Response::from_parts(head, current);
        }
        let length = get.needed_and_received(size).0;
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        let get = StripedGet {
            proxy: self.clone(),
            pod: get.pod,
            store: get.store.clone(),
            head: get.head.clone(),
            object: get.object.clone(),
            slices: get.slices.clone(),
            size,
        };
        let version = Version::of(&head.headers);
        let mut body = StripedBody { get, version, current, next: None, others };
        body.ask_ahead();
        let frames =
            stream::try_unfold(body, async |mut body| Ok(body.next().await?.map(|frame| (frame, body))));
        Response::from_parts(head, StreamBody::new(frames).boxed_unsync())
    }
}

impl StripedGet {
    async fn ask(self, stripe: Stripe) -> Result<Response<Body>, S3Error> {
        let Self { proxy, pod, store, head, object, slices, size } = &self;
        proxy.ask_for_stripe(Get::new(*pod, store, head, object, slices), stripe, *size).await
    }
}

impl StripedBody {
    /// Returns the next frame, of the next stripe if the current one has ended.
    async fn next(&mut self) -> Result<Option<Frame<Bytes>>, BodyError> {
        loop {
            if let Some(frame) = self.current.frame().await {
                return frame.map(Some);
            }
            let Some((stripe, asked)) = self.next.take() else { return Ok(None) };
            let answer = asked.await.ok().and_then(Result::ok);
            let answer = answer.ok_or_else(|| BodyError::new(StripeError::Failed(stripe)))?;
            let is_same = StripedSize::of(&answer) == Some(StripedSize(self.get.size))
                && answer.status().is_success()
                && answer.status() != StatusCode::NO_CONTENT
                && Version::of(answer.headers()) == self.version;
            if !is_same {
                return Err(BodyError::new(StripeError::Replaced(stripe)));
            }
            self.current = answer.into_body();
            self.ask_ahead();
        }
    }

    fn ask_ahead(&mut self) {
        if let Some(stripe) = self.others.pop_front() {
            self.next = Some((stripe, tokio::spawn(self.get.clone().ask(stripe))));
        }
    }
}

impl Drop for StripedBody {
    fn drop(&mut self) {
        if let Some((_, asked)) = &self.next {
            asked.abort();
        }
    }
}
