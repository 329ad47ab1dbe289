use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use proptest::prelude::*;
use tokio::sync::mpsc;

use crate::{
    Broken, Cache, CachePlan, FillError, NoRoom, RangeFill,
    tests::{
        MIB, PLAN, POD, Pieces, TempDir, arrive, at, content, files_in, lead, meta, object, open, open_as,
        pieces, put, read,
    },
};
use lota_s3::{ByteRange, ObjectMeta, RangeRequest};

const SIZE: u64 = 3 * MIB + 12_345;

fn bytes(start: u64, end: u64) -> ByteRange {
    ByteRange { start, end }
}

fn request(range: ByteRange) -> RangeRequest {
    RangeRequest::FromTo(range.start, range.end - 1)
}

fn part(range: ByteRange) -> Vec<u8> {
    content(1, SIZE)[at(range.start)..at(range.end)].to_vec()
}

async fn keep(cache: &Cache, meta: &ObjectMeta, range: ByteRange) -> Result<RangeFill, NoRoom> {
    cache.keep_range(meta, range, POD).await
}

/// Stores a range of the object `meta("k", "e", SIZE)`.
async fn store(cache: &Cache, range: ByteRange) {
    let fill = keep(cache, &meta("k", "e", SIZE), range).await.unwrap();
    let (received, end) = fill.run(pieces(&part(range))).await;
    assert_eq!((received, end.is_ok()), (range.length(), true));
}

#[tokio::test]
async fn ranges_that_cover_an_object_complete_it() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let version = meta("k", "e", SIZE).version;
    for range in [bytes(2 * MIB + 5, SIZE), bytes(0, MIB + 1), bytes(MIB - 7, 2 * MIB)] {
        store(&cache, range).await;
        let object = cache.get(&version, None).await.unwrap();
        assert!(object.has(request(range)) && !object.is_complete());
        assert_eq!(read(object, Some(range)).await.unwrap(), part(range));
    }
    assert_eq!((cache.usage().objects, cache.usage().partial), (0, 1));
    let partial = cache.get(&version, None).await.unwrap();
    store(&cache, bytes(2 * MIB, 2 * MIB + 5)).await;
    assert!(partial.is_complete(), "open readers continue");
    assert_eq!((cache.usage().objects, cache.usage().partial), (1, 0));
    cache.close();
    drop((cache, partial));
    let cache = open(&folder, 100 * MIB);
    let object = cache.get(&version, None).await.expect("it is durable");
    assert_eq!(read(object, None).await.unwrap(), content(1, SIZE));
}

#[tokio::test]
async fn a_restart_removes_partial_objects() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    store(&cache, bytes(0, MIB)).await;
    cache.close();
    // As after a crash: nothing is dropped.
    std::mem::forget(cache);
    for disk in std::fs::read_dir(folder.path()).unwrap() {
        let _ = std::fs::remove_file(disk.unwrap().path().join("lock"));
    }
    let cache = open(&folder, 100 * MIB);
    assert!(cache.get(&meta("k", "e", SIZE).version, None).await.is_none());
    assert_eq!((cache.usage().bytes, files_in(&folder)), (0, 0));
}

#[tokio::test]
async fn a_reader_follows_the_response_and_fails_with_it() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let range = bytes(100, 2 * MIB);
    let fill = keep(&cache, &meta("k", "e", SIZE), range).await.unwrap();
    let object = fill.object();
    assert!(object.serves(request(range)) && !object.has(request(range)));
    assert!(!object.serves(request(bytes(99, 200))) && !object.serves(RangeRequest::Whole));
    let (send, mut receive) = mpsc::unbounded_channel();
    let body: Pieces = stream::poll_fn(move |context| receive.poll_recv(context)).boxed();
    let run = tokio::spawn(fill.run(body));
    send.send(Ok(Bytes::from(part(bytes(100, 1000))))).unwrap();
    assert_eq!(read(object.clone(), Some(bytes(200, 1000))).await.unwrap(), part(bytes(200, 1000)));
    let waiting = tokio::spawn(read(object.clone(), Some(range)));
    send.send(Ok(Bytes::from(part(bytes(1000, MIB + 500))))).unwrap();
    send.send(Err("cut".to_owned())).unwrap();
    let (received, end) = run.await.unwrap();
    assert!(
        matches!(end, Err(FillError::SourceFailed { .. })) && received == MIB + 400,
        "{received} {end:?}"
    );
    assert_eq!(waiting.await.unwrap(), Err(Broken));
    assert!(object.has(request(bytes(100, MIB))), "whole chunks of it are kept");
    assert!(!object.serves(request(bytes(MIB, MIB + 1))));
    // What did not arrive is no longer reserved.
    assert_eq!(cache.usage().bytes, MIB + 4096);
}

