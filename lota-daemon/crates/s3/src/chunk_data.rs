//! Extracts the data of `aws-chunked` bodies, without verification, for readers that compare the data with the object.

use bytes::{Buf as _, Bytes};
use hyper::{HeaderMap, header};
use thiserror::Error;

use super::chunks::{MAX_LINE, chunk_size};

/// Form of the body of a `PutObject`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadForm {
    /// Size of the object in bytes.
    pub size: u64,
    /// Whether the body is `aws-chunked`, rather than the bytes of the object.
    pub is_chunked: bool,
}

impl UploadForm {
    /// Returns the form of a body with these headers; `None` if they do not state the size of the object.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let is_streaming = |hash: &str| hash.starts_with("STREAMING-");
        let encodings = headers.get_all(header::CONTENT_ENCODING).iter();
        let mut encodings = encodings.filter_map(|value| value.to_str().ok()).flat_map(|all| all.split(','));
        let is_chunked = text("x-amz-content-sha256").is_some_and(is_streaming)
            || encodings.any(|encoding| encoding.trim().eq_ignore_ascii_case("aws-chunked"));
        let size = if is_chunked { "x-amz-decoded-content-length" } else { "content-length" };
        Some(Self { size: text(size)?.parse().ok()?, is_chunked })
    }
}

/// Decoder of an `aws-chunked` body.
#[derive(Debug, Default)]
pub struct ChunkData {
    state: DataState,
    /// Beginning of an incomplete line.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum DataState {
    /// At the line of a chunk.
    #[default]
    Line,
    /// Within a chunk; this number of bytes is left.
    Data(u64),
    /// At the line end after a chunk.
    End,
    /// After the last chunk.
    Trailers,
}

/// The body is not `aws-chunked`.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("malformed aws-chunked body")]
pub struct MalformedChunks;

impl ChunkData {
    /// Returns the next bytes of data in `input` and removes what it has read from it; `None` once it has read all.
    ///
    /// # Errors
    /// [`MalformedChunks`] if the body is not in chunks.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, MalformedChunks> {
        while !input.is_empty() {
            match self.state {
                DataState::Line => {
                    if let Some(line) = self.line(input)? {
                        let size = stated_size(&line).ok_or(MalformedChunks)?;
                        self.state = if size == 0 { DataState::Trailers } else { DataState::Data(size) };
                    }
                }
                DataState::Data(left) => {
                    let here = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                    let left = left - here as u64;
                    self.state = if left == 0 { DataState::End } else { DataState::Data(left) };
                    return Ok(Some(input.split_to(here)));
                }
                DataState::End => {
                    if let Some(line) = self.line(input)? {
                        if !line.is_empty() {
                            return Err(MalformedChunks);
                        }
                        self.state = DataState::Line;
                    }
                }
                DataState::Trailers => input.clear(),
            }
        }
        Ok(None)
    }

    /// Returns the next line without its end; `None` if it is incomplete.
    fn line(&mut self, input: &mut Bytes) -> Result<Option<Vec<u8>>, MalformedChunks> {
        let end = memchr::memchr(b'\n', input);
        let here = end.unwrap_or(input.len());
        if self.line.len() + here > MAX_LINE {
            return Err(MalformedChunks);
        }
        self.line.extend_from_slice(&input[..here]);
        input.advance(end.map_or(here, |end| end + 1));
        if end.is_none() {
            return Ok(None);
        }
        if self.line.pop() != Some(b'\r') {
            return Err(MalformedChunks);
        }
        Ok(Some(std::mem::take(&mut self.line)))
    }
}

/// Returns the size that the line of a chunk states, before its signature.
fn stated_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?;
    chunk_size(std::str::from_utf8(digits).ok()?)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn decode(body: &[u8], pieces: usize) -> Result<Vec<u8>, MalformedChunks> {
        let (mut data, mut all) = (ChunkData::default(), Vec::new());
        for piece in body.chunks(pieces.max(1)) {
            let mut input = Bytes::copy_from_slice(piece);
            while let Some(bytes) = data.next(&mut input)? {
                all.extend_from_slice(&bytes);
            }
        }
        Ok(all)
    }

    #[test]
    fn the_form_is_read_from_the_headers() {
        let form = |headers: &[(&'static str, &str)]| {
            let headers = headers.iter().map(|(name, value)| {
                (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
            });
            UploadForm::of(&headers.collect())
        };
        let plain = Some(UploadForm { size: 5, is_chunked: false });
        let chunked = Some(UploadForm { size: 3, is_chunked: true });
        let lengths = [("content-length", "5"), ("x-amz-decoded-content-length", "3")];
        for (expected, more) in [
            (plain, ("x-amz-content-sha256", "UNSIGNED-PAYLOAD")),
            (plain, ("content-encoding", "gzip")),
            (chunked, ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")),
            (chunked, ("content-encoding", "aws-chunked")),
            (chunked, ("content-encoding", "gzip, AWS-chunked")),
        ] {
            assert_eq!(form(&[lengths[0], lengths[1], more]), expected, "{more:?}");
        }
        assert_eq!(form(&[]), None, "a body of unknown length");
        assert_eq!(form(&[lengths[0], ("content-encoding", "aws-chunked")]), None);
        assert_eq!(form(&[("content-length", "-1")]), None);
    }

    #[test]
    fn signed_and_unsigned_chunks_are_decoded_in_pieces_of_any_size() {
        let signed =
            "3;chunk-signature=ab\r\nabc\r\n2;chunk-signature=cd\r\nde\r\n0;chunk-signature=ef\r\n\r\n";
        let unsigned = "3\r\nabc\r\n2\r\nde\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n";
        for body in [signed, unsigned] {
            for pieces in 1..=body.len() {
                assert_eq!(decode(body.as_bytes(), pieces).unwrap(), b"abcde", "{body:?} by {pieces}");
            }
        }
        assert_eq!(decode(b"0\r\n\r\n", 9).unwrap(), b"");
    }

    #[test]
    fn other_bodies_are_refused() {
        let long = "0".repeat(MAX_LINE + 1);
        for body in [
            "x\r\n",
            "\r\n",
            "3\nabc",
            "3\r\nabcd\r\n",
            "3\r\nabc\n0",
            "+1\r\n",
            "11111111111111111\r\n",
            &long,
        ] {
            for pieces in [1, 1000] {
                assert_eq!(decode(body.as_bytes(), pieces), Err(MalformedChunks), "{body:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn data_survives_its_encoding(data: Vec<u8>, size in 1..99usize, pieces in 1..99usize) {
            let mut body = Vec::new();
            for chunk in data.chunks(size).chain([&[][..]]) {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            prop_assert_eq!(decode(&body, pieces).unwrap(), data);
        }

        #[test]
        fn any_body_is_decoded_or_refused(body: Vec<u8>, pieces in 1..9usize) {
            let at_once = decode(&body, usize::MAX);
            if let (Ok(one), Ok(other)) = (&at_once, decode(&body, pieces)) {
                prop_assert_eq!(one, &other);
            }
            if let Ok(data) = at_once {
                prop_assert!(data.len() < body.len() || body.is_empty());
            }
        }
    }
}
