//! The unit of checksums and of fills.

/// Bytes per chunk.
pub(super) const CHUNK: u32 = 1 << 20;
