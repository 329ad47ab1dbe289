use std::{
    fs::{self, File},
    net::IpAddr,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use hyper::HeaderMap;
pub(super) use tempfile::TempDir;

use super::{permit::TestPermit, *};
use lota_s3::{ByteRange, Learned, ObjectMeta, ObjectName, ObjectVersion, Validator};

pub(super) const MIB: u64 = 1 << 20;
/// Disk space of an object of 1 MiB; its record uses another block.
pub(super) const DISK: u64 = MIB + 4096;
pub(super) const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

pub(super) const PLAN: CachePlan =
    CachePlan { min_free: 0, encryption: Encryption::Off, scrub: 0, ..CachePlan::DEFAULT };

pub(super) fn open(folder: &TempDir, capacity: u64) -> Arc<Cache> {
    open_as(folder, capacity, &PLAN)
}

pub(super) fn open_as(folder: &TempDir, capacity: u64, plan: &CachePlan) -> Arc<Cache> {
    Arc::new(Cache::open(&[disk(folder, capacity)], plan, &[]).unwrap())
}

pub(super) fn disk(folder: &TempDir, capacity: u64) -> DiskPlan {
    DiskPlan { folder: folder.path().to_owned(), capacity }
}

pub(super) fn name(key: &str) -> ObjectName {
    ObjectName::from_parts("http://gateway", "bucket", key, None).unwrap()
}

pub(super) fn meta(key: &str, etag: &str, size: u64) -> ObjectMeta {
    let validator = Validator { etag: format!("\"{etag}\""), last_modified: None };
    let version = ObjectVersion { name: name(key), validator };
    ObjectMeta::restored(version, size, HeaderMap::new(), true, Learned::default())
}

/// Selects the object of this key for eviction.
pub(super) fn object(key: &str) -> EvictSelector {
    EvictSelector::Object { bucket: "bucket".into(), key: key.into() }
}

pub(super) fn content(seed: u64, size: u64) -> Vec<u8> {
    (0..size).map(|index| ((index * 31 + seed) % 253) as u8).collect()
}

pub(super) fn pieces(content: &[u8]) -> Pieces {
    let pieces: Vec<_> = content.chunks(70_000).map(Bytes::copy_from_slice).map(Ok).collect();
    stream::iter(pieces).boxed()
}

pub(super) type Pieces = BoxStream<'static, Result<Bytes, String>>;

/// A source without further bytes.
struct NoSource;

impl FillSource for NoSource {
    async fn fetch(&self, _: Option<ByteRange>) -> Result<Pieces, SourceError> {
        Err(SourceError::Final("there is no other source".into()))
    }
}

/// Fills an object with these bytes, which may be too few or too many.
pub(super) async fn arrive(fill: Fill, content: &[u8]) -> Result<u64, FillError> {
    fill.run(&NoSource, FillOptions::Arriving(pieces(content))).await
}

pub(super) async fn lead(cache: &Arc<Cache>, meta: &ObjectMeta) -> Fill {
    // An object whose file has just been removed is in the index for a moment.
    let mut join = cache.begin_fill(meta, None, POD).await;
    for _ in 0..1000 {
        if join.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        join = cache.begin_fill(meta, None, POD).await;
    }
    match join.unwrap() {
        Join::Lead(fill) => fill,
        Join::Follow(_) => panic!("the object is cached already"),
    }
}

pub(super) async fn put(cache: &Arc<Cache>, key: &str, etag: &str, size: u64) {
    let fill = lead(cache, &meta(key, etag, size)).await;
    arrive(fill, &content(size, size)).await.unwrap();
}

pub(super) async fn read(object: Arc<Object>, range: Option<ByteRange>) -> Result<Vec<u8>, Broken> {
    let grant = TestPermit(object.meta());
    let mut reader = Reader::new(&grant, object, range).unwrap();
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await? {
        all.extend(piece.read_for_tests());
    }
    Ok(all)
}

pub(super) fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

pub(super) fn files_in(folder: &TempDir) -> usize {
    store::tests_files(folder.path()).len()
}

#[tokio::test]
async fn stored_objects_are_read_whole_and_by_range() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    for size in [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 5] {
        put(&cache, "k", &size.to_string(), size).await;
        let object = cache.find(&name("k"), None).await.unwrap();
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
async fn a_restart_finds_complete_objects_and_removes_the_rest() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    put(&cache, "whole", "e", 2 * MIB + 1).await;
    // A crash in the middle of a fill. `forget` skips the clean shutdown.
    let fill = lead(&cache, &meta("half", "e", 2 * MIB)).await;
    fill.object().file().write_all_at(b"half", 0).unwrap();
    std::mem::forget(fill);
    drop(cache);
    let locked = Cache::open(&[disk(&folder, 100 * MIB)], &PLAN, &[]);
    assert!(locked.unwrap_err().to_string().contains("another daemon"), "the lost fill still holds the lock");
    let image = TempDir::new().unwrap();
    let copied =
        std::process::Command::new("cp").arg("-r").arg(folder.path().join(".")).arg(image.path()).status();
    assert!(copied.unwrap().success());
    assert_eq!(files_in(&image), 2);
    let made_ahead = || fs::read_dir(image.path().join("lota-cache/v4/new")).unwrap().count();
    let left = made_ahead();
    let cache = open(&image, 100 * MIB);
    assert_eq!(files_in(&image), 1);
    assert!((1..=left).contains(&made_ahead()), "those of the previous daemon are removed");
    assert!(cache.find(&name("half"), None).await.is_none());
    let object = cache.find(&name("whole"), None).await.unwrap();
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
        assert!(cache.find(&name("k"), None).await.is_none());
        while files_in(&folder) > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(cache.usage(), Usage::default());
    }
}

