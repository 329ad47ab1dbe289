//! Reads files into the page cache. `sendfile(2)` of a file that is only on disk would block the thread with all its
//! connections.

use std::{io::IoSliceMut, os::unix::fs::FileExt as _, sync::Arc};

use rustix::io::{ReadWriteFlags, preadv2};
use tokio::task::spawn_blocking;

use super::BodyFile;

/// Bytes per read; the read data is discarded.
const PIECE: usize = 128 << 10;
/// Distance between two bytes that are probed in the page cache.
const STRIDE: usize = 1 << 20;

impl BodyFile {
    /// Reads a slice into the page cache on a blocking thread, unless it is there already. Read errors show when the
    /// slice is sent.
    pub async fn warm(self: &Arc<Self>, offset: u64, length: u64) {
        if !self.is_warm(offset, length) {
            let file = self.clone();
            let _ = spawn_blocking(move || file.read_through(offset, length)).await;
        }
    }

    /// Starts to read a slice into the page cache and does not wait for it.
    pub fn read_ahead(self: &Arc<Self>, offset: u64, length: u64) {
        if !self.is_warm(offset, length) {
            let file = self.clone();
            drop(spawn_blocking(move || file.read_through(offset, length)));
        }
    }

    /// Returns whether a slice is probably in the page cache. Probes one byte per mebibyte and the last byte; of a
    /// short slice only the last.
    #[must_use]
    pub fn is_warm(&self, offset: u64, length: u64) -> bool {
        let is_warm = |at| {
            let mut byte = [0];
            let read = preadv2(&**self, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
            // File systems without support for NOWAIT return other errors and count as warm.
            read != Err(rustix::io::Errno::AGAIN)
        };
        let others = if length <= PIECE as u64 { 0 } else { length };
        length == 0
            || is_warm(offset + length - 1) && (0..others).step_by(STRIDE).all(|at| is_warm(offset + at))
    }

    fn read_through(&self, offset: u64, length: u64) {
        let (mut bytes, end) = (vec![0; PIECE], offset + length);
        let mut at = offset;
        while at < end {
            let most = bytes.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            match self.read_at(&mut bytes[..most], at) {
                Ok(read @ 1..) => at += read as u64,
                _ => return,
            }
        }
    }
}
