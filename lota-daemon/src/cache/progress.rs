//! How far a growing object has come: which of its chunks are there, which are on their way, which are waited for.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{pending::Pending, reader::Broken, record::CHUNK};
use crate::s3::ByteRange;

/// Most chunks that a reader is told of at once: it asks again when it has sent them.
const MOST_AT_ONCE: usize = 64;

/// One chunk, by its place in the object.
pub(super) type Index = usize;

/// What is there of an object from some byte on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Here {
    /// It is in the file, up to this byte.
    File(u64),
    /// It has only just come, and is not in the file yet.
    Memory(Bytes),
}

#[derive(Debug)]
pub(super) struct Progress {
    size: u64,
    state: Mutex<State>,
    /// Wakes readers: a chunk has come, or nothing more will.
    grown: Notify,
    /// Wakes the fill: a reader waits for a chunk that is not on its way.
    wanted: Notify,
}

#[derive(Debug)]
struct State {
    chunks: Vec<Chunk>,
    /// What has come of chunks that someone may be waiting for, until they are whole and in the file.
    early: HashMap<Index, Pending>,
    /// Chunks that are there.
    there: usize,
    /// Before it, every chunk is there or on its way.
    first_missing: Index,
    /// Chunks that readers wait for and nobody brings, first come first.
    wanted: VecDeque<Index>,
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    Missing,
    /// Someone brings it.
    Coming,
    /// It has this CRC-32C.
    There(u32),
}

impl Progress {
    pub(super) fn new(size: u64) -> Self {
        let chunks = usize::try_from(size.div_ceil(CHUNK.into())).unwrap_or(usize::MAX);
        let state = State {
            chunks: vec![Chunk::Missing; chunks],
            early: HashMap::new(),
            there: 0,
            first_missing: 0,
            wanted: VecDeque::new(),
            ended: false,
        };
        Self { size, state: Mutex::new(state), grown: Notify::new(), wanted: Notify::new() }
    }

    /// What is there from `position` on, or some of it; waits for the first byte.
    pub(super) async fn available(&self, position: u64) -> Result<Here, Broken> {
        loop {
            let grown = self.grown.notified();
            let mut grown = std::pin::pin!(grown);
            // From here on nothing is missed.
            grown.as_mut().enable();
            if let Some(here) = self.look(position)? {
                return Ok(here);
            }
            grown.await;
        }
    }

    fn look(&self, position: u64) -> Result<Option<Here>, Broken> {
        let mut state = self.state();
        let first = usize::try_from(position / u64::from(CHUNK)).map_err(|_| Broken)?;
        let there = state.chunks.iter().skip(first).take(MOST_AT_ONCE);
        let there = there.take_while(|chunk| matches!(chunk, Chunk::There(_))).count();
        if there > 0 {
            return Ok(Some(Here::File(self.bytes(first..first + there).end)));
        }
        let offset = usize::try_from(position % u64::from(CHUNK)).map_err(|_| Broken)?;
        if let Some(bytes) = state.early.get(&first).and_then(|early| early.at(offset)) {
            return Ok(Some(Here::Memory(bytes)));
        }
        if state.ended {
            return Err(Broken);
        }
        if state.chunks.get(first) == Some(&Chunk::Missing) && !state.wanted.contains(&first) {
            state.wanted.push_back(first);
            self.wanted.notify_one();
        }
        Ok(None)
    }

    /// Says that the byte at `position` is waited for.
    pub(super) fn want(&self, position: u64) {
        // Nothing is missing, or nothing ever comes: either is for the reader to find.
        let _ = self.look(position);
    }

    /// Waits until a reader wants what nobody brings.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Chunks for the caller to bring, `most` at most: those that a reader waits for; else, unless `only_wanted`, the
    /// first that are missing.
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

    /// What is missing of these chunks, for the caller to bring.
    pub(super) fn claim_in(&self, chunks: Range<Index>) -> Vec<Index> {
        let mut state = self.state();
        let end = chunks.end.min(state.chunks.len());
        let missing: Vec<Index> =
            (chunks.start..end).filter(|chunk| state.chunks[*chunk] == Chunk::Missing).collect();
        missing.iter().for_each(|chunk| state.chunks[*chunk] = Chunk::Coming);
        missing
    }

    /// Chunks that were claimed will not be brought by who claimed them.
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
        // Who waits for them must say so again.
        self.grown.notify_waiters();
    }

    /// Some bytes of a chunk have come, at `offset` in it: readers need not wait until they are in the file.
    pub(super) fn arriving(&self, chunk: Index, offset: usize, mut piece: Bytes) {
        let mut state = self.state();
        if state.chunks[chunk] != Chunk::Coming {
            return;
        }
        let early = state.early.entry(chunk).or_default();
        // Two may bring it, of whom one is ahead.
        let known = early.length().checked_sub(offset);
        if let Some(known) = known.filter(|known| *known < piece.len()) {
            early.push(piece.split_off(known));
            drop(state);
            self.grown.notify_waiters();
        }
    }

    /// A chunk is in its file; its readers may go on.
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

    /// Nothing more will come.
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

    /// Bytes that are there.
    pub(super) fn so_far(&self) -> u64 {
        (self.state().there as u64 * u64::from(CHUNK)).min(self.size)
    }

    /// The checksum of each chunk, once all are there.
    pub(super) fn checksums(&self) -> Option<Vec<u32>> {
        let checksum = |chunk: &Chunk| match chunk {
            Chunk::There(checksum) => Some(*checksum),
            _ => None,
        };
        self.state().chunks.iter().map(checksum).collect()
    }

    /// How many chunks the object has.
    pub(super) fn len(&self) -> usize {
        self.state().chunks.len()
    }

    /// The bytes of these chunks.
    pub(super) fn bytes(&self, chunks: Range<Index>) -> ByteRange {
        let at = |chunk: Index| (chunk as u64 * u64::from(CHUNK)).min(self.size);
        ByteRange { start: at(chunks.start), end: at(chunks.end) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
