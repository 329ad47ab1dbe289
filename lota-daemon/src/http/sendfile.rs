//! Bodies that never enter user space.
//!
//! hyper writes `Bytes`; a cached file is not bytes. So a body hands hyper a *token* instead: a piece of one
//! static, zeroed region, as long as the slice of the file it stands for. The connection's writer sees by its
//! address that a buffer is a token, and calls `sendfile(2)` with the file slice that is next in line. hyper
//! keeps parsing, framing, timeouts and back-pressure, and no byte of the object is copied. What an owner sends
//! goes the same way, out of a pipe that it was spliced into.
//!
//! This holds as long as hyper passes body buffers through unchanged, which it does for vectored writers
//! (`WriteStrategy::Queue`). Should that ever change, zeros would go out instead: the writer notices at the
//! next flush that slices are left over and breaks the connection.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSlice},
    ops::Deref,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::rt::Write;
use hyper_util::rt::TokioIo;
use nix::{
    errno::Errno,
    sys::{
        sendfile::sendfile,
        socket::{MsgFlags, sendmsg},
    },
};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::splice::Pipe;

/// Most bytes in one token. A socket's buffer holds less, as a rule: that bounds what is sent between two looks at other
/// connections.
pub const MAX_SLICE: usize = 4 << 20;

/// Never written, never read: its pages are never even backed by memory.
static TOKENS: LazyLock<&'static [u8]> = LazyLock::new(|| Box::leak(vec![0; MAX_SLICE].into_boxed_slice()));

/// A file whose bytes are sent; whether they can be read shows only then.
#[derive(Debug)]
pub struct BodyFile {
    file: File,
    failed: AtomicBool,
}

impl BodyFile {
    /// Takes a file to be sent.
    #[must_use]
    pub fn new(file: File) -> Arc<Self> {
        Arc::new(Self { file, failed: AtomicBool::new(false) })
    }

    /// Could some of it not be read when it was to be sent?
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
impl BodyFile {
    pub(crate) fn fail_for_tests(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }
}

impl Deref for BodyFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

/// A piece of a file.
#[derive(Clone, Debug)]
pub struct FileSlice {
    /// The file.
    pub file: Arc<BodyFile>,
    /// Where the piece begins.
    pub offset: u64,
    /// Its length in bytes; at most [`MAX_SLICE`].
    pub length: usize,
}

/// What a token stands for.
#[derive(Clone, Debug)]
pub enum Slice {
    /// A piece of a file, sent by `sendfile(2)`.
    File(FileSlice),
    /// So many bytes of what a pipe holds, sent by `splice(2)`.
    Pipe(Arc<Pipe>, usize),
}

/// The slices that one connection is about to send, in order; shared by its bodies and its writer.
#[derive(Clone, Debug, Default)]
pub struct Slices(Arc<Mutex<VecDeque<Slice>>>);

/// Bytes that were sent without entering user space, over all connections.
#[derive(Clone, Debug, Default)]
pub struct SentBytes {
    /// By `sendfile(2)`.
    pub sendfile: Arc<AtomicU64>,
    /// By `splice(2)`.
    pub splice: Arc<AtomicU64>,
}

/// A connection whose writer understands tokens.
pub(super) struct SendfileStream {
    stream: TokioIo<TcpStream>,
    slices: Slices,
    sent: SentBytes,
}

impl Slice {
    fn length(&mut self) -> &mut usize {
        match self {
            Self::File(slice) => &mut slice.length,
            Self::Pipe(_, length) => length,
        }
    }
}

impl Slices {
    /// Queues a slice; the token to hand to hyper in its place, in the same order.
    #[must_use]
    pub fn queue(&self, mut slice: Slice) -> Bytes {
        debug_assert!(*slice.length() <= MAX_SLICE);
        let token = Bytes::from_static(&TOKENS[..*slice.length()]);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(slice);
        token
    }

    fn next(&self) -> Option<Slice> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).front().cloned()
    }

    /// Records that `sent` bytes of the next slice have gone.
    fn advance(&self, sent: usize) {
        let mut slices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slice) = slices.front_mut() {
            if let Slice::File(slice) = slice {
                slice.offset += sent as u64;
            }
            *slice.length() -= sent;
            if *slice.length() == 0 {
                slices.pop_front();
            }
        }
    }

    /// Has all that was queued been sent?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

fn is_token(buffer: &[u8]) -> bool {
    TOKENS.as_ptr_range().contains(&buffer.as_ptr())
}

impl SendfileStream {
    /// A connection; what it sends without copying is added to `sent`.
    pub(super) fn new(stream: TcpStream, slices: Slices, sent: SentBytes) -> Self {
        Self { stream: TokioIo::new(stream), slices, sent }
    }

    /// Receives what has come.
    pub(super) fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let stream = self.stream.inner();
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Ends the connection at once, by a reset.
    pub(super) fn reset(self) {
        let _ = SockRef::from(self.stream.inner()).set_linger(Some(Duration::ZERO));
    }

    /// Writes what the socket takes at once, whether or not it was said to be writable.
    pub(super) fn write_now(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let start = buffers.iter().position(|buffer| !buffer.is_empty()).unwrap_or(buffers.len());
        let buffers = &buffers[start..];
        match buffers.iter().position(|buffer| is_token(buffer)) {
            Some(0) => self.send_slice(buffers[0].len()),
            Some(token) => self.send(&buffers[..token], true),
            None => self.send(buffers, false),
        }
    }

    fn send_slice(&self, length: usize) -> io::Result<usize> {
        let mut slice = self.slices.next().ok_or_else(|| io::Error::other("a token without a slice"))?;
        let length = length.min(*slice.length());
        let (sent, counter) = match &slice {
            Slice::File(slice) => (self.send_file(slice, length)?, &self.sent.sendfile),
            Slice::Pipe(pipe, _) => (pipe.drain(self.stream.inner(), length)?, &self.sent.splice),
        };
        self.slices.advance(sent);
        counter.fetch_add(sent as u64, Ordering::Relaxed);
        Ok(sent)
    }

    fn send_file(&self, slice: &FileSlice, length: usize) -> io::Result<usize> {
        let mut offset = i64::try_from(slice.offset).map_err(io::Error::other)?;
        let sent = sendfile(self.stream.inner().as_fd(), slice.file.as_fd(), Some(&mut offset), length);
        if matches!(
            sent,
            Ok(0) | Err(Errno::EIO | Errno::EBADMSG | Errno::EUCLEAN | Errno::ENXIO | Errno::ENODEV)
        ) {
            slice.file.failed.store(true, Ordering::Relaxed);
        }
        match sent? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a cached file was cut short")),
            sent => Ok(sent),
        }
    }

    fn send(&self, buffers: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
        // With a file slice to follow, head and first data share a segment.
        let mut flags = MsgFlags::MSG_NOSIGNAL;
        if more {
            flags |= MsgFlags::from_bits_retain(nix::libc::MSG_MORE);
        }
        Ok(sendmsg::<()>(self.stream.inner().as_raw_fd(), buffers, &[], flags, None)?)
    }
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
        let stream = self.stream.inner();
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_io(Interest::WRITABLE, || self.write_now(buffers)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when all it had buffered is written, and every slice was buffered when it was queued.
        if self.slices.is_empty() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Ready(Err(io::Error::other("slices were not sent as such")))
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "sendfile_tests.rs"]
mod tests;
