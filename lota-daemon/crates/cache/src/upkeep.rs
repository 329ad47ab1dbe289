//! Background work on a disk: eviction before space is needed, and verification of stored objects (scrub).

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nix::errno::Errno;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{disk::Disk, plan::percent, progress::Progress, store::StoreEntry, verify};

/// Interval of the checks for free space.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Number of checks after which the reserve that other programs use is restored by eviction.
const CHECKS_PER_FREEING: u64 = 5;
/// Interval at which the LRU order is saved.
const SAVE_ORDER_INTERVAL: Duration = Duration::from_secs(600);
/// Pause between two rounds of the scrub, and while the disk cannot be scrubbed.
const REST: Duration = Duration::from_secs(60);

/// Runs the background work of a disk for as long as it is polled.
pub(super) async fn run(disk: Arc<Disk>) {
    tokio::join!(make_room(&disk), scrub(&disk));
}

async fn make_room(disk: &Arc<Disk>) {
    let (mut check, mut checks, mut saved) = (interval(CHECK_INTERVAL), 0u64, Instant::now());
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        check.tick().await;
        checks += 1;
        if disk.is_handed_over() || disk.has_failed() {
            continue;
        }
        let save = saved.elapsed() >= SAVE_ORDER_INTERVAL;
        if save {
            saved = Instant::now();
        }
        let task = disk.clone();
        let done = tokio::task::spawn_blocking(move || {
            task.tidy(checks % CHECKS_PER_FREEING == 0)?;
            if save {
                task.save_order();
            }
            io::Result::Ok(())
        });
        if let Ok(Err(error)) = done.await {
            disk.notice(&error);
        }
    }
}

/// Verifies object after object against its checksums, at the configured rate.
async fn scrub(disk: &Arc<Disk>) {
    let rate = disk.plan.scrub;
    if rate == 0 {
        return std::future::pending().await;
    }
    loop {
        sleep(REST).await;
        let task = disk.clone();
        let Ok(order) = tokio::task::spawn_blocking(move || task.index().order()).await else { continue };
        for version in order {
            while disk.is_handed_over() || disk.has_failed() {
                sleep(REST).await;
            }
            let entry = disk.index().entry(version);
            if let Some(entry) = entry {
                scrub_one(disk, entry, rate).await;
            }
        }
    }
}

pub(super) async fn scrub_one(disk: &Arc<Disk>, entry: StoreEntry, rate: u64) {
    let task = disk.clone();
    let Ok(loaded) = tokio::task::spawn_blocking(move || task.store.load(&entry)).await else { return };
    let checked = match loaded {
        Ok((record, file)) => {
            let (file, progress) = (Arc::new(file), Progress::new(entry.size));
            let mut checked = Ok(());
            for (chunk, expected) in record.checksums.into_iter().enumerate() {
                let (file, range) = (file.clone(), progress.bytes(chunk..chunk + 1));
                let compared =
                    tokio::task::spawn_blocking(move || verify::chunk(&file, range, expected)).await;
                checked = compared.unwrap_or_else(|error| Err(io::Error::other(error)));
                if checked.is_err() {
                    break;
                }
                disk.verified.fetch_add(range.length(), Ordering::Relaxed);
                sleep(Duration::from_secs_f64(range.length() as f64 / rate as f64)).await;
            }
            checked
        }
        Err(error) => Err(error),
    };
    match checked {
        Ok(()) => disk.trust(&entry),
        // It may have been evicted meanwhile.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => {}
        Err(error)
            if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
                || error.raw_os_error() == Some(Errno::EBADMSG as i32) =>
        {
            disk.found_corrupt(&entry, &error);
        }
        Err(error) => disk.notice(&error),
    }
}

impl Disk {
    /// Evicts to the low watermark once the high watermark is exceeded. If `may_free`, evicts to restore the reserve
    /// of the disk, too; not at every check, since files that are open in readers are freed only when they are closed.
    pub(super) fn tidy(&self, may_free: bool) -> io::Result<()> {
        let over = {
            let mut index = self.index();
            let over = index.over(percent(self.capacity, self.plan.high));
            index.evict(over)
        };
        self.remove(&over);
        self.store.remove_dropped();
        self.note_checked();
        let short = self.store.room()?.short();
        if !short.is_none() && may_free {
            let evicted = self.index().evict(short);
            self.remove(&evicted);
        }
        Ok(())
    }
}
