//! Are the bytes on disk the object's?

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::record::{CHUNK, Record};
use crate::s3::{ByteRange, ObjectMeta};
use aws_smithy_checksums::{ChecksumAlgorithm, http::HttpChecksum};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use hyper::header::HeaderValue;

/// Checksums of the whole that S3 tells, those that cost least first.
const ALGORITHMS: [&str; 4] = ["crc64nvme", "crc32", "sha1", "sha256"];

/// Compares a chunk with its CRC-32C.
///
/// # Errors
/// `InvalidData` if it is another's.
pub(super) fn chunk(file: &File, range: ByteRange, expected: u32) -> io::Result<()> {
    let mut bytes = vec![0; usize::try_from(range.length()).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, range.start)?;
    match crc32c::crc32c(&bytes) == expected {
        true => Ok(()),
        false => Err(differs(&format!("CRC-32C of bytes {} to {}", range.start, range.end))),
    }
}

/// Compares a whole object with what its server says of it, where that can be compared; with an MD5, which is slow, up
/// to `md5_up_to` bytes.
///
/// # Errors
/// `InvalidData` if it is another's.
pub(super) fn whole(file: &File, record: &Record, md5_up_to: u64) -> io::Result<()> {
    let meta = &record.meta;
    if let Some(expected) = told(meta, "crc32c") {
        let found = of_chunks(meta.size, &record.checksums).to_be_bytes();
        return compare(BASE64_STANDARD.encode(found).as_bytes(), expected, "x-amz-checksum-crc32c");
    }
    for algorithm in ALGORITHMS {
        if let Some(expected) = told(meta, algorithm)
            && let Ok(known) = algorithm.parse::<ChecksumAlgorithm>()
        {
            let mut checksum = known.into_impl();
            each_chunk(file, meta.size, |bytes| checksum.update(bytes))?;
            let found = HttpChecksum::header_value(checksum);
            return compare(found.as_bytes(), expected, algorithm);
        }
    }
    match md5_of(meta).filter(|_| meta.size <= md5_up_to) {
        Some(expected) => {
            let mut hash = md5::Context::new();
            each_chunk(file, meta.size, |bytes| hash.consume(bytes))?;
            compare(format!("{:x}", hash.finalize()).as_bytes(), expected, "ETag")
        }
        None => Ok(()),
    }
}

/// The checksum of the whole by an algorithm; not that of the checksums of its parts.
fn told<'a>(meta: &'a ObjectMeta, algorithm: &str) -> Option<&'a [u8]> {
    let of_parts = |kind: &HeaderValue| kind.as_bytes().eq_ignore_ascii_case(b"COMPOSITE");
    if meta.headers.get("x-amz-checksum-type").is_some_and(of_parts) {
        return None;
    }
    let value = meta.headers.get(format!("x-amz-checksum-{algorithm}"))?.as_bytes();
    (!value.contains(&b'-')).then_some(value)
}

/// The MD5 that an ETag is, if it is one: of an object that was uploaded at once, and not encrypted with a key of KMS
/// or the client's.
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html>
fn md5_of(meta: &ObjectMeta) -> Option<&[u8]> {
    let etag = meta.version.validator.etag.trim_matches('"').as_bytes();
    let is_md5 =
        etag.len() == 32 && etag.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte));
    let plain = |name| meta.headers.get(name).is_none_or(|value| value == "AES256");
    let unkeyed = !meta.headers.contains_key("x-amz-server-side-encryption-customer-algorithm");
    (is_md5 && unkeyed && plain("x-amz-server-side-encryption")).then_some(etag)
}

/// CRC-32C of the whole, from those of its chunks.
fn of_chunks(size: u64, checksums: &[u32]) -> u32 {
    let mut left = size;
    checksums.iter().fold(0, |whole, chunk| {
        let length = left.min(CHUNK.into());
        left -= length;
        crc32c::crc32c_combine(whole, *chunk, usize::try_from(length).unwrap_or(usize::MAX))
    })
}

fn each_chunk(file: &File, size: u64, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK as usize];
    let mut start = 0;
    while start < size {
        let length = usize::try_from((size - start).min(CHUNK.into())).map_err(io::Error::other)?;
        file.read_exact_at(&mut bytes[..length], start)?;
        each(&bytes[..length]);
        start += length as u64;
    }
    Ok(())
}

fn compare(found: &[u8], expected: &[u8], what: &str) -> io::Result<()> {
    if found == expected { Ok(()) } else { Err(differs(what)) }
}

fn differs(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("other bytes than its {what} tells"))
}
