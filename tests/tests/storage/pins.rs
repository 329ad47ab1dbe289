//! Pins on real disks: what is pinned outlives scans of twice the cache, an orderly restart and a crash.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lota_cache::{Cache, Encryption, PinnedPrefix, list, pinnable};
use tokio::runtime::Runtime;

use super::{Folder, PLAN, complete, fill, name, open, size, victim};

/// Capacity of the cache in bytes, as [`open`] sets it.
const CAPACITY: u64 = 64 << 20;
/// Keys of the objects that are pinned begin with this number.
const PINNED: &str = "7";

fn pin(cache: &Cache, bytes: u64) -> Result<()> {
    let prefix: PinnedPrefix = format!("s3://bucket/{PINNED}").parse().map_err(anyhow::Error::msg)?;
    cache.set_pins(&[(prefix, bytes)], CAPACITY);
    Ok(())
}

fn is_pinned(key: u64) -> bool {
    key.to_string().starts_with(PINNED)
}

/// Fills objects that are not pinned, of `times` the capacity in all.
async fn scan(cache: &Arc<Cache>, from: &mut u64, times: u64) -> Result<()> {
    let mut filled = 0;
    while filled < times * CAPACITY {
        *from += 1;
        if !is_pinned(*from) {
            ensure!(fill(cache, *from).await?, "no room for object {from}");
            filled += size(*from) as u64;
        }
    }
    Ok(())
}

async fn sorted(cache: &Cache, bytes: u64) -> Result<()> {
    for _ in 0..1000 {
        if cache.pinned().values().map(|pin| pin.cached).sum::<u64>() >= bytes {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("{:?} instead of {bytes} bytes are pinned", cache.pinned())
}

async fn all_are_cached(cache: &Arc<Cache>, keys: &[u64], when: &str) -> Result<()> {
    for key in keys {
        ensure!(cache.find(&name(*key)?, None).await.is_some(), "{when}, object {key} was evicted");
    }
    Ok(())
}

pub(super) fn outlive_scans() -> Result<()> {
    let folder = Folder::new("pins")?;
    let (cache, mut from) = (folder.0.join("cache"), 1_000_000);
    let keys: Vec<u64> = (0..12).map(|number| 7_000 + 20 * number).collect();
    let bytes: u64 = keys.iter().map(|key| size(*key) as u64).sum();
    ensure!((CAPACITY / 8..CAPACITY / 2).contains(&bytes), "{bytes} bytes");
    in_cache(&cache, async |cache| {
        for key in &keys {
            ensure!(fill(cache, *key).await?, "no room");
        }
        pin(cache, CAPACITY / 2)?;
        sorted(cache, bytes).await?;
        scan(cache, &mut from, 2).await?;
        all_are_cached(cache, &keys, "after a scan").await?;
        cache.close();
        Ok(())
    })?;
    in_cache(&cache, async |cache| {
        pin(cache, CAPACITY / 2)?;
        sorted(cache, bytes).await?;
        scan(cache, &mut from, 2).await?;
        // No orderly end: the order was saved when the objects were matched.
        all_are_cached(cache, &keys, "after a restart and a scan").await
    })?;
    killed(&folder, &cache)?;
    in_cache(&cache, async |cache| {
        pin(cache, CAPACITY / 2)?;
        sorted(cache, bytes).await?;
        scan(cache, &mut from, 2).await?;
        all_are_cached(cache, &keys, "after a crash and a scan").await?;
        // More than all that may be pinned: the rest of the cache still works.
        pin(cache, u64::MAX)?;
        let wanted: Vec<u64> = (70_000..70_100).collect();
        for key in &wanted {
            ensure!(fill(cache, *key).await?, "no room for object {key}");
        }
        let pinned: u64 = cache.pinned().values().map(|pin| pin.cached).sum();
        let possible = pinnable(CAPACITY, PLAN.low);
        ensure!((possible / 2..=possible).contains(&pinned), "{pinned} of {possible} bytes are pinned");
        scan(cache, &mut from, 1).await?;
        cache.close();
        Ok(())
    })?;
    let stored = list(&cache)?.len();
    ensure!(stored > 10, "{stored} objects");
    Ok(())
}

/// A process that knows no pins fills the rest of the cache, and is killed.
fn killed(folder: &Folder, cache: &Path) -> Result<()> {
    let (mut victim, said) = victim(cache, &folder.0.join("said"))?;
    std::thread::sleep(Duration::from_millis(100));
    victim.kill()?;
    victim.wait()?;
    complete(said).map(drop)
}

/// Opens the cache; at the end, all tasks that use it have ended.
fn in_cache(folder: &Path, work: impl AsyncFnOnce(&Arc<Cache>) -> Result<()>) -> Result<()> {
    Runtime::new()?.block_on(async {
        let cache = open(&[folder], Encryption::Off).context("opening the cache")?;
        work(&cache).await
    })
}
