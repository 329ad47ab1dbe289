//! Restart with a million objects: time to rebuild the index, and its memory.
//!
//! The files are empty: a restart reads only their names, and the size of the index does not depend on their contents.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use lota_cache::{Cache, CachePlan, DiskPlan, Encryption};
use lota_tests::bench::{self, Goal, Report};

const OBJECTS: usize = 1_000_000;
const PLAN: CachePlan =
    CachePlan { min_free: 0, encryption: Encryption::Off, scrub: 0, ..CachePlan::DEFAULT };

fn main() -> ExitCode {
    let folder = PathBuf::from("/var/tmp").join(format!("lota-bench-storage-{}", process::id()));
    let measured = measure(&folder);
    let _ = fs::remove_dir_all(&folder);
    bench::ended("storage", measured)
}

fn measure(folder: &Path) -> Result<bool> {
    open(folder, 0)?.close();
    eprintln!("making {OBJECTS} files");
    bench::name_objects(folder, OBJECTS, 1 << 20)?;
    let mut report = Report::new("storage");
    let before = bench::resident(process::id())?;
    let cache = open(folder, OBJECTS)?;
    let each = bench::resident(process::id())?.saturating_sub(before) as f64 / OBJECTS as f64;
    cache.close();
    drop(cache);
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        run("sync")?;
        fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the page cache; this needs root")?;
        for measured in [&mut cold, &mut warm] {
            let since = Instant::now();
            let cache = open(folder, OBJECTS)?;
            measured.push(since.elapsed().as_secs_f64());
            cache.close();
        }
    }
    report.add("restart with 1 M objects, nothing in the page cache", "s", Goal::AtMost(5.0), cold);
    report.add("restart with 1 M objects, page cache warm", "s", Goal::AtMost(5.0), warm);
    report.add("memory per cached object", "B", Goal::AtMost(200.0), vec![each]);
    report.write()
}

fn open(folder: &Path, objects: usize) -> Result<Cache> {
    let disk = DiskPlan { folder: folder.to_owned(), capacity: 1 << 50 };
    let cache = Cache::open(&[disk], &PLAN, &[])?;
    ensure!(cache.usage().objects == objects, "{} objects were found", cache.usage().objects);
    Ok(cache)
}

fn run(command: &str) -> Result<()> {
    lota_tests::lab::run(&mut process::Command::new(command)).map(|_| ())
}
