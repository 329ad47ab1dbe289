//! A mixed load for suites and benchmarks: clients in pods that read and write the same keys, repeat what fails, and record what they
//! saw.

mod action;
mod client;
mod content;
mod footprint;
mod latencies;
mod outages;

use std::{
    net::SocketAddr,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper::Method;

pub use client::LoadClient;
pub use footprint::{Footprint, folder_use};
pub use latencies::{Latencies, LatencyCounts};
pub use outages::Outages;

use crate::{
    lab::{
        ADMIN, GATEWAY, GATEWAY_PORT, Lab, NODES, Pod, VIP,
        raw::{Request, Signing},
    },
    tour::{Tour, wait_within},
};

/// Number of errors that are kept.
const KEPT_FAILURES: usize = 10;

/// Properties of a load.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Bucket of all objects.
    pub bucket: &'static str,
    /// Number of clients in one pod of each node.
    pub clients: u64,
    /// Number of keys, all of which all clients read and write.
    pub keys: u32,
    /// One of this number of keys has large objects.
    pub keys_per_large: u32,
    /// Number of keys drawn for an operation, which uses the first of them: 1 to use all alike, more to use some more often.
    pub draws: u32,
    /// Pause after an operation, in milliseconds.
    pub pause: Range<u64>,
    /// Time within which a request that has failed must succeed, if the client's node and the gateway can be reached.
    pub cure: Duration,
    /// Whether each key is written before the load begins.
    pub writes_first: bool,
    /// Whether each client reads each key at the end.
    pub reads_last: bool,
}

/// State that all clients share.
#[derive(Debug)]
pub struct LoadState {
    /// Properties.
    pub workload: Workload,
    /// Seed of everything that is random.
    pub seed: u64,
    /// Times at which nodes cannot be served.
    pub outages: Outages,
    /// Whether clients shall end.
    pub is_over: AtomicBool,
    /// Latencies of all requests, with their repetitions.
    pub latencies: Latencies,
    /// Number of attempts that failed.
    pub retries: AtomicU64,
    /// Errors of the first of them.
    failures: Mutex<Vec<String>>,
    began: Instant,
    values: AtomicU64,
    /// Number of clients that have written their keys.
    ready: AtomicUsize,
    /// Per client, the time of its last completed request, in milliseconds since the beginning.
    completed: Vec<AtomicU64>,
}

impl LoadState {
    /// Creates the state of clients that do not run yet.
    #[must_use]
    pub fn new(workload: Workload, seed: u64) -> Self {
        let began = Instant::now();
        let clients = workload.clients * u64::from(NODES);
        Self {
            workload,
            seed,
            outages: Outages::new(began),
            is_over: AtomicBool::default(),
            latencies: Latencies::default(),
            retries: AtomicU64::default(),
            failures: Mutex::default(),
            began,
            values: AtomicU64::new(1),
            ready: AtomicUsize::default(),
            completed: (0..clients).map(|_| AtomicU64::default()).collect(),
        }
    }

    /// Makes the bucket, at the gateway itself.
    ///
    /// # Errors
    /// If the gateway refuses.
    pub fn make_bucket(&self, lab: &Lab) -> Result<()> {
        let bucket = Request::new(Method::PUT, "cwlota.com", &format!("/{}", self.workload.bucket));
        let bucket = bucket.sign(&ADMIN, Signing::Header)?;
        let made = lab.switch().send_all(SocketAddr::from((GATEWAY, GATEWAY_PORT)), vec![bucket])?;
        ensure!(made[0].status.is_success(), "making the bucket was answered {}", made[0].status);
        Ok(())
    }

    /// Runs the clients in the first pod of each node while `meanwhile` runs, and returns them with its result.
    ///
    /// # Errors
    /// The violation that a client saw, or the error of a request that failed for too long.
    pub fn run<T>(
        &self,
        tour: &mut Tour,
        meanwhile: impl FnOnce(&mut Tour) -> Result<T>,
    ) -> Result<(Vec<LoadClient<'_>>, Result<T>)> {
        let pods: Vec<_> = tour.one_pod_per_node().collect();
        thread::scope(|scope| {
            let mut running = Vec::new();
            for (node, pod) in &pods {
                for number in 0..self.workload.clients {
                    let client =
                        LoadClient::new(self, *node, u64::from(*node - 1) * self.workload.clients + number);
                    running.push(scope.spawn(move || client.run(pod)));
                }
            }
            let result = meanwhile(tour);
            // Whatever has happened, no client waits for the end of an outage.
            self.outages.end_all();
            self.is_over.store(true, Ordering::Relaxed);
            let joined =
                running.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client panicked"))?);
            Ok((joined.collect::<Result<Vec<_>>>()?, result))
        })
    }

    /// Returns the errors of the first attempts that failed.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn failed(&self, error: String) {
        self.retries.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < KEPT_FAILURES {
            failures.push(error);
        }
    }

    /// Returns whether every client has written its keys.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) == self.completed.len()
    }

    /// Returns the longest time for which a client has completed no request.
    #[must_use]
    pub fn longest_silence(&self) -> Duration {
        let last = self.completed.iter().map(|last| last.load(Ordering::Relaxed)).min().unwrap_or_default();
        self.began.elapsed().saturating_sub(Duration::from_millis(last))
    }

    /// Replaces a pod, and reads from the new one.
    ///
    /// # Errors
    /// If it is not served within [`Workload::cure`].
    pub fn replace_pod(&self, tour: &Tour, pod: Pod) -> Result<()> {
        tour.lab.replace_pod(pod)?;
        let target = format!("/{}/key-0", self.workload.bucket);
        let mut last = String::new();
        let read = wait_within(self.workload.cure, "the new pod to be served", || {
            let get = Request::new(Method::HEAD, "cwlota.com", &target).sign(&ADMIN, Signing::Header)?;
            let served = tour.lab.pod(pod).send_all((VIP, 80).into(), vec![get]);
            last = format!("{served:?}");
            Ok(served.is_ok_and(|replies| replies.iter().all(|reply| !reply.status.is_server_error())))
        });
        read.context(last)
    }

    fn completed(&self, client: u64, took: Duration) {
        self.latencies.add(took);
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(last) = usize::try_from(client).ok().and_then(|client| self.completed.get(client)) {
            last.store(now, Ordering::Relaxed);
        }
    }
}
