//! Clients that write. Contenders write the same keys concurrently. Each owner is the only writer of its bucket, so
//! that it knows the content, and pauses between bursts.

use anyhow::{Result, ensure};
use hyper::Method;
use lota_tests::{
    history::{Event, Object, What},
    lab::raw::Request,
};
use rand::Rng as _;

use super::client::{Client, OWNED_KEYS, SHARED_KEYS, Versioning, describe, version};

/// Maximum number of operations of a burst, which change a key within one second.
const BURST: u32 = 6;
/// Milliseconds between two bursts of an owner. `OWNED_KEYS` pauses are longer than the time after which the cache
/// trusts an object's date.
const BURST_INTERVAL_MS: std::ops::Range<u64> = 600..1100;
/// Milliseconds of the last pause, in which every key is read again.
const LAST_REST: std::ops::Range<u64> = 3000..3001;

/// Writes the shared keys until all owners are done.
pub(crate) async fn contend(client: &mut Client<'_>) -> Result<()> {
    let mut before = [0; SHARED_KEYS as usize];
    while !client.common.is_done() {
        let key = client.random.random_range(0..SHARED_KEYS);
        let last = &mut before[key as usize];
        let object = match client.random.random_range(0..8) {
            0 => Object::default(),
            // New metadata for bytes that may still be current.
            1..4 if *last > 0 => {
                Object { bytes: *last, metadata: client.common.next_value(), version: version("") }
            }
            _ => {
                let value = client.common.next_value();
                Object { bytes: value, metadata: value, version: version("") }
            }
        };
        *last = object.bytes;
        let request = match object.bytes {
            0 => client.request(Method::DELETE, key),
            _ => client.put(key, object),
        };
        let (_, start, end) = client.change(request).await?;
        client.wrote(key, object, start, end);
        client.rest(5..60).await;
    }
    Ok(())
}

/// A version of an object, or a delete marker.
#[derive(Clone, Debug)]
struct Version {
    object: Object,
    id: String,
}

/// An owner's bucket, with the versions of each key, the current one last.
#[derive(Debug)]
struct Bucket {
    first: u32,
    versions: Vec<Vec<Version>>,
    has_versions: bool,
}

/// Writes an owner's keys in bursts. Before one of them, versioning may be enabled.
pub(crate) async fn own(client: &mut Client<'_>) -> Result<()> {
    let versions = vec![Vec::new(); OWNED_KEYS as usize];
    let first = SHARED_KEYS + client.owner * OWNED_KEYS;
    let mut bucket = Bucket { first, versions, has_versions: false };
    for burst in 0..client.common.bursts {
        if client.common.first_versioned(client.owner) == Some(burst) {
            bucket.enable_versions(client).await?;
        }
        let key = (burst % OWNED_KEYS) as usize;
        for _ in 0..client.random.random_range(2..=BURST) {
            bucket.change(client, key).await?;
            client.rest(0..60).await;
        }
        client.rest(BURST_INTERVAL_MS).await;
        if client.common.is_done() {
            return Ok(());
        }
    }
    client.rest(LAST_REST).await;
    Ok(())
}

impl Bucket {
    fn current(&self, key: usize) -> Object {
        self.versions[key].last().map(|version| version.object).unwrap_or_default()
    }

    fn number(&self, key: usize) -> u32 {
        self.first + u32::try_from(key).unwrap_or(u32::MAX)
    }

    async fn enable_versions(&mut self, client: &mut Client<'_>) -> Result<()> {
        let target = format!("/{}?versioning", client.common.bucket(Some(client.owner)));
        let enabled = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        let request = Request::new(Method::PUT, "cwlota.com", &target).body(enabled);
        client.change(request).await?;
        self.has_versions = true;
        for current in self.versions.iter_mut().filter_map(|versions| versions.last_mut()) {
            current.id = "null".into();
        }
        Ok(())
    }

    /// Returns whether the newest version of a key may be deleted. Where the one before is from before there were versions,
    /// SeaweedFS finds no object meanwhile.
    fn can_restore(&self, client: &Client<'_>, key: usize) -> bool {
        let [before @ .., _newest] = &*self.versions[key] else { return false };
        client.common.versioning == Versioning::Midway
            && self.has_versions
            && before.last().is_none_or(|before| before.id != "null")
    }

    async fn change(&mut self, client: &mut Client<'_>, key: usize) -> Result<()> {
        let (current, number) = (self.current(key), self.number(key));
        let exists = current != Object::default();
        let value = client.common.next_value();
        let new = Object { bytes: value, metadata: value, version: version("") };
        let same_bytes = Object { bytes: current.bytes, ..new };
        let path = client.common.path(number);
        match client.random.random_range(0..10) {
            0..3 if exists => self.write(client, key, client.put(number, same_bytes), same_bytes).await,
            3..5 if exists => {
                let copy = describe(client.request(Method::PUT, number), value)
                    .header("x-amz-copy-source", &path)
                    .header("x-amz-metadata-directive", "REPLACE");
                self.write(client, key, copy, same_bytes).await
            }
            5 => self.write(client, key, client.request(Method::DELETE, number), Object::default()).await,
            6 | 7 if self.can_restore(client, key) => self.remove_newest(client, key).await,
            _ => self.write(client, key, client.put(number, new), new).await,
        }
    }

    /// Sends a request that makes `object` the current one.
    async fn write(
        &mut self,
        client: &mut Client<'_>,
        key: usize,
        request: Request,
        mut object: Object,
    ) -> Result<()> {
        let number = self.number(key);
        let (reply, start, end) = client.change(request).await?;
        let mut id = reply.header("x-amz-version-id").to_owned();
        let is_there = object != Object::default();
        if self.has_versions && is_there {
            if id.is_empty() {
                // RGW does not return the version of a copy.
                let (seen, looked) = client.look(number).await?;
                ensure!(seen.metadata == object.metadata, "after writing {object:?}, HEAD shows {seen:?}");
                id = looked;
            }
            object.version = version(&id);
        }
        let versions = &mut self.versions[key];
        if !self.has_versions {
            versions.clear();
        }
        if self.has_versions || is_there {
            versions.push(Version { object, id });
        }
        client.wrote(number, object, start, end);
        Ok(())
    }

    /// Deletes the current version, so that the previous one becomes current.
    async fn remove_newest(&mut self, client: &mut Client<'_>, key: usize) -> Result<()> {
        let Some(newest) = self.versions[key].pop() else { return Ok(()) };
        let number = self.number(key);
        let target = format!("{}?versionId={}", client.common.path(number), newest.id);
        let (_, start, end) = client.change(Request::new(Method::DELETE, "cwlota.com", &target)).await?;
        let what = What::Restore(self.current(key));
        client.events.push(Event { key: number, start, end, what });
        Ok(())
    }
}
