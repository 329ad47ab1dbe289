//! The record that follows the bytes of each object or stripe in its file: description and chunk checksums.
//!
//! Eight bytes of magic with the format's version, the payload's length (u32, little-endian), its
//! CRC-32C (likewise), and the payload, in postcard's encoding. Records of stripes have another magic, and begin with
//! the stripe.

use std::io;

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};
use lota_s3::{ByteRange, Learned, ObjectMeta, ObjectName, ObjectVersion, Validator};
use serde::{Deserialize, Serialize};

use super::{
    chunk::CHUNK,
    ids::VersionId,
    stripe::{self, Stripe, StripeLength},
};

const MAGIC: &[u8; 8] = b"LOTAREC\x05";
const STRIPE_MAGIC: &[u8; 8] = b"LOTASTR\x05";
const HEADER: usize = 16;

/// Description and checksums of an object or stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) meta: ObjectMeta,
    /// Stripe of the object; `None` for a whole object.
    pub(super) stripe: Option<Stripe>,
    /// CRC-32C of each chunk, in order.
    pub(super) checksums: Vec<u32>,
}

#[derive(Deserialize, Serialize)]
struct StripePayload {
    index: u64,
    length: u64,
    record: RecordPayload,
}

#[derive(Deserialize, Serialize)]
struct RecordPayload {
    gateway: String,
    bucket: String,
    key: String,
    version_id: Option<String>,
    etag: String,
    last_modified: Option<String>,
    size: u64,
    headers: Vec<(String, Vec<u8>)>,
    checksums_known: bool,
    learned_at: Option<u64>,
    learned_by: u64,
    chunk_size: u32,
    checksums: Vec<u32>,
}

impl Record {
    /// Returns the bytes of the object that the record is about.
    pub(super) fn held(&self) -> ByteRange {
        stripe::held(self.stripe, self.meta.size)
    }

