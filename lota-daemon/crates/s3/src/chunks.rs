//! Re-signing of `aws-chunked` bodies: each chunk's signature is verified and replaced by LOTA's own before any byte
//! of the chunk is forwarded. Sizes, framing, trailers and the total length stay as the client wrote them.
//!
//! The format is that of AWS's "Signature calculations for the Authorization header: transferring payload in multiple
//! chunks", with and without trailing headers.

use std::fmt;

use aws_sigv4::sign::v4::calculate_signature;
use aws_smithy_checksums::{ChecksumAlgorithm, http::HttpChecksum};
use bytes::{Buf as _, Bytes, BytesMut};
use hyper::HeaderMap;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::S3Error;

/// Largest signed chunk, in bytes, which is buffered until its signature is verified. SDKs send 64 KiB to 1 MiB.
pub const MAX_CHUNK: u64 = 2 << 20;
/// Longest line before a chunk, in bytes.
pub(super) const MAX_LINE: usize = 256;
/// Maximum number of digits of a chunk's size, which has 64 bits.
const MAX_DIGITS: usize = 16;
/// Maximum bytes of trailers.
const MAX_TRAILERS: usize = 8 << 10;
const CHUNK_SIGNATURE: &str = ";chunk-signature=";
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";
const CHECKSUM: &str = "x-amz-checksum-";

/// Chain of signatures, each of which covers the previous one; the first is that of the request.
pub struct ChunkChain {
    key: Vec<u8>,
    timestamp: String,
    scope: String,
    last: String,
}

impl ChunkChain {
    /// Starts a chain with a request's signature. `key` is the SigV4 signing key of the day and region.
    #[must_use]
    pub fn new(key: &[u8], timestamp: String, region: &str, request: String) -> Self {
        let date = timestamp.get(..8).unwrap_or_default();
        let scope = format!("{date}/{region}/s3/aws4_request");
        Self { key: key.to_owned(), timestamp, scope, last: request }
    }

    /// Returns the signature of the next chunk, whose data has this SHA-256 hash.
    fn chunk(&mut self, hash: &str) -> &str {
        let nothing = hex::encode(Sha256::digest(b""));
        self.next("AWS4-HMAC-SHA256-PAYLOAD", &format!("{nothing}\n{hash}"))
    }

    /// Returns the signature of the trailers, which have this SHA-256 hash.
    fn trailers(&mut self, hash: &str) -> &str {
        self.next("AWS4-HMAC-SHA256-TRAILER", hash)
    }

    fn next(&mut self, algorithm: &str, what: &str) -> &str {
        let Self { key, timestamp, scope, last } = self;
        let to_sign = format!("{algorithm}\n{timestamp}\n{scope}\n{last}\n{what}");
        *last = calculate_signature(key, to_sign.as_bytes());
        last
    }
}

impl fmt::Debug for ChunkChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chain(…)")
    }
}

/// The client's chain of signatures, and LOTA's own.
#[derive(Debug)]
pub struct Chains {
    /// Expected signatures.
    pub client: ChunkChain,
    /// Signatures that replace them.
    pub ours: ChunkChain,
}

impl Chains {
    /// Verifies the client's next signature and returns LOTA's own.
    fn replace(&mut self, given: &str, next: impl Fn(&mut ChunkChain) -> &str) -> Result<&str, S3Error> {
        let expected = next(&mut self.client);
        if !bool::from(expected.as_bytes().ct_eq(given.as_bytes())) {
            return Err(S3Error::wrong_signature());
        }
        Ok(next(&mut self.ours))
    }
}

/// A body that is being forwarded.
pub struct Chunks {
    /// Signatures, if chunks are signed.
    chains: Option<Chains>,
    /// Names of the trailers that must follow.
    announced: Vec<String>,
    checksum: Option<(String, Box<dyn HttpChecksum>)>,
    /// Bytes of data that are still expected.
    left: u64,
    /// Verified data that may be forwarded.
    checked: Option<Bytes>,
    state: ChunkState,
}

#[derive(Debug)]
enum ChunkState {
    /// Before the line of a chunk.
    Line,
    /// Within an unsigned chunk.
    Data {
        left: u64,
    },
    /// Buffering a signed chunk.
    Buffering {
        size: u64,
        line: String,
        signature: String,
    },
    /// Before the end of a chunk's data.
    End,
    /// After the last chunk.
    Trailers,
    Done,
}

