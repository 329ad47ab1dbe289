//! Progress of a fill: which chunks are stored, claimed, or requested by readers.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

use bytes::Bytes;
use lota_s3::ByteRange;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::{
    available::{Available, Broken},
    chunk::CHUNK,
    pending::Pending,
};

/// Maximum number of stored chunks that are reported to a reader at once.
const MAX_AT_ONCE: usize = 64;

/// Number of a chunk in its object, from 0.
pub(super) type Index = usize;

#[derive(Debug)]
pub(super) struct Progress {
    size: u64,
    state: Mutex<ProgressState>,
    /// Wakes readers: bytes have arrived, or the fill has ended.
    grown: Notify,
    /// Wakes the fill: a reader waits for a chunk that is not claimed.
    wanted: Notify,
    /// Wakes the fill: a reader waits for bytes.
    awaited: Notify,
}

#[derive(Debug)]
struct ProgressState {
    chunks: Vec<Chunk>,
    /// Received bytes of incomplete chunks that readers may be waiting for, until the chunks are in the file.
    early: HashMap<Index, Pending>,
    /// Number of stored chunks.
    there: usize,
    /// Every chunk before this one is stored or claimed.
    first_missing: Index,
    /// Unclaimed chunks that readers wait for, in order of request.
    wanted: VecDeque<Index>,
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    Missing,
    /// Claimed by a request of the fill.
    Coming,
    /// Stored, with this CRC-32C.
    There(u32),
}

impl Progress {
    pub(super) fn new(size: u64) -> Self {
        let chunks = usize::try_from(size.div_ceil(CHUNK.into())).unwrap_or(usize::MAX);
        let state = ProgressState {
            chunks: vec![Chunk::Missing; chunks],
            early: HashMap::new(),
            there: 0,
            first_missing: 0,
            wanted: VecDeque::new(),
            ended: false,
        };
        Self {
            size,
            state: Mutex::new(state),
            grown: Notify::new(),
            wanted: Notify::new(),
            awaited: Notify::new(),
        }
    }

    /// Returns available bytes from `position` on, at least one; waits for the first byte.
    pub(super) async fn available(&self, position: u64) -> Result<Available, Broken> {
        loop {
            let grown = self.grown.notified();
            let mut grown = std::pin::pin!(grown);
            // Registers for wake-ups before the state is read, so that none is missed.
            grown.as_mut().enable();
            if let Some(here) = self.look(position)? {
                return Ok(here);
            }
            grown.await;
        }
    }

    fn look(&self, position: u64) -> Result<Option<Available>, Broken> {
        let mut state = self.state();
        let first = usize::try_from(position / u64::from(CHUNK)).map_err(|_| Broken)?;
        let there = state.chunks.iter().skip(first).take(MAX_AT_ONCE);
        let there = there.take_while(|chunk| matches!(chunk, Chunk::There(_))).count();
        if there > 0 {
            return Ok(Some(Available::File(self.bytes(first..first + there).end)));
        }
        let offset = usize::try_from(position % u64::from(CHUNK)).map_err(|_| Broken)?;
        if let Some(bytes) = state.early.get(&first).and_then(|early| early.at(offset)) {
            return Ok(Some(Available::Memory(bytes)));
        }
        if state.ended {
            return Err(Broken);
        }
        self.awaited.notify_one();
        if state.chunks.get(first) == Some(&Chunk::Missing) && !state.wanted.contains(&first) {
            state.wanted.push_back(first);
            self.wanted.notify_one();
        }
        Ok(None)
    }

    /// Requests the chunk that contains the byte at `position`.
    pub(super) fn want(&self, position: u64) {
        // Errors are for the reader, which calls `available`.
        let _ = self.look(position);
    }

    /// Waits until a reader requests an unclaimed chunk.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Waits until a reader waits for bytes, claimed or not.
    pub(super) async fn awaited(&self) {
        self.awaited.notified().await;
    }