    /// Returns the identifier of the version, or of the stripe of it.
    pub(super) fn version(&self) -> VersionId {
        VersionId::of(&self.meta.version, self.stripe)
    }

    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let version = &self.meta.version;
        let payload = RecordPayload {
            gateway: version.name.gateway.as_str().to_owned(),
            bucket: version.name.bucket.as_str().to_owned(),
            key: version.name.key.as_str().to_owned(),
            version_id: version.name.version_id.clone(),
            etag: version.validator.etag.clone(),
            last_modified: version.validator.last_modified.clone(),
            size: self.meta.size,
            headers: self
                .meta
                .headers
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect(),
            checksums_known: self.meta.checksums_known,
            learned_at: self.meta.learned().at,
            learned_by: self.meta.learned().by,
            chunk_size: CHUNK,
            checksums: self.checksums.clone(),
        };
        let (magic, payload) = match self.stripe {
            None => (MAGIC, postcard::to_stdvec(&payload)),
            Some(stripe) => {
                let (index, length) = (stripe.index(), stripe.length().bytes());
                (STRIPE_MAGIC, postcard::to_stdvec(&StripePayload { index, length, record: payload }))
            }
        };
        let payload = payload.map_err(io::Error::other)?;
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut record = magic.to_vec();
        record.extend_from_slice(&length.to_le_bytes());
        record.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
        record.extend_from_slice(&payload);
        Ok(record)
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// If the bytes are not a complete and undamaged record in this format.
    pub(super) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("not a record: {what}"));
        let (header, payload) = bytes.split_at_checked(HEADER).ok_or_else(|| wrong("too short"))?;
        let is_stripe = header.starts_with(STRIPE_MAGIC);
        if !is_stripe && !header.starts_with(MAGIC) {
            return Err(wrong("another format"));
        }
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if word(8) as usize != payload.len() || word(12) != crc32c::crc32c(payload) {
            return Err(wrong("damaged"));
        }
        let (stripe, payload) = if is_stripe {
            let StripePayload { index, length, record } =
                postcard::from_bytes(payload).map_err(|_| wrong("damaged"))?;
            let stripe = StripeLength::new(length).and_then(|length| Stripe::new(index, length));
            (Some(stripe.ok_or_else(|| wrong("not a stripe"))?), record)
        } else {
            (None, postcard::from_bytes::<RecordPayload>(payload).map_err(|_| wrong("damaged"))?)
        };
        let chunks = stripe::held(stripe, payload.size).length().div_ceil(u64::from(CHUNK));
        if payload.chunk_size != CHUNK || payload.checksums.len() as u64 != chunks {
            return Err(wrong("incomplete"));
        }
        let RecordPayload { gateway, bucket, key, .. } = &payload;
        let name = ObjectName::from_parts(gateway.as_str(), bucket, key, payload.version_id.clone())
            .ok_or_else(|| wrong("not an object's name"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &payload.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong("not a header"))?;
            headers.append(name, HeaderValue::from_bytes(value).map_err(|_| wrong("not a header"))?);
        }
        let validator = Validator { etag: payload.etag, last_modified: payload.last_modified };
        let learned = Learned { at: payload.learned_at, by: payload.learned_by };
        let version = ObjectVersion { name, validator };
        let meta = ObjectMeta::restored(version, payload.size, headers, payload.checksums_known, learned);
        Ok(Self { meta, stripe, checksums: payload.checksums })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(size: u64, key: &str) -> Record {
        let name = ObjectName::from_parts("http://gateway", "bucket", key, Some("v1".into())).unwrap();
        let validator = Validator { etag: "\"e\"".into(), last_modified: Some("then".into()) };
        let mut headers = HeaderMap::new();
        headers.append("x-amz-meta-a", HeaderValue::from_bytes(b"caf\xe9").unwrap());
        headers.append("x-amz-meta-a", HeaderValue::from_static("two"));
        let (version, learned) = (ObjectVersion { name, validator }, Learned { at: Some(7), by: 9 });
        let meta = ObjectMeta::restored(version, size, headers, true, learned);
        let checksums =
            (0..size.div_ceil(u64::from(CHUNK))).map(|chunk| u32::try_from(chunk).unwrap() * 7).collect();
        Record { meta, stripe: None, checksums }
    }

    #[test]
    fn the_format_is_stable() {
        // A change of this format invalidates every existing cache; it requires a new version in `MAGIC`.
        assert_eq!(
            hex::encode(record(0, "k").encode().unwrap()),
            "4c4f5441524543055300000099e295690e687474703a2f2f67617465776179066275636b6574016b010276310322652201\
             047468656e00020c782d616d7a2d6d6574612d6104636166e90c782d616d7a2d6d6574612d610374776f0101070980804000"
        );
    }

    #[test]
    fn one_flipped_bit_is_noticed() {
        let whole = record(3 << 20, "k").encode().unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn records_round_trip(size in 0..100u64 << 20, key in "\\PC{1,100}") {
            let record = record(size, &key);
            prop_assert_eq!(Record::decode(&record.encode().unwrap()).unwrap(), record);
        }

        #[test]
        fn records_of_stripes_round_trip(size in 0..100u64 << 20, index in 0..9u64, mebibytes in 1..50u64) {
            let stripe = Stripe::new(index, StripeLength::new(mebibytes << 20).unwrap()).unwrap();
            let mut record = Record { stripe: Some(stripe), ..record(size, "k") };
            let chunks = record.held().length().div_ceil(CHUNK.into());
            record.checksums.truncate(usize::try_from(chunks).unwrap());
            prop_assert_eq!(Record::decode(&record.encode().unwrap()).unwrap(), record);
        }

        #[test]
        fn other_bytes_and_truncated_records_are_refused(bytes: Vec<u8>, cut in 0..200usize) {
            prop_assert!(Record::decode(&bytes).is_err());
            let whole = record(1 << 20, "k").encode().unwrap();
            if cut < whole.len() {
                prop_assert!(Record::decode(&whole[..cut]).is_err());
            }
        }
    }
}
