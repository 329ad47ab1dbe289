//! Proof that a request may read an object.

use lota_s3::ObjectMeta;

/// Proof that bytes of one object version may be served. The cache requires it wherever bytes leave; only the
/// authorization of a request creates one. A test of the daemon checks that nothing else implements this trait.
pub trait ReadPermit {
    /// Returns the description of the object that may be read, as given for this request.
    fn meta(&self) -> &ObjectMeta;
}

/// A permit for any object.
#[cfg(test)]
pub(crate) struct TestPermit(pub(crate) std::sync::Arc<ObjectMeta>);

#[cfg(test)]
impl ReadPermit for TestPermit {
    fn meta(&self) -> &ObjectMeta {
        &self.0
    }
}
