//! Stripes: pieces of a large object, each of which is placed, cached and evicted on its own.

use std::{fmt, num::NonZero};

use lota_s3::ByteRange;

use super::chunk::CHUNK;

/// A piece of an object: the bytes from `index * length` on, `length` of them or, at the object's end, fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stripe {
    index: u64,
    length: StripeLength,
}

/// Length of an object's stripes, in bytes: a multiple of the cache's chunk, 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StripeLength(NonZero<u64>);

impl StripeLength {
    /// Returns a length of `bytes`; `None` unless it is a multiple of 1 MiB.
    ///
    /// ```
    /// use lota_cache::StripeLength;
    ///
    /// assert_eq!(StripeLength::new(64 << 20).unwrap().bytes(), 64 << 20);
    /// assert_eq!(StripeLength::new(100), None);
    /// ```
    #[must_use]
    pub const fn new(bytes: u64) -> Option<Self> {
        match NonZero::new(bytes) {
            Some(length) if bytes.is_multiple_of(CHUNK as u64) => Some(Self(length)),
            _ => None,
        }
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0.get()
    }

    /// Returns the number of stripes of an object of `size` bytes.
    #[must_use]
    pub fn count(self, size: u64) -> u64 {
        size.div_ceil(self.bytes())
    }

    /// Returns the stripe that contains the byte at `position`.
    #[must_use]
    pub fn containing(self, position: u64) -> Stripe {
        Stripe { index: position / self.bytes(), length: self }
    }
}

impl Stripe {
    /// Returns the stripe with this index, counted from 0. Returns `None` if no object is long enough to have it.
    #[must_use]
    pub fn new(index: u64, length: StripeLength) -> Option<Self> {
        index.checked_add(1)?.checked_mul(length.bytes())?;
        Some(Self { index, length })
    }

    /// Returns the index of the stripe in its object, from 0.
    #[must_use]
    pub fn index(self) -> u64 {
        self.index
    }

    /// Returns the length of all stripes of the object but the last.
    #[must_use]
    pub fn length(self) -> StripeLength {
        self.length
    }

    /// Returns the bytes of the stripe in an object of `size` bytes; an empty range if the object ends before it.
    #[must_use]
    pub fn range(self, size: u64) -> ByteRange {
        let start = self.index.saturating_mul(self.length.bytes()).min(size);
        ByteRange { start, end: (start + self.length.bytes().min(size - start)) }
    }
}

impl fmt::Display for Stripe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stripe {} of {} MiB", self.index, self.length.bytes() >> 20)
    }
}

/// Returns the bytes of an object of `size` bytes that a cache entry holds: a stripe, or all.
pub(super) fn held(stripe: Option<Stripe>, size: u64) -> ByteRange {
    stripe.map_or(ByteRange { start: 0, end: size }, |stripe| stripe.range(size))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn stripes_cover_an_object_once(size in 1..1_u64 << 40, mebibytes in 64..1024_u64, at: u64, length in 1..1_u64 << 34) {
            let stripes = StripeLength::new(mebibytes << 20).unwrap();
            let range = ByteRange { start: at % size, end: (at % size + length).min(size) };
            let (mut position, mut index) = (range.start, None);
            while position < range.end {
                let stripe = stripes.containing(position);
                prop_assert!(index.is_none_or(|index| stripe.index() == index + 1));
                let bytes = stripe.range(size);
                prop_assert!(bytes.start <= position && position < bytes.end && bytes.end <= size);
                (position, index) = (bytes.end, Some(stripe.index()));
            }
            prop_assert!(position - range.end < stripes.bytes());
            let last = Stripe::new(stripes.count(size) - 1, stripes).unwrap();
            prop_assert_eq!(last.range(size).end, size);
            let after = Stripe::new(stripes.count(size), stripes).unwrap();
            prop_assert_eq!(after.range(size).length(), 0);
        }
    }

    #[test]
    fn a_stripe_that_no_object_has_is_none() {
        let length = StripeLength::new(1 << 20).unwrap();
        assert_eq!(Stripe::new(u64::MAX >> 20, length), None);
        assert!(Stripe::new((u64::MAX >> 20) - 1, length).is_some());
        assert_eq!((StripeLength::new(0), StripeLength::new((1 << 20) + 1)), (None, None));
    }
}