#[tokio::test]
async fn a_response_with_too_many_bytes_fails() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let fill = keep(&cache, &meta("k", "e", SIZE), bytes(0, 10)).await.unwrap();
    let (received, end) = fill.run(pieces(&part(bytes(0, 11)))).await;
    assert!(matches!(end, Err(FillError::TooLong(10))) && received == 11, "{received} {end:?}");
}

#[tokio::test]
async fn partial_objects_are_evicted_by_their_stored_bytes() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 4 * MIB + 64 * 1024);
    let large = meta("k", "e", 100 * MIB);
    let fill = keep(&cache, &large, bytes(0, MIB)).await.unwrap();
    fill.run(pieces(&content(1, MIB))).await.1.unwrap();
    assert_eq!(cache.usage().bytes, MIB + 4096, "its size does not count");
    let object = cache.get(&large.version, None).await.unwrap();
    for key in ["a", "b", "c", "d"] {
        put(&cache, key, "e", MIB).await;
    }
    assert!(cache.get(&large.version, None).await.is_none(), "least recently used");
    assert_eq!(read(object, Some(bytes(0, MIB))).await.unwrap(), content(1, MIB), "its readers go on");
    // A range that does not fit evicts nothing.
    let before = cache.usage();
    assert!(keep(&cache, &large, bytes(0, 5 * MIB)).await.is_err());
    assert_eq!(cache.usage(), before);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(files_in(&folder), 4, "its file is gone");
}

#[tokio::test]
async fn a_fill_replaces_a_partial_object() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    store(&cache, bytes(0, MIB)).await;
    let meta = meta("k", "e", SIZE);
    let partial = cache.get(&meta.version, None).await.unwrap();
    let late = keep(&cache, &meta, bytes(MIB, 2 * MIB)).await.unwrap();
    let fill = lead(&cache, &meta).await;
    // The response of the partial object ends after the fill began.
    late.run(pieces(&part(bytes(MIB, 2 * MIB)))).await.1.unwrap();
    assert!(keep(&cache, &meta, bytes(0, 5)).await.is_err(), "the fill fetches it");
    arrive(fill, &content(1, SIZE)).await.unwrap();
    assert_eq!((cache.usage().objects, cache.usage().partial), (1, 0));
    assert_eq!(read(partial, Some(bytes(0, MIB))).await.unwrap(), part(bytes(0, MIB)));
    assert_eq!(read(cache.get(&meta.version, None).await.unwrap(), None).await.unwrap(), content(1, SIZE));
    cache.disks[0].tidy(false).unwrap();
    assert_eq!(files_in(&folder), 1);
}

#[tokio::test]
async fn a_fill_that_cannot_begin_leaves_the_partial_object() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, 2 * MIB, &CachePlan { fills: 1, ..PLAN });
    store(&cache, bytes(0, MIB)).await;
    let meta = meta("k", "e", SIZE);
    assert!(cache.begin_fill(&meta, None, POD).await.is_err(), "it is larger than the cache");
    let late = keep(&cache, &meta, bytes(0, 5)).await.unwrap();
    assert!(
        cache.begin_fill(&crate::tests::meta("other", "e", 5), None, POD).await.is_err(),
        "no more fills"
    );
    drop(late);
    let object = cache.get(&meta.version, None).await.expect("it is still there");
    assert_eq!(read(object, Some(bytes(0, MIB))).await.unwrap(), part(bytes(0, MIB)));
}

#[tokio::test]
async fn a_response_that_fails_evicts_nothing() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 4 * MIB);
    put(&cache, "other", "e", MIB).await;
    store(&cache, bytes(0, MIB)).await;
    let [first, second] = [bytes(MIB, 2 * MIB), bytes(2 * MIB, SIZE - MIB)];
    let first = keep(&cache, &meta("k", "e", SIZE), first).await.unwrap();
    let second = keep(&cache, &meta("k", "e", SIZE), second).await.unwrap();
    let before = cache.usage();
    drop(first);
    assert_eq!(cache.usage().bytes, before.bytes - MIB);
    drop(second);
    assert_eq!((cache.usage().objects, cache.usage().partial), (1, 1));
    assert!(!cache.disks[0].index().is_removing());
}

