//! Eviction on an operator's request: by name, or of objects that fail verification.

use std::{str::FromStr, sync::Arc};

use lota_s3::{GatewayId, ObjectName};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::{
    Cache,
    disk::Disk,
    ids::{NameId, VersionId},
    store::StoreEntry,
    upkeep,
};

/// Selection of objects to evict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvictSelector {
    /// All objects.
    All,
    /// All cached versions of one object, except those that were read with a version id.
    Object {
        /// Name of the bucket.
        bucket: String,
        /// Key of the object.
        key: String,
    },
    /// Objects of a bucket whose keys begin with a prefix, with or without a version id.
    Prefix {
        /// The bucket.
        bucket: String,
        /// Prefix of the keys.
        prefix: String,
    },
}

/// Amount that was evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictedTotal {
    /// Number of objects.
    pub objects: u64,
    /// Total size in bytes.
    pub bytes: u64,
}

impl FromStr for EvictSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is neither of the form `s3://bucket/key` nor `s3://bucket/prefix*`; or use `--all`"
            )
        };
        let (bucket, key) =
            text.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
        let bucket = bucket.to_owned();
        match key.strip_suffix('*') {
            Some(prefix) if !bucket.is_empty() => Ok(Self::Prefix { bucket, prefix: prefix.to_owned() }),
            None if ObjectName::from_parts("", &bucket, key, None).is_some() => {
                Ok(Self::Object { bucket, key: key.to_owned() })
            }
            _ => Err(wrong()),
        }
    }
}

impl EvictSelector {
    /// Returns the identifiers of an object of this name at each of the gateways.
    fn ids(&self, gateways: &[GatewayId]) -> Vec<NameId> {
        let Self::Object { bucket, key } = self else { return Vec::new() };
        let names =
            gateways.iter().filter_map(|gateway| ObjectName::from_parts(gateway.clone(), bucket, key, None));
        names.map(|name| NameId::of(&name, None)).collect()
    }
}

impl Cache {
    /// Evicts complete and partial objects of these gateways. Reads in progress complete, and running fills are not affected.
    pub async fn evict(&self, which: &EvictSelector, gateways: &[GatewayId]) -> EvictedTotal {
        let names: Arc<[NameId]> = which.ids(gateways).into();
        let mut gone = EvictedTotal::default();
        for disk in &self.disks {
            let (disk, which, names) = (disk.clone(), which.clone(), names.clone());
            let gateways = gateways.to_vec();
            // It may read the files of millions of objects.
            let removed = spawn_blocking(move || {
                disk.evict_if(|disk, entry| match &which {
                    EvictSelector::All => true,
                    EvictSelector::Object { bucket, key } if entry.is_stripe => {
                        disk.name_of(entry).is_some_and(|name| {
                            gateways.contains(&name.gateway)
                                && name.bucket.as_str() == bucket
                                && name.key.as_str() == key
                                && name.version_id.is_none()
                        })
                    }
                    EvictSelector::Object { .. } => names.contains(&entry.name),
                    EvictSelector::Prefix { bucket, prefix } => disk.name_of(entry).is_some_and(|name| {
                        name.bucket.as_str() == bucket && name.key.as_str().starts_with(prefix.as_str())
                    }),
                })
            });
            let EvictedTotal { objects, bytes } = removed.await.unwrap_or_default();
            gone = EvictedTotal { objects: gone.objects + objects, bytes: gone.bytes + bytes };
        }
        gone
    }

    /// Verifies these objects, given by hexadecimal version identifiers, against their checksums, and drops those that
    /// differ. Unknown identifiers are skipped.
    pub async fn drop_corrupt(&self, files: &[String]) -> EvictedTotal {
        let mut gone = EvictedTotal::default();
        for version in files.iter().filter_map(|file| VersionId::from_hex(file)) {
            for disk in &self.disks {
                let entry = disk.index().entry(version);
                let Some(entry) = entry.filter(|_| !disk.is_handed_over() && !disk.has_failed()) else {
                    continue;
                };
                upkeep::scrub_one(disk, entry, u64::MAX).await;
                if disk.index().entry(version).is_none() {
                    gone = EvictedTotal { objects: gone.objects + 1, bytes: gone.bytes + entry.size };
                }
            }
        }
        gone
    }
}

impl Disk {
    pub(super) fn name_of(&self, entry: &StoreEntry) -> Option<ObjectName> {
        let partial = self.index().partial_meta(entry.version);
        match partial {
            Some(meta) => Some(meta.version.name.clone()),
            None => self.store.load(entry).ok().map(|(record, _)| record.meta.version.name),
        }
    }

    fn evict_if(self: &Arc<Self>, is_meant: impl Fn(&Self, &StoreEntry) -> bool) -> EvictedTotal {
        let (order, mut gone) = (self.index().order(), EvictedTotal::default());
        for version in order {
            let entry = self.index().entry(version);
            if self.is_handed_over() || !entry.is_some_and(|entry| is_meant(self, &entry)) {
                continue;
            }
            let taken = self.index().take(version);
            if let Some(evicted) = taken {
                self.remove(&[evicted]);
                gone = EvictedTotal { objects: gone.objects + 1, bytes: gone.bytes + evicted.bytes() };
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_objects_and_prefixes() {
        let parse = |text: &str| text.parse::<EvictSelector>();
        let (bucket, key) = ("b".to_owned(), "a/k".to_owned());
        assert_eq!(parse("s3://b/a/k"), Ok(EvictSelector::Object { bucket: bucket.clone(), key }));
        assert_eq!(
            parse("s3://b/a*"),
            Ok(EvictSelector::Prefix { bucket: bucket.clone(), prefix: "a".into() })
        );
        assert_eq!(parse("s3://b/*"), Ok(EvictSelector::Prefix { bucket, prefix: String::new() }));
        for text in ["b/k", "s3://b", "s3://b/", "s3:///k", "s3:///*", ""] {
            assert!(parse(text).unwrap_err().contains("--all"), "{text}");
        }
    }
}
