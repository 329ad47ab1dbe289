//! Where each request begins and ends, as RFC 9112 writes it and not otherwise.
//!
//! Two parsers that disagree about where a request ends can be made to see different requests: that is request
//! smuggling. hyper forgives some of what it takes to disagree (both a length and `chunked`, lengths said twice,
//! bare line feeds), and its refusals are no S3 answers. So each byte passes here first: a head goes on to hyper
//! when it is whole and sound, and what follows it is followed to its end.

use memchr::memchr;

use crate::s3::S3Error;

/// Most bytes of a chunk's size line; nobody sends extensions, but they may.
const MAX_SIZE_LINE: usize = 256;
/// As many headers as most requests have.
const FEW_HEADERS: usize = 32;

/// Follows one connection's requests.
#[derive(Debug)]
pub struct Framing {
    /// Most bytes of a head, or of a body's trailers.
    limit: usize,
    /// Most headers of a head.
    most_headers: usize,
    state: State,
    /// The head that is on its way, or a line of a chunked body.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a request's head, or between requests.
    Head,
    /// So many bytes of a body are still to come.
    Body(u64),
    /// At a chunk's size.
    ChunkSize,
    /// So many bytes of a chunk are still to come.
    Chunk(u64),
    /// At the line end that follows a chunk.
    ChunkEnd,
    /// In the trailers, of which so many bytes have come.
    Trailers(usize),
}

/// What is wrong with what a client sent.
#[derive(Debug)]
pub enum Wrong {
    /// A request's head, which nobody has seen: it can be answered.
    Head(S3Error),
    /// A body that is being passed on: it can only be broken off.
    Body(&'static str),
}

impl Framing {
    /// Follows a connection from its beginning; heads may have up to `limit` bytes and `most_headers`.
    #[must_use]
    pub fn new(limit: usize, most_headers: usize) -> Self {
        Self { limit, most_headers, state: State::Head, line: Vec::new() }
    }

    /// Is a body under way?
    #[must_use]
    pub fn is_in_body(&self) -> bool {
        self.state != State::Head
    }

