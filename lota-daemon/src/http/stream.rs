//! Client stream for hyper: validates framing, enforces timeouts, delivers the last bytes before close.

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
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::{
    BodyReject, ConnectionPace, HeadCharge, Reject,
    framing::{Framing, Rejected},
    head_timer::Unsent,
    sendfile::SendfileStream,
    server::ConnectionLimits,
};

/// Method of the placeholder request that hyper receives in place of a rejected one, so that it can be answered.
pub(super) const REFUSED: &str = "LOTA-REFUSED";
const REFUSED_HEAD: &[u8] = b"LOTA-REFUSED / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// Size of the read buffer.
const READ_SIZE: usize = 16 << 10;
/// Lingering close: total timeout, and timeout between two reads; nginx' defaults.
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);
const LINGER_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time to the first check whether the last bytes have been received; it doubles with each further check.
const FIRST_DELIVERY_CHECK: Duration = Duration::from_millis(10);

thread_local! {
    /// Read buffer shared by the connections of this thread: a new one for each read would have to be zeroed.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_SIZE].into());
}

/// Reason for rejecting the connection's last request, once it is set.
pub(super) type Refusal = Arc<OnceLock<Reject>>;

/// A client's connection.
pub(super) struct ClientStream {
    io: SendfileStream,
    framing: Framing,
    /// The connection's share of the port's memory budget for request headers.
    heads: Arc<HeadCharge>,
    /// Validated bytes that hyper has not read yet.
    passed: Vec<u8>,
    /// Input is no longer read: the client has closed its half, or a request was rejected.
    input_closed: bool,
    /// Error in the current body, reported to hyper after it has read the valid bytes before.
    malformed: Option<BodyReject>,
    refusal: Refusal,
    /// Timeout for progress of a request or response body.
    idle_timeout: Duration,
    reading: Deadline,
    writing: Deadline,
    unsent: Unsent,
    pace: Option<ConnectionPace>,
    /// The write half is shut down.
    is_shut_down: bool,
}

/// Timeout of an operation; restarts with each progress.
#[derive(Default)]
struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    /// Returns the result of a poll, or `TimedOut` if it has been pending for `idle_timeout`.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        idle_timeout: Duration,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.0 = None;
            return poll;
        }
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep(idle_timeout)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Tracks a client's progress in receiving the socket's send queue.
struct Delivery {
    idle_timeout: Duration,
    unacknowledged: usize,
    since: Instant,
}

impl Delivery {
    fn new(idle_timeout: Duration) -> Self {
        Self { idle_timeout, unacknowledged: 0, since: Instant::now() }
    }

    /// Returns whether the send queue has changed since the last call, or is not empty and has changed within the idle
    /// timeout.
    fn goes_on(&mut self, unacknowledged: usize) -> bool {
        if self.unacknowledged != unacknowledged {
            (self.unacknowledged, self.since) = (unacknowledged, Instant::now());
            return true;
        }
        unacknowledged > 0 && self.since.elapsed() < self.idle_timeout
    }
}

impl ClientStream {
    /// Returns the stream of a new connection.
    pub(super) fn new(
        io: SendfileStream,
        limits: &ConnectionLimits,
        heads: Arc<HeadCharge>,
        pace: Option<ConnectionPace>,
    ) -> Self {
        Self {
            io,
            heads,
            framing: Framing::new(limits.head, limits.headers),
            passed: Vec::new(),
            input_closed: false,
            malformed: None,
            refusal: Refusal::default(),
            idle_timeout: limits.idle_timeout,
            reading: Deadline::default(),
            writing: Deadline::default(),
            unsent: Unsent::default(),
            pace,
            is_shut_down: false,
        }
    }

    /// Returns the cell that receives the reason for rejecting a request.
    pub(super) fn refusal(&self) -> Refusal {
        self.refusal.clone()
    }

