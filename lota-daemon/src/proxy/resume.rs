//! An owner's answer that goes on when its owner does not.
//!
//! The client's head is out, so there is no second answer to give: another node, or this one in the end, is asked for
//! the same, without what has been sent. It has the gateway authorize the client's request anew, and what it serves
//! must be the same version.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{HeaderMap, Response, body::Frame, header, header::HeaderValue};
use thiserror::Error;

use super::{Proxy, get::Get};
use crate::{
    http::{Body, BodyError, Head, Slices},
    metrics::PeerLabels,
    peer::{
        PeerError,
        headers::{self, Wanted},
    },
    placement::NodeName,
    s3::GetObject,
};

/// Nobody could go on with an answer.
#[derive(Debug, Error)]
#[error("the owner broke off, and nobody else has the same object")]
struct Lost;

/// An answer under way, and what is needed to go on with it.
struct Resumable {
    proxy: Arc<Proxy>,
    pod: IpAddr,
    head: Head,
    object: GetObject,
    /// Where bytes that are not copied are queued, until this node itself has been asked.
    here: Option<Slices>,
    /// Nodes that have not been asked yet, the next one last.
    others: Vec<NodeName>,
    version: Version,
    /// Who sends, if it is not this node.
    owner: Option<NodeName>,
    body: Body,
    sent: u64,
    left: u64,
}

/// What says that two answers are of one version.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    etag: HeaderValue,
    last_modified: Option<HeaderValue>,
}

impl Version {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let (etag, last_modified) = (headers.get(header::ETAG)?, headers.get(header::LAST_MODIFIED));
        Some(Self { etag: etag.clone(), last_modified: last_modified.cloned() })
    }
}

impl Proxy {
    /// The same answer, from `others` or from here if `owner` does not bring it to its end.
    pub(super) fn resumable(
        self: &Arc<Self>,
        get: &Get<'_>,
        answer: Response<Body>,
        owner: &NodeName,
        others: &[NodeName],
    ) -> Response<Body> {
        let length = answer.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let (Some(left), Some(version)) = (length, Version::of(answer.headers())) else { return answer };
        if get.is_bodiless() || !answer.status().is_success() {
            return answer;
        }
        let (head, body) = answer.into_parts();
        // Behind this node, there is nobody that has a better right to it.
        let others = others.iter().take_while(|node| **node != self.node).cloned();
        let mut others: Vec<_> = others.collect();
        others.reverse();
        let resumable = Resumable {
            proxy: self.clone(),
            pod: get.pod,
            head: get.head.clone(),
            object: get.object.clone(),
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

    async fn frame(&mut self) -> Result<Option<Result<Frame<Bytes>, BodyError>>, PeerError> {
        let (Some(peers), Some(owner)) = (&self.proxy.peers, &self.owner) else {
            return Ok(self.body.frame().await);
        };
        let is_still_sending = || self.here.as_ref().is_some_and(|slices| !slices.is_empty());
        loop {
            match peers.while_alive(owner, self.body.frame()).await {
                // What has come waits for a client that pauses, and the owner with it.
                Err(PeerError::Hangs) if is_still_sending() && !peers.is_lost(owner) => {}
                framed => return framed,
            }
        }
    }

    /// The rest of it, from someone else.
    async fn resume(&mut self) -> Option<Body> {
        let (proxy, object) = (self.proxy.clone(), &self.object.name);
        tracing::warn!(%object, sent = self.sent, left = self.left, "its owner broke off; asking another node");
        proxy.metrics.peer_requests.get_or_create(&PeerLabels { role: "resumed" }).inc();
        while let Some(owner) = self.others.pop() {
            let peers = proxy.peers.as_ref()?;
            let (slices, wanted) = (self.here.as_ref()?, Wanted::Rest(self.sent));
            let asked = peers.ask_and_relay(&owner, self.pod, &self.head, wanted, slices).await;
            if let Ok(rest) = asked
                && let Some(body) = self.rest(rest)
            {
                self.owner = Some(owner);
                return Some(body);
            }
        }
        // Nobody is asked twice, this node included.
        let slices = self.here.take()?;
        let get = Get { skip: self.sent, ..Get::new(self.pod, &self.head, &self.object, &slices) };
        let rest = proxy.authorize_and_serve(get).await.ok()?;
        self.owner = None;
        self.rest(rest)
    }

    /// Its body, if it is the rest of the same answer.
    fn rest(&self, answer: Response<Body>) -> Option<Body> {
        let same = Version::of(answer.headers()).as_ref() == Some(&self.version);
        (same && headers::skipped(answer.headers()) == self.sent).then(|| answer.into_body())
    }
}
