//! Requests of one client, recorded as events.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hyper::{Method, StatusCode};
use lota_tests::{
    history::{Event, Object, What},
    lab::{
        ADMIN,
        raw::{Reply, Request, Signing, Wire},
    },
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::sleep;

/// Number of keys that every contender writes; small, so that they are written constantly.
pub(crate) const SHARED_KEYS: u32 = 4;
/// Shared key whose objects are always large, so that some are replaced by others of the same size while they are read.
const LARGE_KEY: u32 = 0;
/// Number of keys of each owner.
pub(crate) const OWNED_KEYS: u32 = 5;
/// Version number of objects without a version id.
const NO_VERSION: u64 = 1;

/// State that all clients of a test share.
#[derive(Debug)]
pub(crate) struct Common {
    /// Prefix of the names of the test's buckets.
    pub(crate) prefix: String,
    pub(crate) began: Instant,
    pub(crate) seed: u64,
    /// The next value to write.
    pub(crate) values: AtomicU64,
    /// Number of owners, each with a bucket.
    pub(crate) owners: u32,
    /// Number of owners that are done.
    pub(crate) ended: AtomicU32,
    /// Bursts of writes of each owner.
    pub(crate) bursts: u32,
    /// Minimum number of reads of each reader.
    pub(crate) reads: usize,
    /// Whether large objects are in stripes, so that a response ends early if its object is overwritten.
    pub(crate) has_stripes: bool,
    /// Buckets with versioning.
    pub(crate) versioning: Versioning,
}

/// Buckets of owners with versioning, and when it is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Versioning {
    /// None.
    Off,
    /// One bucket from the start, in which no version is deleted: while RGW turns an object into a version or deletes the
    /// newest version, it returns 404. RGW's 304 to a read by version id proves nothing, so such reads are not hits.
    One,
    /// All buckets after a third of the bursts. The newest version may be deleted.
    Midway,
}

/// One client with a connection of its own.
#[derive(Debug)]
pub(crate) struct Client<'a> {
    pub(crate) common: &'a Common,
    /// Number of the place, which has one owner.
    pub(crate) owner: u32,
    pub(crate) random: StdRng,
    pub(crate) events: Vec<Event>,
    pub(crate) hits: usize,
    /// Number of reads with status 500.
    pub(crate) errors: usize,
    /// Number of reads whose response ended early.
    pub(crate) broken: usize,
    wire: Wire,
}

impl Common {
    pub(crate) fn bucket(&self, owner: Option<u32>) -> String {
        owner.map_or_else(|| format!("{}-shared", self.prefix), |owner| format!("{}-{owner}", self.prefix))
    }

    /// Returns the path of a key: the shared ones come first, then each owner's.
    pub(crate) fn path(&self, key: u32) -> String {
        let owner = key.checked_sub(SHARED_KEYS).map(|owned| owned / OWNED_KEYS);
        format!("/{}/key-{key}", self.bucket(owner))
    }

    /// Returns the burst before which versioning of an owner's bucket is enabled, if it is.
    pub(crate) fn first_versioned(&self, owner: u32) -> Option<u32> {
        match self.versioning {
            Versioning::Off => None,
            Versioning::One => (owner == 1).then_some(0),
            Versioning::Midway => Some(self.bursts / 3),
        }
    }

    /// Returns whether every owner is done, or a client has failed.
    pub(crate) fn is_done(&self) -> bool {
        self.ended.load(Ordering::Relaxed) >= self.owners
    }

    pub(crate) fn next_value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed)
    }
}

impl<'a> Client<'a> {
    pub(crate) fn new(common: &'a Common, number: u64, owner: u32, to: SocketAddr) -> Self {
        let random = StdRng::seed_from_u64(common.seed ^ number << 32);
        Self { common, owner, random, events: Vec::new(), hits: 0, errors: 0, broken: 0, wire: Wire::to(to) }
    }

    /// Sends a signed request; returns the response, with start and end.
    pub(crate) async fn send(&mut self, request: Request) -> Result<(Reply, Duration, Duration)> {
        let signing = match request.method {
            Method::GET if self.random.random_ratio(1, 3) => Signing::Presigned,
            _ => Signing::Header,
        };
        let request = request.sign(&ADMIN, signing)?;
        let start = self.common.began.elapsed();
        let reply = self.wire.send(&request).await?;
        Ok((reply, start, self.common.began.elapsed()))
    }