    /// Takes what has come, and appends to `passed` what may go on.
    ///
    /// # Errors
    /// [`Wrong`]; nothing that comes after that may be looked at.
    pub fn take(&mut self, mut bytes: &[u8], passed: &mut Vec<u8>) -> Result<(), Wrong> {
        while !bytes.is_empty() {
            let taken = match self.state {
                State::Head => self.take_head(bytes, passed).map_err(Wrong::Head)?,
                State::Body(left) => self.take_data(bytes, left, passed, State::Body, State::Head),
                State::Chunk(left) => self.take_data(bytes, left, passed, State::Chunk, State::ChunkEnd),
                State::ChunkSize | State::ChunkEnd | State::Trailers(_) => {
                    self.take_line(bytes, passed).map_err(Wrong::Body)?
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
        more: fn(u64) -> State,
        then: State,
    ) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        passed.extend_from_slice(&bytes[..taken]);
        let left = left - taken as u64;
        self.state = if left == 0 { then } else { more(left) };
        taken
    }

    fn take_head(&mut self, bytes: &[u8], passed: &mut Vec<u8>) -> Result<usize, S3Error> {
        let taken = memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        self.line.extend_from_slice(&bytes[..taken]);
        if self.line.len() > self.limit {
            return Err(S3Error::head_too_large(self.limit));
        }
        if !self.line.ends_with(b"\n") {
            return Ok(taken);
        }
        if !self.line.ends_with(b"\r\n") {
            return Err(S3Error::invalid_request("A line of the request's head ends in a bare line feed"));
        }
        if self.line.len() == 2 {
            // RFC 9112, section 2.2: an empty line before a request is to be ignored.
            self.line.clear();
        } else if self.line.ends_with(b"\r\n\r\n") {
            self.state = body(&self.line, self.most_headers)?;
            passed.append(&mut self.line);
        }
        Ok(taken)
    }

    fn take_line(&mut self, bytes: &[u8], passed: &mut Vec<u8>) -> Result<usize, &'static str> {
        let taken = memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        self.line.extend_from_slice(&bytes[..taken]);
        let limit = match self.state {
            State::ChunkEnd => 2,
            State::Trailers(before) => self.limit.saturating_sub(before),
            _ => MAX_SIZE_LINE,
        };
        if self.line.len() > limit {
            return Err("A line of a chunked body is too long");
        }
        if !self.line.ends_with(b"\n") {
            return Ok(taken);
        }
        let Some(line) = self.line.strip_suffix(b"\r\n") else {
            return Err("A line of a chunked body ends in a bare line feed");
        };
        self.state = match self.state {
            State::ChunkEnd if line.is_empty() => State::ChunkSize,
            State::ChunkEnd => return Err("A chunk is longer than it said"),
            State::Trailers(_) if line.is_empty() => State::Head,
            State::Trailers(before) => {
                check_trailer(line)?;
                State::Trailers(before + self.line.len())
            }
            _ => match chunk_size(line).ok_or("A chunk's size is malformed")? {
                0 => State::Trailers(0),
                size => State::Chunk(size),
            },
        };
        passed.append(&mut self.line);
        Ok(taken)
    }
}

/// The body that follows a whole head.
fn body(head: &[u8], most_headers: usize) -> Result<State, S3Error> {
    let wrong = |what: &str| Err(S3Error::invalid_request(what));
    let (mut few, mut many) = ([httparse::EMPTY_HEADER; FEW_HEADERS], Vec::new());
    let mut request = httparse::Request::new(&mut few[..FEW_HEADERS.min(most_headers)]);
    let mut parsed = request.parse(head);
    if parsed == Err(httparse::Error::TooManyHeaders) && most_headers > FEW_HEADERS {
        many.resize(most_headers, httparse::EMPTY_HEADER);
        request = httparse::Request::new(&mut many);
        parsed = request.parse(head);
    }
    match parsed {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return wrong("The request's head ends before its end"),
        Err(httparse::Error::TooManyHeaders) => return Err(S3Error::too_many_headers(most_headers)),
        Err(error) => return wrong(&format!("The request's head is malformed: {error}")),
    }
    if request.method == Some("CONNECT") {
        return Err(S3Error::method_not_allowed());
    }
    let (mut length, mut chunked) = (None, false);
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = std::str::from_utf8(header.value).ok().and_then(number);
            let Some(value) = value else { return wrong("The Content-Length is not a number") };
            if length.replace(value).is_some() {
                return wrong("The request says its Content-Length twice");
            }
        }
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked || !header.value.eq_ignore_ascii_case(b"chunked") || request.version != Some(1) {
                return wrong("The only Transfer-Encoding here is `chunked`, once, in HTTP/1.1");
            }
            chunked = true;
        }
    }
    match (length, chunked) {
        (Some(_), true) => wrong("The request has both a Content-Length and a Transfer-Encoding"),
        (None, true) => Ok(State::ChunkSize),
        (None | Some(0), false) => Ok(State::Head),
        (Some(length), false) => Ok(State::Body(length)),
    }
}

/// The size in a chunk's first line: hexadecimal digits, then nothing or an extension.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line).ok()?;
    let (digits, extension) =
        line.split_at(line.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(line.len()));
    let sound = extension.is_empty()
        || extension.trim_start_matches([' ', '\t']).starts_with(';') && !extension.contains('\r');
    ((1..=16).contains(&digits.len()) && sound).then(|| u64::from_str_radix(digits, 16).ok())?
}

fn check_trailer(line: &[u8]) -> Result<(), &'static str> {
    let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let sound =
        name.len() < line.len() && !name.is_empty() && name.iter().all(token) && !line.contains(&b'\r');
    if sound { Ok(()) } else { Err("A trailer is malformed") }
}

/// Digits only: no sign, no space, no list.
fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;
