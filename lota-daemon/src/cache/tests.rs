use std::{fs, os::unix::fs::FileExt as _};

use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use hyper::HeaderMap;
pub(super) use tempfile::TempDir;

use super::*;
use crate::{
    gateway::Grant,
    s3::{ByteRange, Validator},
};

pub(super) const MIB: u64 = 1 << 20;

pub(super) const PLAN: Plan = Plan { min_free: 0, encryption: Encryption::Off, scrub: 0, ..Plan::DEFAULT };

pub(super) fn open(folder: &TempDir, capacity: u64) -> Arc<Cache> {
    open_as(folder, capacity, &PLAN)
}

pub(super) fn open_as(folder: &TempDir, capacity: u64, plan: &Plan) -> Arc<Cache> {
    Arc::new(Cache::open(&[disk(folder, capacity)], "http://gateway", plan, &[]).unwrap())
}

pub(super) fn disk(folder: &TempDir, capacity: u64) -> DiskPlan {
    DiskPlan { folder: folder.path().to_owned(), capacity }
}

pub(super) fn name(key: &str) -> ObjectName {
    ObjectName::from_parts("bucket", key, None).unwrap()
}

pub(super) fn meta(key: &str, etag: &str, size: u64) -> ObjectMeta {
    let validator = Validator { etag: format!("\"{etag}\""), last_modified: None };
    ObjectMeta {
        version: ObjectVersion { name: name(key), validator },
        size,
        headers: HeaderMap::new(),
        checksums_known: true,
    }
}

pub(super) fn content(seed: u64, size: u64) -> Vec<u8> {
    (0..size).map(|index| ((index * 31 + seed) % 253) as u8).collect()
}

fn pieces(content: &[u8]) -> Pieces {
    let pieces: Vec<_> = content.chunks(70_000).map(Bytes::copy_from_slice).map(Ok).collect();
    stream::iter(pieces).boxed()
}

type Pieces = BoxStream<'static, Result<Bytes, String>>;

/// Nothing but what is arriving.
struct NoSource;

impl Source for NoSource {
    async fn fetch(&self, _: Option<ByteRange>) -> Result<Pieces, SourceError> {
        Err(SourceError::Final("there is no other source".into()))
    }
}

/// Brings an object by these bytes, which may be too few or too many.
pub(super) async fn arrive(fill: Fill, content: &[u8]) -> Result<u64, FillError> {
    fill.run(&NoSource, How::Arriving(pieces(content))).await
}

pub(super) async fn lead(cache: &Arc<Cache>, meta: &ObjectMeta) -> Fill {
    match cache.begin_fill(meta).await.unwrap() {
        Join::Lead(fill) => fill,
        Join::Follow(_) => panic!("it is there already"),
    }
}

pub(super) async fn put(cache: &Arc<Cache>, key: &str, etag: &str, size: u64) {
    let fill = lead(cache, &meta(key, etag, size)).await;
    arrive(fill, &content(size, size)).await.unwrap();
}

pub(super) async fn read(object: Arc<Object>, range: Option<ByteRange>) -> Result<Vec<u8>, Broken> {
    let grant = Grant::for_tests(&object.meta().version);
    let mut reader = Reader::new(&grant, object, range).unwrap();
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await? {
        all.extend(piece.read_for_tests());
    }
    Ok(all)
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

pub(super) fn files_in(folder: &TempDir) -> usize {
    store::tests_files(folder.path()).len()
}

#[tokio::test]
async fn what_was_put_is_found_whole_and_in_part() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    for size in [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 5] {
        put(&cache, "k", &size.to_string(), size).await;
        let object = cache.find(&name("k")).await.unwrap();
        assert!(object.is_complete());
        assert!(read(object.clone(), None).await.unwrap() == content(size, size), "{size}");
        if size > 10 {
            let range = ByteRange { start: size - 7, end: size - 2 };
            let expected = content(size, size)[at(range.start)..at(range.end)].to_vec();
            assert_eq!(read(object, Some(range)).await.unwrap(), expected);
        }
    }
}