impl Chunks {
    /// Creates the state for a body with these headers.
    ///
    /// # Errors
    /// [`S3Error`] if `x-amz-decoded-content-length` is missing.
    pub fn new(headers: &HeaderMap, chains: Option<Chains>, trailers: bool) -> Result<Self, S3Error> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let left = text("x-amz-decoded-content-length").and_then(|length| length.parse().ok());
        let left = left.ok_or_else(|| {
            S3Error::invalid_request("A body in chunks needs an x-amz-decoded-content-length header")
        })?;
        let announced = text("x-amz-trailer").filter(|_| trailers).unwrap_or_default().split(',');
        let mut announced: Vec<String> =
            announced.map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()).collect();
        announced.sort_unstable();
        let checksum = announced.iter().find_map(|name| {
            let algorithm: ChecksumAlgorithm = name.strip_prefix(CHECKSUM)?.parse().ok()?;
            // The crate accepts aliases, which S3 does not.
            Some((name.clone(), algorithm.into_impl()))
                .filter(|(name, checksum)| checksum.header_name() == name)
        });
        Ok(Self { chains, announced, checksum, left, checked: None, state: ChunkState::Line })
    }

    /// Returns bytes of `input` that may be forwarded; `None` if more input is needed first.
    ///
    /// # Errors
    /// [`S3Error`] if a signature, a checksum or the framing is wrong; the caller must abort the body.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, S3Error> {
        if let Some(checked) = self.checked.take() {
            return Ok(Some(checked));
        }
        match std::mem::replace(&mut self.state, ChunkState::Done) {
            ChunkState::Line => self.line(input),
            ChunkState::Data { left } => Ok(Some(self.data(input, left))),
            ChunkState::Buffering { size, line, signature } => self.buffered(input, size, line, signature),
            ChunkState::End => self.end(input),
            ChunkState::Trailers => self.trailers(input),
            ChunkState::Done if input.is_empty() => Ok(None),
            ChunkState::Done => Err(malformed("data after its end")),
        }
        .map(|output| output.filter(|output| !output.is_empty()))
    }

    /// Returns the number of bytes that must be buffered to verify a signature.
    #[must_use]
    pub fn buffers(&self) -> u64 {
        match (&self.checked, &self.state) {
            (Some(checked), _) => checked.len() as u64,
            (None, ChunkState::Buffering { size, .. }) => *size,
            (None, _) => 0,
        }
    }

    /// Returns whether the body is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.state, ChunkState::Done)
    }

    fn line(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, S3Error> {
        let Some(end) = find_line_end(input) else {
            self.state = ChunkState::Line;
            return if input.len() > MAX_LINE { Err(malformed("chunk header too long")) } else { Ok(None) };
        };
        let line = std::str::from_utf8(&input[..end]).map_err(|_| malformed("chunk header is not UTF-8"))?;
        let (size, signature) = match (line.split_once(CHUNK_SIGNATURE), &self.chains) {
            (Some((size, signature)), Some(_)) => (size, signature),
            (None, None) => (line, ""),
            (None, Some(_)) => return Err(malformed("a chunk is not signed")),
            (Some(_), None) => return Err(malformed("unexpected chunk signature")),
        };
        let length = chunk_size(size).ok_or_else(|| malformed("chunk size is not a number"))?;
        if length > self.left || (length == 0 && self.left > 0) {
            return Err(malformed("length differs from x-amz-decoded-content-length"));
        }
        if self.chains.is_some() {
            if length > MAX_CHUNK {
                return Err(S3Error::invalid_request(format!("A signed chunk exceeds {MAX_CHUNK} bytes")));
            }
            let (line, signature) = (size.to_owned(), signature.to_owned());
            self.state = ChunkState::Buffering { size: length, line, signature };
            input.advance(end + 2);
            return self.next(input);
        }
        self.state = if length == 0 { ChunkState::Trailers } else { ChunkState::Data { left: length } };
        Ok(Some(input.split_to(end + 2).freeze()))
    }

    fn data(&mut self, input: &mut BytesMut, left: u64) -> Bytes {
        let here = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
        let data = input.split_to(here).freeze();
        self.took(&data);
        let left = left - here as u64;
        self.state = if left == 0 { ChunkState::End } else { ChunkState::Data { left } };
        data
    }

    fn buffered(
        &mut self,
        input: &mut BytesMut,
        size: u64,
        line: String,
        signature: String,
    ) -> Result<Option<Bytes>, S3Error> {
        let length = usize::try_from(size).map_err(|_| malformed("a chunk is too large"))?;
        if input.len() < length {
            self.state = ChunkState::Buffering { size, line, signature };
            return Ok(None);
        }
        let data = input.split_to(length).freeze();
        // Copies the rest, so that it does not keep the whole chunk in memory.
        *input = BytesMut::from(&input[..]);
        self.took(&data);
        let hash = hex::encode(Sha256::digest(&data));
        let chains = self.chains.as_mut().ok_or_else(S3Error::wrong_signature)?;
        let ours = chains.replace(&signature, |chain| chain.chunk(&hash))?;
        let line = format!("{line}{CHUNK_SIGNATURE}{ours}\r\n");
        self.checked = Some(data).filter(|data| !data.is_empty());
        self.state = if length == 0 { ChunkState::Trailers } else { ChunkState::End };
        Ok(Some(line.into()))
    }

    fn took(&mut self, data: &[u8]) {
        self.left -= data.len() as u64;
        if let Some((_, checksum)) = &mut self.checksum {
            checksum.update(data);
        }
    }

    fn end(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, S3Error> {
        if !b"\r\n".starts_with(&input[..input.len().min(2)]) {
            return Err(malformed("a chunk is longer than its size"));
        }
        if input.len() < 2 {
            self.state = ChunkState::End;
            return Ok(None);
        }
        self.state = ChunkState::Line;
        Ok(Some(input.split_to(2).freeze()))
    }

    /// Verifies all trailers at once and forwards them only afterwards.
    fn trailers(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, S3Error> {
        let end = match input.starts_with(b"\r\n") {
            true => Some(0),
            false => memchr::memmem::find(input, b"\r\n\r\n").map(|end| end + 2),
        };
        let Some(end) = end else {
            self.state = ChunkState::Trailers;
            let too_long = input.len() > MAX_TRAILERS;
            return if too_long { Err(malformed("trailers too long")) } else { Ok(None) };
        };
        let text = std::str::from_utf8(&input[..end]).map_err(|_| malformed("trailers are not UTF-8"))?;
        let text = text.to_owned();
        input.advance(end + 2);
        // Some clients end trailers with `\n\r\n`.
        let mut trailers = Vec::new();
        for line in text.split(['\r', '\n']).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or_else(|| malformed("a trailer has no colon"))?;
            trailers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut output = text;
        if self.chains.is_some() && !self.announced.is_empty() {
            let signature = trailers.pop().filter(|(name, _)| name == TRAILER_SIGNATURE);
            let (_, signature) = signature.ok_or_else(|| malformed("trailers are not signed"))?;
            trailers.sort_unstable();
            let signed: String = trailers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
            let hash = hex::encode(Sha256::digest(signed));
            let chains = self.chains.as_mut().ok_or_else(S3Error::wrong_signature)?;
            let ours = chains.replace(&signature, |chain| chain.trailers(&hash))?;
            // The last occurrence, since the value of a trailer may contain the same text.
            let at = output.rfind(&signature).ok_or_else(S3Error::wrong_signature)?;
            output.replace_range(at..at + signature.len(), ours);
        }
        trailers.sort_unstable();
        if !trailers.iter().map(|(name, _)| name).eq(&self.announced) {
            return Err(malformed("trailers differ from x-amz-trailer"));
        }
        if let Some((name, checksum)) = self.checksum.take() {
            let found = checksum.header_value();
            let given = trailers.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_bytes());
            if given != Some(found.as_bytes()) {
                return Err(S3Error::bad_digest(&name));
            }
        }
        self.state = ChunkState::Done;
        Ok(Some(Bytes::from(output + "\r\n")))
    }
}

impl fmt::Debug for Chunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunks").field("left", &self.left).field("state", &self.state).finish_non_exhaustive()
    }
}

/// Returns the size of a chunk from its digits, which its line begins with.
pub(super) fn chunk_size(digits: &str) -> Option<u64> {
    let is_size =
        (1..=MAX_DIGITS).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|_| is_size)
}

fn find_line_end(input: &[u8]) -> Option<usize> {
    memchr::memmem::find(&input[..input.len().min(MAX_LINE + 2)], b"\r\n")
}

fn malformed(what: &str) -> S3Error {
    S3Error::incomplete_body(format!("Malformed aws-chunked body: {what}"))
}

#[cfg(test)]
#[path = "chunks_tests.rs"]
mod tests;
