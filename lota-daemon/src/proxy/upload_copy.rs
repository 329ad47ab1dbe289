//! Entry node: sends the bytes of a `PutObject` to the object's owner while they pass to the gateway.
//!
//! The upload never waits for the owner: a queue of limited size is between them, and a copy whose queue is full is given up. A copy
//! that fits into the queue is sent only once the gateway has reported success, so that it costs the upload nothing. A larger one is
//! sent meanwhile, and ends only after that; the owner drops a copy that breaks off.

use std::{io, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::{
    FutureExt as _, StreamExt as _, TryStreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{StatusCode, body::Frame};
use lota_cache::{AfterWrite, placement::NodeName, shares::Share};
use lota_s3::{ChunkData, UploadForm, WriteObject, WriteOperation};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
};

use super::{
    Proxy, S3Store, after_write::written, keep_upload::IncomingUpload, write_fetches::WrittenObject,
};
use crate::{
    cluster::peer::{PeerError, headers::PeerMethod},
    http::{Body, BodyError, RequestHead},
    metrics::WriteFetch,
};

/// Maximum number of bytes of one upload that wait for the owner.
const MAX_QUEUED: u64 = 16 << 20;
/// Minimum memory that an upload is charged, in bytes, which bounds the number of copies.
const MIN_SHARE: u64 = 64 << 10;
/// Fragments shorter than this, in bytes, are copied: each would keep the whole buffer that it was received in.
const SMALL: usize = 16 << 10;
/// Copied fragments are queued together once they are this many bytes.
const MERGED: usize = 64 << 10;

/// Copy of an upload on its way to the owner. If it is dropped before [`UploadCopy::end`], the owner drops what it has.
pub(super) struct UploadCopy {
    queue: Arc<CopyQueue>,
    sending: CopySending,
}

/// How a copy is sent.
enum CopySending {
    /// Not at all: it could not begin.
    Never,
    /// After the upload.
    Later(BoxFuture<'static, OwnerAnswer>),
    /// While the upload passes.
    Now(JoinHandle<OwnerAnswer>),
}

/// Facts that determine whether the owner gets a copy.
#[derive(Clone, Copy, Debug)]
struct CopyFacts {
    mode: AfterWrite,
    operation: WriteOperation,
    has_customer_key: bool,
    has_own_credential: bool,
    /// Whether an object of this size is cached in stripes.
    is_striped: bool,
}

/// Answer of the owner to a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwnerAnswer {
    /// Nothing remains to be done.
    Settled,
    /// It has counted why it does not keep the copy.
    NotKept,
    /// None: it does not respond, or does not know the request.
    Missing,
}

/// Bytes between an upload and its owner.
struct CopyQueue {
    /// `None` once the copy has ended or was given up.
    open: Mutex<Option<OpenQueue>>,
    /// Bytes that may still be queued.
    room: Arc<Semaphore>,
    /// Reason why the copy was given up.
    gave_up: Mutex<Option<WriteFetch>>,
}

struct OpenQueue {
    sender: mpsc::UnboundedSender<CopyPiece>,
    /// Small fragments that are not in the queue yet.
    small: BytesMut,
}

enum CopyPiece {
    Data {
        bytes: Bytes,
        _room: OwnedSemaphorePermit,
    },
    /// The gateway has stored the upload.
    End,
}

/// Returns whether the owner gets a copy of an upload.
fn is_copied(facts: CopyFacts) -> bool {
    let CopyFacts { mode, operation, has_customer_key, has_own_credential, is_striped } = facts;
    mode == AfterWrite::Keep
        && operation == WriteOperation::Put
        && has_own_credential
        && !has_customer_key
        && !is_striped
}

impl CopyQueue {
    /// Creates the queue of an upload of `size` bytes, and the stream of what is in it. The stream fails if the queue is closed
    /// before [`CopyQueue::end`].
    fn new(size: u64, memory: Share) -> (Arc<Self>, BoxStream<'static, io::Result<Bytes>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let room = usize::try_from(size.min(MAX_QUEUED)).unwrap_or_default();
        let queue = Self {
            open: Mutex::new(Some(OpenQueue { sender, small: BytesMut::new() })),
            room: Arc::new(Semaphore::new(room)),
            gave_up: Mutex::default(),
        };
        let pieces = stream::unfold(Some((receiver, memory)), async |state| {
            let (mut receiver, memory) = state?;
            match receiver.recv().await {
                Some(CopyPiece::Data { bytes, _room }) => Some((Ok(bytes), Some((receiver, memory)))),
                Some(CopyPiece::End) => None,
                None => Some((Err(io::Error::other("the upload was not completed")), None)),
            }
        });
        (Arc::new(queue), pieces.boxed())
    }

    /// Creates the queue of a copy that cannot begin.
    fn closed(why: WriteFetch) -> Arc<Self> {
        let gave_up = Mutex::new(Some(why));
        Arc::new(Self { open: Mutex::default(), room: Arc::new(Semaphore::new(0)), gave_up })
    }

    /// Adds bytes, or gives the copy up if there is no room for them.
    fn push(&self, bytes: Bytes) {
        let mut open = self.open.lock();
        let Some(queue) = &mut *open else { return };
        if bytes.len() >= SMALL {
            self.send_small(&mut open);
            self.send(&mut open, bytes);
            return;
        }
        queue.small.extend_from_slice(&bytes);
        if queue.small.len() >= MERGED {
            self.send_small(&mut open);
        }
    }

    /// Queues the small fragments.
    fn send_small(&self, open: &mut Option<OpenQueue>) {
        if let Some(queue) = open
            && !queue.small.is_empty()
        {
            // Uses exactly the memory that it is charged.
            let merged = Bytes::copy_from_slice(&queue.small);
            queue.small.clear();
            self.send(open, merged);
        }
    }

    fn send(&self, open: &mut Option<OpenQueue>, bytes: Bytes) {
        let Some(queue) = open else { return };
        let length = u32::try_from(bytes.len()).ok();
        let room = length.and_then(|length| self.room.clone().try_acquire_many_owned(length).ok());
        match room.map(|room| queue.sender.send(CopyPiece::Data { bytes, _room: room })) {
            Some(Ok(())) => {}
            // The owner has answered early, or is gone.
            Some(Err(_)) => *open = None,
            None => {
                *open = None;
                *self.gave_up.lock() = Some(WriteFetch::KeepTooSlow);
            }
        }
    }

    fn give_up(&self, why: WriteFetch) {
        if self.open.lock().take().is_some() {
            *self.gave_up.lock() = Some(why);
        }
    }

    /// Lets the stream end.
    fn end(&self) {
        let mut open = self.open.lock();
        self.send_small(&mut open);
        if let Some(queue) = open.take() {
            let _ = queue.sender.send(CopyPiece::End);
        }
    }

    /// Returns the upload's body, whose bytes are added to this queue as they pass.
    fn tapping(self: &Arc<Self>, is_chunked: bool, body: Body) -> Body {
        let (queue, mut chunks) = (self.clone(), is_chunked.then(ChunkData::default));
        let tapped = move |frame: Frame<Bytes>| {
            let mut passing = frame.data_ref().cloned().unwrap_or_default();
            match &mut chunks {
                None => queue.push(passing),
                Some(chunks) => loop {
                    match chunks.next(&mut passing) {
                        Ok(Some(data)) => queue.push(data),
                        Ok(None) => break,
                        // The gateway will tell.
                        Err(_) => break queue.give_up(WriteFetch::KeepDiffers),
                    }
                },
            }
            frame
        };
        body.map_frame(tapped).boxed_unsync()
    }
}

impl UploadCopy {
    /// Has the owner keep the copy, since the gateway has stored the upload, and waits for its answer.
    ///
    /// # Errors
    /// If the object is to be fetched instead; with the reason, unless the owner has counted it.
    async fn end(mut self) -> Result<(), Option<WriteFetch>> {
        self.queue.end();
        // An owner that was too slow may not answer for long.
        if let Some(why) = *self.queue.gave_up.lock() {
            return Err(Some(why));
        }
        let answer = match &mut self.sending {
            CopySending::Never => OwnerAnswer::Missing,
            CopySending::Later(sending) => sending.await,
            CopySending::Now(sending) => sending.await.unwrap_or(OwnerAnswer::Missing),
        };
        match answer {
            OwnerAnswer::Settled => Ok(()),
            OwnerAnswer::NotKept => Err(None),
            OwnerAnswer::Missing => Err(Some(WriteFetch::KeepUnavailable)),
        }
    }
}

impl Drop for UploadCopy {
    fn drop(&mut self) {
        if let CopySending::Now(sending) = &self.sending {
            sending.abort();
        }
    }
}

impl Proxy {
    /// Begins to send a copy of an upload to the object's owner, if the configuration says so. Returns the body for the gateway.
    pub(super) fn copy_upload(
        self: &Arc<Self>,
        store: &Arc<S3Store>,
        head: &RequestHead,
        write: Option<&WriteObject>,
        body: Body,
    ) -> (Body, Option<UploadCopy>) {
        let Some((write, form)) = write.zip(UploadForm::of(&head.headers)) else { return (body, None) };
        let facts = CopyFacts {
            mode: self.write_fetches.mode(),
            operation: write.operation,
            has_customer_key: write.has_customer_key,
            has_own_credential: store.backend.has_own_credential(),
            is_striped: self.striping.applies(form.size),
        };
        if !is_copied(facts) {
            return (body, None);
        }
        let copy = self.begin_copy(store, head, write, form.size);
        let body = copy.queue.tapping(form.is_chunked, body);
        (body, Some(copy))
    }

    fn begin_copy(
        self: &Arc<Self>,
        store: &Arc<S3Store>,
        head: &RequestHead,
        write: &WriteObject,
        size: u64,
    ) -> UploadCopy {
        let share = size.clamp(MIN_SHARE, MAX_QUEUED);
        let Ok(memory) = self.write_fetches.keeps.memory.take(head.pod, share) else {
            return UploadCopy {
                queue: CopyQueue::closed(WriteFetch::KeepTooSlow),
                sending: CopySending::Never,
            };
        };
        let (queue, pieces) = CopyQueue::new(size, memory);
        let proxy = self.clone();
        let sending = match self.first_owner(&write.name) {
            Some(owner) => {
                let request = written(head);
                let sending = async move {
                    match request {
                        Some(request) => proxy.send_copy(&owner, request, size, pieces).await,
                        None => OwnerAnswer::Missing,
                    }
                };
                sending.boxed()
            }
            None => {
                let (store, name) = (store.clone(), write.name.clone());
                let upload = IncomingUpload { store, name, size, pod: head.pod };
                let sending = async move {
                    let pieces = pieces.map_err(|error| error.to_string()).boxed();
                    match proxy.keep_upload(upload, pieces).await {
                        Ok(true) => OwnerAnswer::Settled,
                        Ok(false) => OwnerAnswer::NotKept,
                        Err(_) => OwnerAnswer::Missing,
                    }
                };
                sending.boxed()
            }
        };
        let sending = match size <= MAX_QUEUED {
            true => CopySending::Later(sending),
            false => CopySending::Now(tokio::spawn(sending)),
        };
        UploadCopy { queue, sending }
    }

    async fn send_copy(
        &self,
        owner: &NodeName,
        mut request: RequestHead,
        size: u64,
        pieces: BoxStream<'static, io::Result<Bytes>>,
    ) -> OwnerAnswer {
        let (Some(peers), Some(gateway)) = (&self.peers, request.gateway.take()) else {
            return OwnerAnswer::Missing;
        };
        // The length of the body would say that it is complete before the gateway does.
        request.chunked = true;
        let method = PeerMethod::Keep { size, gateway };
        let body = StreamBody::new(pieces.map_ok(Frame::data).map_err(BodyError::new)).boxed_unsync();
        let answer = peers.ask_with_body(owner, request.pod, &request, method, body).await;
        let answer = match answer.map(|answer| answer.status()) {
            Ok(StatusCode::CREATED) => OwnerAnswer::Settled,
            Ok(StatusCode::ACCEPTED) => OwnerAnswer::NotKept,
            // The upload has failed, or was given up.
            Err(PeerError::NoBody) => return OwnerAnswer::Missing,
            Ok(_) | Err(_) => OwnerAnswer::Missing,
        };
        self.count_peer_request(if answer == OwnerAnswer::Missing { "unavailable" } else { "sent" });
        answer
    }

    /// Has the owner keep its copy of an upload that the gateway has stored, or else fetch the object.
    pub(super) fn end_copy(
        self: &Arc<Self>,
        copy: UploadCopy,
        store: Arc<S3Store>,
        head: RequestHead,
        object: WrittenObject,
    ) {
        let proxy = self.clone();
        tokio::spawn(async move {
            if let Err(why) = copy.end().await {
                why.into_iter().for_each(|why| proxy.count_write_fetch(why));
                proxy.have_fetched(&store, &head, object);
            }
        });
    }
}

#[cfg(test)]
#[path = "upload_copy_tests.rs"]
mod tests;
