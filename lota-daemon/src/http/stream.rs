//! A client's connection as hyper sees it: sound requests only, no endless waiting, and an end that is heard.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    framing::{Framing, Wrong},
    sendfile::SendfileStream,
    server::Limits,
};
use crate::s3::S3Error;

/// What hyper gets to see in place of a request that is refused before it is one.
pub(super) const REFUSED: &str = "LOTA-REFUSED";
const REFUSED_HEAD: &[u8] = b"LOTA-REFUSED / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// Bytes read at once.
const READ: usize = 16 << 10;
/// How long a client may go on sending after the last answer, and be silent meanwhile; nginx' defaults.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_SILENCE: Duration = Duration::from_secs(5);

thread_local! {
    /// Where this thread's connections read to, in turn: one for each read would have to be zeroed each time.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// Why a connection's last request was refused.
pub(super) type Refusal = Arc<OnceLock<S3Error>>;

/// A connection.
pub(super) struct ClientStream {
    io: SendfileStream,
    framing: Framing,
    /// What may go on to hyper and has not.
    passed: Vec<u8>,
    /// No more of what the client sends is looked at.
    deaf: bool,
    refusal: Refusal,
    /// Longest wait for the client to send more of a body, or to take more of an answer.
    patience: Duration,
    reading: Deadline,
    writing: Deadline,
    lingering: Option<Instant>,
}

/// Runs out if nothing moves.
#[derive(Default)]
struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    /// Passes on what a poll came to; when it is pending for longer than `patience`, an error.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        patience: Duration,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.0 = None;
            return poll;
        }
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + patience)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl ClientStream {
    /// A connection.
    pub(super) fn new(io: SendfileStream, limits: &Limits) -> Self {
        Self {
            io,
            framing: Framing::new(limits.head, limits.headers),
            passed: Vec::new(),
            deaf: false,
            refusal: Refusal::default(),
            patience: limits.patience,
            reading: Deadline::default(),
            writing: Deadline::default(),
            lingering: None,
        }
    }

    /// Where it will say why a request was refused.
    pub(super) fn refusal(&self) -> Refusal {
        self.refusal.clone()
    }

    /// Ends the connection at once, by a reset.
    pub(super) fn reset(self) {
        self.io.reset();
    }

    /// Waits until the other side has closed it.
    pub(super) async fn closed(&mut self) {
        let mut buffer = [0; 64];
        while let Ok(1..) = poll_fn(|cx| self.io.poll_receive(cx, &mut buffer)).await {}
    }

    /// Reads once, and lets go on what may.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let taken: Poll<io::Result<_>> = BUFFER.with_borrow_mut(|buffer| {
            let read = ready!(self.io.poll_receive(cx, buffer))?;
            self.deaf = read == 0;
            Poll::Ready(Ok(self.framing.take(&buffer[..read], &mut self.passed)))
        });
        match ready!(taken)? {
            Ok(()) => Poll::Ready(Ok(())),
            Err(Wrong::Head(error)) => {
                let _ = self.refusal.set(error);
                self.passed.extend_from_slice(REFUSED_HEAD);
                self.deaf = true;
                Poll::Ready(Ok(()))
            }
            Err(Wrong::Body(what)) => {
                self.deaf = true;
                Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)))
            }
        }
    }
}

impl Read for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        while self.passed.is_empty() && !self.deaf {
            let polled = self.poll_fill(cx);
            // Between requests, and in heads, hyper has a clock of its own.
            let (patience, in_body) = (self.patience, self.framing.is_in_body());
            ready!(if in_body { self.reading.watch(cx, patience, polled) } else { polled })?;
        }
        let length = self.passed.len().min(buffer.remaining());
        buffer.put_slice(&self.passed[..length]);
        self.passed.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl Write for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.as_mut().poll_write_vectored(cx, &[IoSlice::new(buffer)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let (polled, patience) = (pin!(&mut self.io).poll_write_vectored(cx, buffers), self.patience);
        match ready!(self.writing.watch(cx, patience, polled)) {
            // The kernel calls a full socket writable when a third of it is free. A client so slow that this
            // takes longer is not one that stands still: there is room for some.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                self.writing = Deadline::default();
                Poll::Ready(
                    self.io
                        .write_now(buffers)
                        .map_err(|now| if now.kind() == io::ErrorKind::WouldBlock { error } else { now }),
                )
            }
            result => Poll::Ready(result),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.io).poll_flush(cx)
    }

    /// Says that nothing more will come, and listens a while to what the client was still saying: closed at once,
    /// the connection would be reset, and the client might never see the answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = Instant::now();
        if self.lingering.is_none() {
            ready!(pin!(&mut self.io).poll_shutdown(cx))?;
            self.lingering = Some(now + LINGER);
            self.reading = Deadline::default();
        }
        let mut buffer = [0; READ];
        while self.lingering.is_some_and(|until| now < until) {
            let polled = self.io.poll_receive(cx, &mut buffer);
            match ready!(self.reading.watch(cx, LINGER_SILENCE, polled)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
