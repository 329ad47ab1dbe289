//! A client's connection over TLS. Its writer copies the slices that a plain connection would send by `sendfile(2)`.

use std::{
    io::{self, IoSlice},
    os::unix::fs::FileExt as _,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::sendfile::{Slice, Slices, is_token};

/// Maximum number of bytes that wait for encryption.
const MAX_PENDING: usize = 64 << 10;

/// A connection over TLS, with plain bytes that hyper has written and that are not encrypted yet.
#[derive(Debug)]
pub struct TlsConnection {
    tls: Box<TlsStream<TcpStream>>,
    pending: BytesMut,
}

impl TlsConnection {
    /// Wraps a connection whose handshake is complete.
    #[must_use]
    pub fn new(tls: TlsStream<TcpStream>) -> Self {
        Self { tls: Box::new(tls), pending: BytesMut::new() }
    }

    /// Returns the stream, of which nothing was written by other means.
    #[cfg(test)]
    pub(super) fn into_inner(self) -> TlsStream<TcpStream> {
        *self.tls
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        self.tls.get_ref().0
    }

    /// Returns the number of bytes that were written but are not in the socket yet.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Reads decrypted bytes into `buffer`.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut read = ReadBuf::new(buffer);
        match ready!(Pin::new(&mut self.tls).poll_read(cx, &mut read)) {
            Ok(()) => Poll::Ready(Ok(read.filled().len())),
            // Some clients close without `close_notify`. The framing of HTTP detects missing bytes.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(0)),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Takes bytes of `buffers`, whose tokens stand for `slices`.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
        slices: &Slices,
    ) -> Poll<io::Result<usize>> {
        if self.pending.len() >= MAX_PENDING {
            ready!(self.poll_encrypt(cx))?;
        }
        let mut taken = 0;
        for buffer in buffers.iter().filter(|buffer| !buffer.is_empty()) {
            let room = MAX_PENDING - self.pending.len();
            if room == 0 {
                break;
            }
            let length = buffer.len().min(room);
            let copied = match is_token(buffer) {
                true => self.copy_slice(length, slices)?,
                false => {
                    self.pending.extend_from_slice(&buffer[..length]);
                    length
                }
            };
            taken += copied;
            if copied < buffer.len() {
                break;
            }
        }
        if let Poll::Ready(encrypted) = self.poll_encrypt(cx) {
            encrypted?;
        }
        Poll::Ready(Ok(taken))
    }

    /// Copies bytes of the next slice. Returns their number, which can be less than `length`.
    fn copy_slice(&mut self, length: usize, slices: &Slices) -> io::Result<usize> {
        let mut slice = slices.next().ok_or_else(|| io::Error::other("a token without a slice"))?;
        let length = length.min(*slice.length());
        let start = self.pending.len();
        self.pending.resize(start + length, 0);
        let read = match &slice {
            Slice::File(slice) => {
                let read = slice.file.read_at(&mut self.pending[start..], slice.offset);
                if !matches!(read, Ok(1..)) {
                    slice.file.set_failed();
                }
                read
            }
            Slice::Pipe(pipe, _) => pipe.copy(&mut self.pending[start..]),
        };
        self.pending.truncate(start + read.as_ref().map_or(0, |read| *read));
        match read? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a cached file was cut short")),
            read => {
                slices.advance(read);
                Ok(read)
            }
        }
    }

    /// Encrypts and sends all bytes that wait for it.
    fn poll_encrypt(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.tls).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.advance(written);
        }
        // An idle connection keeps no buffer.
        self.pending = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_encrypt(cx))?;
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_encrypt(cx))?;
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