    /// Sends a request that must succeed.
    pub(crate) async fn change(&mut self, request: Request) -> Result<(Reply, Duration, Duration)> {
        let what = format!("{} {}", request.method, request.target);
        let (reply, start, end) = self.send(request).await?;
        ensure!(reply.status.is_success(), "{what} was answered {} {}", reply.status, reply.code());
        Ok((reply, start, end))
    }

    pub(crate) fn wrote(&mut self, key: u32, object: Object, start: Duration, end: Duration) {
        self.events.push(Event { key, start, end, what: What::Write(object) });
    }

    pub(crate) fn request(&self, method: Method, key: u32) -> Request {
        Request::new(method, "cwlota.com", &self.common.path(key))
    }

    /// Returns a PUT of these bytes with this metadata.
    pub(crate) fn put(&self, key: u32, object: Object) -> Request {
        let Object { bytes, metadata, .. } = object;
        // Repeated, so that a mixture of two values is detected; over a mebibyte, a cached object has several chunks, and
        // three stripes.
        let is_large = key == LARGE_KEY || bytes % 20 == 0;
        let times = if is_large { 140_000 } else { usize::try_from(bytes * 7919 % 2000).unwrap_or(0) + 1 };
        describe(self.request(Method::PUT, key), metadata).body(format!("{bytes:016}").repeat(times))
    }

    /// Reads a key by HEAD, GET or a range.
    pub(crate) async fn read(&mut self, key: u32) -> Result<()> {
        let request = match self.random.random_range(0..6) {
            0 => self.request(Method::HEAD, key),
            1 | 2 => self.request(Method::GET, key).header("range", "bytes=0-15"),
            _ => self.request(Method::GET, key),
        };
        let is_head = request.method == Method::HEAD;
        let (reply, start, end) = match self.send(request).await {
            Err(error) if self.common.has_stripes && ended_early(&error) => {
                self.broken += 1;
                return Ok(());
            }
            sent => sent?,
        };
        if reply.status == StatusCode::INTERNAL_SERVER_ERROR {
            self.errors += 1;
            return Ok(());
        }
        self.hits += usize::from(reply.cache() == "hit");
        let object = seen(&reply, is_head).with_context(|| format!("reading {}", self.common.path(key)))?;
        let what = if is_head { What::Head(object) } else { What::Get(object) };
        self.events.push(Event { key, start, end, what });
        Ok(())
    }

    /// Returns the object that HEAD shows for a key, with its version id.
    pub(crate) async fn look(&mut self, key: u32) -> Result<(Object, String)> {
        let (reply, ..) = self.send(self.request(Method::HEAD, key)).await?;
        Ok((seen(&reply, true)?, reply.header("x-amz-version-id").to_owned()))
    }

    pub(crate) async fn rest(&mut self, milliseconds: std::ops::Range<u64>) {
        sleep(Duration::from_millis(self.random.random_range(milliseconds))).await;
    }
}

/// Returns whether a response has fewer bytes than its head states.
fn ended_early(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind()));
    kinds
        .into_iter()
        .any(|kind| matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset))
}

/// Adds metadata that contains its value twice.
pub(crate) fn describe(request: Request, metadata: u64) -> Request {
    request
        .header("content-type", &format!("text/x-{metadata}"))
        .header("x-amz-meta-value", &metadata.to_string())
}

/// Returns the number of a version id. `null`, which SeaweedFS returns once versioning is enabled and RGW never
/// returns, counts as none, since hits may lack it.
pub(crate) fn version(id: &str) -> u64 {
    if id.is_empty() || id == "null" {
        return NO_VERSION;
    }
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish() | 2
}

/// Returns the object that a response shows.
fn seen(reply: &Reply, is_head: bool) -> Result<Object> {
    if reply.status.as_u16() == 404 {
        return Ok(Object::default());
    }
    ensure!(reply.status.is_success(), "answered {} {}", reply.status, reply.code());
    let metadata = reply.header("x-amz-meta-value").parse().context("no value in the metadata")?;
    let kind = reply.header("content-type");
    ensure!(kind == format!("text/x-{metadata}"), "metadata of several writes: {metadata} and {kind}");
    let bytes = if is_head {
        0
    } else {
        let first = reply.body.get(..16).unwrap_or_default();
        ensure!(reply.body.chunks(16).all(|piece| piece == first), "bytes of several values");
        std::str::from_utf8(first)?.parse()?
    };
    Ok(Object { bytes, metadata, version: version(reply.header("x-amz-version-id")) })
}
