//! Short names of objects and their versions, in the index and on disk.

use std::{
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use crate::s3::{ObjectName, ObjectVersion};

const LENGTH: usize = 16;

/// Names an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NameId([u8; LENGTH]);

/// Names an object version. Should two ever share one, their records tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct VersionId([u8; LENGTH]);

/// Hashes ids for maps. They are hashes already, but anyone can find names whose ids are alike in some bits: a secret
/// decides which bits count.
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

/// The same, for one id.
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

/// Gives names; objects of different gateways get different ones.
#[derive(Clone, Debug)]
pub(super) struct Ids {
    gateway: Arc<str>,
}

impl Ids {
    pub(super) fn new(gateway: &str) -> Self {
        Self { gateway: gateway.into() }
    }

    pub(super) fn name(&self, name: &ObjectName) -> NameId {
        NameId(self.digest(name, []))
    }

    pub(super) fn version(&self, version: &ObjectVersion) -> VersionId {
        let validator = &version.validator;
        let last_modified = validator.last_modified.as_deref().unwrap_or_default();
        VersionId(self.digest(&version.name, [validator.etag.as_str(), last_modified]))
    }

    /// Hashes length-prefixed fields, so that no two lists of fields are the same bytes.
    fn digest<const N: usize>(&self, name: &ObjectName, more: [&str; N]) -> [u8; LENGTH] {
        let mut hash = Sha256::new();
        let version_id = name.version_id.as_deref().unwrap_or_default();
        let fields = [&*self.gateway, name.bucket.as_str(), name.key.as_str(), version_id];
        for field in fields.into_iter().chain(more) {
            hash.update((field.len() as u64).to_le_bytes());
            hash.update(field);
        }
        let mut id = [0; LENGTH];
        id.copy_from_slice(&hash.finalize()[..LENGTH]);
        id
    }
}

/// Both are hexadecimal on disk.
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

    pub(super) fn as_bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

impl From<[u8; LENGTH]> for VersionId {
    fn from(id: [u8; LENGTH]) -> Self {
        Self(id)
    }
}
