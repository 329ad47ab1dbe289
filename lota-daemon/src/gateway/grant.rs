//! Permits. What may be served, and what may be fetched, are different things.

use hyper::header::HeaderValue;

use crate::{
    gateway::DirectPath,
    s3::{ObjectName, ObjectVersion, Validator},
};

/// The gateway's yes to one request, for one object version. Whoever serves bytes takes it, and it is gone:
/// it cannot be copied, stored, or made anywhere but here.
#[derive(Debug)]
pub struct Grant {
    version: ObjectVersion,
    request_id: Option<HeaderValue>,
}

/// The right to fetch a whole object for the cache. It says nothing about who may be served.
#[derive(Clone, Debug)]
pub enum FillAuthority {
    /// A place the gateway pointed to, which carries its own authority.
    Direct(DirectPath),
    /// LOTA's own credential at the configured backend.
    Own,
    /// The client's own request without its `Range`, which it did not sign, or LOTA signs anew.
    Client,
}

impl Grant {
    /// Only the gateway module grants.
    pub(super) fn new(name: &ObjectName, validator: &Validator, request_id: Option<HeaderValue>) -> Self {
        let version = ObjectVersion { name: name.clone(), validator: validator.clone() };
        Self { version, request_id }
    }

    /// A grant out of nothing, which only tests can make.
    #[cfg(test)]
    pub(crate) fn for_tests(version: &ObjectVersion) -> Self {
        Self { version: version.clone(), request_id: None }
    }

    /// What is granted.
    #[must_use]
    pub fn version(&self) -> &ObjectVersion {
        &self.version
    }

    /// The grant ends; by what id the gateway's log knows the request, if it said so.
    #[must_use]
    pub fn into_request_id(self) -> Option<HeaderValue> {
        self.request_id
    }
}
