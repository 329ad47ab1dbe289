//! Validates the framing of requests strictly by RFC 9112, to prevent request smuggling.
//!
//! Two parsers that disagree about where a request ends see different requests. hyper accepts some ambiguous requests
//! (both `Content-Length` and `chunked`, repeated lengths, bare line feeds), and its errors are not S3 responses. All
//! bytes therefore pass through this parser first. It passes headers on to hyper when they are complete and valid, and
//! follows the body to its end.

use hyper::Uri;
use memchr::memchr;

use super::{BodyReject, Reject};

/// Maximum length of a chunk size line, including extensions, in bytes.
const MAX_SIZE_LINE: usize = 256;
/// Maximum number of digits of a chunk's size, which has 64 bits.
const MAX_SIZE_DIGITS: usize = 16;
/// Maximum number of empty lines before a request; RFC 9112, section 2.2, asks servers to ignore one.
const MAX_EMPTY_LINES: u8 = 8;
/// Number of headers that are parsed without allocation; enough for most requests.
const FEW_HEADERS: usize = 32;

/// Framing parser of one connection.
#[derive(Debug)]
pub struct Framing {
    /// Maximum size of the headers or trailers, in bytes.
    limit: usize,
    /// Maximum number of headers.
    max_headers: usize,
    state: FramingState,
    /// Incomplete headers, or an incomplete line of a chunked body.
    line: Vec<u8>,
    /// Number of empty lines before the next request.
    empty_lines: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FramingState {
    /// In request headers, or between requests.
    Head,
    /// In a body; this number of bytes is left.
    Body(u64),
    /// At a chunk size line.
    ChunkSize,
    /// In a chunk; this number of bytes is left.
    Chunk(u64),
    /// At the line end after a chunk.
    ChunkEnd,
    /// In the trailers; this number of bytes has been read.
    Trailers(usize),
}

/// Part of a request that is rejected, with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// The headers are rejected.
    Head(Reject),
    /// The body is rejected.
    Body(BodyReject),
}

impl Framing {
    /// Returns the parser of a new connection, which accepts up to `limit` bytes of headers and `max_headers` headers.
    #[must_use]
    pub fn new(limit: usize, max_headers: usize) -> Self {
        Self { limit, max_headers, state: FramingState::Head, line: Vec::new(), empty_lines: 0 }
    }

    /// Returns whether a body is being parsed.
    #[must_use]
    pub fn is_in_body(&self) -> bool {
        self.state != FramingState::Head
    }

    /// Returns the size of the buffer for incomplete headers, in bytes.
    #[must_use]
    pub fn held(&self) -> usize {
        self.line.capacity()
    }

    /// Frees the buffer.
    pub fn clear(&mut self) {
        self.line = Vec::new();
    }

