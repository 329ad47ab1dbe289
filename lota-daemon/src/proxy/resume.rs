//! Continues a response whose owner fails.
//!
//! The client already has the response's head, so an error response is impossible. Instead, the entry node asks the next
//! owners, and in the end this node, for the same response without the bytes that were sent. Each has the gateway
//! authorize the client's request again, and must serve the same version.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{HeaderMap, Response, body::Frame, header, header::HeaderValue};
use lota_cache::placement::NodeName;
use lota_s3::GetObject;
use thiserror::Error;

use super::{Proxy, S3Store, get::Get};
use crate::{
    cluster::peer::{
        PeerError,
        headers::{GetScope, PeerMethod, Skipped},
    },
    http::{Body, BodyError, RequestHead, Slices, timed},
    process::log_limit::LogLimit,
};

/// No node could continue a response.
#[derive(Debug, Error)]
#[error("the owner's connection failed, and no other node has this version")]
struct Lost;

/// Response in progress, with the state that is needed to resume it.
struct Resumable {
    proxy: Arc<Proxy>,
    pod: IpAddr,
    store: Arc<S3Store>,
    head: RequestHead,
    object: GetObject,
    scope: GetScope,
    /// Queue for file slices; `None` once this node itself was tried.
    here: Option<Slices>,
    /// Nodes that were not tried yet, the next one last.
    others: Vec<NodeName>,
    version: Version,
    /// Node that sends the body; `None` if it is this node.
    owner: Option<NodeName>,
    body: Body,
    sent: u64,
    left: u64,
}

/// Headers that identify the object version of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    etag: HeaderValue,
    last_modified: Option<HeaderValue>,
}

impl Version {
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let (etag, last_modified) = (headers.get(header::ETAG)?, headers.get(header::LAST_MODIFIED));
        Some(Self { etag: etag.clone(), last_modified: last_modified.cloned() })
    }
}

impl Proxy {
    /// Makes a response of `owner` continue from `others`, or from this node, if `owner` fails. One that cannot
    /// continue has a timeout.
    pub(super) fn resumable(
        self: &Arc<Self>,
        get: &Get<'_>,
        answer: Response<Body>,
        owner: &NodeName,
        others: &[NodeName],
    ) -> Response<Body> {
        let length = answer.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let (Some(left), Some(version)) = (length, Version::of(answer.headers())) else {
            return timed(answer, get.slices.clone());
        };
        if get.is_bodiless() || !answer.status().is_success() {
            return timed(answer, get.slices.clone());
        }
        let (head, body) = answer.into_parts();
        // Nodes after this one in the placement are no better sources than this one.
        let others = others.iter().take_while(|node| **node != self.node).cloned();
        let mut others: Vec<_> = others.collect();
        others.reverse();
        let resumable = Resumable {
            proxy: self.clone(),
            pod: get.pod,
            store: get.store.clone(),
            head: get.head.clone(),
            object: get.object.clone(),
            scope: get.scope,
            here: Some(get.slices.clone()),
            others,
            version,
            owner: Some(owner.clone()),
            body,
            sent: 0,
            left,
        };
        let frames = stream::try_unfold(resumable, async |mut answer| {
            Ok(answer.next().await?.map(|frame| (frame, answer)))
        });
        Response::from_parts(head, StreamBody::new(frames).boxed_unsync())
    }
}

impl Resumable {
    /// Returns the next frame, after resuming at another node if necessary.
    async fn next(&mut self) -> Result<Option<Frame<Bytes>>, BodyError> {
        loop {
            match self.frame().await {
                Ok(Some(Ok(frame))) => {
                    let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                    self.sent += length;
                    self.left = self.left.saturating_sub(length);
                    return Ok(Some(frame));
                }
                Ok(None) if self.left == 0 => return Ok(None),
                _ => self.body = self.resume().await.ok_or_else(|| BodyError::new(Lost))?,
            }
        }
    }

    /// Returns the next frame of the current body.
    async fn frame(&mut self) -> Result<Option<Result<Frame<Bytes>, BodyError>>, PeerError> {
        let (Some(peers), Some(owner)) = (&self.proxy.peers, &self.owner) else {
            return Ok(self.body.frame().await);
        };
        let is_still_sending = || self.here.as_ref().is_some_and(|slices| !slices.is_empty());
        loop {
            match peers.while_alive(owner, self.body.frame()).await {
                // The client has paused, so the owner has nothing to send: that is no failure.
                Err(PeerError::Hangs) if is_still_sending() && !peers.is_lost(owner) => {}
                framed => return framed,
            }
        }
    }

    /// Returns the rest of the body from another node, or from this one.
    async fn resume(&mut self) -> Option<Body> {
        let (proxy, object) = (self.proxy.clone(), &self.object.name);
        static LINES: LogLimit = LogLimit::every_ten_seconds();
        if let Some(left_out) = LINES.admit() {
            tracing::warn!(%object, sent = self.sent, left = self.left, left_out, "owner failed during a response; resuming at another node");
        }
        proxy.count_peer_request("resumed");
        while let Some(owner) = self.others.pop() {
            let peers = proxy.peers.as_ref()?;
            let (slices, method) =
                (self.here.as_ref()?, PeerMethod::Get { skip: self.sent, scope: self.scope });
            let response = peers.ask_and_relay(&owner, self.pod, &self.head, method, slices).await;
            if let Ok(rest) = response
                && let Some(body) = self.rest(rest)
            {
                self.owner = Some(owner);
                return Some(body);
            }
        }
        // Each node is tried once, this one included.
        let slices = self.here.take()?;
        let get = Get::new(self.pod, &self.store, &self.head, &self.object, &slices).of(self.scope);
        let get = get.skipping(self.sent);
        let rest = proxy.authorize_and_serve(get).await.ok()?;
        self.owner = None;
        self.rest(rest)
    }

    /// Returns the body of `answer` if it continues this response.
    fn rest(&self, answer: Response<Body>) -> Option<Body> {
        let same = Version::of(answer.headers()).as_ref() == Some(&self.version);
        (same && Skipped::of(&answer) == Skipped(self.sent)).then(|| answer.into_body())
    }
}