#[tokio::test]
async fn a_restart_finds_what_was_complete_and_sweeps_the_rest() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    put(&cache, "whole", "e", 2 * MIB + 1).await;
    // A crash in the middle of a fill. `forget` skips the orderly end.
    let fill = lead(&cache, &meta("half", "e", 2 * MIB)).await;
    fill.object().file().write_all_at(b"half", 0).unwrap();
    std::mem::forget(fill);
    drop(cache);
    let locked = Cache::open(&[disk(&folder, 100 * MIB)], "http://gateway", &PLAN, &[]);
    assert!(locked.unwrap_err().to_string().contains("another daemon"), "the lost fill still holds the lock");
    let image = TempDir::new().unwrap();
    let copied =
        std::process::Command::new("cp").arg("-r").arg(folder.path().join(".")).arg(image.path()).status();
    assert!(copied.unwrap().success());
    assert_eq!(files_in(&image), 2);
    let made_ahead = || fs::read_dir(image.path().join("v2/new")).unwrap().count();
    let left = made_ahead();
    let cache = open(&image, 100 * MIB);
    assert_eq!(files_in(&image), 1);
    assert!((1..=left).contains(&made_ahead()), "those of the daemon before are swept");
    assert!(cache.find(&name("half")).await.is_none());
    let object = cache.find(&name("whole")).await.unwrap();
    assert!(read(object, None).await.unwrap() == content(2 * MIB + 1, 2 * MIB + 1));
}

#[tokio::test]
async fn damaged_files_are_misses() {
    for damage in [
        |file: &Path| File::options().write(true).open(file).unwrap().set_len(20).unwrap(),
        |file: &Path| File::options().write(true).open(file).unwrap().set_len(MIB + 20).unwrap(),
        |file: &Path| File::options().write(true).open(file).unwrap().write_all_at(b"garbage", MIB).unwrap(),
        |file: &Path| fs::remove_file(file).unwrap(),
    ] {
        let folder = TempDir::new().unwrap();
        let cache = open(&folder, 100 * MIB);
        put(&cache, "k", "e", MIB).await;
        drop(cache);
        damage(&list(folder.path()).unwrap()[0].file);
        let cache = open(&folder, 100 * MIB);
        assert!(cache.find(&name("k")).await.is_none());
        while files_in(&folder) > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(cache.usage(), Usage::default());
    }
}

#[tokio::test]
async fn readers_follow_a_growing_object_and_learn_of_its_end() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let whole = content(7, 3 * MIB);
    let fill = lead(&cache, &meta("k", "e", 3 * MIB)).await;
    let early = tokio::spawn(read(fill.object(), None));
    let Join::Follow(joined) = cache.begin_fill(&meta("k", "e", 3 * MIB)).await.unwrap() else {
        panic!("one fill per version")
    };
    assert!(!joined.is_complete());
    let late = tokio::spawn(read(joined, Some(ByteRange { start: 2 * MIB, end: 3 * MIB })));
    arrive(fill, &whole).await.unwrap();
    assert!(early.await.unwrap().unwrap() == whole);
    assert!(late.await.unwrap().unwrap() == whole[at(2 * MIB)..]);

    for (sent, size) in [(MIB + 5, 2 * MIB), (0, 1), (0, MIB), (2 * MIB + 1, 2 * MIB)] {
        let fill = lead(&cache, &meta("broken", "e", size)).await;
        let reader = tokio::spawn(read(fill.object(), None));
        arrive(fill, &content(0, sent)).await.unwrap_err();
        assert_eq!(reader.await.unwrap(), Err(Broken), "{sent} of {size}");
        assert!(cache.find(&name("broken")).await.is_none());
    }
    let lost = lead(&cache, &meta("lost", "e", MIB)).await;
    let reader = tokio::spawn(read(lost.object(), None));
    drop(lost);
    assert_eq!(reader.await.unwrap(), Err(Broken));
    assert_eq!(cache.usage(), Usage { objects: 1, bytes: 3 * MIB, fills: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_source_that_falls_silent_is_given_up() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let fill = lead(&cache, &meta("k", "e", MIB)).await;
    let reader = tokio::spawn(read(fill.object(), None));
    let silent = How::Arriving(pieces(&content(0, 10)).chain(stream::pending()).boxed());
    let error = fill.run(&NoSource, silent).await.unwrap_err();
    assert!(error.to_string().contains("no other source"), "{error}");
    assert_eq!(reader.await.unwrap(), Err(Broken));
}

#[tokio::test]
async fn an_overwritten_object_is_another_file() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    put(&cache, "k", "old", MIB).await;
    put(&cache, "k", "new", 2 * MIB).await;
    assert_eq!(cache.find(&name("k")).await.unwrap().meta().size, 2 * MIB);
    let old = cache.get(&meta("k", "old", MIB).version).await.unwrap();
    assert_eq!(old.meta().size, MIB);
    assert_eq!(cache.find(&name("k")).await.unwrap().meta().size, MIB, "the gateway named the old one last");
}

