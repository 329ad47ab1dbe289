use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
};

use futures_util::stream;
use hyper::HeaderMap;
use lota_s3::{Learned, ObjectMeta, ObjectName, ObjectVersion, Validator};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::{Broken, Cache, CachePlan, DiskPlan, Join, Reader, permit::TestPermit};

const MIB: u64 = 1 << 20;

fn content(range: ByteRange) -> Bytes {
    (range.start..range.end).map(|at| (at % 251) as u8 ^ ((at >> 20) % 255) as u8).collect()
}

/// A source that records the requested ranges and fails as often as configured.
#[derive(Default)]
struct Backend {
    size: u64,
    asked: Mutex<Vec<ByteRange>>,
    failures: AtomicU32,
    /// Numbers of requests that fail, too.
    fails_at: Range<usize>,
    /// Number of bytes that a failing response sends first.
    before_it_fails: usize,
}

impl Backend {
    fn new(size: u64) -> Self {
        Self { size, ..Self::default() }
    }

    fn asked(&self) -> Vec<ByteRange> {
        self.asked.lock().unwrap().clone()
    }

    fn sent(&self) -> u64 {
        self.asked().iter().map(|range| range.length()).sum()
    }
}

impl FillSource for Backend {
    async fn fetch(
        &self,
        range: Option<ByteRange>,
    ) -> Result<BoxStream<'static, Result<Bytes, String>>, SourceError> {
        let range = range.unwrap_or(ByteRange { start: 0, end: self.size });
        let place = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(range);
            asked.len() - 1
        };
        tokio::task::yield_now().await;
        let bytes = content(range);
        let fails =
            self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if fails.is_ok() || self.fails_at.contains(&place) {
            if self.before_it_fails == 0 {
                return Err(SourceError::Transient("not now".into()));
            }
            let some = bytes.slice(..self.before_it_fails.min(bytes.len() - 1));
            return Ok(stream::iter([Ok(some), Err("cut".to_owned())]).boxed());
        }
        let pieces: Vec<_> = bytes.chunks(100_000).map(Bytes::copy_from_slice).map(Ok).collect();
        Ok(stream::iter(pieces).boxed())
    }
}

async fn begin(folder: &TempDir, size: u64) -> (Arc<Cache>, Fill) {
    let disk = DiskPlan { folder: folder.path().to_owned(), capacity: 1 << 40 };
    let plan = CachePlan { fills: 16, ..crate::tests::PLAN };
    let cache = Cache::open(&[disk], &plan, &[]).unwrap();
    let cache = Arc::new(cache);
    let name = ObjectName::from_parts("http://gateway", "bucket", "key", None).unwrap();
    let validator = Validator { etag: "\"e\"".into(), last_modified: None };
    let version = ObjectVersion { name, validator };
    let meta = ObjectMeta::restored(version, size, HeaderMap::new(), true, Learned::default());
    match cache.begin_fill(&meta, None, std::net::Ipv4Addr::LOCALHOST.into()).await.unwrap() {
        Join::Lead(fill) => (cache, fill),
        Join::Follow(_) => panic!("the object is cached already"),
    }
}

async fn read(object: Arc<Object>, range: ByteRange) -> Result<Bytes, Broken> {
    let grant = TestPermit(object.meta());
    let mut reader = Reader::new(&grant, object, Some(range)).unwrap();
    let mut all = bytes::BytesMut::new();
    while let Some(piece) = reader.next().await? {
        all.extend_from_slice(&piece.read_for_tests());
    }
    Ok(all.freeze())
}

#[tokio::test]
async fn a_requested_range_comes_first_and_every_byte_once() {
    let folder = TempDir::new().unwrap();
    let (cache, fill) = begin(&folder, 50 * MIB + 7).await;
    let (object, backend) = (fill.object(), Backend::new(50 * MIB + 7));
    let range = ByteRange { start: 40 * MIB + 3, end: 41 * MIB };
    fill.begin_at(range.start);
    let reader = tokio::spawn(read(object.clone(), range));
    assert_eq!(fill.run(&backend, FillOptions::Parts).await.unwrap(), 50 * MIB + 7);
    assert_eq!(reader.await.unwrap(), Ok(content(range)));
    assert_eq!(backend.asked()[0].start, 40 * MIB, "asked for {:?}", backend.asked());
    assert_eq!(backend.sent(), 50 * MIB + 7, "every byte once");
    let all = ByteRange { start: 0, end: 50 * MIB + 7 };
    assert!(read(object, all).await.unwrap() == content(all));
    assert_eq!((cache.usage().objects, cache.usage().fills), (1, 0));
}

