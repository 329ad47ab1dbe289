//! The bytes of a partial object: which of them are stored, and which arrive.

use std::{collections::HashMap, io, ops::Range};

use bytes::Bytes;
use lota_s3::ByteRange;
use parking_lot::{Mutex, MutexGuard};
use rangemap::RangeSet;
use tokio::sync::Notify;

use super::{
    available::{Available, Broken},
    pending::Pending,
    room,
};

/// Maximum number of separate ranges in one partial object. Each takes about 32 bytes of memory.
pub(super) const MAX_FRAGMENTS: usize = 1024;

/// Maximum distance, in bytes, of a request's first arriving byte from the bytes that the response sends next. Further away,
/// the response would come too late.
const MAX_WAIT: u64 = 16 << 20;

/// Stored and arriving bytes of one partial object. Stored bytes never decrease, and are never written again.
#[derive(Debug)]
pub(super) struct Ranges {
    size: u64,
    state: Mutex<RangesState>,
    /// Held while missing bytes are written, so that no two responses write the same bytes.
    writing: Mutex<()>,
    /// Wakes readers: bytes have arrived, or a response has ended.
    grown: Notify,
}

#[derive(Debug, Default)]
struct RangesState {
    /// Bytes in the file.
    stored: RangeSet<u64>,
    /// Responses in progress.
    arriving: HashMap<ArrivalId, ArrivingRange>,
    next_id: u64,
    /// Disk space of the stored and arriving bytes, in bytes.
    disk: u64,
}

/// Identifies one response in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ArrivalId(u64);

#[derive(Debug)]
struct ArrivingRange {
    /// Bytes of the response that were not written yet.
    left: Range<u64>,
    /// First bytes of `left`, received and readable before they are in the file.
    early: Pending,
}

impl Ranges {
    pub(super) fn new(size: u64) -> Self {
        let mut state = RangesState::default();
        state.count_disk();
        Self { size, state: Mutex::new(state), writing: Mutex::default(), grown: Notify::new() }
    }

    /// Announces a response with this range. Returns `None` if the object would have too many separate
    /// ranges; a range that begins in or directly after a stored one does not add to them.
    pub(super) fn begin(&self, range: ByteRange) -> Option<ArrivalId> {
        let mut state = self.state();
        let extends =
            [range.start, range.start.saturating_sub(1)].iter().any(|byte| state.stored.contains(byte));
        if state.stored.len() + state.arriving.len() >= MAX_FRAGMENTS && !extends {
            return None;
        }
        let id = ArrivalId(state.next_id);
        state.next_id += 1;
        state.arriving.insert(id, ArrivingRange { left: range.start..range.end, early: Pending::default() });
        state.count_disk();
        Some(id)
    }

    /// Makes received bytes readable before they are written. The bytes of one response follow each other.
    pub(super) fn received(&self, id: ArrivalId, piece: Bytes) {
        if let Some(arrival) = self.state().arriving.get_mut(&id) {
            arrival.early.push(piece);
        }
        self.grown.notify_waiters();
    }

    /// Stores the next bytes of a response, up to `end`: has `write` write those that are not stored yet.
    pub(super) fn store(
        &self,
        id: ArrivalId,
        end: u64,
        mut write: impl FnMut(Range<u64>) -> io::Result<()>,
    ) -> io::Result<()> {
        let _one = self.writing.lock();
        let missing: Vec<_> = {
            let state = self.state();
            let Some(arrival) = state.arriving.get(&id) else { return Ok(()) };
            state.stored.gaps(&(arrival.left.start..end)).collect()
        };
        missing.into_iter().try_for_each(&mut write)?;
        let mut state = self.state();
        if let Some(arrival) = state.arriving.get_mut(&id) {
            let range = arrival.left.start..end;
            arrival.left.start = end;
            arrival.early = Pending::default();
            if !range.is_empty() {
                state.stored.insert(range);
            }
        }
        drop(state);
        self.grown.notify_waiters();
        Ok(())
    }

    /// Records that a response has ended. Readers of bytes that did not arrive fail.
    pub(super) fn end(&self, id: ArrivalId) {
        let mut state = self.state();
        state.arriving.remove(&id);
        state.count_disk();
        drop(state);
        self.grown.notify_waiters();
    }

    /// Returns available bytes from `position` on, at least one; waits for the first byte if it arrives.
    pub(super) async fn available(&self, position: u64) -> Result<Available, Broken> {
        loop {
            let grown = self.grown.notified();
            let mut grown = std::pin::pin!(grown);
            // Registers for wake-ups before the state is read, so that none is missed.
            grown.as_mut().enable();
            if let Some(here) = self.state().look(position)? {
                return Ok(here);
            }
            grown.await;
        }
    }

    /// Returns whether every byte of this range is stored or arrives soon.
    pub(super) fn covers(&self, range: ByteRange) -> bool {
        let (state, mut position) = (self.state(), range.start);
        while position < range.end {
            let arriving = || state.arriving.values().map(|arrival| &arrival.left);
            let is_near = |left: &&Range<u64>| left.contains(&position) && position - left.start <= MAX_WAIT;
            let next = state.stored.get(&position).or_else(|| arriving().find(is_near));
            match next {
                Some(next) => position = next.end,
                None => return false,
            }
        }
        true
    }

    /// Returns whether every byte of this range is stored.
    pub(super) fn has(&self, range: ByteRange) -> bool {
        self.state().stored.gaps(&(range.start..range.end)).next().is_none()
    }

    /// Returns whether all bytes of the object are stored.
    pub(super) fn is_whole(&self) -> bool {
        self.has(ByteRange { start: 0, end: self.size })
    }

    /// Returns the number of stored bytes.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.state().stored.iter().map(|range| range.end - range.start).sum()
    }

    /// Returns the number of separate ranges, with those that arrive.
    pub(super) fn fragments(&self) -> usize {
        let state = self.state();
        state.stored.len() + state.arriving.len()
    }

    /// Returns the disk space of the stored and arriving bytes, in bytes.
    pub(super) fn disk(&self) -> u64 {
        self.state().disk
    }

    fn state(&self) -> MutexGuard<'_, RangesState> {
        self.state.lock()
    }
}

impl RangesState {
    /// Counts the disk space. It changes only when a response begins or ends: bytes that are written were counted when they
    /// were announced.
    fn count_disk(&mut self) {
        let mut all = self.stored.clone();
        let arriving = self.arriving.values().map(|arrival| arrival.left.clone());
        all.extend(arriving.filter(|left| !left.is_empty()));
        self.disk = room::of_ranges(all.iter().cloned());
    }

    fn look(&self, position: u64) -> Result<Option<Available>, Broken> {
        if let Some(stored) = self.stored.get(&position) {
            return Ok(Some(Available::File(stored.end)));
        }
        let arriving = || self.arriving.values().filter(|arrival| arrival.left.contains(&position));
        let early = arriving().find_map(|arrival| {
            arrival.early.at(usize::try_from(position - arrival.left.start).unwrap_or(usize::MAX))
        });
        match early {
            Some(bytes) => Ok(Some(Available::Memory(bytes))),
            None if arriving().next().is_some() => Ok(None),
            None => Err(Broken),
        }
    }
}

#[cfg(test)]
#[path = "ranges_tests.rs"]
mod tests;