#[tokio::test]
async fn readers_follow_a_fill_and_see_its_failure() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let whole = content(7, 3 * MIB);
    let fill = lead(&cache, &meta("k", "e", 3 * MIB)).await;
    let early = tokio::spawn(read(fill.object(), None));
    let Join::Follow(joined) = cache.begin_fill(&meta("k", "e", 3 * MIB), None, POD).await.unwrap() else {
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
        assert!(cache.find(&name("broken"), None).await.is_none());
    }
    let lost = lead(&cache, &meta("lost", "e", MIB)).await;
    let reader = tokio::spawn(read(lost.object(), None));
    drop(lost);
    assert_eq!(reader.await.unwrap(), Err(Broken));
    assert_eq!(cache.usage(), Usage { objects: 1, bytes: 3 * MIB + 4096, ..Usage::default() });
}

#[tokio::test(start_paused = true)]
async fn a_stalled_source_times_out() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let fill = lead(&cache, &meta("k", "e", MIB)).await;
    let reader = tokio::spawn(read(fill.object(), None));
    let silent = FillOptions::Arriving(pieces(&content(0, 10)).chain(stream::pending()).boxed());
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
    assert_eq!(cache.find(&name("k"), None).await.unwrap().meta().size, 2 * MIB);
    let old = cache.get(&meta("k", "old", MIB).version, None).await.unwrap();
    assert_eq!(old.meta().size, MIB);
    assert_eq!(
        cache.find(&name("k"), None).await.unwrap().meta().size,
        MIB,
        "the gateway named the old one last"
    );
}

#[tokio::test]
async fn the_least_recently_used_is_evicted_and_open_reads_complete() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 3 * DISK);
    put(&cache, "a", "e", MIB).await;
    put(&cache, "b", "e", MIB).await;
    let held = cache.find(&name("b"), None).await.unwrap();
    cache.find(&name("a"), None).await.unwrap();
    put(&cache, "c", "e", 2 * MIB).await;
    assert!(cache.find(&name("b"), None).await.is_none());
    assert!(cache.find(&name("a"), None).await.is_some());
    assert!(read(held, None).await.unwrap() == content(MIB, MIB));
    assert_eq!(cache.usage().bytes, 3 * MIB + 2 * 4096);
    let NoRoom { why, .. } = cache.begin_fill(&meta("d", "e", 4 * MIB), None, POD).await.unwrap_err();
    assert!(why.contains("do not fit"), "{why}");
}

