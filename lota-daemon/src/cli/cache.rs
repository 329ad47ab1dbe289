//! `lota cache stat`, `evict` and `verify`.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use lota_cache::{self, DiskPlan, DiskStatus, EvictSelector};
use lota_common::ByteSize;
use serde_json::json;

use super::output;
use crate::{
    admin::{node_status::text::bytes, socket},
    config::Config,
    process::escape::{plain, plain_json},
};

/// Returns the usage of the disks: from the daemon, or from the cache folders if none runs.
///
/// # Errors
/// If a folder cannot be read.
pub(super) async fn stat(config: &Config, json: bool) -> Result<String> {
    let report = socket::request_cache(&config.admin.socket).await.ok();
    let disks = match &report {
        Some(report) => report.disks.clone(),
        None => config.cache.disks.iter().map(at_rest).collect::<Result<_>>()?,
    };
    let running = report.is_some();
    let reads = report.map(|report| report.reads);
    Ok(output::disks(&disks, reads, running, json))
}

fn at_rest(disk: &DiskPlan) -> Result<DiskStatus> {
    let usage =
        lota_cache::usage(&disk.folder).with_context(|| format!("reading {}", disk.folder.display()))?;
    Ok(DiskStatus {
        folder: disk.folder.clone(),
        capacity: disk.capacity,
        usage,
        encrypted: false,
        works: true,
        evictions: 0,
        corrupt: 0,
        verified: 0,
    })
}

/// Evicts objects from the running daemon's cache.
///
/// # Errors
/// If no daemon runs.
pub(super) async fn evict(config: &Config, which: &EvictSelector, json: bool) -> Result<String> {
    let gone = socket::request_eviction(&config.admin.socket, which).await?;
    Ok(match json {
        true => format!("{}\n", serde_json::to_string(&gone)?),
        false => format!("evicted {} objects, {}\n", gone.objects, bytes(gone.bytes)),
    })
}

/// Verifies every complete object against its checksums; with `repair`, evicts those that differ.
///
/// # Errors
/// If a folder cannot be read, or if corrupt objects remain.
pub(super) async fn verify(config: &Config, repair: bool, rate: Option<ByteSize>, json: bool) -> Result<()> {
    let (mut corrupt, mut compared) = (Vec::new(), 0);
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::no_length() };
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}  {msg}",
    )?);
    for disk in &config.cache.disks {
        let folder: &Path = &disk.folder;
        let usage = lota_cache::usage(folder).with_context(|| format!("reading {}", folder.display()))?;
        if usage.bytes == 0 {
            continue;
        }
        bar.inc_length(usage.bytes);
        let mut pace = Pace::new(rate);
        let found = lota_cache::compare(
            folder,
            |more| {
                compared += more;
                bar.inc(more);
                pace.keep(more);
            },
            |object| {
                let name = object.object.as_deref().unwrap_or("an object without metadata");
                let line = format!("CORRUPT {name}  {}: {}", object.file.display(), object.why);
                bar.suspend(|| match json {
                    true => println!("{}", plain_json(&json!(object).to_string())),
                    false => println!("{}", plain(&line)),
                });
                corrupt.push(object);
            },
        );
        found.with_context(|| format!("reading {}", folder.display()))?;
    }
    bar.finish_and_clear();
    let versions: Vec<String> = corrupt.iter().map(|object| object.version.clone()).collect();
    let dropped = match repair && !versions.is_empty() {
        true => socket::request_repair(&config.admin.socket, &versions).await?.objects,
        false => 0,
    };
    if json {
        println!("{}", json!({ "bytes": compared, "corrupt": corrupt.len(), "dropped": dropped }));
    } else {
        println!("{} compared: {} corrupt, {dropped} dropped", bytes(compared), corrupt.len());
    }
    let left = corrupt.len() as u64 - dropped.min(corrupt.len() as u64);
    ensure!(left == 0 || repair, "{left} objects are corrupt: run with `--repair` to evict them");
    // Objects that were evicted in the meantime do not remain, either.
    Ok(())
}

/// Limits a rate in bytes per second.
struct Pace {
    rate: Option<ByteSize>,
    began: Instant,
    bytes: u64,
}

impl Pace {
    fn new(rate: Option<ByteSize>) -> Self {
        Self { rate, began: Instant::now(), bytes: 0 }
    }

    fn keep(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Some(ByteSize(rate)) = self.rate {
            let due = Duration::from_secs_f64(self.bytes as f64 / rate.max(1) as f64);
            thread::sleep(due.saturating_sub(self.began.elapsed()));
        }
    }
}
