//! What is done to a disk behind the requests: room is made before it is needed, and bytes that have rotted are found
//! before they are read.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nix::errno::Errno;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{disk::Disk, index::percent, store::Entry, verify};

/// How often it is seen whether there is room.
const LOOK: Duration = Duration::from_secs(1);
/// What others have taken of the disk is given back at every so many looks.
const LOOKS_PER_FREEING: u64 = 5;
/// How often the order in which objects were used is noted.
const NOTE_ORDER: Duration = Duration::from_secs(600);
/// Rest between two rounds of the scrub, and after what it could not do.
const REST: Duration = Duration::from_secs(60);

/// Looks after a disk for as long as it is polled.
pub(super) async fn keep(disk: Arc<Disk>) {
    tokio::join!(make_room(&disk), scrub(&disk));
}

async fn make_room(disk: &Arc<Disk>) {
    let (mut look, mut looks, mut noted) = (interval(LOOK), 0u64, Instant::now());
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        looks += 1;
        if disk.is_handed_over() || disk.has_failed() {
            continue;
        }
        let note = noted.elapsed() >= NOTE_ORDER;
        if note {
            noted = Instant::now();
        }
        let task = disk.clone();
        let done = tokio::task::spawn_blocking(move || {
            task.tidy(looks % LOOKS_PER_FREEING == 0)?;
            if note {
                task.save_order();
            }
            io::Result::Ok(())
        });
        if let Ok(Err(error)) = done.await {
            disk.notice(&error);
        }
    }
}

/// Reads object after object, slowly, and compares each with its checksums.
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

pub(super) async fn scrub_one(disk: &Arc<Disk>, entry: Entry, rate: u64) {
    let task = disk.clone();
    let Ok(loaded) = tokio::task::spawn_blocking(move || task.store.load(&entry)).await else { return };
    let checked = match loaded {
        Ok((record, file)) => {
            let (file, progress) = (Arc::new(file), super::Progress::new(entry.size));
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
        // Evicted meanwhile, perhaps; or for a lack of descriptors.
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
    /// Makes room down to the low watermark once the high one is passed, and gives back what others need of the disk.
    /// Not at every look: what readers hold open is freed when they are done.
    pub(super) fn tidy(&self, may_free: bool) -> io::Result<()> {
        let over = {
            let mut index = self.index();
            let over = index.over(percent(self.capacity, self.plan.high));
            index.evict(over)
        };
        self.remove(&over);
        self.note_checked();
        let short = u64::try_from(-self.store.spare()?).unwrap_or_default();
        if short > 0 && may_free {
            let evicted = self.index().evict(short);
            self.remove(&evicted);
        }
        Ok(())
    }
}