    /// Claims at most `most` consecutive missing chunks for the caller: from the first one that a reader waits for;
    /// else, unless `only_wanted`, from the first missing one.
    pub(super) fn claim(&self, most: usize, only_wanted: bool) -> Option<Range<Index>> {
        let mut state = self.state();
        let mut first = None;
        while let Some(wanted) = state.wanted.pop_front() {
            if state.chunks[wanted] == Chunk::Missing {
                first = Some(wanted);
                break;
            }
        }
        if first.is_none() && !only_wanted {
            let missing =
                state.chunks[state.first_missing..].iter().position(|chunk| *chunk == Chunk::Missing);
            state.first_missing = missing.map_or(state.chunks.len(), |at| state.first_missing + at);
            first = missing.map(|_| state.first_missing);
        }
        let first = first?;
        let run =
            state.chunks[first..].iter().take(most).take_while(|chunk| **chunk == Chunk::Missing).count();
        state.chunks[first..first + run].fill(Chunk::Coming);
        Some(first..first + run)
    }

    /// Claims the missing ones of these chunks for the caller.
    pub(super) fn claim_in(&self, chunks: Range<Index>) -> Vec<Index> {
        let mut state = self.state();
        let end = chunks.end.min(state.chunks.len());
        let missing: Vec<Index> =
            (chunks.start..end).filter(|chunk| state.chunks[*chunk] == Chunk::Missing).collect();
        missing.iter().for_each(|chunk| state.chunks[*chunk] = Chunk::Coming);
        missing
    }

    /// Releases claimed chunks that were not fetched.
    pub(super) fn give_back(&self, chunks: impl Iterator<Item = Index>) {
        let mut state = self.state();
        for chunk in chunks {
            if state.chunks[chunk] == Chunk::Coming {
                state.chunks[chunk] = Chunk::Missing;
                state.early.remove(&chunk);
                state.first_missing = state.first_missing.min(chunk);
            }
        }
        drop(state);
        // Readers that wait for them must request them again.
        self.grown.notify_waiters();
    }

    /// Makes received bytes at `offset` in a chunk available to readers before they are in the file.
    pub(super) fn arriving(&self, chunk: Index, offset: usize, mut piece: Bytes) {
        let mut state = self.state();
        if state.chunks[chunk] != Chunk::Coming {
            return;
        }
        let early = state.early.entry(chunk).or_default();
        // Two requests may fetch the same chunk; only bytes beyond those already received are added.
        let known = early.length().checked_sub(offset);
        if let Some(known) = known.filter(|known| *known < piece.len()) {
            early.push(piece.split_off(known));
            drop(state);
            self.grown.notify_waiters();
        }
    }

    /// Records that a chunk is stored in the file, and wakes its readers.
    pub(super) fn arrived(&self, chunk: Index, checksum: u32) {
        let mut state = self.state();
        if !matches!(state.chunks[chunk], Chunk::There(_)) {
            state.there += 1;
        }
        state.chunks[chunk] = Chunk::There(checksum);
        state.early.remove(&chunk);
        drop(state);
        self.grown.notify_waiters();
    }

    /// Records that no more bytes will arrive.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.early.clear();
        drop(state);
        self.grown.notify_waiters();
    }

    pub(super) fn is_there(&self, chunk: Index) -> bool {
        matches!(self.state().chunks.get(chunk), Some(Chunk::There(_)))
    }

    pub(super) fn is_whole(&self) -> bool {
        let state = self.state();
        state.there == state.chunks.len()
    }

    /// Returns the number of stored bytes.
    pub(super) fn so_far(&self) -> u64 {
        (self.state().there as u64 * u64::from(CHUNK)).min(self.size)
    }

    /// Returns the checksum of each chunk, or `None` unless all are stored.
    pub(super) fn checksums(&self) -> Option<Vec<u32>> {
        let checksum = |chunk: &Chunk| match chunk {
            Chunk::There(checksum) => Some(*checksum),
            _ => None,
        };
        self.state().chunks.iter().map(checksum).collect()
    }

    /// Returns the number of chunks.
    pub(super) fn len(&self) -> usize {
        self.state().chunks.len()
    }

    /// Returns the byte range of these chunks.
    pub(super) fn bytes(&self, chunks: Range<Index>) -> ByteRange {
        let at = |chunk: Index| (chunk as u64 * u64::from(CHUNK)).min(self.size);
        ByteRange { start: at(chunks.start), end: at(chunks.end) }
    }

    fn state(&self) -> MutexGuard<'_, ProgressState> {
        self.state.lock()
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
