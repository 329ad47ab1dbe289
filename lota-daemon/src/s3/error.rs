//! Errors that LOTA itself gives a client, in the form S3 clients understand.

use std::fmt::Write as _;

use hyper::StatusCode;
use thiserror::Error;

/// An error of LOTA's own; the gateway's own errors are relayed as they are.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{code}: {message}")]
pub struct S3Error {
    /// The HTTP status.
    pub status: StatusCode,
    /// S3's error code, which SDKs decide by.
    pub code: &'static str,
    /// What was being done, to what, and what to do next. Goes to the client: no secrets, no internals.
    pub message: String,
}

impl S3Error {
    /// The request makes no sense.
    #[must_use]
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "InvalidRequest", message: message.into() }
    }

    /// The range lies outside the object.
    #[must_use]
    pub fn invalid_range(size: u64) -> Self {
        Self {
            status: StatusCode::RANGE_NOT_SATISFIABLE,
            code: "InvalidRange",
            message: format!("The requested range is not satisfiable: the object has {size} bytes"),
        }
    }

    /// The gateway did not answer: no bytes without its yes. Clients retry this one.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, code: "ServiceUnavailable", message: message.into() }
    }

    /// The client took too long over its body. Clients retry this one.
    #[must_use]
    pub fn request_timeout(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "RequestTimeout", message: message.into() }
    }

    /// The request's line and headers are more than `limit` bytes.
    #[must_use]
    pub fn head_too_large(limit: usize) -> Self {
        let message = format!("The request's line and headers have more than {limit} bytes");
        Self { status: StatusCode::BAD_REQUEST, code: "RequestHeaderSectionTooLarge", message }
    }

    /// The request has more than `limit` headers.
    #[must_use]
    pub fn too_many_headers(limit: usize) -> Self {
        let message = format!("The request has more than {limit} headers");
        Self { status: StatusCode::BAD_REQUEST, code: "RequestHeaderSectionTooLarge", message }
    }

    /// Something no S3 request does.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let message = "This endpoint speaks S3, and is no proxy to other servers".to_owned();
        Self { status: StatusCode::METHOD_NOT_ALLOWED, code: "MethodNotAllowed", message }
    }

    /// The body broke off, or is not what it says.
    #[must_use]
    pub fn incomplete_body(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "IncompleteBody", message: message.into() }
    }

    /// A limit of this node's is reached. Clients retry this one, more slowly.
    #[must_use]
    pub fn slow_down(message: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, code: "SlowDown", message: message.into() }
    }

    /// Not allowed, and why. Like the ones below, in the words of S3 itself.
    #[must_use]
    pub fn access_denied(message: impl Into<String>) -> Self {
        Self::forbidden("AccessDenied", message)
    }

    /// Nobody has this access key.
    #[must_use]
    pub fn unknown_access_key() -> Self {
        Self::forbidden(
            "InvalidAccessKeyId",
            "The AWS access key ID you provided does not exist in our records.",
        )
    }

    /// The session token is not the one of this access key.
    #[must_use]
    pub fn invalid_token() -> Self {
        let message = "The provided token is malformed or otherwise invalid.".to_owned();
        Self { status: StatusCode::BAD_REQUEST, code: "InvalidToken", message }
    }

    /// Signed with another secret, or changed on the way.
    #[must_use]
    pub fn wrong_signature() -> Self {
        let message = "The request signature we calculated does not match the signature you provided. Check your \
                       secret key and signing method.";
        Self::forbidden("SignatureDoesNotMatch", message)
    }

    /// The client's clock, or this node's, is off.
    #[must_use]
    pub fn time_too_skewed() -> Self {
        let message = "The difference between the request time and the server's time is too large.";
        Self::forbidden("RequestTimeTooSkewed", message)
    }

    /// Not signed by SigV4.
    #[must_use]
    pub fn unsupported_authorization() -> Self {
        Self::invalid_request(
            "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
        )
    }

    /// A signature in a header, malformed.
    #[must_use]
    pub fn malformed_authorization() -> Self {
        let message = "The authorization header that you provided is not valid.".to_owned();
        Self { status: StatusCode::BAD_REQUEST, code: "AuthorizationHeaderMalformed", message }
    }

    /// A signature in a query, malformed.
    #[must_use]
    pub fn malformed_query_authorization() -> Self {
        let message = "The authorization query parameters that you provided are not valid.".to_owned();
        Self { status: StatusCode::BAD_REQUEST, code: "AuthorizationQueryParametersError", message }
    }

    /// The bytes are not those of the checksum that came with them.
    #[must_use]
    pub fn bad_digest(checksum: &str) -> Self {
        let message = format!("The {checksum} you specified did not match what we received.");
        Self { status: StatusCode::BAD_REQUEST, code: "BadDigest", message }
    }

    fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, code, message: message.into() }
    }

    /// The body of the answer.
    #[must_use]
    pub fn to_xml(&self, resource: &str, request_id: &str) -> String {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>");
        for (element, text) in [
            ("Code", self.code),
            ("Message", &self.message),
            ("Resource", resource),
            ("RequestId", request_id),
        ] {
            let _ = write!(xml, "<{element}>{}</{element}>", escape(text));
        }
        xml.push_str("</Error>");
        xml
    }
}

/// Escapes markup, and replaces the control characters that XML 1.0 has no way to write.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push(character),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            character if character.is_control() => escaped.push('\u{fffd}'),
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn looks_like_s3() {
        assert_eq!(
            S3Error::invalid_range(7).to_xml("/b/k", "01"),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>InvalidRange</Code><Message>The requested \
             range is not satisfiable: the object has 7 bytes</Message><Resource>/b/k</Resource>\
             <RequestId>01</RequestId></Error>"
        );
    }

    proptest! {
        #[test]
        fn nothing_breaks_out_of_its_element(text in ".*") {
            let xml = S3Error::invalid_request(text.clone()).to_xml(&text, &text);
            prop_assert_eq!(xml.matches('<').count(), 11);
            prop_assert!(!xml.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r')));
        }
    }
}