/// Fills an object of `size` bytes in the background from a stream that stops after one piece until it is released. Returns the
/// ranges that were requested beside it, and the object's size.
async fn fill_in_background(size: u64, is_read: bool) -> (Vec<ByteRange>, u64) {
    let folder = TempDir::new().unwrap();
    let (_cache, fill) = begin(&folder, size).await;
    let (object, backend) = (fill.object(), Backend::new(size));
    let all = ByteRange { start: 0, end: size };
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let bytes = content(all);
    let (first, rest) = (bytes.slice(..1000), bytes.slice(1000..));
    let arriving = stream::iter([Ok(first)]).chain(stream::once(async move {
        let _ = released.await;
        Ok(rest)
    }));
    let filling = tokio::spawn(async move {
        let end = fill.run(&backend, FillOptions::Background(arriving.boxed())).await;
        (backend.asked(), end.unwrap())
    });
    tokio::task::yield_now().await;
    let reader = is_read.then(|| tokio::spawn(read(object, all)));
    if let Some(reader) = reader.filter(|_| size > 8 * MIB) {
        let read = timeout(Duration::from_secs(30), reader).await.expect("the stream delays the reader");
        assert!(read.unwrap().unwrap() == bytes);
    }
    let _ = release.send(());
    filling.await.unwrap()
}

#[tokio::test]
async fn a_background_fill_is_one_stream_until_somebody_reads() {
    assert_eq!(fill_in_background(40 * MIB, false).await, (vec![], 40 * MIB));
    assert_eq!(fill_in_background(3 * MIB, true).await, (vec![], 3 * MIB), "as fast in one request");
    let (asked, size) = fill_in_background(40 * MIB, true).await;
    assert_eq!((asked.len(), size), (5, 40 * MIB), "{asked:?}");
    assert_eq!(asked.iter().map(|range| range.length()).sum::<u64>(), 40 * MIB);
}

#[tokio::test]
async fn background_fills_take_no_permits() {
    let folder = TempDir::new().unwrap();
    let (cache, client) = begin(&folder, MIB).await;
    let meta = |key: u64| {
        let name = ObjectName::from_parts("http://gateway", "bucket", &key.to_string(), None).unwrap();
        let version = ObjectVersion { name, validator: client.object().meta().version.validator.clone() };
        ObjectMeta::restored(version, MIB, HeaderMap::new(), true, Learned::default())
    };
    let (writer, reader) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let mut fills = Vec::new();
    for key in 0..32 {
        fills.push(cache.begin_background_fill(&meta(key), writer).await.unwrap());
    }
    assert!(fills.iter().all(|join| matches!(join, Join::Lead(_))), "more than there are permits");
    assert!(matches!(cache.begin_fill(&meta(0), None, reader).await, Ok(Join::Follow(_))));
    for key in 100..107 {
        fills.push(cache.begin_fill(&meta(key), None, writer).await.unwrap());
    }
    cache.set_handed_over(true);
    assert!(cache.begin_background_fill(&meta(200), writer).await.is_err(), "after a handover");
}

#[tokio::test]
async fn a_stream_continues_beside_range_requests_of_readers() {
    let folder = TempDir::new().unwrap();
    let (_cache, fill) = begin(&folder, 40 * MIB).await;
    let (object, backend) = (fill.object(), Backend::new(40 * MIB));
    let range = ByteRange { start: 30 * MIB, end: 30 * MIB + 10 };
    let reader = tokio::spawn(read(object.clone(), range));
    // The source sends one piece, and the rest after the reader has its bytes.
    let (open, opened) = tokio::sync::oneshot::channel::<()>();
    let all = content(ByteRange { start: 0, end: 40 * MIB });
    let (first, rest) = (all.slice(..1000), all.slice(1000..));
    let arriving = stream::iter([Ok(first)]).chain(stream::once(async move {
        let _ = opened.await;
        Ok(rest)
    }));
    let filling = tokio::spawn(async move {
        let end = fill.run(&backend, FillOptions::Arriving(arriving.boxed())).await;
        (end.unwrap(), backend.asked())
    });
    assert_eq!(reader.await.unwrap(), Ok(content(range)));
    open.send(()).unwrap();
    let (size, asked) = filling.await.unwrap();
    assert_eq!((size, asked), (40 * MIB, vec![ByteRange { start: 30 * MIB, end: 38 * MIB }]));
    let all = ByteRange { start: 0, end: 40 * MIB };
    assert!(read(object, all).await.unwrap() == content(all));
}

