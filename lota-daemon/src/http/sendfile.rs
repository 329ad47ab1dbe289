//! Sends bodies without copying them to user space.
//!
//! hyper writes `Bytes`, but a cached file is a file descriptor. A body therefore gives hyper a *token*: a part of one
//! static, zeroed region, as long as the slice of the file that it represents. The connection's writer recognizes a token
//! by its address and calls `sendfile(2)` with the next slice in the queue. hyper still does parsing, framing, timeouts and
//! back-pressure. Bytes of another node are sent in the same way, from the pipe that they were spliced into.
//!
//! This works because hyper passes body buffers to vectored writers unchanged (`WriteStrategy::Queue`). If hyper copied
//! them, it would send zeros; the writer then finds unsent slices at the next flush and fails the connection.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::rt::Write;
use lota_cache::{FileSlice, MAX_SLICE};
use nix::{
    errno::Errno,
    sys::{
        sendfile::sendfile,
        socket::{MsgFlags, sendmsg},
    },
};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{
    io::{AsyncWrite as _, Interest},
    net::TcpStream,
};

use super::{meter::Meter, splice::Pipe, tls_connection::TlsConnection};

nix::ioctl_read_bad!(
    /// `SIOCOUTQ` of tcp(7).
    unacknowledged,
    nix::libc::TIOCOUTQ,
    nix::libc::c_int
);

/// Region that tokens point into. It is never read or written, so it uses no memory.
static TOKENS: LazyLock<&'static [u8]> = LazyLock::new(|| Box::leak(vec![0; MAX_SLICE].into_boxed_slice()));

/// Bytes that a token represents.
#[derive(Clone, Debug)]
pub enum Slice {
    /// Part of a file, sent by `sendfile(2)`.
    File(FileSlice),
    /// A number of bytes from a pipe, sent by `splice(2)`.
    Pipe(Arc<Pipe>, usize),
}

/// Queue of the slices that a connection sends next; shared by its bodies and its writer.
#[derive(Clone, Debug, Default)]
pub struct Slices(Arc<Mutex<VecDeque<Queued>>>);

/// A slice, with the meter that counts its bytes when they are sent.
type Queued = (Slice, Option<Meter>);

/// Number of bytes that were sent without copying, over all connections.
#[derive(Clone, Debug, Default)]
pub struct SentBytes {
    /// By `sendfile(2)`.
    pub sendfile: Arc<AtomicU64>,
    /// By `splice(2)`.
    pub splice: Arc<AtomicU64>,
}

/// A client's connection.
#[derive(Debug)]
pub enum ServerStream {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS.
    Tls(TlsConnection),
}

impl From<TcpStream> for ServerStream {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(stream)
    }
}

impl ServerStream {
    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(tls) => tls.tcp(),
        }
    }
}

/// A connection whose writer replaces tokens by their slices.
pub(super) struct SendfileStream {
    stream: ServerStream,
    slices: Slices,
    sent: SentBytes,
}

impl Slice {
    pub(super) fn length(&mut self) -> &mut usize {
        match self {
            Self::File(slice) => &mut slice.length,
            Self::Pipe(_, length) => length,
        }
    }
}

impl Slices {
    /// Queues a slice. Returns its token, which hyper must write in the same order.
    #[must_use]
    pub fn queue(&self, slice: Slice) -> Bytes {
        self.push(slice, None)
    }

    /// Queues a slice like [`Self::queue`]; `meter` counts its bytes when they are written to the socket.
    #[must_use]
    pub fn queue_metered(&self, slice: Slice, meter: Meter) -> Bytes {
        self.push(slice, Some(meter))
    }

    fn push(&self, mut slice: Slice, meter: Option<Meter>) -> Bytes {
        debug_assert!(*slice.length() <= MAX_SLICE);
        let token = Bytes::from_static(&TOKENS[..*slice.length()]);
        self.0.lock().push_back((slice, meter));
        token
    }

    pub(super) fn next(&self) -> Option<Slice> {
        self.0.lock().front().map(|(slice, _)| slice.clone())
    }

    /// Records that `sent` bytes of the next slice were sent.
    pub(super) fn advance(&self, sent: usize) {
        let mut slices = self.0.lock();
        if let Some((slice, meter)) = slices.front_mut() {
            if let Some(meter) = meter {
                meter.sent(sent as u64);
            }
            if let Slice::File(slice) = slice {
                slice.offset += sent as u64;
            }
            *slice.length() -= sent;
            if *slice.length() == 0 {
                slices.pop_front();
            }
        }
    }

