//! Verification of the bytes on disk against checksums.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use aws_smithy_checksums::{ChecksumAlgorithm, http::HttpChecksum};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use hyper::header::HeaderValue;
use lota_s3::{ByteRange, ObjectMeta};

use super::{chunk::CHUNK, record::Record};

/// Full-object checksums of S3, cheapest first.
const ALGORITHMS: [&str; 4] = ["crc64nvme", "crc32", "sha1", "sha256"];

/// Compares a chunk with its CRC-32C.
///
/// # Errors
/// `InvalidData` if they differ.
pub(super) fn chunk(file: &File, range: ByteRange, expected: u32) -> io::Result<()> {
    let mut bytes = vec![0; usize::try_from(range.length()).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, range.start)?;
    match crc32c::crc32c(&bytes) == expected {
        true => Ok(()),
        false => Err(differs(&format!("CRC-32C of bytes {} to {}", range.start, range.end))),
    }
}

/// Returns the CRC-32C of each chunk of a file with `size` bytes of an object.
pub(super) fn checksums(file: &File, size: u64) -> io::Result<Vec<u32>> {
    let mut checksums = Vec::new();
    each_chunk(file, size, |bytes| checksums.push(crc32c::crc32c(bytes)))?;
    Ok(checksums)
}

/// Compares a whole object with the checksum in its headers, if there is one; else, up to `md5_max_size` bytes, with
/// the MD5 hash in its ETag, which is slow. No header states a checksum of a stripe.
///
/// # Errors
/// `InvalidData` if they differ.
pub(super) fn whole(file: &File, record: &Record, md5_max_size: u64) -> io::Result<()> {
    let meta = &record.meta;
    if record.stripe.is_some() {
        return Ok(());
    }
    if let Some(expected) = stated(meta, "crc32c") {
        let found = of_chunks(meta.size, &record.checksums).to_be_bytes();
        return compare(BASE64_STANDARD.encode(found).as_bytes(), expected, "x-amz-checksum-crc32c");
    }
    for algorithm in ALGORITHMS {
        if let Some(expected) = stated(meta, algorithm)
            && let Ok(known) = algorithm.parse::<ChecksumAlgorithm>()
        {
            let mut checksum = known.into_impl();
            each_chunk(file, meta.size, |bytes| checksum.update(bytes))?;
            let found = HttpChecksum::header_value(checksum);
            return compare(found.as_bytes(), expected, algorithm);
        }
    }
    match md5_of(meta).filter(|_| meta.size <= md5_max_size) {
        Some(expected) => {
            let mut hash = md5::Context::new();
            each_chunk(file, meta.size, |bytes| hash.consume(bytes))?;
            compare(format!("{:x}", hash.finalize()).as_bytes(), expected, "ETag")
        }
        None => Ok(()),
    }
}

/// Returns the full-object checksum of an algorithm from the headers; `None` for a composite checksum.
fn stated<'a>(meta: &'a ObjectMeta, algorithm: &str) -> Option<&'a [u8]> {
    let of_parts = |kind: &HeaderValue| kind.as_bytes().eq_ignore_ascii_case(b"COMPOSITE");
    if meta.headers.get("x-amz-checksum-type").is_some_and(of_parts) {
        return None;
    }
    let value = meta.headers.get(format!("x-amz-checksum-{algorithm}"))?.as_bytes();
    (!value.contains(&b'-')).then_some(value)
}

/// Returns the ETag if it is an MD5 hash: that of an object that was not a multipart upload and is not encrypted
/// with a KMS key or a key of the client.
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html>
fn md5_of(meta: &ObjectMeta) -> Option<&[u8]> {
    let etag = meta.version.validator.etag.trim_matches('"').as_bytes();
    let is_md5 =
        etag.len() == 32 && etag.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte));
    let plain = |name| meta.headers.get(name).is_none_or(|value| value == "AES256");
    let unkeyed = !meta.headers.contains_key("x-amz-server-side-encryption-customer-algorithm");
    (is_md5 && unkeyed && plain("x-amz-server-side-encryption")).then_some(etag)
}

/// Combines the CRC-32C of chunks into that of the whole object.
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
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} checksum mismatch"))
}
