use std::{fs, time::Duration};

use futures_util::{StreamExt as _, stream};

use super::*;
use crate::{CachePlan, tests::*};

/// Uploads may reserve half of the capacity.
const ROOMY: CachePlan = CachePlan { high: 100, low: 1, ..PLAN };

fn md5_of(content: &[u8]) -> String {
    format!("{:x}", md5::compute(content))
}

/// Waits until only empty files are left that are no objects: a chunk that is being written keeps its file for a moment.
async fn none_unlisted(folder: &TempDir) {
    let has_bytes =
        |file: io::Result<fs::DirEntry>| file.unwrap().metadata().is_ok_and(|meta| meta.len() > 0);
    while fs::read_dir(folder.path().join("lota-cache/v4/new")).unwrap().any(has_bytes) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn stored(cache: &Arc<crate::Cache>, key: &str, content: &[u8]) -> StoredUpload {
    let upload = cache.begin_upload(&name(key), content.len() as u64, POD).await.unwrap();
    upload.store(pieces(content)).await.unwrap()
}

#[tokio::test]
async fn an_upload_becomes_the_object_that_has_its_md5_hash() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, 100 * MIB, &ROOMY);
    for size in [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 5] {
        let (key, content) = (size.to_string(), content(size, size));
        let upload = stored(&cache, &key, &content).await;
        assert!(cache.find(&name(&key), None).await.is_none(), "nobody sees it before");
        let meta = meta(&key, &md5_of(&content).to_uppercase(), size);
        assert_eq!(upload.admit(&meta).await.unwrap(), UploadEnd::Kept);
        let object = cache.find(&name(&key), None).await.unwrap();
        assert!(object.is_complete() && read(object, None).await.unwrap() == content, "{size}");
    }
    assert_eq!(cache.usage().objects, 6);
    drop(cache);
    // The checksums of the chunks are those of the bytes.
    let cache = open_as(&folder, 100 * MIB, &ROOMY);
    let object = cache.find(&name(&(3 * MIB + 5).to_string()), None).await.unwrap();
    assert!(read(object, None).await.unwrap() == content(3 * MIB + 5, 3 * MIB + 5));
}

#[tokio::test]
async fn what_the_storage_does_not_state_is_dropped() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, 100 * MIB, &ROOMY);
    let (bytes, size) = (content(1, 2 * MIB), 2 * MIB);
    let hash = md5_of(&bytes);
    let mut with_checksum = meta("k", &hash, size);
    with_checksum.headers.insert("x-amz-checksum-crc32c", "AAAAAA==".parse().unwrap());
    for (what, meta) in [
        ("another hash", meta("k", &md5_of(b"other"), size)),
        ("an upload in parts", meta("k", &format!("{hash}-1"), size)),
        ("no hash", meta("k", "e", size)),
        ("another size", meta("k", &hash, size - 1)),
        ("another name", meta("other", &hash, size)),
        ("another checksum", with_checksum),
    ] {
        let end = stored(&cache, "k", &bytes).await.admit(&meta).await;
        assert!(matches!(end, Ok(UploadEnd::Differs) | Err(FillError::Corrupt(_))), "{what}: {end:?}");
        assert!(cache.get(&meta.version, None).await.is_none(), "{what}");
        assert_eq!((cache.usage().bytes, files_in(&folder)), (0, 0), "{what}");
    }
    none_unlisted(&folder).await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, 100 * MIB, &ROOMY);
    let whole = content(1, 3 * MIB);
    let broken = stream::iter([Ok(Bytes::from(whole.clone())), Err("reset".to_owned())]).boxed();
    let too_long = [&whole[..], b"x"].concat();
    for (what, body) in [
        ("reset after all bytes", broken),
        ("short", pieces(&whole[1..])),
        ("long", pieces(&too_long)),
        ("empty", pieces(b"")),
    ] {
        let upload = cache.begin_upload(&name("k"), 3 * MIB, POD).await.unwrap();
        assert!(cache.usage().bytes >= 3 * MIB, "its space is reserved");
        assert!(upload.store(body).await.is_err(), "{what}");
        assert_eq!(cache.usage().bytes, 0, "{what}");
        none_unlisted(&folder).await;
    }
    let upload = cache.begin_upload(&name("k"), 3 * MIB, POD).await.unwrap();
    drop(upload);
    assert_eq!((cache.usage().bytes, files_in(&folder)), (0, 0));
}

#[tokio::test]
async fn an_upload_evicts_nothing() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, 10 * DISK, &CachePlan { high: 80, low: 40, ..PLAN });
    for key in 0..7 {
        put(&cache, &key.to_string(), "e", MIB).await;
    }
    assert!(cache.begin_upload(&name("large"), 2 * MIB, POD).await.is_err(), "above the high watermark");
    let upload = cache.begin_upload(&name("small"), MIB - 9, POD).await.unwrap();
    assert!(cache.begin_upload(&name("second"), MIB - 9, POD).await.is_err(), "the first one counts");
    drop(upload);
    assert_eq!(cache.usage().objects, 7);
    cache.set_handed_over(true);
    assert!(cache.begin_upload(&name("small"), 1, POD).await.is_err(), "another daemon owns the folder");
}

#[tokio::test]
async fn the_reservations_of_uploads_are_bounded() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, 100 * DISK, &CachePlan { high: 90, low: 80, ..PLAN });
    let begin = async |size| cache.begin_upload(&name("k"), size, POD).await;
    assert!(begin(5 * DISK).await.is_err(), "half of the 10 percent that an eviction frees");
    for size in [MAX_SIZE + 1, u64::MAX] {
        assert!(begin(size).await.unwrap_err().why.contains("PutObject"), "{size}");
    }
    // One pod leaves as much as it has.
    let first = begin(2 * MIB).await.unwrap();
    assert!(begin(2 * MIB).await.is_err());
    drop(first);
    let bytes = content(1, 4 * MIB);
    for _ in 0..2 {
        let end = stored(&cache, "k", &bytes).await.admit(&meta("k", &md5_of(&bytes), 4 * MIB)).await;
        assert!(matches!(end, Ok(UploadEnd::Kept | UploadEnd::Present)), "{end:?}");
    }
    assert!(begin(4 * MIB).await.is_ok(), "kept uploads count no longer");
}

#[tokio::test]
async fn an_object_that_is_cached_stays() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, 100 * MIB, &ROOMY);
    let bytes = content(MIB, MIB);
    let meta = meta("k", &md5_of(&bytes), MIB);
    put(&cache, "k", &md5_of(&bytes), MIB).await;
    let end = stored(&cache, "k", &bytes).await.admit(&meta).await.unwrap();
    assert_eq!((end, cache.usage().objects, files_in(&folder)), (UploadEnd::Present, 1, 1));
    assert!(read(cache.find(&name("k"), None).await.unwrap(), None).await.unwrap() == bytes);
    // A reader has begun to fetch it.
    let fetched = lead(&cache, &crate::tests::meta("other", &md5_of(&bytes), MIB)).await;
    let end = stored(&cache, "other", &bytes).await.admit(&fetched.object().meta()).await.unwrap();
    assert_eq!(end, UploadEnd::Present);
    arrive(fetched, &bytes).await.unwrap();
    assert_eq!(cache.usage().objects, 2);
}
