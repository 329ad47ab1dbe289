//! A client that repeats what fails, and records what it did and saw.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use hyper::{Method, StatusCode};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{sleep, timeout};

use super::{
    LoadState,
    action::LoadAction,
    content::{BLOCK, body, seen},
};
use crate::{
    history::{Event, Object, What},
    lab::{
        ADMIN, Namespace, VIP,
        raw::{Request, Signing, Wire},
    },
};

/// Time after which a request counts as failed.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Pause before a request is repeated.
const PAUSE: Duration = Duration::from_millis(200);

/// A client in a pod.
#[derive(Debug)]
pub struct LoadClient<'a> {
    load: &'a LoadState,
    /// Position of its node.
    node: usize,
    /// Its own number.
    number: u64,
    random: StdRng,
    wire: Wire,
    /// Operations, in order.
    pub events: Vec<Event>,
    /// Number of hits.
    pub hits: usize,
    /// Longest time from a failure to a success, outside of outages.
    pub longest: Duration,
}

impl<'a> LoadClient<'a> {
    /// Creates a client on a node. Nodes are numbered from 1, clients from 0.
    pub(super) fn new(load: &'a LoadState, node: u8, number: u64) -> Self {
        let random = StdRng::seed_from_u64(load.seed ^ (number + 1) << 32);
        let (node, wire) = (usize::from(node) - 1, Wire::to((VIP, 80).into()));
        Self { load, node, number, random, wire, events: Vec::new(), hits: 0, longest: Duration::ZERO }
    }

    /// Reads and writes from a pod until the end. If it fails, all clients end.
    pub(super) fn run(mut self, pod: &Namespace) -> Result<Self> {
        pod.enter()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ran = runtime.block_on(self.act_until_the_end());
        if ran.is_err() {
            self.load.is_over.store(true, Ordering::Relaxed);
        }
        ran.map(|()| self)
    }

    async fn act_until_the_end(&mut self) -> Result<()> {
        let load = self.load;
        let workload = &load.workload;
        if workload.writes_first {
            let first = u32::try_from(self.number)?;
            for key in (first..workload.keys).step_by(load.completed.len()) {
                self.repeat(LoadAction::Put, key).await?;
            }
        }
        load.ready.fetch_add(1, Ordering::Relaxed);
        while !load.is_over.load(Ordering::Relaxed) {
            self.act().await?;
            let pause = self.random.random_range(workload.pause.clone());
            sleep(Duration::from_millis(pause)).await;
        }
        if workload.reads_last {
            // Now that no fault is left, every key can be read.
            for key in 0..workload.keys {
                self.repeat(LoadAction::Get, key).await?;
            }
        }
        Ok(())
    }

    async fn act(&mut self) -> Result<()> {
        let workload = &self.load.workload;
        let draws = (0..workload.draws).map(|_| self.random.random_range(0..workload.keys));
        let key = draws.min().unwrap_or_default();
        let is_large = self.is_large(key);
        let action = LoadAction::any(&mut self.random, is_large);
        self.repeat(action, key).await
    }

    fn is_large(&self, key: u32) -> bool {
        key.is_multiple_of(self.load.workload.keys_per_large)
    }

    /// Repeats an action until it succeeds.
    async fn repeat(&mut self, action: LoadAction, key: u32) -> Result<()> {
        let (load, began) = (self.load, Instant::now());
        let mut first_failure = None;
        loop {
            let began = load.began.elapsed();
            let Err(error) = self.attempt(action, key).await? else { break };
            load.failed(format!(
                "{action:?} of key {key} at node {} after {began:.1?}, for {:.1?}: {error:#}",
                self.node + 1,
                load.began.elapsed() - began
            ));
            let first = *first_failure.get_or_insert_with(Instant::now);
            let fails_for = load.outages.fine_since(self.node, first);
            if fails_for > load.workload.cure {
                return Err(error).with_context(|| {
                    format!(
                        "node {} after {:.1?}: {action:?} of key {key} fails for {fails_for:.1?}",
                        self.node + 1,
                        load.began.elapsed()
                    )
                });
            }
            self.wire = Wire::to((VIP, 80).into());
            sleep(PAUSE).await;
        }
        if let Some(first) = first_failure {
            self.longest = self.longest.max(load.outages.fine_since(self.node, first));
        }
        load.completed(self.number, began.elapsed());
        Ok(())
    }

    /// Attempts an action once. The inner error may pass; the outer one is a violation.
    async fn attempt(&mut self, action: LoadAction, key: u32) -> Result<Result<()>> {
        let target = format!("/{}/key-{key}", self.load.workload.bucket);
        let request = |method| Request::new(method, "cwlota.com", &target);
        let (request, written) = match action {
            LoadAction::Get => (request(Method::GET), None),
            LoadAction::GetRange(first, count) => {
                let range = format!("bytes={}-{}", first * BLOCK, (first + count) * BLOCK - 1);
                (request(Method::GET).header("range", &range), None)
            }
            LoadAction::Head => (request(Method::HEAD), None),
            LoadAction::Delete => (request(Method::DELETE), Some(Object::default())),
            LoadAction::Put => {
                // Each attempt writes another value, since an earlier one may take effect at any time.
                let value = self.load.values.fetch_add(1, Ordering::Relaxed);
                let put = request(Method::PUT)
                    .header("content-type", &format!("text/x-{value}"))
                    .header("x-amz-meta-value", &value.to_string())
                    .body(body(self.is_large(key), value));
                (put, Some(Object { bytes: value, metadata: value, version: 1 }))
            }
        };
        let request = request.sign(&ADMIN, Signing::Header)?;
        let start = self.load.began.elapsed();
        let reply = match timeout(TIMEOUT, self.wire.send(&request)).await {
            Ok(Ok(reply)) if reply.status.is_success() || reply.status == StatusCode::NOT_FOUND => Ok(reply),
            Ok(Ok(reply)) => Err(anyhow!("answered {} {}", reply.status, reply.code())),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(anyhow!("no answer within {TIMEOUT:?}")),
        };
        let end = match &reply {
            Ok(_) => self.load.began.elapsed(),
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
                let object = seen(&reply, action, self.is_large(key))
                    .with_context(|| format!("{action:?} of key {key}"))?;
                if matches!(action, LoadAction::Head) { What::Head(object) } else { What::Get(object) }
            }
        };
        self.events.push(Event { key, start, end, what });
        Ok(Ok(()))
    }
}
