//! Bytes of which not every bit is known.

use super::certainty::Match;

/// A byte. The bits that are not known are zero in `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    value: u8,
    known: u8,
}

impl Bits {
    pub(super) const UNKNOWN: Self = Self { value: 0, known: 0 };

    pub(super) const fn new(value: u8) -> Self {
        Self { value, known: u8::MAX }
    }

    /// Returns the byte, if all of it is known.
    pub(super) fn all(self) -> Option<u8> {
        (self.known == u8::MAX).then_some(self.value)
    }

    /// Returns `self & mask ^ xor`.
    pub(super) fn and_xor(self, mask: u8, xor: u8) -> Self {
        let known = self.known | !mask;
        Self { value: (self.value & mask ^ xor) & known, known }
    }

    /// Returns the byte without what was known of these bits.
    pub(super) fn forget(self, bits: u8) -> Self {
        Self { value: self.value & !bits, known: self.known & !bits }
    }

    /// Returns what is known if the byte is one of the two.
    pub(super) fn or(self, other: Self) -> Self {
        let known = self.known & other.known & !(self.value ^ other.value);
        Self { value: self.value & known, known }
    }

    fn equals(self, value: u8) -> Match {
        match self.all() {
            _ if (self.value ^ value) & self.known != 0 => Match::No,
            Some(_) => Match::Yes,
            None => Match::Maybe,
        }
    }
}

impl From<Option<u8>> for Bits {
    fn from(byte: Option<u8>) -> Self {
        byte.map_or(Self::UNKNOWN, Self::new)
    }
}

pub(super) fn known(bytes: &[u8]) -> Vec<Bits> {
    bytes.iter().copied().map(Bits::new).collect()
}

pub(super) fn unknown(length: usize) -> Vec<Bits> {
    vec![Bits::UNKNOWN; length]
}

/// Returns the bytes, if all are known.
pub(super) fn all_known(bytes: &[Bits]) -> Option<Vec<u8>> {
    bytes.iter().map(|byte| byte.all()).collect()
}

/// Returns whether the bytes are these.
pub(super) fn equal(bytes: &[Bits], values: &[u8]) -> Match {
    Match::all(bytes.iter().zip(values).map(|(byte, value)| byte.equals(*value)))
}