    /// Returns whether everything in the queue has been sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

pub(super) fn is_token(buffer: &[u8]) -> bool {
    TOKENS.as_ptr_range().contains(&buffer.as_ptr())
}

impl SendfileStream {
    /// Wraps a connection. Bytes that it sends without copying are added to `sent`.
    pub(super) fn new(stream: ServerStream, slices: Slices, sent: SentBytes) -> Self {
        Self { stream, slices, sent }
    }

    /// Reads received bytes into `buffer`.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let stream = match &mut self.stream {
            ServerStream::Plain(stream) => stream,
            ServerStream::Tls(tls) => return tls.poll_receive(cx, buffer),
        };
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Returns the number of written bytes that the client has not acknowledged; 0 if the connection is broken.
    pub(super) fn unacknowledged(&self) -> usize {
        let stream = self.stream.tcp();
        if stream.peer_addr().is_err() {
            return 0;
        }
        let mut bytes = 0;
        // SAFETY: the descriptor is an open socket, and the ioctl writes one integer.
        let result = unsafe { unacknowledged(stream.as_raw_fd(), &raw mut bytes) };
        let sent = result.ok().and_then(|_| usize::try_from(bytes).ok()).unwrap_or(0);
        match &self.stream {
            ServerStream::Plain(_) => sent,
            ServerStream::Tls(tls) => sent + tls.pending(),
        }
    }

    /// Returns whether bytes that were written are not in the socket yet.
    pub(super) fn holds_back(&self) -> bool {
        matches!(&self.stream, ServerStream::Tls(tls) if tls.pending() > 0)
    }

    /// Resets the connection.
    pub(super) fn reset(self) {
        let _ = SockRef::from(self.stream.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// Writes without blocking, even if the socket was not reported as writable; over TLS, not at all.
    pub(super) fn write_now(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.stream {
            ServerStream::Plain(stream) => self.write_to(stream, buffers),
            ServerStream::Tls(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn write_to(&self, stream: &TcpStream, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let start = buffers.iter().position(|buffer| !buffer.is_empty()).unwrap_or(buffers.len());
        let buffers = &buffers[start..];
        match buffers.iter().position(|buffer| is_token(buffer)) {
            Some(0) => self.send_slice(stream, buffers[0].len()),
            Some(token) => send(stream, &buffers[..token], true),
            None => send(stream, buffers, false),
        }
    }

    fn send_slice(&self, stream: &TcpStream, length: usize) -> io::Result<usize> {
        let mut slice = self.slices.next().ok_or_else(|| io::Error::other("a token without a slice"))?;
        let length = length.min(*slice.length());
        let (sent, counter) = match &slice {
            Slice::File(slice) => (send_file(stream, slice, length)?, &self.sent.sendfile),
            Slice::Pipe(pipe, _) => (pipe.drain(stream, length)?, &self.sent.splice),
        };
        self.slices.advance(sent);
        counter.fetch_add(sent as u64, Ordering::Relaxed);
        Ok(sent)
    }
}

fn send_file(stream: &TcpStream, slice: &FileSlice, length: usize) -> io::Result<usize> {
    let mut offset = i64::try_from(slice.offset).map_err(io::Error::other)?;
    let sent = sendfile(stream.as_fd(), slice.file.as_fd(), Some(&mut offset), length);
    if matches!(
        sent,
        Ok(0) | Err(Errno::EIO | Errno::EBADMSG | Errno::EUCLEAN | Errno::ENXIO | Errno::ENODEV)
    ) {
        slice.file.set_failed();
    }
    match sent? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a cached file was cut short")),
        sent => Ok(sent),
    }
}

fn send(stream: &TcpStream, buffers: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
    // Headers and the file slice that follows share a segment.
    let mut flags = MsgFlags::MSG_NOSIGNAL;
    if more {
        flags |= MsgFlags::from_bits_retain(nix::libc::MSG_MORE);
    }
    Ok(sendmsg::<()>(stream.as_raw_fd(), buffers, &[], flags, None)?)
}

impl Write for SendfileStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buffer)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let ServerStream::Tls(tls) = &mut this.stream {
            return tls.poll_write(cx, buffers, &this.slices);
        }
        let stream = this.stream.tcp();
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_io(Interest::WRITABLE, || this.write_to(stream, buffers)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes after it has written its buffers, which contain the token of each queued slice.
        if !self.slices.is_empty() {
            return Poll::Ready(Err(io::Error::other("hyper did not write the tokens of all slices")));
        }
        match &mut self.stream {
            ServerStream::Plain(_) => Poll::Ready(Ok(())),
            ServerStream::Tls(tls) => tls.poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            ServerStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            ServerStream::Tls(tls) => tls.poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[path = "sendfile_tests.rs"]
mod tests;