    /// Parses received bytes and appends valid ones to `passed`. Calls `admit` with the length of each request's complete
    /// headers; false rejects the request for lack of memory.
    ///
    /// # Errors
    /// [`Rejected`]. The rest of the connection's input must be discarded.
    pub fn take(
        &mut self,
        mut bytes: &[u8],
        passed: &mut Vec<u8>,
        mut admit: impl FnMut(usize) -> bool,
    ) -> Result<(), Rejected> {
        while !bytes.is_empty() {
            let taken = match self.state {
                FramingState::Head => self.take_head(bytes, passed, &mut admit).map_err(Rejected::Head)?,
                FramingState::Body(left) => {
                    self.take_data(bytes, left, passed, FramingState::Body, FramingState::Head)
                }
                FramingState::Chunk(left) => {
                    self.take_data(bytes, left, passed, FramingState::Chunk, FramingState::ChunkEnd)
                }
                FramingState::ChunkSize | FramingState::ChunkEnd | FramingState::Trailers(_) => {
                    self.take_line(bytes, passed).map_err(Rejected::Body)?
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn take_data(
        &mut self,
        bytes: &[u8],
        left: u64,
        passed: &mut Vec<u8>,
        more: fn(u64) -> FramingState,
        then: FramingState,
    ) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        passed.extend_from_slice(&bytes[..taken]);
        let left = left - taken as u64;
        self.state = if left == 0 { then } else { more(left) };
        taken
    }

    fn take_head(
        &mut self,
        bytes: &[u8],
        passed: &mut Vec<u8>,
        admit: &mut impl FnMut(usize) -> bool,
    ) -> Result<usize, Reject> {
        let taken = memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        self.line.extend_from_slice(&bytes[..taken]);
        if self.line.len() > self.limit {
            return Err(Reject::HeadTooLarge(self.limit));
        }
        if !self.line.ends_with(b"\n") {
            return Ok(taken);
        }
        if !self.line.ends_with(b"\r\n") {
            return Err(Reject::BareLineFeed);
        }
        if self.line.len() == 2 {
            // RFC 9112, section 2.2: ignore an empty line before a request.
            self.clear();
            self.empty_lines += 1;
            if self.empty_lines > MAX_EMPTY_LINES {
                return Err(Reject::EmptyLines);
            }
        } else if self.line.ends_with(b"\r\n\r\n") {
            let next = body(&self.line, self.max_headers)?;
            if !admit(self.line.len()) {
                return Err(Reject::HeadMemory);
            }
            (self.state, self.empty_lines) = (next, 0);
            // An idle connection keeps no header buffer.
            passed.append(&mut std::mem::take(&mut self.line));
        }
        Ok(taken)
    }

    fn take_line(&mut self, bytes: &[u8], passed: &mut Vec<u8>) -> Result<usize, BodyReject> {
        let taken = memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        self.line.extend_from_slice(&bytes[..taken]);
        let limit = match self.state {
            FramingState::ChunkEnd => 2,
            FramingState::Trailers(before) => self.limit.saturating_sub(before),
            _ => MAX_SIZE_LINE,
        };
        // A client that waits for an answer after a malformed line may never end that line.
        let begun = &self.line[..self.line.len().min(limit)];
        match self.state {
            FramingState::ChunkEnd => check_chunk_end(begun)?,
            FramingState::ChunkSize => check_size_line(begun)?,
            _ => {}
        }
        if self.line.len() > limit {
            let at_chunk_end = self.state == FramingState::ChunkEnd;
            return Err(if at_chunk_end { BodyReject::ChunkTooLong } else { BodyReject::LineTooLong });
        }
        if !self.line.ends_with(b"\n") {
            return Ok(taken);
        }
        let Some(line) = self.line.strip_suffix(b"\r\n") else {
            return Err(BodyReject::BareLineFeed);
        };
        self.state = match self.state {
            FramingState::ChunkEnd => FramingState::ChunkSize,
            FramingState::Trailers(_) if line.is_empty() => FramingState::Head,
            FramingState::Trailers(before) => {
                check_trailer(line)?;
                FramingState::Trailers(before + self.line.len())
            }
            _ => match chunk_size(line).ok_or(BodyReject::ChunkSize)? {
                0 => FramingState::Trailers(0),
                size => FramingState::Chunk(size),
            },
        };
        passed.append(&mut self.line);
        if self.state == FramingState::Head {
            // An idle connection keeps no trailer buffer.
            self.clear();
        }
        Ok(taken)
    }
}

/// Validates complete headers. Returns the state that follows them.
fn body(head: &[u8], max_headers: usize) -> Result<FramingState, Reject> {
    let (mut few, mut many) = ([httparse::EMPTY_HEADER; FEW_HEADERS], Vec::new());
    let mut request = httparse::Request::new(&mut few[..FEW_HEADERS.min(max_headers)]);
    let mut parsed = request.parse(head);
    if parsed == Err(httparse::Error::TooManyHeaders) && max_headers > FEW_HEADERS {
        many.resize(max_headers, httparse::EMPTY_HEADER);
        request = httparse::Request::new(&mut many);
        parsed = request.parse(head);
    }
    match parsed {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Reject::EarlyEnd),
        Err(httparse::Error::TooManyHeaders) => return Err(Reject::TooManyHeaders(max_headers)),
        Err(error) => return Err(Reject::Malformed(error)),
    }
    if request.method == Some("CONNECT") {
        return Err(Reject::Connect);
    }
    if !travels_unchanged(request.path.unwrap_or_default()) {
        return Err(Reject::Target);
    }
    let (mut length, mut chunked) = (None, false);
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = std::str::from_utf8(header.value).ok().and_then(number);
            let value = value.ok_or(Reject::Length)?;
            if length.replace(value).is_some() {
                return Err(Reject::DuplicateLength);
            }
        }
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked || !header.value.eq_ignore_ascii_case(b"chunked") || request.version != Some(1) {
                return Err(Reject::TransferEncoding);
            }
            chunked = true;
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err(Reject::LengthAndTransferEncoding),
        (None, true) => Ok(FramingState::ChunkSize),
        (None | Some(0), false) => Ok(FramingState::Head),
        (Some(length), false) => Ok(FramingState::Body(length)),
    }
}

