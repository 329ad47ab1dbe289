//! `aws-chunked` bodies.

#![no_main]

use bytes::BytesMut;
use hyper::{HeaderMap, header::HeaderValue};
use libfuzzer_sys::fuzz_target;
use lota_s3::chunks::Chunks;

fuzz_target!(|input: (u16, u16, &[u8])| {
    let (length, cut, bytes) = (input.0, usize::from(input.1).min(input.2.len()), input.2);
    let at_once = through(length, &[bytes]);
    assert_eq!(
        at_once,
        through(length, &[&bytes[..cut], &bytes[cut..]]),
        "the result depends on where the input is cut"
    );
    if let Ok(passed) = at_once {
        assert!(bytes.starts_with(&passed), "the output is not a prefix of the input");
    }
});

fn through(length: u16, pieces: &[&[u8]]) -> Result<Vec<u8>, &'static str> {
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-decoded-content-length", HeaderValue::from(length));
    headers.insert("x-amz-trailer", HeaderValue::from_static("x-amz-checksum-crc32c"));
    let mut chunks = Chunks::new(&headers, None, true).map_err(|error| error.code)?;
    let (mut input, mut passed) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        while let Some(bytes) = chunks.next(&mut input).map_err(|error| error.code)? {
            passed.extend_from_slice(&bytes);
        }
    }
    if chunks.is_done() { Ok(passed) } else { Err("unfinished") }
}
