//! A client that repeats what fails, and records what it did and saw.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hyper::{Method, StatusCode};
use lota_tests::{
    history::{Event, Object, What},
    lab::{
        ADMIN, Namespace, VIP,
        raw::{Reply, Request, Signing, Wire},
    },
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{sleep, timeout};

use super::{CURE, outages::Outages};

pub(crate) const BUCKET: &str = "chaos";
/// Number of keys, all of which all clients read and write.
const KEYS: u32 = 12;
/// Keys below this have large objects, in stripes.
const LARGE_KEYS: u32 = 3;
/// Number of blocks of large objects.
const LARGE_BLOCKS: usize = 140_000;
/// Length of a block in bytes.
const BLOCK: usize = 16;
/// One of this number of operations is a write.
const OPERATIONS_PER_WRITE: u32 = 6;
/// Time after which a request counts as failed.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Pause before a request is repeated.
const PAUSE: Duration = Duration::from_millis(200);

/// State that all clients share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) seed: u64,
    pub(crate) outages: Outages,
    /// Whether the faults have ended.
    pub(crate) is_over: AtomicBool,
    began: Instant,
    values: AtomicU64,
}

impl Common {
    pub(crate) fn new(seed: u64) -> Self {
        let began = Instant::now();
        let (outages, values) = (Outages::new(began), AtomicU64::new(1));
        Self { seed, outages, is_over: AtomicBool::default(), began, values }
    }
}

/// A client in a pod.
#[derive(Debug)]
pub(crate) struct Client<'a> {
    common: &'a Common,
    /// Position of its node.
    node: usize,
    random: StdRng,
    wire: Wire,
    pub(crate) events: Vec<Event>,
    pub(crate) hits: usize,
    /// Number of attempts that failed.
    pub(crate) failed: usize,
    /// Longest time from a failure to a success, outside of outages.
    pub(crate) longest: Duration,
}

/// A request that is repeated with the same meaning.
#[derive(Clone, Copy, Debug)]
enum Action {
    Get,
    /// Of blocks, beginning with the first number, as many as the second.
    GetRange(usize, usize),
    Head,
    Put,
    Delete,
}

impl<'a> Client<'a> {
    /// Makes a client on a node, whose number counts from 1.
    pub(crate) fn new(common: &'a Common, node: u8, number: u64) -> Self {
        let random = StdRng::seed_from_u64(common.seed ^ (number + 1) << 32);
        let (node, wire) = (usize::from(node) - 1, Wire::to((VIP, 80).into()));
        let (events, longest) = (Vec::new(), Duration::ZERO);
        Self { common, node, random, wire, events, hits: 0, failed: 0, longest }
    }

    /// Reads and writes from a pod until the end. If it fails, all clients end.
    pub(crate) fn run(mut self, pod: &Namespace) -> Result<Self> {
        pod.enter()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ran = runtime.block_on(async {
            while !self.common.is_over.load(Ordering::Relaxed) {
                self.act().await?;
                let pause = self.random.random_range(5..60);
                sleep(Duration::from_millis(pause)).await;
            }
            // Now that no fault is left, every key can be read.
            for key in 0..KEYS {
                self.repeat(Action::Get, key).await?;
            }
            anyhow::Ok(())
        });
        if ran.is_err() {
            self.common.is_over.store(true, Ordering::Relaxed);
        }
        ran.map(|()| self)
    }

    async fn act(&mut self) -> Result<()> {
        let key = self.random.random_range(0..KEYS);
        let action = match self.random.random_ratio(1, OPERATIONS_PER_WRITE) {
            true if self.random.random_ratio(1, 6) => Action::Delete,
            true => Action::Put,
            false => match self.random.random_range(0..6) {
                0 => Action::Head,
                1 | 2 if key < LARGE_KEYS => {
                    let first = self.random.random_range(0..LARGE_BLOCKS);
                    Action::GetRange(first, self.random.random_range(1..=LARGE_BLOCKS - first))
                }
                1 | 2 => Action::GetRange(0, 1),
                _ => Action::Get,
            },
        };
        self.repeat(action, key).await
    }

    /// Repeats an action until it succeeds.
    async fn repeat(&mut self, action: Action, key: u32) -> Result<()> {
        let mut first_failure = None;
        loop {
            let Err(error) = self.attempt(action, key).await? else { break };
            self.failed += 1;
            let first = *first_failure.get_or_insert_with(Instant::now);
            let fails_for = self.common.outages.fine_since(self.node, first);
            if fails_for > CURE {
                return Err(error).with_context(|| {
                    format!(
                        "node {} after {:.1?}: {action:?} of key {key} fails for {fails_for:.1?}",
                        self.node + 1,
                        self.common.began.elapsed()
                    )
                });
            }
            self.wire = Wire::to((VIP, 80).into());
            sleep(PAUSE).await;
        }
        if let Some(first) = first_failure {
            self.longest = self.longest.max(self.common.outages.fine_since(self.node, first));
        }
        Ok(())
    }

