//! Tests of pins on disk: what is evicted, after changes of the pins and after a restart.

use std::{sync::Arc, time::Duration};

use lota_s3::{ByteRange, ObjectMeta};

use crate::{
    Admission, Cache, CachePlan, Join, PinUsage, PinnedPrefix, Stripe, StripeLength,
    tests::{DISK, MIB, PLAN, POD, TempDir, content, disk, lead, meta, name, open, open_as, pieces, put},
};

/// Of which 30 MiB may be pinned.
const CAPACITY: u64 = 40 * MIB;

fn pin(text: &str) -> PinnedPrefix {
    text.parse().unwrap()
}

fn set(cache: &Cache, pins: &[(&str, u64)]) {
    let pins: Vec<_> = pins.iter().map(|(text, bytes)| (pin(text), *bytes)).collect();
    cache.set_pins(&pins, CAPACITY);
}

fn cached(cache: &Cache, text: &str) -> u64 {
    cache.pinned().get(&pin(text)).map_or(0, |pin| pin.cached)
}

/// Waits until a pin has these bytes on the disk, which objects enter in the background.
async fn becomes(cache: &Cache, text: &str, bytes: u64) {
    for _ in 0..2000 {
        if cached(cache, text) == bytes {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{text}: {} instead of {bytes}", cached(cache, text));
}

async fn put_some(cache: &Arc<Cache>, prefix: &str, count: u64) {
    for number in 0..count {
        put(cache, &format!("{prefix}{number}"), "e", MIB).await;
    }
}

/// Returns how many of these objects are cached, without a change of the order of use.
fn count(cache: &Cache, prefix: &str, count: u64) -> usize {
    let is_cached = |key: &u64| {
        let version = meta(&format!("{prefix}{key}"), "e", MIB).version;
        cache.disks.iter().any(|disk| disk.index().entry(crate::ids::VersionId::of(&version, None)).is_some())
    };
    (0..count).filter(is_cached).count()
}

/// Reads more objects than the cache holds.
async fn scan(cache: &Arc<Cache>, prefix: &str) {
    put_some(cache, prefix, 2 * CAPACITY / MIB).await;
}

#[tokio::test]
async fn pinned_objects_outlive_a_scan_and_a_restart() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, CAPACITY);
    put_some(&cache, "data/old-", 5).await;
    set(&cache, &[("s3://bucket/data/", 20 * MIB), ("s3://other/data/", MIB)]);
    put_some(&cache, "data/new-", 5).await;
    becomes(&cache, "s3://bucket/data/", 10 * DISK).await;
    scan(&cache, "scan/").await;
    assert_eq!((count(&cache, "data/old-", 5), count(&cache, "data/new-", 5)), (5, 5));
    assert_eq!(cache.usage().pinned, 10 * DISK);
    cache.close();
    drop(cache);

    // No pins are set: the saved order alone keeps the objects for a while.
    let cache = open(&folder, CAPACITY);
    put_some(&cache, "after/", 20).await;
    assert_eq!((count(&cache, "data/old-", 5), count(&cache, "data/new-", 5)), (5, 5));
    set(&cache, &[("s3://bucket/data/", 20 * MIB)]);
    becomes(&cache, "s3://bucket/data/", 10 * DISK).await;
    scan(&cache, "again/").await;
    assert_eq!((count(&cache, "data/old-", 5), count(&cache, "data/new-", 5)), (5, 5));

    set(&cache, &[]);
    for _ in 0..1000 {
        if cache.usage().pinned == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    scan(&cache, "unpinned/").await;
    assert_eq!((count(&cache, "data/old-", 5), count(&cache, "data/new-", 5)), (0, 0));
}

#[tokio::test]
async fn a_killed_daemon_has_saved_what_is_evicted_last() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, CAPACITY);
    put_some(&cache, "data/", 5).await;
    put_some(&cache, "others/", 30).await;
    set(&cache, &[("s3://bucket/data/", 20 * MIB)]);
    becomes(&cache, "s3://bucket/data/", 5 * DISK).await;
    let order = folder.path().join("lota-cache/v4/order");
    while !order.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Objects that the saved order lacks.
    scan(&cache, "scan/").await;
    // No `close`.
    drop(cache);
    let cache = open(&folder, CAPACITY);
    put_some(&cache, "after/", 20).await;
    assert_eq!(count(&cache, "data/", 5), 5);
}

