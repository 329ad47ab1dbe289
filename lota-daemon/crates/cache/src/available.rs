//! The bytes that a reader can have next.

use bytes::Bytes;
use thiserror::Error;

/// Bytes of an object that are available from a position on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Available {
    /// In the file, up to this offset.
    File(u64),
    /// Received, but not in the file yet.
    Memory(Bytes),
}

/// The fill that a reader followed has failed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the fill of this object failed")]
pub struct Broken;
