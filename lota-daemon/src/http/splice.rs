//! Bodies that another node sends, passed on by `splice(2)`: from its connection into a pipe, and from the pipe to the
//! client, without a copy.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::{io::Interest, net::TcpStream, sync::Notify};

use super::{
    Body, BodyError,
    sendfile::{MAX_SLICE, Slice, Slices},
};

/// Bytes that a pipe is to hold. All pipes of a user may have 64 MiB by default, `fs.pipe-user-pages-soft`; past that
/// they get less, and still work.
const HOLDS: usize = 256 << 10;

/// What has come from one connection and is to go to another.
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
        // Less would do, too.
        let _ = fcntl_setpipe_size(&end_in, HOLDS);
        Ok(Self { end_in, end_out, holds: AtomicUsize::new(0), emptied: Notify::new() })
    }

    fn fill(&self, from: &TcpStream, most: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = splice(from, None, &self.end_in, None, most, flags)?;
        self.holds.fetch_add(moved, Ordering::Relaxed);
        Ok(moved)
    }

    /// Sends some of it, at once or not at all.
    pub(super) fn drain(&self, to: &TcpStream, most: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = splice(&self.end_out, None, to, None, most, flags)?;
        if self.holds.fetch_sub(moved, Ordering::Relaxed) == moved {
            self.emptied.notify_one();
        }
        Ok(moved)
    }

    fn is_empty(&self) -> bool {
        self.holds.load(Ordering::Relaxed) == 0
    }
}

/// What is left of a body that is nothing but the next bytes of a connection.
struct Spliced {
    from: TcpStream,
    first: Option<Bytes>,
    left: u64,
    pipe: Arc<Pipe>,
    slices: Slices,
}

/// The next `length` bytes of a connection; `first` are those of them that have been read already.
///
/// # Errors
/// If there is no pipe to be had.
pub fn spliced(from: TcpStream, first: Bytes, length: u64, slices: Slices) -> io::Result<Body> {
    let first = (!first.is_empty()).then_some(first);
    let spliced = Spliced { from, first, left: length, pipe: Arc::new(Pipe::new()?), slices };
    let frames = stream::try_unfold(spliced, async |mut spliced| {
        let next = spliced.next().await.map_err(BodyError::new)?;
        Ok(next.map(|bytes| (Frame::data(bytes), spliced)))
    });
    Ok(StreamBody::new(frames).boxed_unsync())
}

impl Spliced {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        if let Some(first) = self.first.take() {
            self.left = self.left.checked_sub(first.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
            return Ok(Some(first));
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(MAX_SLICE);
        let moved = loop {
            // An empty pipe takes something, if there is anything; one that is not may be full.
            let may_be_full = !self.pipe.is_empty();
            let moved = if may_be_full {
                self.pipe.fill(&self.from, most)
            } else {
                self.from.readable().await?;
                self.from.try_io(Interest::READABLE, || self.pipe.fill(&self.from, most))
            };
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if may_be_full {
                        self.pipe.emptied.notified().await;
                    }
                }
                moved => break moved?,
            }
        };
        if moved == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= moved as u64;
        Ok(Some(self.slices.queue(Slice::Pipe(self.pipe.clone(), moved))))
    }
}

#[cfg(test)]
#[path = "splice_tests.rs"]
mod tests;