#[tokio::test]
async fn the_longest_prefix_wins_and_changes_of_pins_move_objects() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, CAPACITY);
    put_some(&cache, "a/b/", 4).await;
    put_some(&cache, "a/c/", 3).await;
    let (all, a, b) = ("s3://bucket/", "s3://bucket/a/", "s3://bucket/a/b/");
    set(&cache, &[(all, 20 * MIB), (a, 20 * MIB)]);
    becomes(&cache, a, 7 * DISK).await;
    set(&cache, &[(b, 20 * MIB), (a, 20 * MIB), (all, 20 * MIB)]);
    becomes(&cache, b, 4 * DISK).await;
    becomes(&cache, a, 3 * DISK).await;
    put_some(&cache, "a/b/more-", 1).await;
    assert_eq!((cached(&cache, b), cached(&cache, all)), (5 * DISK, 0));
    set(&cache, &[(all, 20 * MIB), (b, 20 * MIB)]);
    becomes(&cache, all, 3 * DISK).await;
    set(&cache, &[(all, 20 * MIB)]);
    becomes(&cache, all, 8 * DISK).await;
    set(&cache, &[(all, 2 * DISK)]);
    becomes(&cache, all, 2 * DISK).await;
    let usage = PinUsage { cached: 2 * DISK, limit: 2 * DISK };
    assert_eq!(cache.pinned().into_iter().collect::<Vec<_>>(), [(pin(all), usage)]);
    // What had to leave returns.
    set(&cache, &[(all, 20 * MIB)]);
    becomes(&cache, all, 8 * DISK).await;
    // Removed pins do not take up numbers.
    for round in 0..20 {
        set(&cache, &[(&format!("s3://bucket/{round}/"), MIB)]);
        set(&cache, &[]);
        while cache.usage().pinned > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(cache.disks[0].index().add_pin_for_tests() < 8);
}

#[tokio::test]
async fn a_pin_holds_no_more_than_its_limit() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, CAPACITY);
    set(&cache, &[("s3://bucket/data/", 10 * DISK)]);
    put_some(&cache, "data/", 30).await;
    assert_eq!(cached(&cache, "s3://bucket/data/"), 10 * DISK);
    scan(&cache, "scan/").await;
    assert_eq!((count(&cache, "data/", 30), count(&cache, "data/", 20)), (10, 0), "the last ones remain");
}

#[tokio::test]
async fn stripes_and_partial_objects_are_pinned() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, CAPACITY);
    let striped = meta("data/striped", "e", 3 * MIB);
    let stripe = Stripe::new(1, StripeLength::new(MIB).unwrap());
    let Ok(Join::Lead(fill)) = cache.begin_fill(&striped, stripe, POD).await else { panic!("no room") };
    crate::tests::arrive(fill, &content(3, MIB)).await.unwrap();
    let partial = meta("data/partial", "e", 3 * MIB);
    let keep_of = async |meta: &ObjectMeta, start, end| {
        let range = ByteRange { start, end };
        let (_, end) = cache
            .keep_range(meta, range, POD)
            .await
            .unwrap()
            .run(pieces(&content(3, 3 * MIB)[crate::tests::at(start)..crate::tests::at(end)]))
            .await;
        end.unwrap();
    };
    let keep = async |start, end| keep_of(&partial, start, end).await;
    keep(0, MIB).await;
    set(&cache, &[("s3://bucket/data/", 20 * MIB)]);
    becomes(&cache, "s3://bucket/data/", cache.usage().bytes).await;
    keep(2 * MIB, 3 * MIB).await;
    assert_eq!(cached(&cache, "s3://bucket/data/"), cache.usage().bytes);
    let later = meta("data/later", "e", 3 * MIB);
    keep_of(&later, 0, MIB).await;
    assert_eq!(cached(&cache, "s3://bucket/data/"), cache.usage().bytes);
    scan(&cache, "scan/").await;
    assert!(cache.get(&later.version, None).await.is_some());
    assert!(cache.get(&striped.version, stripe).await.is_some());
    assert!(cache.get(&partial.version, None).await.is_some());
    keep(MIB, 2 * MIB).await;
    assert_eq!(cache.usage().partial, 1, "it is complete");
    assert!(cached(&cache, "s3://bucket/data/") > 2 * DISK + 2 * MIB, "the stripe and the object, too");
}