#[tokio::test]
async fn the_least_recently_used_goes_and_stays_readable_to_its_end() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 3 * MIB);
    put(&cache, "a", "e", MIB).await;
    put(&cache, "b", "e", MIB).await;
    let held = cache.find(&name("b")).await.unwrap();
    cache.find(&name("a")).await.unwrap();
    put(&cache, "c", "e", 2 * MIB).await;
    assert!(cache.find(&name("b")).await.is_none());
    assert!(cache.find(&name("a")).await.is_some());
    assert!(read(held, None).await.unwrap() == content(MIB, MIB));
    assert_eq!(cache.usage().bytes, 3 * MIB);
    let NoRoom(why) = cache.begin_fill(&meta("d", "e", 4 * MIB)).await.unwrap_err();
    assert!(why.contains("do not fit"), "{why}");
}

#[tokio::test]
async fn a_full_disk_is_no_room() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, u64::MAX, &Plan { min_free: u64::MAX, ..PLAN });
    let NoRoom(why) = cache.begin_fill(&meta("k", "e", MIB)).await.unwrap_err();
    assert!(why.contains("must stay"), "{why}");
    assert_eq!((cache.usage(), files_in(&folder)), (Usage::default(), 0));
}

#[tokio::test]
async fn one_leads_and_the_others_wait_for_what_it_is_told() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, MIB);
    let first = cache.lead(&name("k")).await.unwrap();
    assert!(cache.lead(&name("other")).await.is_some());
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.lead(&name("k")).await.is_none() })
        })
        .collect();
    tokio::task::yield_now().await;
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    drop(first);
    for waiting in waiting {
        assert!(waiting.await.unwrap(), "all go on at once, none leads");
    }
    assert!(cache.lead(&name("k")).await.is_some());
}

#[tokio::test]
async fn a_grant_for_another_version_opens_nothing() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, MIB);
    put(&cache, "k", "e", 10).await;
    let object = cache.find(&name("k")).await.unwrap();
    let other = Grant::for_tests(&meta("k", "f", 10).version);
    assert!(Reader::new(&other, object, None).is_none());
}

#[tokio::test]
async fn what_the_gateway_no_longer_has_goes() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 10 * MIB);
    put(&cache, "k", "e", MIB).await;
    cache.forget(&name("k"));
    assert!(cache.find(&name("k")).await.is_none());
    assert_eq!(cache.usage(), Usage::default());
    while files_in(&folder) > 0 {
        tokio::task::yield_now().await;
    }
}

/// Many at once fill, abandon, read, forget and evict a few versions of a few objects. Whoever is granted a
/// version reads that version's bytes, or learns that they will not come; and at the end, index and disk agree.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_happens_at_once_a_reader_gets_the_bytes_of_its_version() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 600_000);
    let mut workers = Vec::new();
    for worker in 0..8u64 {
        let cache = cache.clone();
        workers.push(tokio::spawn(async move {
            let mut state = worker + 1;
            let mut next = |bound: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % bound
            };
            for _ in 0..150 {
                let (key, version) = (next(3), next(2));
                let seed = key * 7 + version + 1;
                let size = 40_000 * seed;
                let meta = meta(&key.to_string(), &version.to_string(), size);
                match next(10) {
                    0 => cache.forget(&name(&key.to_string())),
                    1 => {
                        // Abandoned in its middle.
                        if let Ok(Join::Lead(fill)) = cache.begin_fill(&meta).await {
                            let _ = arrive(fill, &content(seed, size / 2)).await;
                        }
                    }
                    _ => match cache.begin_fill(&meta).await {
                        Ok(Join::Lead(fill)) => {
                            let reader = tokio::spawn(read(fill.object(), None));
                            arrive(fill, &content(seed, size)).await.unwrap();
                            assert!(reader.await.unwrap().unwrap() == content(seed, size));
                        }
                        Ok(Join::Follow(object)) => {
                            assert_eq!(object.meta().version, meta.version);
                            if let Ok(bytes) = read(object, None).await {
                                assert!(bytes == content(seed, size), "other bytes than the version's");
                            }
                        }
                        Err(NoRoom(_)) => {}
                    },
                }
            }
        }));
    }
    for worker in workers {
        worker.await.unwrap();
    }
    // Removals go on behind the index.
    while cache.disks[0].index().is_removing() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let usage = cache.usage();
    let listed = list(folder.path()).unwrap();
    assert_eq!((usage.objects, usage.fills), (listed.len(), 0));
    assert_eq!(usage.bytes, listed.iter().map(|object| object.meta.size).sum::<u64>());
    assert_eq!(files_in(&folder), listed.len(), "a file each, and nothing else");
}