#[tokio::test]
async fn a_completed_object_is_verified() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let meta = meta("k", "0123456789abcdef0123456789abcdef", SIZE);
    let fill = keep(&cache, &meta, bytes(0, MIB)).await.unwrap();
    fill.run(pieces(&part(bytes(0, MIB)))).await.1.unwrap();
    let fill = keep(&cache, &meta, bytes(MIB, SIZE)).await.unwrap();
    let (_, end) = fill.run(pieces(&part(bytes(MIB, SIZE)))).await;
    assert!(matches!(end, Err(FillError::Corrupt(_))), "{end:?}");
    assert!(cache.get(&meta.version, None).await.is_none());
    assert_eq!(cache.usage().bytes, 0);
}

#[tokio::test]
async fn partial_objects_are_evicted_on_request_and_by_handover() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    for which in [object("k"), "s3://bucket/k*".parse().unwrap(), crate::EvictSelector::All] {
        store(&cache, bytes(0, MIB)).await;
        let gone = cache.evict(&which, &["http://gateway".into()]).await;
        assert_eq!((gone.objects, gone.bytes), (1, MIB), "{which:?}: the stored bytes");
        assert_eq!((cache.usage().partial, files_in(&folder)), (0, 0), "{which:?}");
    }
    cache.set_handed_over(true);
    assert!(keep(&cache, &meta("k", "e", SIZE), bytes(0, 5)).await.is_err());
}

#[tokio::test]
async fn more_partial_objects_than_open_files_are_readable() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let described = |key: u64| meta(&key.to_string(), "e", SIZE);
    let few = part(bytes(7, 77));
    for key in 0..1100 {
        let fill = keep(&cache, &described(key), bytes(7, 77)).await.unwrap();
        fill.run(pieces(&few)).await.1.unwrap();
    }
    for key in 0..1100 {
        let object = cache.get(&described(key).version, None).await.unwrap();
        assert_eq!(read(object, Some(bytes(7, 77))).await.unwrap(), few);
    }
    let version = described(0).version;
    assert_eq!(cache.find(&version.name, None).await.unwrap().meta().version, version);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_order_of_ranges_and_failures_gives_the_same_bytes(
        steps in prop::collection::vec((0..SIZE, 1..SIZE, prop::option::of(0..SIZE)), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = TempDir::new().unwrap();
            let plan = CachePlan { fills: 64, ..PLAN };
            let cache = open_as(&folder, 100 * MIB, &plan);
            let (meta, all) = (meta("k", "e", SIZE), content(1, SIZE));
            let part = |range: ByteRange| all[at(range.start)..at(range.end)].to_vec();
            let mut runs = Vec::new();
            for (start, length, cut) in steps {
                let range = bytes(start, (start + length).min(SIZE));
                // A complete object needs no more ranges.
                let Ok(fill) = keep(&cache, &meta, range).await else { break };
                let whole = part(range);
                let sent = cut.map_or(whole.len(), |cut| at(cut).min(whole.len()));
                let cut = (sent < whole.len()).then(|| Err("cut".to_owned()));
                let sent: Vec<_> = whole[..sent].chunks(90_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
                let body: Pieces = stream::iter(sent.into_iter().chain(cut)).boxed();
                let object = fill.object();
                runs.push(tokio::spawn(fill.run(body)));
                // A reader gets the right bytes, or fails.
                if let Ok(seen) = read(object, Some(range)).await {
                    assert_eq!(seen, whole);
                }
            }
            for run in runs {
                let _ = run.await.unwrap();
            }
            if let Some(object) = cache.get(&meta.version, None).await {
                for start in (0..SIZE).step_by(500_000) {
                    let range = bytes(start, (start + 500_000).min(SIZE));
                    if object.has(request(range)) {
                        assert_eq!(read(object.clone(), Some(range)).await.unwrap(), part(range));
                    } else {
                        assert_eq!(read(object.clone(), Some(range)).await, Err(Broken));
                    }
                }
                assert_eq!(object.is_complete(), cache.usage().objects == 1);
            }
            Arc::clone(&cache).close();
        });
    }
}
