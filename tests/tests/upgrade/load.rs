//! Clients that are busy during a whole upgrade, and pods that never get in meanwhile.

use std::{
    fmt, fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use lota_tests::{
    lab::{Client, NODES, Namespace, Pod, knock_in_vain},
    tour::Tour,
};
use serde_json::json;

/// Clients of a pod of each node. None makes a second attempt.
const CLIENTS: [u32; NODES as usize] = [17, 17, 16];
/// Object of a size for which nodes leave HTTP between them.
const LARGE: (&str, u64) = ("busy/large", 8 << 20);

/// Numbers of requests that were served and refused under load; none failed.
#[derive(Debug)]
pub(crate) struct Load {
    small: u64,
    large: u64,
    refused: u64,
}

impl fmt::Display for Load {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { small, large, refused } = self;
        write!(to, "{small} reads, {large} large ones, none failed; {refused} connections refused")
    }
}

/// Runs `work` while clients read from every node, and `refused` pods try to connect.
pub(crate) fn under_load(
    tour: &mut Tour,
    refused: &[Pod],
    work: impl FnOnce(&mut Tour) -> Result<()>,
) -> Result<Load> {
    let pods: Vec<Namespace> = tour.one_pod_per_node().map(|(_, pod)| pod).collect();
    let strangers: Vec<Namespace> = refused.iter().map(|pod| tour.lab.pod(*pod)).collect();
    let client = tour.client.clone();
    client.put_and_hit(&pods[0], "busy/object", 10)?;
    let large = client.put(&pods[0], LARGE.0, 9, LARGE.1)?.sha256;
    let (enough, is_over) = (tour.lab.folder().join("enough"), AtomicBool::new(false));
    let _ = fs::remove_file(&enough);
    thread::scope(|scope| {
        let busy: Vec<_> = pods
            .iter()
            .zip(CLIENTS)
            .map(|(pod, clients)| {
                let (client, enough) = (&client, &enough);
                scope.spawn(move || client.busy(pod, "busy/object", clients, enough))
            })
            .collect();
        let reading = scope.spawn(|| read_large(&client, &pods, &large, &is_over));
        let knocking = scope.spawn(|| knock_in_vain(&strangers, &is_over));
        thread::sleep(Duration::from_secs(2));
        let worked = work(tour);
        is_over.store(true, Ordering::Relaxed);
        fs::write(&enough, "")?;
        let panicked = |_| anyhow!("a client panicked");
        let mut small = 0;
        for busy in busy {
            let (reads, failures) = busy.join().map_err(panicked)??;
            ensure!(failures.is_empty(), "after {reads} reads: {failures}");
            small += reads;
        }
        let large = reading.join().map_err(panicked)??;
        let refused = knocking.join().map_err(panicked)??;
        worked?;
        ensure!(small > 1000 && large > 10 && refused > 20, "{small}, {large}, {refused}: too little load");
        Ok(Load { small, large, refused })
    })
}

/// Reads a large object through each node in turn. Returns the number of reads.
fn read_large(client: &Client, pods: &[Namespace], sha256: &str, is_over: &AtomicBool) -> Result<u64> {
    let mut reads = 0;
    for pod in pods.iter().cycle() {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let got = client.get_with(pod, LARGE.0, json!({"attempts": 1}))?;
        ensure!(
            got.status == 200 && got.sha256 == sha256,
            "{}: large read {reads} was answered {} {}",
            pod.name(),
            got.status,
            got.code
        );
        reads += 1;
    }
    Ok(reads)
}
