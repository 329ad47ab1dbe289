//! Buffer for bytes that were received and are not written to disk yet.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Pieces shorter than this, in bytes, are merged, to save system calls.
const SMALL: usize = 16 << 10;

/// Received pieces that are not written yet. Only small pieces are copied.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pieces: VecDeque<Bytes>,
    /// Small pieces that follow `pieces`.
    small: BytesMut,
    bytes: usize,
}

impl Pending {
    /// Appends a piece.
    pub(super) fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        if piece.len() < SMALL {
            self.small.extend_from_slice(&piece);
        }
        if piece.len() >= SMALL || self.small.len() >= SMALL {
            self.settle();
        }
        if piece.len() >= SMALL {
            self.pieces.push_back(piece);
        }
    }

    /// Returns the number of buffered bytes.
    pub(super) fn length(&self) -> usize {
        self.bytes
    }

    /// Returns the bytes from `offset` to the end of their piece.
    pub(super) fn at(&self, offset: usize) -> Option<Bytes> {
        let mut start = 0;
        for piece in &self.pieces {
            if offset < start + piece.len() {
                return Some(piece.slice(offset - start..));
            }
            start += piece.len();
        }
        self.small.get(offset - start..).filter(|rest| !rest.is_empty()).map(Bytes::copy_from_slice)
    }

    fn settle(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push_back(self.small.split().freeze());
        }
    }

    /// Removes and returns the first `bytes` bytes, which must be buffered.
    pub(super) fn take(&mut self, bytes: usize) -> Vec<Bytes> {
        self.settle();
        let (mut taken, mut left) = (Vec::new(), bytes);
        while left > 0
            && let Some(mut piece) = self.pieces.pop_front()
        {
            if piece.len() > left {
                self.pieces.push_front(piece.split_off(left));
            }
            left -= piece.len();
            taken.push(piece);
        }
        self.bytes -= bytes - left;
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn single_bytes_are_merged() {
        let mut pending = Pending::default();
        (0..100_000).for_each(|_| pending.push(Bytes::from_static(b"x")));
        let taken = pending.take(100_000);
        assert_eq!(taken.concat().len(), 100_000);
        assert!(taken.len() <= 100_000 / SMALL + 1, "{} pieces", taken.len());
    }

    proptest! {
        #[test]
        fn bytes_leave_in_order(
            steps in prop::collection::vec((prop_oneof![1..99usize, SMALL - 2..SMALL + 2, 1..100_000usize], 0..=100u8), 1..50),
        ) {
            let (mut pending, mut model) = (Pending::default(), Vec::new());
            let mut next = 0u8;
            for (length, percent) in steps {
                let piece: Vec<u8> = (0..length).map(|_| { next = next.wrapping_add(41); next }).collect();
                model.extend_from_slice(&piece);
                pending.push(piece.into());
                prop_assert_eq!(pending.length(), model.len());
                let at = model.len() * usize::from(percent) / 101;
                let seen = pending.at(at).unwrap_or_default();
                prop_assert!(!seen.is_empty() && model[at..].starts_with(&seen), "seen from {}", at);
                prop_assert_eq!(pending.at(model.len()), None);
                let rest = model.split_off(model.len() * usize::from(percent) / 100);
                let taken = pending.take(model.len());
                prop_assert!(taken.concat() == model, "other bytes");
                model = rest;
            }
        }
    }
}