#[tokio::test(start_paused = true)]
async fn a_failing_source_is_retried() {
    for before_it_fails in [0, 2_500_000] {
        let folder = TempDir::new().unwrap();
        let (_cache, fill) = begin(&folder, 30 * MIB).await;
        let object = fill.object();
        let backend = Backend { failures: 3.into(), before_it_fails, ..Backend::new(30 * MIB) };
        fill.run(&backend, FillOptions::Parts).await.unwrap();
        let all = ByteRange { start: 0, end: 30 * MIB };
        assert!(read(object, all).await.unwrap() == content(all));

        let folder = TempDir::new().unwrap();
        let (cache, fill) = begin(&folder, 30 * MIB).await;
        let reader = tokio::spawn(read(fill.object(), all));
        let backend = Backend { failures: u32::MAX.into(), before_it_fails, ..Backend::new(30 * MIB) };
        fill.run(&backend, FillOptions::Parts).await.unwrap_err();
        assert_eq!(reader.await.unwrap(), Err(Broken));
        assert_eq!((cache.usage().objects, cache.usage().bytes), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_failures_count_once() {
    let folder = TempDir::new().unwrap();
    let (_cache, fill) = begin(&folder, 100 * MIB).await;
    let (object, backend) = (fill.object(), Backend { fails_at: 3..7, ..Backend::new(100 * MIB) });
    let readers: Vec<_> = [50, 70, 90]
        .map(|at| ByteRange { start: at * MIB, end: at * MIB + 9 })
        .map(|range| (range, tokio::spawn(read(object.clone(), range))))
        .into();
    tokio::task::yield_now().await;
    fill.run(&backend, FillOptions::Parts).await.unwrap();
    for (range, reader) in readers {
        assert_eq!(reader.await.unwrap(), Ok(content(range)));
    }
}

#[tokio::test]
async fn the_stream_supplies_chunks_of_failed_requests() {
    let folder = TempDir::new().unwrap();
    let (_cache, fill) = begin(&folder, 40 * MIB).await;
    let object = fill.object();
    let backend = Backend { fails_at: 0..9, before_it_fails: 1_500_000, ..Backend::new(40 * MIB) };
    let range = ByteRange { start: 30 * MIB, end: 40 * MIB };
    let reader = tokio::spawn(read(object.clone(), range));
    tokio::task::yield_now().await;
    let arriving = stream::iter([Ok(content(ByteRange { start: 0, end: 40 * MIB }))]).boxed();
    fill.run(&backend, FillOptions::Arriving(arriving)).await.unwrap();
    assert_eq!(reader.await.unwrap(), Ok(content(range)));
}

#[tokio::test]
async fn bytes_are_served_as_they_arrive() {
    let folder = TempDir::new().unwrap();
    let (_cache, fill) = begin(&folder, 3 * MIB).await;
    let (object, backend) = (fill.object(), Backend::new(3 * MIB));
    let all = content(ByteRange { start: 0, end: 3 * MIB });
    let (more, rest) = tokio::sync::oneshot::channel::<()>();
    let (some, others) = (all.slice(..5000), all.slice(5000..));
    let later = stream::once(async move {
        rest.await.unwrap();
        Ok(others)
    });
    let arriving = stream::iter([Ok(some)]).chain(later).boxed();
    let filled =
        tokio::spawn(async move { fill.run(&backend, FillOptions::Arriving(arriving)).await.unwrap() });
    let first = ByteRange { start: 7, end: 5000 };
    assert_eq!(read(object.clone(), first).await, Ok(content(first)));
    more.send(()).unwrap();
    filled.await.unwrap();
    assert!(read(object, ByteRange { start: 0, end: 3 * MIB }).await.unwrap() == all);
}

#[tokio::test]
async fn range_requests_complete_a_broken_stream() {
    let folder = TempDir::new().unwrap();
    let (_cache, fill) = begin(&folder, 30 * MIB).await;
    let (object, backend) = (fill.object(), Backend::new(30 * MIB));
    let some = content(ByteRange { start: 0, end: 10 * MIB + 5 });
    let arriving = stream::iter([Ok(some), Err("cut".to_owned())]).boxed();
    fill.run(&backend, FillOptions::Arriving(arriving)).await.unwrap();
    assert_eq!(backend.sent(), 20 * MIB, "received bytes are kept");
    let all = ByteRange { start: 0, end: 30 * MIB };
    assert!(read(object, all).await.unwrap() == content(all));
}

/// A source whose object was replaced.
struct Replaced;

impl FillSource for Replaced {
    async fn fetch(
        &self,
        _range: Option<ByteRange>,
    ) -> Result<BoxStream<'static, Result<Bytes, String>>, SourceError> {
        Err(SourceError::Replaced)
    }
}

#[tokio::test]
async fn a_replaced_object_is_not_reported_as_a_failed_source() {
    for how in [FillOptions::Parts, FillOptions::Stream] {
        let folder = TempDir::new().unwrap();
        let (cache, fill) = begin(&folder, 30 * MIB).await;
        assert!(matches!(fill.run(&Replaced, how).await, Err(FillError::Replaced)));
        assert_eq!((cache.usage().objects, cache.usage().fills), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Readers get their bytes with any reads and failures of the source during the fill.
    #[test]
    fn readers_get_their_bytes(
        size in 1..20 * MIB,
        ranges in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..6),
        failures in 0..3u32,
        before_it_fails in 0..3_000_000usize,
        streams: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let folder = TempDir::new().unwrap();
            let (_cache, fill) = begin(&folder, size).await;
            let backend = Backend { failures: failures.into(), before_it_fails, ..Backend::new(size) };
            let readers: Vec<_> = ranges
                .into_iter()
                .map(|(start, length)| {
                    let start = start % size;
                    let end = start + 1 + length % (size - start);
                    let range = ByteRange { start, end };
                    (range, tokio::spawn(read(fill.object(), range)))
                })
                .collect();
            tokio::task::yield_now().await;
            let how = if streams { FillOptions::Stream } else { FillOptions::Parts };
            fill.run(&backend, how).await.unwrap();
            for (range, reader) in readers {
                assert!(reader.await.unwrap().unwrap() == content(range), "{range:?}");
            }
        });
    }
}
