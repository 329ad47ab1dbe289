//! Forwards a response body of another node by `splice(2)`: from its connection into a pipe, and from the pipe to the
//! client, without copying.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use lota_cache::MAX_SLICE;
use nix::unistd::{SysconfVar, sysconf};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::{io::Interest, net::TcpStream, sync::Notify};

use super::{
    Body, BodyError, Reuse,
    sendfile::{Slice, Slices},
};

/// Requested number of a pipe's slots, if [`MAX_PIPE_SIZE`] permits it. A slot takes one fragment of a packet, however large
/// a page is: with 64 KiB pages, a pipe for as many bytes as with 4 KiB would have four slots. Past
/// `fs.pipe-user-pages-soft` (16384 slots per user by default), the kernel gives less, which also works.
const PIPE_SLOTS: usize = 64;
/// Largest size, in bytes, that `fs.pipe-max-size` permits by default.
const MAX_PIPE_SIZE: usize = 1 << 20;

/// Size to request for a pipe, in bytes.
static PIPE_SIZE: LazyLock<usize> = LazyLock::new(|| {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|page| usize::try_from(page).ok());
    pipe_size(page.unwrap_or(4096))
});

/// Returns the size to request for a pipe on a machine with pages of this size, all in bytes.
fn pipe_size(page: usize) -> usize {
    page.saturating_mul(PIPE_SLOTS).min(MAX_PIPE_SIZE)
}

/// Pipe between two connections.
#[derive(Debug)]
pub struct Pipe {
    end_in: OwnedFd,
    end_out: OwnedFd,
    holds: AtomicUsize,
    emptied: Notify,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (end_out, end_in) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A smaller pipe works as well.
        let _ = fcntl_setpipe_size(&end_in, *PIPE_SIZE);
        Ok(Self { end_in, end_out, holds: AtomicUsize::new(0), emptied: Notify::new() })
    }

    fn fill(&self, from: &TcpStream, limit: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = splice(from, None, &self.end_in, None, limit, flags)?;
        self.holds.fetch_add(moved, Ordering::Relaxed);
        Ok(moved)
    }

    /// Sends bytes from the pipe to `to` without blocking.
    pub(super) fn drain(&self, to: &TcpStream, limit: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = splice(&self.end_out, None, to, None, limit, flags)?;
        self.emptied_by(moved);
        Ok(moved)
    }

    /// Copies bytes out of the pipe without blocking.
    pub(super) fn copy(&self, to: &mut [u8]) -> io::Result<usize> {
        let moved = rustix::io::read(&self.end_out, to)?;
        self.emptied_by(moved);
        Ok(moved)
    }

    fn emptied_by(&self, moved: usize) {
        if self.holds.fetch_sub(moved, Ordering::Relaxed) == moved {
            self.emptied.notify_one();
        }
    }

    fn is_empty(&self) -> bool {
        self.holds.load(Ordering::Relaxed) == 0
    }
}

/// Connection with the bytes of a body.
struct RawSource {
    /// `None` when it was returned.
    stream: Option<TcpStream>,
    /// The right to return it at the end of the body.
    reuse: Option<Reuse>,
}

/// State of a body that consists of the next bytes of a connection.
struct Spliced {
    from: RawSource,
    first: Option<Bytes>,
    left: u64,
    /// `None` until bytes are needed: bodies that wait for their turn have none.
    pipe: Option<Arc<Pipe>>,
    slices: Slices,
}

/// Returns the next `length` bytes of a connection as a body. `first` contains those that have been read already. At the end,
/// the connection can be used again if there is a right to `reuse` it.
pub fn spliced(stream: TcpStream, first: Bytes, length: u64, slices: Slices, reuse: Option<Reuse>) -> Body {
    let first = (!first.is_empty()).then_some(first);
    let from = RawSource { stream: Some(stream), reuse };
    let spliced = Spliced { from, first, left: length, pipe: None, slices };
    let frames = stream::try_unfold(spliced, async |mut spliced| {
        let next = spliced.next().await.map_err(BodyError::new)?;
        Ok(next.map(|bytes| (Frame::data(bytes), spliced)))
    });
    StreamBody::new(frames).boxed_unsync()
}

impl RawSource {
    /// Returns the connection for further requests if it has no bytes of the body left.
    fn has_left(&mut self, bytes: u64) {
        if bytes == 0
            && let (Some(stream), Some(reuse)) = (self.stream.take(), self.reuse.take())
        {
            reuse.put(stream);
        }
    }
}

impl Spliced {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        if let Some(first) = self.first.take() {
            self.left = self.left.checked_sub(first.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
            self.from.has_left(self.left);
            return Ok(Some(first));
        }
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(MAX_SLICE);
        let from = self.from.stream.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let pipe = match &self.pipe {
            Some(pipe) => pipe,
            None => self.pipe.insert(Arc::new(Pipe::new()?)),
        };
        let moved = loop {
            // On an empty pipe, `WouldBlock` means that the connection has no bytes; otherwise the pipe may be full.
            let may_be_full = !pipe.is_empty();
            let moved = if may_be_full {
                pipe.fill(from, limit)
            } else {
                from.readable().await?;
                from.try_io(Interest::READABLE, || pipe.fill(from, limit))
            };
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if may_be_full {
                        pipe.emptied.notified().await;
                    }
                }
                moved => break moved?,
            }
        };
        if moved == 0 {
            // After an error, hyper does not send the bytes that it has already received, so wait until they are sent.
            while !pipe.is_empty() {
                pipe.emptied.notified().await;
            }
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= moved as u64;
        self.from.has_left(self.left);
        Ok(Some(self.slices.queue(Slice::Pipe(pipe.clone(), moved))))
    }
}

#[cfg(test)]
#[path = "splice_tests.rs"]
mod tests;
