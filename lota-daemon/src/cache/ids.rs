//! Short names of objects and their versions, in the index and on disk.

use std::{fmt, sync::Arc};

use sha2::{Digest as _, Sha256};

use crate::s3::{ObjectName, ObjectVersion};

const LENGTH: usize = 16;

/// Names an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NameId([u8; LENGTH]);

/// Names an object version. Should two ever share one, their records tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct VersionId([u8; LENGTH]);

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
