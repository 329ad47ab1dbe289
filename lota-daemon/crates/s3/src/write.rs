//! Requests that write a whole object, and the responses that report their success.

use hyper::{HeaderMap, Method, http::uri::PathAndQuery};

use crate::{
    address::{ObjectName, Resource},
    canonical::{is_signature_parameter, parameters},
    endpoint::Endpoint,
};

/// A request that replaces an object if it succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteObject {
    /// Name of the object.
    pub name: ObjectName,
    /// Operation of S3.
    pub operation: WriteOperation,
    /// Whether the object is encrypted with a key of the client (SSE-C), without which it cannot be read.
    pub has_customer_key: bool,
}

/// Operation that writes a whole object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOperation {
    /// `PutObject`.
    Put,
    /// `CopyObject`.
    Copy,
    /// `CompleteMultipartUpload`.
    CompleteMultipart,
}

impl WriteObject {
    /// Classifies a request by its request line and headers; `host` is one of `endpoint`. Returns `None` for a request that
    /// writes no object, a part of one, or only its properties.
    ///
    /// ```
    /// use hyper::{HeaderMap, Method};
    /// use lota_s3::{Endpoint, WriteObject, WriteOperation, Zone};
    ///
    /// let endpoint = Endpoint::of_zone(Zone::parse("cwlota.com").unwrap(), "http://10.0.0.5:9000".into());
    /// let classify = |target: &str| {
    ///     let target = target.parse().unwrap();
    ///     WriteObject::classify(&endpoint, &Method::PUT, "models.cwlota.com", &target, &HeaderMap::new())
    /// };
    /// assert_eq!(classify("/step-100.pt?x-id=PutObject").unwrap().operation, WriteOperation::Put);
    /// assert_eq!(classify("/step-100.pt?partNumber=1&uploadId=u"), None);
    /// ```
    #[must_use]
    pub fn classify(
        endpoint: &Endpoint,
        method: &Method,
        host: &str,
        target: &PathAndQuery,
        headers: &HeaderMap,
    ) -> Option<Self> {
        let mut upload = None;
        for (name, value) in parameters(target.query().unwrap_or_default()) {
            match name {
                "uploadId" if upload.is_none() && !value.is_empty() => upload = Some(value),
                _ if is_harmless(&name.to_ascii_lowercase()) => {}
                // Another operation, or a parameter unknown to LOTA.
                _ => return None,
            }
        }
        let is_copy = headers.contains_key("x-amz-copy-source");
        let operation = match (method, upload) {
            (&Method::PUT, None) if is_copy => WriteOperation::Copy,
            (&Method::PUT, None) => WriteOperation::Put,
            (&Method::POST, Some(_)) => WriteOperation::CompleteMultipart,
            _ => return None,
        };
        let Resource::Object(bucket, key) = endpoint.resource(host, target.path()) else { return None };
        let name = ObjectName { gateway: endpoint.gateway.clone(), bucket, key, version_id: None };
        let has_customer_key = headers.contains_key("x-amz-server-side-encryption-customer-algorithm");
        Some(Self { name, operation, has_customer_key })
    }
}

/// Returns whether a query parameter, in lower case, selects no other operation. Some SDKs move checksums into the query of a
/// presigned upload.
fn is_harmless(name: &str) -> bool {
    is_signature_parameter(name)
        || ["expires", "x-amz-content-sha256", "x-id"].contains(&name)
        || ["x-amz-checksum-", "x-amz-sdk-"].iter().any(|prefix| name.starts_with(prefix))
}

impl WriteOperation {
    /// Returns the name of the element by which the body of a `200` reports success
    /// ([`ResultReader`](crate::ResultReader)). Such a response may also report an error, since its head is sent before the result
    /// is known. Returns `None` if the head of the response suffices.
    #[must_use]
    pub fn result_element(self) -> Option<&'static str> {
        match self {
            Self::Put => None,
            Self::Copy => Some("CopyObjectResult"),
            Self::CompleteMultipart => Some("CompleteMultipartUploadResult"),
        }
    }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
