//! `lota cache stat`, `evict` and `verify`.

use std::{
    fmt::Write as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use serde_json::json;

use crate::{
    admin::socket,
    cache::{self, DiskPlan, DiskStatus, Which},
    config::{ByteSize, Config},
    metrics::Reads,
};

/// What the disks hold: as the daemon says, or as their folders look if none runs.
///
/// # Errors
/// If a folder cannot be read.
pub async fn stat(config: &Config, json: bool) -> Result<String> {
    let report = socket::request_cache(&config.admin.socket).await.ok();
    let disks = match &report {
        Some(report) => report.disks.clone(),
        None => config.cache.disks.iter().map(at_rest).collect::<Result<_>>()?,
    };
    let running = report.is_some();
    let reads = report.map(|report| report.reads);
    if json {
        let disks: Vec<_> = disks
            .iter()
            .map(|disk| {
                json!({
                    "folder": disk.folder, "objects": disk.usage.objects, "bytes": disk.usage.bytes,
                    "capacity": disk.capacity, "free": free(disk),
                    "encrypted": running.then_some(disk.encrypted), "works": running.then_some(disk.works),
                    "fills": disk.usage.fills, "evictions": disk.evictions, "corrupt": disk.corrupt,
                    "verified_bytes": disk.verified,
                })
            })
            .collect();
        let hit_ratio = reads.and_then(|reads| reads.hit_ratio());
        let shown = json!({ "running": running, "disks": disks, "reads": reads, "hit_ratio": hit_ratio });
        return Ok(format!("{shown}\n"));
    }
    let mut shown = format!(
        "{:<32} {:>10} {:>12} {:>12} {:>5} {:>12}  STATE\n",
        "DISK", "OBJECTS", "BYTES", "CAPACITY", "USED", "FREE"
    );
    for disk in &disks {
        writeln!(shown, "{}", line(disk, running))?;
    }
    writeln!(shown, "{}", since_start(reads))?;
    Ok(shown)
}

fn at_rest(disk: &DiskPlan) -> Result<DiskStatus> {
    let usage = cache::usage(&disk.folder).with_context(|| format!("reading {}", disk.folder.display()))?;
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

/// Of the disk that the folder is on, or would be.
fn free(disk: &DiskStatus) -> Option<u64> {
    let there = disk.folder.ancestors().find(|path| path.exists())?;
    cache::free(there).ok()
}

fn line(disk: &DiskStatus, running: bool) -> String {
    let size = |bytes| BinaryBytes(bytes).to_string();
    let used = if disk.capacity == 0 { 0.0 } else { disk.usage.bytes as f64 * 100.0 / disk.capacity as f64 };
    let state = match (running, disk.works, disk.encrypted) {
        (false, ..) => "no daemon runs",
        (_, false, _) => "DOES NOT WORK",
        (_, _, true) => "encrypted",
        (_, _, false) => "not encrypted",
    };
    let mut line = format!(
        "{:<32} {:>10} {:>12} {:>12} {used:>4.0}% {:>12}  {state}",
        disk.folder.display(),
        disk.usage.objects,
        size(disk.usage.bytes),
        size(disk.capacity),
        free(disk).map_or("?".to_owned(), size),
    );
    for (count, what) in
        [(disk.usage.fills as u64, "filling"), (disk.evictions, "removed"), (disk.corrupt, "CORRUPT")]
    {
        if count > 0 {
            line.push_str(&format!(", {count} {what}"));
        }
    }
    line
}

fn since_start(reads: Option<Reads>) -> String {
    let Some(reads) = reads else { return "no daemon runs: hits are not known".to_owned() };
    let Reads { hits, fills, misses } = reads;
    match reads.hit_ratio() {
        Some(ratio) => format!(
            "{:.1}% hits since the daemon began: {hits} of this node's reads, {fills} were on their way, {misses} missed",
            ratio * 100.0
        ),
        None => "no reads since the daemon began".to_owned(),
    }
}

/// Has the daemon remove objects.
///
/// # Errors
/// If none runs.
pub async fn evict(config: &Config, which: &Which, json: bool) -> Result<String> {
    let gone = socket::request_eviction(&config.admin.socket, which).await?;
    Ok(match json {
        true => format!("{}\n", serde_json::to_string(&gone)?),
        false => format!("evicted {} objects, {}\n", gone.objects, BinaryBytes(gone.bytes)),
    })
}

/// Compares every complete object with its checksums; with `repair`, has the daemon drop those that differ.
///
/// # Errors
/// If a folder cannot be read, or corrupt objects are left.
pub async fn verify(config: &Config, repair: bool, rate: Option<ByteSize>, json: bool) -> Result<()> {
    let (mut corrupt, mut compared) = (Vec::new(), 0);
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::no_length() };
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}  {msg}",
    )?);
    for disk in &config.cache.disks {
        let folder: &Path = &disk.folder;
        let usage = cache::usage(folder).with_context(|| format!("reading {}", folder.display()))?;
        if usage.objects == 0 {
            continue;
        }
        bar.inc_length(usage.bytes);
        let mut pace = Pace::new(rate);
        let found = cache::compare(
            folder,
            |bytes| {
                compared += bytes;
                bar.inc(bytes);
                pace.keep(bytes);
            },
            |object| {
                let name = object.object.as_deref().unwrap_or("an object without a record");
                let said = format!("CORRUPT {name}  {}: {}", object.file.display(), object.why);
                bar.suspend(|| match json {
                    true => println!("{}", json!(object)),
                    false => println!("{said}"),
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
        println!("{} compared: {} corrupt, {dropped} dropped", BinaryBytes(compared), corrupt.len());
    }
    let left = corrupt.len() as u64 - dropped.min(corrupt.len() as u64);
    ensure!(left == 0 || repair, "{left} objects are corrupt: `--repair` has the daemon drop them");
    // One that was evicted meanwhile is gone, too.
    Ok(())
}

/// Bytes per second, at most.
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