    /// Returns the flag that states whether written bytes are waiting for room in the socket.
    pub(super) fn unsent(&self) -> Unsent {
        self.unsent.clone()
    }

    /// Resets the connection.
    pub(super) fn reset(self) {
        self.io.reset();
    }

    /// Waits for the headers of the next request. Returns true if they, or a placeholder for a rejected request, are ready
    /// for hyper, and false if the client has closed its half first.
    pub(super) async fn next_head(&mut self) -> io::Result<bool> {
        self.reading = Deadline::default();
        while self.passed.is_empty() && !self.input_closed {
            poll_fn(|cx| self.poll_fill(cx)).await?;
        }
        Ok(!self.passed.is_empty())
    }

    /// Waits for a head like [`Self::next_head`], for up to `wait` after the client has received the last response. A client
    /// that receives nothing of it for the idle timeout, rounded up to a multiple of `wait`, times out; so does an incomplete
    /// head.
    ///
    /// # Errors
    /// `TimedOut`, and errors of the connection.
    pub(super) async fn next_head_within(&mut self, wait: Duration) -> io::Result<bool> {
        let mut delivery = Delivery::new(self.idle_timeout);
        loop {
            match timeout(wait, self.next_head()).await {
                Ok(head) => return head,
                Err(_) if self.framing.held() == 0 && delivery.goes_on(self.io.unacknowledged()) => {}
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Shuts down the write half, unless it is shut down already.
    pub(super) async fn finish(&mut self) {
        if !self.is_shut_down {
            let _ = poll_fn(|cx| Pin::new(&mut *self).poll_shutdown(cx)).await;
        }
    }

    /// Lingering close: after a shutdown, reads and discards what the client still sends. Closing a socket with unread
    /// input would reset the connection, and the client could lose the response.
    pub(super) async fn linger(&mut self) {
        if !self.is_shut_down {
            return;
        }
        self.framing.clear();
        self.passed = Vec::new();
        let discard = async {
            let mut receive =
                |cx: &mut Context<'_>| BUFFER.with_borrow_mut(|buffer| self.io.poll_receive(cx, buffer));
            while let Ok(Ok(1..)) = timeout(LINGER_IDLE_TIMEOUT, poll_fn(&mut receive)).await {}
        };
        let _ = timeout(LINGER_TIMEOUT, discard).await;
    }

    /// Returns whether the client has not acknowledged all bytes that were sent.
    pub(super) fn is_receiving(&self) -> bool {
        self.io.unacknowledged() > 0
    }

    /// Waits until the client has acknowledged all bytes that were sent, or nothing for the idle timeout. The kernel would
    /// discard the last bytes of a closed connection after a few minutes.
    pub(super) async fn delivered(&mut self) {
        let _ = poll_fn(|cx| Pin::new(&mut *self).poll_flush(cx)).await;
        let (mut delivery, mut pause) = (Delivery::new(self.idle_timeout), FIRST_DELIVERY_CHECK);
        while delivery.goes_on(self.io.unacknowledged()) && self.is_receiving() {
            sleep(pause).await;
            pause = (pause * 2).min(LINGER_IDLE_TIMEOUT).min(self.idle_timeout);
        }
    }

    /// Writes to the socket, with the timeout for progress.
    fn poll_send(&mut self, cx: &mut Context<'_>, buffers: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let (polled, idle_timeout) = (pin!(&mut self.io).poll_write_vectored(cx, buffers), self.idle_timeout);
        self.unsent.set(polled.is_pending());
        match ready!(self.writing.watch(cx, idle_timeout, polled)) {
            // The kernel reports a full socket as writable only when a third of it is free. A slow client may take longer
            // than the timeout for that, although it makes progress, so try to write before failing.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                self.writing = Deadline::default();
                let written = self.io.write_now(buffers);
                self.unsent.set(written.is_err());
                Poll::Ready(
                    written.map_err(|now| if now.kind() == io::ErrorKind::WouldBlock { error } else { now }),
                )
            }
            result => {
                // Over TLS, bytes that were taken may still wait for the socket.
                self.unsent.set(self.io.holds_back());
                Poll::Ready(result)
            }
        }
    }

    /// Reads from the socket once, and validates what was read.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let taken: Poll<io::Result<_>> = BUFFER.with_borrow_mut(|buffer| {
            let read = ready!(self.io.poll_receive(cx, buffer))?;
            self.input_closed = read == 0;
            let admit = |bytes| self.heads.add_whole(bytes);
            Poll::Ready(Ok(self.framing.take(&buffer[..read], &mut self.passed, admit)))
        });
        let taken = ready!(taken)?.and_then(|()| match self.heads.set_partial(self.framing.held()) {
            true => Ok(()),
            false if self.framing.is_in_body() => Err(Rejected::Body(BodyReject::HeadMemory)),
            false => Err(Rejected::Head(Reject::HeadMemory)),
        });
        match taken {
            Ok(()) => Poll::Ready(Ok(())),
            Err(Rejected::Head(error)) => {
                let _ = self.refusal.set(error);
                self.framing.clear();
                self.passed.extend_from_slice(REFUSED_HEAD);
                self.input_closed = true;
                Poll::Ready(Ok(()))
            }
            Err(Rejected::Body(what)) => {
                self.input_closed = true;
                self.malformed = Some(what);
                Poll::Ready(Ok(()))
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
        while self.passed.is_empty() && !self.input_closed {
            let polled = self.poll_fill(cx);
            // Between requests and in headers, hyper's own timeout applies. Received bytes restart the timeout of a body.
            let (idle_timeout, in_body) = (self.idle_timeout, self.framing.is_in_body());
            let is_watched = in_body || polled.is_ready();
            ready!(if is_watched { self.reading.watch(cx, idle_timeout, polled) } else { polled })?;
        }
        if self.passed.is_empty()
            && let Some(what) = self.malformed.take()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        let length = self.passed.len().min(buffer.remaining());
        buffer.put_slice(&self.passed[..length]);
        self.passed.drain(..length);
        if self.passed.is_empty() && !self.framing.is_in_body() {
            // An idle connection keeps no read buffer.
            self.passed = Vec::new();
        }
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
        let this = &mut *self;
        let Some(pace) = &mut this.pace else { return this.poll_send(cx, buffers) };
        let length = buffers.iter().map(|buffer| buffer.len()).sum();
        let Poll::Ready(turn) = pace.poll_turn(cx, length) else {
            this.unsent.set(true);
            return Poll::Pending;
        };
        let polled = match turn < length {
            true => this.poll_send(cx, &prefix(buffers, turn)),
            false => this.poll_send(cx, buffers),
        };
        if let Some(pace) = &mut this.pace {
            pace.written(turn, if let Poll::Ready(Ok(written)) = polled { written } else { 0 });
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (polled, idle_timeout) = (pin!(&mut self.io).poll_flush(cx), self.idle_timeout);
        self.unsent.set(polled.is_pending());
        self.writing.watch(cx, idle_timeout, polled)
    }

    /// Shuts down the write half; [`ClientStream::linger`] completes the close.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (polled, idle_timeout) = (pin!(&mut self.io).poll_shutdown(cx), self.idle_timeout);
        ready!(self.writing.watch(cx, idle_timeout, polled))?;
        self.is_shut_down = true;
        Poll::Ready(Ok(()))
    }
}

/// Returns the first `length` bytes of buffers.
fn prefix<'a>(buffers: &'a [IoSlice<'a>], mut length: usize) -> Vec<IoSlice<'a>> {
    let cut = buffers.iter().map_while(|buffer| {
        let part = buffer.len().min(length);
        length -= part;
        (part > 0 || buffer.is_empty()).then(|| IoSlice::new(&buffer[..part]))
    });
    cut.collect()
}
