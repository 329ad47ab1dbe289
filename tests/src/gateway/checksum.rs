//! Verifies checksums of uploads: `Content-MD5` and `x-amz-checksum-*`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::HeaderMap;
use s3s::checksum::ChecksumHasher;
use s3s::dto::Checksum;
use s3s::{S3Request, S3Result, TrailingHeaders, s3_error};

const CRC32: &str = "x-amz-checksum-crc32";
const CRC32C: &str = "x-amz-checksum-crc32c";
const CRC64NVME: &str = "x-amz-checksum-crc64nvme";
const SHA1: &str = "x-amz-checksum-sha1";
const SHA256: &str = "x-amz-checksum-sha256";

/// Checksums in the headers or announced trailers of a request.
pub(super) struct Checksums {
    headers: HeaderMap,
    trailers: Option<TrailingHeaders>,
}

impl Checksums {
    pub(super) fn of<T>(request: &S3Request<T>) -> Checksums {
        Checksums { headers: request.headers.clone(), trailers: request.trailing_headers.clone() }
    }

    /// Returns no checksums.
    #[cfg(test)]
    pub(super) fn none() -> Checksums {
        Checksums { headers: HeaderMap::new(), trailers: None }
    }

    /// Compares the checksums with those of the received body, and returns its MD5.
    ///
    /// # Errors
    ///
    /// `BadDigest` if one differs.
    pub(super) fn verify(self, digests: Digests) -> S3Result<[u8; 16]> {
        let md5 = digests.md5.finalize().0;
        let claimed = self.headers.get("content-md5");
        if claimed.is_some_and(|claimed| claimed != &BASE64_STANDARD.encode(md5)) {
            return Err(s3_error!(
                BadDigest,
                "The Content-MD5 you specified did not match what we received."
            ));
        }
        let trailers = self.trailers.and_then(|trailers| trailers.take());
        for (name, computed) in by_name(digests.others.finalize()) {
            let claimed = self.headers.get(name);
            let claimed = claimed.or_else(|| trailers.as_ref()?.get(name));
            if claimed.zip(computed).is_some_and(|(a, b)| a != &b) {
                return Err(s3_error!(BadDigest, "The {name} you specified did not match."));
            }
        }
        Ok(md5)
    }

    fn names(&self, name: &str) -> bool {
        let announced = self.headers.get("x-amz-trailer");
        self.headers.contains_key(name) || announced.is_some_and(|announced| announced == name)
    }
}

/// Running digests of a body: always MD5, and those that the client sends.
pub(super) struct Digests {
    md5: md5::Context,
    others: ChecksumHasher,
}

impl Digests {
    pub(super) fn new(expected: &Checksums) -> Digests {
        Digests {
            md5: md5::Context::new(),
            others: ChecksumHasher {
                crc32: hasher(expected, CRC32),
                crc32c: hasher(expected, CRC32C),
                crc64nvme: hasher(expected, CRC64NVME),
                sha1: hasher(expected, SHA1),
                sha256: hasher(expected, SHA256),
            },
        }
    }

    pub(super) fn update(&mut self, data: &[u8]) {
        self.md5.consume(data);
        self.others.update(data);
    }
}

fn hasher<C: s3s::crypto::Checksum>(expected: &Checksums, name: &str) -> Option<C> {
    expected.names(name).then(C::new)
}

fn by_name(sums: Checksum) -> [(&'static str, Option<String>); 5] {
    [
        (CRC32, sums.checksum_crc32),
        (CRC32C, sums.checksum_crc32c),
        (CRC64NVME, sums.checksum_crc64nvme),
        (SHA1, sums.checksum_sha1),
        (SHA256, sums.checksum_sha256),
    ]
}