    /// Attempts an action once. The inner error may pass; the outer one is a violation.
    async fn attempt(&mut self, action: Action, key: u32) -> Result<Result<()>> {
        let target = format!("/{BUCKET}/key-{key}");
        let request = |method| Request::new(method, "cwlota.com", &target);
        let (request, written) = match action {
            Action::Get => (request(Method::GET), None),
            Action::GetRange(first, count) => {
                let range = format!("bytes={}-{}", first * BLOCK, (first + count) * BLOCK - 1);
                (request(Method::GET).header("range", &range), None)
            }
            Action::Head => (request(Method::HEAD), None),
            Action::Delete => (request(Method::DELETE), Some(Object::default())),
            Action::Put => {
                // Each attempt writes another value, since an earlier one may take effect at any time.
                let value = self.common.values.fetch_add(1, Ordering::Relaxed);
                let put = request(Method::PUT)
                    .header("content-type", &format!("text/x-{value}"))
                    .header("x-amz-meta-value", &value.to_string())
                    .body((0..blocks(key, value)).flat_map(|index| block(value, index)).collect::<Vec<u8>>());
                (put, Some(Object { bytes: value, metadata: value, version: 1 }))
            }
        };
        let request = request.sign(&ADMIN, Signing::Header)?;
        let start = self.common.began.elapsed();
        let reply = match timeout(TIMEOUT, self.wire.send(&request)).await {
            Ok(Ok(reply)) if reply.status.is_success() || reply.status == StatusCode::NOT_FOUND => Ok(reply),
            Ok(Ok(reply)) => Err(anyhow::anyhow!("answered {} {}", reply.status, reply.code())),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(anyhow::anyhow!("no answer within {TIMEOUT:?}")),
        };
        let end = match &reply {
            Ok(_) => self.common.began.elapsed(),
            // It may still take effect.
            Err(_) => Duration::MAX,
        };
        let what = match (written, reply) {
            (Some(object), reply) => {
                self.events.push(Event { key, start, end, what: What::Write(object) });
                return Ok(reply.map(drop));
            }
            (None, Err(error)) => return Ok(Err(error)),
            (None, Ok(reply)) => {
                self.hits += usize::from(reply.cache() == "hit");
                let object = seen(&reply, action, key).with_context(|| format!("{action:?} of key {key}"))?;
                if matches!(action, Action::Head) { What::Head(object) } else { What::Get(object) }
            }
        };
        self.events.push(Event { key, start, end, what });
        Ok(Ok(()))
    }
}

/// Returns the number of blocks of an object with this value.
fn blocks(key: u32, value: u64) -> usize {
    if key < LARGE_KEYS { LARGE_BLOCKS } else { usize::try_from(value * 7919 % 4000).unwrap_or(0) + 1 }
}

/// Returns a block of an object: its value and the number of the block, so that no block can be taken for another.
fn block(value: u64, index: usize) -> [u8; BLOCK] {
    let mut block = [b'0'; BLOCK];
    let (mut value, mut index) = (value, index);
    for place in (0..BLOCK / 2).rev() {
        block[place] += u8::try_from(value % 10).unwrap_or_default();
        block[place + BLOCK / 2] += u8::try_from(index % 10).unwrap_or_default();
        (value, index) = (value / 10, index / 10);
    }
    block
}

/// Returns the object that a response shows.
fn seen(reply: &Reply, action: Action, key: u32) -> Result<Object> {
    if reply.status == StatusCode::NOT_FOUND {
        return Ok(Object::default());
    }
    let metadata = reply.header("x-amz-meta-value").parse().context("no value in the metadata")?;
    let kind = reply.header("content-type");
    ensure!(kind == format!("text/x-{metadata}"), "metadata of several writes: {metadata} and {kind}");
    let (first, count) = match action {
        Action::Head => return Ok(Object { bytes: 0, metadata, version: 1 }),
        Action::GetRange(first, count) => {
            ensure!(reply.status == StatusCode::PARTIAL_CONTENT, "a range was answered {}", reply.status);
            (first, count)
        }
        _ => (0, blocks(key, metadata)),
    };
    ensure!(reply.body.len() == count * BLOCK, "{} bytes instead of {}", reply.body.len(), count * BLOCK);
    let bytes = std::str::from_utf8(&reply.body[..BLOCK / 2])?.parse()?;
    let is_right = |(index, found): (usize, &[u8])| *found == block(bytes, first + index);
    ensure!(reply.body.chunks(BLOCK).enumerate().all(is_right), "other bytes than those of {bytes}");
    Ok(Object { bytes, metadata, version: 1 })
}
