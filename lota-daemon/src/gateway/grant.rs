//! Grants. The permission to serve and the authority to fetch are separate types.

use std::sync::Arc;

use hyper::header::HeaderValue;
use lota_cache::ReadPermit;
use lota_s3::ObjectMeta;

use crate::gateway::DirectPath;

/// Permission of the gateway to serve one object version for one request. Serving consumes it. It cannot be copied,
/// and only the gateway module can create it.
#[derive(Debug)]
pub struct Grant {
    meta: Arc<ObjectMeta>,
    request_id: Option<HeaderValue>,
}

/// Permission of the gateway to serve bytes of one object version in the stripes of one response. It ends with the response.
#[derive(Clone, Debug)]
pub struct StripeGrant(Arc<ObjectMeta>);

/// The right to fetch a whole object for the cache. It says nothing about who may be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FillAuthority {
    /// A direct path, which carries its own authority.
    Direct(DirectPath),
    /// LOTA's own credential at the configured backend.
    Own,
    /// The client's own request without its `Range`, which it did not sign or LOTA re-signs.
    Client,
}

impl Grant {
    /// Creates a grant; only the gateway module can.
    pub(super) fn new(meta: Arc<ObjectMeta>, request_id: Option<HeaderValue>) -> Self {
        Self { meta, request_id }
    }

    /// Returns the object's current metadata at the gateway. Its headers are served, not the stored ones.
    #[must_use]
    pub fn meta(&self) -> &Arc<ObjectMeta> {
        &self.meta
    }

    /// Returns the permission for the stripes of the response.
    #[must_use]
    pub fn for_stripes(&self) -> StripeGrant {
        StripeGrant(self.meta.clone())
    }

    /// Consumes the grant. Returns the request ID in the gateway's log, if the gateway sent one.
    #[must_use]
    pub fn into_request_id(self) -> Option<HeaderValue> {
        self.request_id
    }
}

impl ReadPermit for Grant {
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
}

impl ReadPermit for StripeGrant {
    fn meta(&self) -> &ObjectMeta {
        &self.0
    }
}
