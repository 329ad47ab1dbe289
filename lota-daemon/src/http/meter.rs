//! Counts the bytes of a response as they are sent.

use std::{fmt, sync::Arc};

/// Counts the bytes of one response as they are written to the socket. All slices of the response share it, so it is
/// dropped when none is left to send.
#[derive(Clone)]
pub struct Meter(Arc<dyn Fn(u64) + Send + Sync>);

impl Meter {
    /// Calls `sent` with each number of bytes.
    pub fn new(sent: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sent))
    }

    /// Records that `bytes` more bytes were sent.
    pub fn sent(&self, bytes: u64) {
        (self.0)(bytes);
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meter")
    }
}
