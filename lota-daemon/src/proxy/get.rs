//! One request of an object, as it travels.

use std::net::IpAddr;

use hyper::Method;

use crate::{
    cache::{Lead, Object},
    http::{Head, Slices},
    s3::{ByteRange, GetObject, RangeRequest, Unsatisfiable},
};

/// A GET on its way; or a HEAD that asks to have an object brought into the cache.
pub(super) struct Get<'a> {
    /// Who asks.
    pub(super) pod: IpAddr,
    /// The client's request.
    pub(super) head: &'a Head,
    /// What it asks for.
    pub(super) object: &'a GetObject,
    /// Where the bytes of its answer are queued.
    pub(super) slices: &'a Slices,
    /// Bytes of its answer that the client has already.
    pub(super) skip: u64,
    /// Held while this request asks about an object that nobody here knows.
    pub(super) lead: Option<Lead>,
}

impl<'a> Get<'a> {
    pub(super) fn new(pod: IpAddr, head: &'a Head, object: &'a GetObject, slices: &'a Slices) -> Self {
        Self { pod, head, object, slices, skip: 0, lead: None }
    }

    /// Does it ask for checksums of the whole object that nobody has told yet?
    pub(super) fn lacks_checksums(&self, object: &Object) -> bool {
        self.object.wants_checksums
            && self.object.range == RangeRequest::Whole
            && !object.meta().checksums_known
    }

    /// Bytes of such an object that it does not ask for.
    pub(super) fn not_asked(&self, size: u64) -> u64 {
        match self.object.range.resolve(size) {
            _ if self.is_bodiless() => size,
            Ok(None) => 0,
            Ok(Some(range)) => size - range.length(),
            Err(Unsatisfiable) => size,
        }
    }

    /// What of this range the client does not have yet.
    pub(super) fn rest_of(&self, range: Option<ByteRange>, size: u64) -> Option<ByteRange> {
        if self.skip == 0 {
            return range;
        }
        let ByteRange { start, end } = range.unwrap_or(ByteRange { start: 0, end: size });
        Some(ByteRange { start: start.saturating_add(self.skip).min(end), end })
    }

    /// Are there no bytes to send, since it is a HEAD?
    pub(super) fn is_bodiless(&self) -> bool {
        self.head.method == Method::HEAD
    }
}
