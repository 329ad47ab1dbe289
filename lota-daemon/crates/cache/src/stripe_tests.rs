use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use lota_s3::ByteRange;
use tempfile::TempDir;

use super::{
    tests::{MIB, PLAN, POD, Pieces, at, content, disk, files_in, meta, name, open, read},
    *,
};

const SIZE: u64 = 10 * MIB + 5;

/// A source that has the whole object.
struct WholeObject(Vec<u8>);

impl FillSource for WholeObject {
    async fn fetch(&self, range: Option<ByteRange>) -> Result<Pieces, SourceError> {
        let range = range.expect("a stripe is fetched by ranges");
        let piece = bytes::Bytes::copy_from_slice(&self.0[at(range.start)..at(range.end)]);
        Ok(stream::iter([Ok(piece)]).boxed())
    }
}

fn stripe(index: u64) -> Option<Stripe> {
    Stripe::new(index, StripeLength::new(4 * MIB).unwrap())
}

async fn fill(cache: &Arc<Cache>, etag: &str, index: u64) {
    let meta = meta("k", etag, SIZE);
    let Join::Lead(fill) = cache.begin_fill(&meta, stripe(index), POD).await.unwrap() else {
        panic!("stripe {index} is cached already")
    };
    let stored = fill.run(&WholeObject(content(SIZE, SIZE)), FillOptions::Parts).await.unwrap();
    assert_eq!(stored, stripe(index).unwrap().range(SIZE).length());
}

async fn find(cache: &Cache, index: u64) -> Option<Arc<Object>> {
    cache.find(&name("k"), stripe(index)).await
}

async fn has_right_bytes(cache: &Cache, index: u64) {
    let object = find(cache, index).await.unwrap();
    let ByteRange { start, end } = stripe(index).unwrap().range(SIZE);
    let all = content(SIZE, SIZE);
    assert!(object.is_complete() && object.meta().size == SIZE);
    assert!(read(object.clone(), None).await.unwrap() == all[at(start)..at(end)], "stripe {index}");
    let inner = ByteRange { start: start + 1, end: end - 1 };
    assert!(read(object.clone(), Some(inner)).await.unwrap() == all[at(start) + 1..at(end) - 1]);
    let permit = permit::TestPermit(object.meta());
    for (start, end) in [(start.wrapping_sub(1), end), (start, end + 1), (end, start)] {
        let beyond = Reader::new(&permit, object.clone(), Some(ByteRange { start, end }));
        assert!(beyond.is_none(), "{start}..{end} of stripe {index}");
    }
}

#[tokio::test]
async fn stripes_are_entries_of_their_own() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    fill(&cache, "e", 2).await;
    fill(&cache, "e", 0).await;
    for index in [0, 2] {
        has_right_bytes(&cache, index).await;
    }
    assert!(find(&cache, 1).await.is_none());
    assert!(cache.find(&name("k"), None).await.is_none(), "the whole object is not cached");
    let other_length = Stripe::new(0, StripeLength::new(2 * MIB).unwrap());
    assert!(cache.find(&name("k"), other_length).await.is_none());
    assert_eq!((cache.usage().objects, cache.usage().stripes), (0, 2));

    fill(&cache, "new", 0).await;
    assert_eq!(find(&cache, 0).await.unwrap().meta().version, meta("k", "new", SIZE).version);
    let old = meta("k", "e", SIZE).version;
    assert_eq!(cache.get(&old, stripe(0)).await.unwrap().meta().version, old);
}

#[tokio::test]
async fn a_restart_finds_stripes() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    fill(&cache, "e", 2).await;
    cache.close();
    drop(cache);
    let cache = open(&folder, 100 * MIB);
    assert_eq!((cache.usage().objects, cache.usage().stripes), (0, 1));
    has_right_bytes(&cache, 2).await;
    let listed = list(folder.path()).unwrap();
    assert_eq!((listed.len(), listed[0].stripe, listed[0].meta.size), (1, stripe(2), SIZE));
    compare(folder.path(), |_| (), |corrupt| panic!("{corrupt:?}")).unwrap();
    drop(cache);
    // Not closed: the stripe is verified before it is served.
    let cache = open(&folder, 100 * MIB);
    has_right_bytes(&cache, 2).await;
}

#[tokio::test]
async fn an_object_is_evicted_with_its_stripes() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    tests::put(&cache, "other", "e", MIB).await;
    for index in 0..3 {
        fill(&cache, "e", index).await;
    }
    let which: EvictSelector = "s3://bucket/k".parse().unwrap();
    let gateways = [name("k").gateway];
    let gone = cache.evict(&which, &gateways).await;
    assert_eq!((gone.objects, gone.bytes), (3, SIZE));
    assert_eq!((cache.usage().objects, cache.usage().stripes, files_in(&folder)), (1, 0, 1));
}

#[tokio::test]
async fn stripes_of_an_object_are_on_all_disks() {
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let disks = folders.each_ref().map(|folder| disk(folder, 50 * MIB));
    let cache = Arc::new(Cache::open(&disks, &PLAN, &[]).unwrap());
    let (length, size) = (StripeLength::new(MIB).unwrap(), 64 * MIB);
    let meta = meta("large", "e", size);
    let source = WholeObject(content(size, size));
    for index in 0..length.count(size) {
        let Ok(Join::Lead(fill)) = cache.begin_fill(&meta, Stripe::new(index, length), POD).await else {
            panic!("stripe {index} has no room")
        };
        fill.run(&source, FillOptions::Parts).await.unwrap();
    }
    assert_eq!(cache.usage().stripes, 64, "of an object that is larger than a disk");
    assert!(cache.disks().all(|disk| disk.usage.stripes > 10));
}
