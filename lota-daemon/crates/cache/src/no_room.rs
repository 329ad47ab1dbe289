//! The reason why an object is not cached.

/// The reason why an object cannot be stored: too large, too many fills, too little disk, or a disk that fails.
#[derive(Debug)]
pub struct NoRoom {
    /// Description of the reason.
    pub why: String,
    /// Value of the label `reason` in metrics.
    pub reason: &'static str,
}

impl NoRoom {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), reason: "no-room" }
    }

    pub(super) fn fragments() -> Self {
        Self { reason: "fragments", ..Self::new("the partial object has too many separate ranges") }
    }
}