/// Returns whether [`RequestHead`](super::RequestHead) forwards a request target byte for byte. It uses the same URI
/// parser, which for example removes a fragment and adds an empty path.
fn travels_unchanged(target: &str) -> bool {
    let Ok(uri) = target.parse::<Uri>() else { return false };
    let Some(kept) = uri.path_and_query() else { return false };
    let Some(before) = target.strip_suffix(kept.as_str()) else { return false };
    // The parser adds a path to an absolute target that has only a query.
    if !kept.as_str().starts_with('/') && target != "*" {
        return false;
    }
    match (uri.scheme_str(), uri.authority()) {
        (None, None) => before.is_empty(),
        (Some("http"), Some(authority)) => {
            let named = before.split_at_checked("http://".len());
            named.is_some_and(|(scheme, name)| {
                scheme.eq_ignore_ascii_case("http://") && name == authority.as_str()
            }) && !before.contains('@')
        }
        _ => false,
    }
}

/// Verifies the beginning of the line end that follows a chunk.
fn check_chunk_end(begun: &[u8]) -> Result<(), BodyReject> {
    match begun {
        b"" | b"\r" | b"\r\n" => Ok(()),
        [b'\n', ..] => Err(BodyReject::BareLineFeed),
        _ => Err(BodyReject::ChunkTooLong),
    }
}

/// Verifies the beginning of a chunk's first line: hexadecimal digits, then nothing or an extension, then a line end.
fn check_size_line(begun: &[u8]) -> Result<(), BodyReject> {
    let (digits, rest) = split_while(begun, u8::is_ascii_hexdigit);
    if digits.len() > MAX_SIZE_DIGITS || digits.is_empty() && !rest.starts_with(b"\n") {
        return Err(BodyReject::ChunkSize);
    }
    let (blanks, extension) = split_while(rest, |byte| matches!(byte, b' ' | b'\t'));
    let end = match extension {
        [b';', text @ ..] => split_while(text, |byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..)).1,
        [_, ..] if !blanks.is_empty() => return Err(BodyReject::ChunkSize),
        end => end,
    };
    match end {
        b"" | b"\r" | b"\r\n" => Ok(()),
        [b'\n', ..] => Err(BodyReject::BareLineFeed),
        _ => Err(BodyReject::ChunkSize),
    }
}

/// Returns the size in a chunk's verified first line.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let (digits, _) = split_while(line, u8::is_ascii_hexdigit);
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn split_while(bytes: &[u8], is_part: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.iter().position(|byte| !is_part(byte)).unwrap_or(bytes.len()))
}

fn check_trailer(line: &[u8]) -> Result<(), BodyReject> {
    let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let is_valid =
        name.len() < line.len() && !name.is_empty() && name.iter().all(token) && !line.contains(&b'\r');
    if is_valid { Ok(()) } else { Err(BodyReject::Trailer) }
}

/// Parses a canonical decimal number: no sign, space, list or leading zero.
fn number(text: &str) -> Option<u64> {
    let is_canonical = text == "0" || !text.starts_with('0');
    (is_canonical && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())?
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;
