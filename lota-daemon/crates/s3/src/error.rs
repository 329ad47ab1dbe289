//! Errors that LOTA itself returns to clients, in the format of S3.

use std::fmt::Write as _;

use hyper::StatusCode;
use thiserror::Error;

/// An error of LOTA; errors of the gateway are relayed unchanged.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{code}: {message}")]
pub struct S3Error {
    /// HTTP status.
    pub status: StatusCode,
    /// S3 error code, by which SDKs decide about retries.
    pub code: &'static str,
    /// Message for the client; it must not contain secrets or internals.
    pub message: String,
}

impl S3Error {
    /// The request is invalid.
    #[must_use]
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "InvalidRequest", message: message.into() }
    }

    /// The range is outside the object, which has `size` bytes.
    #[must_use]
    pub fn invalid_range(size: u64) -> Self {
        Self {
            status: StatusCode::RANGE_NOT_SATISFIABLE,
            code: "InvalidRange",
            message: format!("The requested range is not satisfiable: the object has {size} bytes"),
        }
    }

    /// The gateway did not respond, so the request is not authorized. Clients retry it.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, code: "ServiceUnavailable", message: message.into() }
    }

    /// The gateway's response cannot be relayed. Clients retry it.
    #[must_use]
    pub fn bad_gateway(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_GATEWAY, code: "BadGateway", message: message.into() }
    }

    /// The client sent its body too slowly. Clients retry it.
    #[must_use]
    pub fn request_timeout(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "RequestTimeout", message: message.into() }
    }

    /// The request line and headers exceed a limit.
    #[must_use]
    pub fn head_too_large(message: impl Into<String>) -> Self {
        let (status, code) = (StatusCode::BAD_REQUEST, "RequestHeaderSectionTooLarge");
        Self { status, code, message: message.into() }
    }

    /// The request is not an S3 request, such as CONNECT.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let message = "This endpoint is an S3 server, not a forward proxy".to_owned();
        Self { status: StatusCode::METHOD_NOT_ALLOWED, code: "MethodNotAllowed", message }
    }

    /// The body is incomplete or malformed.
    #[must_use]
    pub fn incomplete_body(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "IncompleteBody", message: message.into() }
    }

    /// A limit of this node is reached. Clients retry with a backoff.
    #[must_use]
    pub fn slow_down(message: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, code: "SlowDown", message: message.into() }
    }

    /// Access is denied for this reason. This and the following errors use the codes of S3.
    #[must_use]
    pub fn access_denied(message: impl Into<String>) -> Self {
        Self::forbidden("AccessDenied", message)
    }

    /// The access key is unknown.
    #[must_use]
    pub fn unknown_access_key() -> Self {
        Self::forbidden(
            "InvalidAccessKeyId",
            "The AWS access key ID you provided does not exist in our records.",
        )
    }

    /// The client addressed a host that no gateway is configured for.
    #[must_use]
    pub fn unknown_host(host: &str) -> Self {
        let host: String = host.chars().filter(char::is_ascii_graphic).take(253).collect();
        Self::forbidden(
            "AccessDenied",
            format!("LOTA does not serve the host name '{host}'; address one of its endpoints."),
        )
    }

    /// The session token does not belong to the access key.
    #[must_use]
    pub fn invalid_token() -> Self {
        let message = "The provided token is malformed or otherwise invalid.".to_owned();
        Self { status: StatusCode::BAD_REQUEST, code: "InvalidToken", message }
    }

    /// The signature does not match the request and the secret key.
    #[must_use]
    pub fn wrong_signature() -> Self {
        let message = "The request signature we calculated does not match the signature you provided. Check your \
                       secret key and signing method.";
        Self::forbidden("SignatureDoesNotMatch", message)
    }

    /// The clocks of the client and this node differ too much.
    #[must_use]
    pub fn time_too_skewed() -> Self {
        let message = "The difference between the request time and the server's time is too large.";
        Self::forbidden("RequestTimeTooSkewed", message)
    }

    /// The request is not signed with SigV4.
    #[must_use]
    pub fn unsupported_authorization() -> Self {
        Self::invalid_request(
            "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
        )
    }

    /// The `Authorization` header is malformed.
    #[must_use]
    pub fn malformed_authorization() -> Self {
        let message = "The authorization header that you provided is not valid.".to_owned();
        Self { status: StatusCode::BAD_REQUEST, code: "AuthorizationHeaderMalformed", message }
    }

    /// The query parameters of a presigned URL are malformed.
    #[must_use]
    pub fn malformed_query_authorization() -> Self {
        let message = "The authorization query parameters that you provided are not valid.".to_owned();
        Self { status: StatusCode::BAD_REQUEST, code: "AuthorizationQueryParametersError", message }
    }

    /// The body does not match the checksum that the client sent.
    #[must_use]
    pub fn bad_digest(checksum: &str) -> Self {
        let message = format!("The {checksum} you specified did not match what we received.");
        Self { status: StatusCode::BAD_REQUEST, code: "BadDigest", message }
    }

    fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, code, message: message.into() }
    }

    /// Returns the XML body of the response.
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

/// Escapes markup, and replaces control characters that XML 1.0 cannot represent.
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
    fn xml_has_the_format_of_s3() {
        assert_eq!(
            S3Error::invalid_range(7).to_xml("/b/k", "01"),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>InvalidRange</Code><Message>The requested \
             range is not satisfiable: the object has 7 bytes</Message><Resource>/b/k</Resource>\
             <RequestId>01</RequestId></Error>"
        );
    }

    proptest! {
        #[test]
        fn text_is_escaped(text in ".*") {
            let xml = S3Error::invalid_request(text.clone()).to_xml(&text, &text);
            prop_assert_eq!(xml.matches('<').count(), 11);
            prop_assert!(!xml.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r')));
        }
    }
}