#[tokio::test]
async fn a_full_disk_refuses_fills() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, u64::MAX, &CachePlan { min_free: u64::MAX, ..PLAN });
    let NoRoom { why, .. } = cache.begin_fill(&meta("k", "e", MIB), None, POD).await.unwrap_err();
    assert!(why.contains("cache.min_free"), "{why}");
    assert_eq!((cache.usage(), files_in(&folder)), (Usage::default(), 0));
}

#[tokio::test]
async fn no_pod_exhausts_the_fills() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, 100 * MIB, &CachePlan { fills: 8, ..PLAN });
    let mut held = Vec::new();
    let refused = loop {
        match cache.begin_fill(&meta(&held.len().to_string(), "e", 1000), None, POD).await {
            Ok(fill) => held.push(fill),
            Err(refused) => break refused,
        }
    };
    assert_eq!((held.len(), refused.reason), (4, "pod-fills"));
    let other = IpAddr::from([10, 0, 0, 2]);
    assert!(matches!(cache.begin_fill(&meta("other", "e", 1000), None, other).await, Ok(Join::Lead(_))));
    assert!(matches!(cache.begin_fill(&meta("0", "e", 1000), None, POD).await, Ok(Join::Follow(_))));
    drop(held);
    assert!(matches!(cache.begin_fill(&meta("again", "e", 1000), None, POD).await, Ok(Join::Lead(_))));
}

#[tokio::test]
async fn one_request_leads_and_the_others_wait() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, MIB);
    let first = cache.lead(&name("k"), None, None).await.unwrap();
    assert!(cache.lead(&name("other"), None, None).await.is_some());
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.lead(&name("k"), None, None).await.is_none() })
        })
        .collect();
    tokio::task::yield_now().await;
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    drop(first);
    for waiting in waiting {
        assert!(waiting.await.unwrap(), "all continue at once, and none leads");
    }
    assert!(cache.lead(&name("k"), None, None).await.is_some());
}

#[tokio::test]
async fn a_permit_for_another_version_is_refused() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, MIB);
    put(&cache, "k", "e", 10).await;
    let object = cache.find(&name("k"), None).await.unwrap();
    let other = TestPermit(Arc::new(meta("k", "f", 10)));
    assert!(Reader::new(&other, object, None).is_none());
}

/// Concurrent tasks fill, abandon, read and evict a few versions of a few objects. A reader with a permit for a
/// version reads the bytes of that version or gets an error; at the end, index and disk agree.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_readers_get_the_bytes_of_their_version() {
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
                    0 => drop(cache.evict(&object(&key.to_string()), &["http://gateway".into()]).await),
                    1 => {
                        // Abandoned halfway.
                        if let Ok(Join::Lead(fill)) = cache.begin_fill(&meta, None, POD).await {
                            let _ = arrive(fill, &content(seed, size / 2)).await;
                        }
                    }
                    _ => match cache.begin_fill(&meta, None, POD).await {
                        Ok(Join::Lead(fill)) => {
                            let reader = tokio::spawn(read(fill.object(), None));
                            arrive(fill, &content(seed, size)).await.unwrap();
                            assert!(reader.await.unwrap().unwrap() == content(seed, size));
                        }
                        Ok(Join::Follow(object)) => {
                            assert_eq!(object.meta().version, meta.version);
                            if let Ok(bytes) = read(object, None).await {
                                assert!(bytes == content(seed, size), "bytes of another version");
                            }
                        }
                        Err(NoRoom { .. }) => {}
                    },
                }
            }
        }));
    }
    for worker in workers {
        worker.await.unwrap();
    }
    // Files are removed in the background.
    while cache.disks[0].index().is_removing() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let usage = cache.usage();
    let listed = list(folder.path()).unwrap();
    assert_eq!((usage.objects, usage.fills), (listed.len(), 0));
    let taken = |object: &ListedObject| room::taken(&File::open(&object.file).unwrap()).unwrap();
    assert_eq!(usage.bytes, listed.iter().map(taken).sum::<u64>());
    assert_eq!(files_in(&folder), listed.len(), "one file per object, and nothing else");
}
