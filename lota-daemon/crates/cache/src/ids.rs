//! Fixed-size identifiers of objects and versions, in the index and in file names.

use std::{
    fmt,
    hash::{BuildHasher, Hash, Hasher},
};

use lota_s3::{ObjectName, ObjectVersion};
use sha2::{Digest as _, Sha256};

use super::stripe::Stripe;

const LENGTH: usize = 16;

/// Identifier of an object, or of a stripe of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NameId([u8; LENGTH]);

/// Identifier of an object version, or of a stripe of one. On a collision, the records on disk distinguish the versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct VersionId([u8; LENGTH]);

/// Hashes identifiers for maps. They are hashes already, but clients can search for names whose identifiers share
/// bits; a random seed prevents collision attacks on the maps.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdHash(u64);

impl Default for IdHash {
    fn default() -> Self {
        Self(rand::random())
    }
}

impl BuildHasher for IdHash {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher(self.0)
    }
}

/// Hasher of one identifier.
#[derive(Debug)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for half in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..half.len()].copy_from_slice(half);
            let mixed = u128::from(self.0 ^ u64::from_le_bytes(word)) * 0x9e37_79b9_7f4a_7c15;
            self.0 = u64::try_from(mixed >> 32 & u128::from(u64::MAX)).unwrap_or_default();
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl NameId {
    /// Computes the identifier of an object or stripe; objects of different gateways get different ones.
    pub(super) fn of(name: &ObjectName, stripe: Option<Stripe>) -> Self {
        Self(digest(name, [], stripe))
    }
}

impl VersionId {
    /// Computes the identifier of a version of an object or stripe.
    pub(super) fn of(version: &ObjectVersion, stripe: Option<Stripe>) -> Self {
        let validator = &version.validator;
        let last_modified = validator.last_modified.as_deref().unwrap_or_default();
        Self(digest(&version.name, [validator.etag.as_str(), last_modified], stripe))
    }
}

/// Hashes length-prefixed fields, so that no two lists of fields are the same bytes.
fn digest<const N: usize>(name: &ObjectName, more: [&str; N], stripe: Option<Stripe>) -> [u8; LENGTH] {
    let mut hash = Sha256::new();
    let version_id = name.version_id.as_deref().unwrap_or_default();
    let fields = [name.gateway.as_str(), name.bucket.as_str(), name.key.as_str(), version_id];
    for field in fields.into_iter().chain(more) {
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field);
    }
    if let Some(stripe) = stripe {
        // Longer than any field.
        hash.update(u64::MAX.to_le_bytes());
        hash.update(stripe.index().to_le_bytes());
        hash.update(stripe.length().bytes().to_le_bytes());
    }
    let mut id = [0; LENGTH];
    id.copy_from_slice(&hash.finalize()[..LENGTH]);
    id
}

/// Implements parsing, hashing and hexadecimal formatting of an identifier.
macro_rules! in_hex {
    ($id:ident) => {
        impl $id {
            pub(super) fn from_hex(text: &str) -> Option<Self> {
                let mut id = [0; LENGTH];
                hex::decode_to_slice(text, &mut id).ok()?;
                Some(Self(id))
            }
        }

        impl Hash for $id {
            fn hash<H: Hasher>(&self, state: &mut H) {
                state.write(&self.0);
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
    };
}

in_hex!(NameId);
in_hex!(VersionId);

impl VersionId {
    pub(super) const LENGTH: usize = LENGTH;
    /// The identifier of no version, which precedes pinned ones in the saved LRU order.
    pub(super) const PINNED: Self = Self([0; LENGTH]);

    pub(super) fn as_bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

impl From<[u8; LENGTH]> for VersionId {
    fn from(id: [u8; LENGTH]) -> Self {
        Self(id)
    }
}