#[tokio::test]
async fn pinned_partial_objects_are_the_last_of_too_many() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, CAPACITY);
    set(&cache, &[("s3://bucket/data/", 20 * MIB)]);
    let keep = async |key: &str| {
        let meta = meta(key, "e", MIB);
        let fill = cache.keep_range(&meta, ByteRange { start: 0, end: 1 }, POD).await.unwrap();
        fill.run(pieces(&[1])).await.1.unwrap();
    };
    for number in 0..1250 {
        keep(&format!("first/{number}")).await;
        if number < 10 {
            keep(&format!("data/{number}")).await;
        }
    }
    assert_eq!((cache.usage().partial, count(&cache, "data/", 10)), (1200, 10));
    for number in 10..1250 {
        keep(&format!("data/{number}")).await;
    }
    assert_eq!(
        (cache.usage().partial, count(&cache, "data/", 1250)),
        (1200, 1200),
        "they replace each other, too"
    );
}

#[tokio::test]
async fn pinned_objects_are_admitted() {
    /// Objects that fit the pin's limit.
    const LIMIT: u64 = 5;
    let plan = CachePlan { admission: Admission::Frequent, ..PLAN };
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, 10 * DISK, &plan);
    put_some(&cache, "first/", 9).await;
    cache.set_pins(&[(pin("s3://bucket/data/"), LIMIT * DISK)], 10 * DISK);
    assert!(cache.begin_fill(&meta("other", "e", MIB), None, POD).await.is_err());
    drop(lead(&cache, &meta("data/1", "e", MIB)).await);
    assert!(cache.find(&name("data/1"), None).await.is_none());
    put_some(&cache, "data/", LIMIT).await;
    assert!(cache.begin_fill(&meta("data/more", "e", MIB), None, POD).await.is_err(), "the pin is full");
}

#[tokio::test]
async fn an_object_whose_record_cannot_be_read_keeps_its_pin() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, CAPACITY);
    set(&cache, &[("s3://bucket/data/", 20 * MIB)]);
    put_some(&cache, "data/", 1).await;
    let version = crate::ids::VersionId::of(&meta("data/0", "e", MIB).version, None);
    cache.disks[0].index().sort(version, None);
    assert_eq!(cached(&cache, "s3://bucket/data/"), DISK);
}

#[tokio::test]
async fn pins_are_shared_among_disks() {
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let disks = folders.each_ref().map(|folder| disk(folder, CAPACITY));
    let cache = Arc::new(Cache::open(&disks, &PLAN, &[]).unwrap());
    // Half of the cluster's cache is on other nodes.
    cache.set_pins(&[(pin("s3://bucket/"), 16 * DISK)], 4 * CAPACITY);
    put_some(&cache, "", 60).await;
    let usage = PinUsage { cached: 16 * DISK, limit: 16 * DISK };
    assert_eq!(cache.pinned()[&pin("s3://bucket/")], usage);
    assert!(cache.disks().all(|disk| disk.usage.pinned == 8 * DISK), "twice the share of each");
}
