//! Files that are on disk only: `sendfile(2)` would wait for the disk, and every connection of its thread with it.

use std::{io::IoSliceMut, os::unix::fs::FileExt as _, sync::Arc};

use rustix::io::{ReadWriteFlags, preadv2};
use tokio::task::spawn_blocking;

use super::sendfile::BodyFile;

/// Bytes read at once, to be forgotten: that they are in the page cache is all that is wanted.
const PIECE: usize = 128 << 10;
/// Between two bytes that are looked for in the page cache.
const STRIDE: usize = 1 << 20;

impl BodyFile {
    /// Reads a piece into the page cache, on a thread that may wait, unless it is there already. What cannot be read
    /// shows when it is sent.
    pub async fn warm(self: &Arc<Self>, offset: u64, length: u64) {
        if !self.is_warm(offset, length) {
            let file = self.clone();
            let _ = spawn_blocking(move || file.read_through(offset, length)).await;
        }
    }

    /// Begins to do so, without waiting for the end.
    pub fn read_ahead(self: &Arc<Self>, offset: u64, length: u64) {
        if !self.is_warm(offset, length) {
            let file = self.clone();
            drop(spawn_blocking(move || file.read_through(offset, length)));
        }
    }

    /// Is it in memory? One byte in a mebibyte is looked at, and the last; of a short piece only that. What lies between was
    /// read with them, as a rule.
    #[must_use]
    pub fn is_warm(&self, offset: u64, length: u64) -> bool {
        let is_warm = |at| {
            let mut byte = [0];
            let read = preadv2(&**self, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
            // Some file systems cannot say.
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
