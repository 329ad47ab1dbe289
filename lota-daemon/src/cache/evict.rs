//! What operators have removed: objects by name, and those whose bytes are not what they were.

use std::{str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::{
    Cache,
    disk::Disk,
    ids::{Ids, NameId, VersionId},
    store::Entry,
    upkeep,
};
use crate::s3::ObjectName;

/// Which objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    /// All.
    All,
    /// One, in every content that is here; not what was read by a version id.
    Object {
        /// Its bucket.
        bucket: String,
        /// Its key.
        key: String,
    },
    /// Those of a bucket whose keys begin so, whatever they were read by.
    Prefix {
        /// The bucket.
        bucket: String,
        /// What the keys begin with.
        prefix: String,
    },
}

/// What is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is neither of the form `s3://bucket/key` nor `s3://bucket/prefix*`; or say `--all`"
            )
        };
        let (bucket, key) =
            text.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
        let bucket = bucket.to_owned();
        match key.strip_suffix('*') {
            Some(prefix) if !bucket.is_empty() => Ok(Self::Prefix { bucket, prefix: prefix.to_owned() }),
            None if ObjectName::from_parts(&bucket, key, None).is_some() => {
                Ok(Self::Object { bucket, key: key.to_owned() })
            }
            _ => Err(wrong()),
        }
    }
}

impl Which {
    fn by_name(&self, ids: &Ids) -> Option<NameId> {
        match self {
            Self::Object { bucket, key } => {
                ObjectName::from_parts(bucket, key, None).map(|name| ids.name(&name))
            }
            Self::All | Self::Prefix { .. } => None,
        }
    }
}

impl Cache {
    /// Removes complete objects. Who reads one reads on; what is still arriving stays.
    pub async fn evict(&self, which: &Which) -> Gone {
        let name = which.by_name(&self.ids);
        let mut gone = Gone::default();
        for disk in &self.disks {
            let (disk, which) = (disk.clone(), which.clone());
            // There may be millions, each with a file to look into.
            let removed = spawn_blocking(move || {
                disk.evict_if(|disk, entry| match &which {
                    Which::All => true,
                    Which::Object { .. } => name == Some(entry.name),
                    Which::Prefix { bucket, prefix } => disk.store.load(entry).is_ok_and(|(record, _)| {
                        let name = record.meta.version.name;
                        name.bucket.as_str() == bucket && name.key.as_str().starts_with(prefix.as_str())
                    }),
                })
            });
            let Gone { objects, bytes } = removed.await.unwrap_or_default();
            gone = Gone { objects: gone.objects + objects, bytes: gone.bytes + bytes };
        }
        gone
    }

    /// Compares these objects with their checksums, named as their files are, and drops those that differ. Names of
    /// others are passed over.
    pub async fn drop_corrupt(&self, files: &[String]) -> Gone {
        let mut gone = Gone::default();
        for version in files.iter().filter_map(|file| VersionId::from_hex(file)) {
            for disk in &self.disks {
                let entry = disk.index().entry(version);
                let Some(entry) = entry.filter(|_| !disk.is_handed_over() && !disk.has_failed()) else {
                    continue;
                };
                upkeep::scrub_one(disk, entry, u64::MAX).await;
                if disk.index().entry(version).is_none() {
                    gone = Gone { objects: gone.objects + 1, bytes: gone.bytes + entry.size };
                }
            }
        }
        gone
    }
}

impl Disk {
    fn evict_if(self: &Arc<Self>, is_meant: impl Fn(&Self, &Entry) -> bool) -> Gone {
        let (order, mut gone) = (self.index().order(), Gone::default());
        for version in order {
            let entry = self.index().entry(version);
            if self.is_handed_over() || !entry.is_some_and(|entry| is_meant(self, &entry)) {
                continue;
            }
            let taken = self.index().take(version);
            if let Some(entry) = taken {
                self.remove(&[entry]);
                gone = Gone { objects: gone.objects + 1, bytes: gone.bytes + entry.size };
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_is_said_plainly() {
        let parse = |text: &str| text.parse::<Which>();
        let (bucket, key) = ("b".to_owned(), "a/k".to_owned());
        assert_eq!(parse("s3://b/a/k"), Ok(Which::Object { bucket: bucket.clone(), key }));
        assert_eq!(parse("s3://b/a*"), Ok(Which::Prefix { bucket: bucket.clone(), prefix: "a".into() }));
        assert_eq!(parse("s3://b/*"), Ok(Which::Prefix { bucket, prefix: String::new() }));
        for text in ["b/k", "s3://b", "s3://b/", "s3:///k", "s3:///*", ""] {
            assert!(parse(text).unwrap_err().contains("--all"), "{text}");
        }
    }
}
