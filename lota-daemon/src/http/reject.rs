//! Reasons for rejecting a request before it reaches hyper. The proxy turns them into S3 error responses.

use thiserror::Error;

/// Reason for rejecting a request's headers. Nothing was forwarded, so the client gets an error response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Reject {
    /// The request line and headers exceed this number of bytes.
    #[error("the request line and the headers have more than {0} bytes")]
    HeadTooLarge(usize),
    /// The request has more than this number of headers.
    #[error("the request has more than {0} headers")]
    TooManyHeaders(usize),
    /// A line ends without a carriage return.
    #[error("a request header line ends in a bare line feed")]
    BareLineFeed,
    /// Too many empty lines come before the request.
    #[error("too many empty lines come before the request")]
    EmptyLines,
    /// Another parser would end the headers at an earlier empty line.
    #[error("an empty line ends the request headers early")]
    EarlyEnd,
    /// The request line or a header is malformed.
    #[error("the request headers are malformed: {0}")]
    Malformed(httparse::Error),
    /// `CONNECT`: this is not a forward proxy.
    #[error("CONNECT is not supported")]
    Connect,
    /// The request target would change on its way to the gateway.
    #[error("the request target cannot be passed on byte for byte; percent-encode what is not allowed in it")]
    Target,
    /// `Content-Length` is not a number.
    #[error("the Content-Length is not a number")]
    Length,
    /// `Content-Length` occurs more than once.
    #[error("the request has more than one Content-Length")]
    DuplicateLength,
    /// `Transfer-Encoding` is not a single `chunked`, or the request is HTTP/1.0.
    #[error("unsupported Transfer-Encoding: only a single `chunked` in HTTP/1.1 is accepted")]
    TransferEncoding,
    /// The request has both `Content-Length` and `Transfer-Encoding` (RFC 9112, section 6.1).
    #[error("the request has both a Content-Length and a Transfer-Encoding")]
    LengthAndTransferEncoding,
    /// The memory budget for request headers is exhausted.
    #[error("too many large request headers are in progress; retry later")]
    HeadMemory,
    /// The node, or the pod, has too many connections.
    #[error("too many connections; retry later")]
    TooManyConnections,
}

/// Reason for rejecting a request body. The request is already being forwarded, so the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BodyReject {
    /// A chunk size line or the trailers are too long.
    #[error("a line of a chunked body is too long")]
    LineTooLong,
    /// A line ends without a carriage return.
    #[error("a line of a chunked body ends in a bare line feed")]
    BareLineFeed,
    /// A chunk has more bytes than its size line states.
    #[error("a chunk is longer than its size")]
    ChunkTooLong,
    /// A chunk size is not hexadecimal.
    #[error("a chunk's size is malformed")]
    ChunkSize,
    /// A trailer is not a valid header line.
    #[error("a trailer is malformed")]
    Trailer,
    /// The memory budget for request headers is exhausted.
    #[error("too many large request headers are in progress")]
    HeadMemory,
}
