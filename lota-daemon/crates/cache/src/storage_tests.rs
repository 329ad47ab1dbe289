//! Tests of files on disk: recovery, verification, limits.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lota_s3::{ByteRange, Learned};

use super::{tests::*, *};

async fn orderly_end(cache: Arc<Cache>) {
    cache.close();
    drop(cache);
}

/// Flips one bit of the object in a folder with one object.
fn flip_a_bit(folder: &TempDir, at: u64) {
    let listed = list(folder.path()).unwrap();
    let file = File::options().read(true).write(true).open(&listed[0].file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// Waits until all files are removed, which happens in the background.
async fn none_left(folder: &TempDir) {
    while files_in(folder) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn holds(cache: &Arc<Cache>, key: &str) -> bool {
    cache.get(&meta(key, "e", MIB).version, None).await.is_some()
}

/// Returns the permissions of a file or folder.
fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn other_users_cannot_read_the_cache() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 3 * DISK);
    put(&cache, "a", "e", MIB).await;
    orderly_end(cache).await;
    let file = list(folder.path()).unwrap()[0].file.clone();
    assert_eq!(mode(&file), 0o600);
    let folders: Vec<_> = file.ancestors().skip(1).take_while(|above| *above != folder.path()).collect();
    assert!(folders.len() > 1);
    folders.into_iter().for_each(|above| assert_eq!(mode(above), 0o700, "{}", above.display()));
}

#[tokio::test]
async fn the_lru_order_survives_a_restart() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 3 * DISK);
    for key in ["a", "b", "c"] {
        put(&cache, key, "e", MIB).await;
    }
    cache.find(&name("a"), None).await.unwrap();
    orderly_end(cache).await;
    let cache = open(&folder, 3 * DISK);
    put(&cache, "d", "e", MIB).await;
    assert!(holds(&cache, "a").await && !holds(&cache, "b").await && holds(&cache, "c").await);
    orderly_end(cache).await;
    // A damaged file loses the order, nothing else.
    std::fs::write(folder.path().join("lota-cache/v4/order"), b"nonsense, and long enough to be one id")
        .unwrap();
    assert_eq!(open(&folder, 3 * DISK).usage().objects, 3);
}

#[tokio::test]
async fn a_smaller_capacity_evicts_the_oldest() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 3 * DISK);
    for key in ["a", "b", "c"] {
        put(&cache, key, "e", MIB).await;
    }
    orderly_end(cache).await;
    let cache = open(&folder, DISK);
    assert_eq!((cache.usage().objects, files_in(&folder)), (1, 1));
    assert!(holds(&cache, "c").await);
}

#[tokio::test]
async fn after_a_crash_objects_are_verified_before_they_are_served() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let size = 4 * MIB + 5;
    put(&cache, "k", "e", size).await;
    // No `close`.
    drop(cache);
    let cache = open(&folder, 100 * MIB);
    let object = cache.find(&name("k"), None).await.unwrap();
    assert!(object.is_complete(), "it is a hit nevertheless");
    assert!(read(object, None).await.unwrap() == content(size, size));
    drop(cache);

    flip_a_bit(&folder, 3 * MIB + 7);
    let cache = open(&folder, 100 * MIB);
    let object = cache.find(&name("k"), None).await.unwrap();
    let sound = ByteRange { start: 0, end: 1000 };
    let broken = ByteRange { start: 3 * MIB, end: 3 * MIB + 1 };
    assert_eq!(read(object.clone(), Some(broken)).await, Err(Broken));
    let _ = read(object, Some(sound)).await;
    assert!(cache.find(&name("k"), None).await.is_none(), "it was dropped");
    assert_eq!(cache.disks().map(|disk| disk.corrupt).sum::<u64>(), 1);
    none_left(&folder).await;
    put(&cache, "k", "e", size).await;
    let object = cache.find(&name("k"), None).await.unwrap();
    assert!(read(object, None).await.unwrap() == content(size, size), "and fetched again");
}

#[tokio::test]
async fn unverified_objects_stay_so_across_restarts() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    put(&cache, "k", "e", 2 * MIB).await;
    drop(cache);
    flip_a_bit(&folder, MIB);
    // Opened after the crash, never read, and shut down cleanly.
    orderly_end(open(&folder, 100 * MIB)).await;
    let cache = open(&folder, 100 * MIB);
    assert_eq!(read(cache.find(&name("k"), None).await.unwrap(), None).await, Err(Broken));
}

#[tokio::test]
async fn the_marker_is_removed_with_the_last_unverified_object() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    put(&cache, "k", "e", MIB).await;
    drop(cache);
    let cache = open(&folder, 100 * MIB);
    let unchecked = folder.path().join("lota-cache/v4/unchecked");
    cache.disks[0].tidy(true).unwrap();
    assert!(unchecked.exists(), "one is unverified");
    cache.evict(&object("k"), &["http://gateway".into()]).await;
    cache.disks[0].tidy(true).unwrap();
    assert!(!unchecked.exists());
}

#[tokio::test]
async fn an_object_too_large_for_the_disk_evicts_nothing() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, u64::MAX);
    put(&cache, "k", "e", MIB).await;
    cache.begin_fill(&meta("huge", "e", 1 << 60), None, POD).await.unwrap_err();
    assert_eq!(cache.usage(), Usage { objects: 1, bytes: DISK, ..Usage::default() });
}

#[tokio::test]
async fn the_scrub_finds_a_flipped_bit() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    put(&cache, "k", "e", 2 * MIB).await;
    let disk = &cache.disks[0];
    let entry = {
        let index = disk.index();
        index.entry(index.order()[0]).unwrap()
    };
    upkeep::scrub_one(disk, entry, 1 << 40).await;
    assert_eq!((cache.usage().objects, disk.verified.load(Ordering::Relaxed)), (1, 2 * MIB));
    flip_a_bit(&folder, 2 * MIB - 1);
    upkeep::scrub_one(disk, entry, 1 << 40).await;
    assert_eq!(cache.usage().objects, 0);
    none_left(&folder).await;
    // Evicted before its turn.
    upkeep::scrub_one(disk, entry, 1 << 40).await;
    assert_eq!(disk.corrupt.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn eviction_goes_down_to_the_low_watermark() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, 10 * DISK, &CachePlan { high: 80, low: 50, ..PLAN });
    for key in 0..8 {
        put(&cache, &key.to_string(), "e", MIB).await;
    }
    cache.disks[0].tidy(true).unwrap();
    assert_eq!(cache.usage().objects, 8, "not above it yet");
    put(&cache, "8", "e", MIB).await;
    cache.disks[0].tidy(true).unwrap();
    assert_eq!((cache.usage().bytes, files_in(&folder)), (5 * DISK, 5));
    assert!(!holds(&cache, "3").await && holds(&cache, "4").await);
}

#[tokio::test]
async fn small_objects_count_by_their_blocks() {
    const BLOCKS: u64 = 10 * 4096;
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, BLOCKS, &CachePlan { low: 100, high: 100, ..PLAN });
    for key in 0..40 {
        put(&cache, &key.to_string(), "e", key % 3).await;
    }
    let usage = cache.usage();
    assert!(usage.objects <= 10 && usage.bytes <= BLOCKS, "{usage:?}");
    while files_in(&folder) > usage.objects {
        tokio::task::yield_now().await;
    }
    assert_eq!(super::usage(folder.path()).unwrap(), usage, "the folder has the same usage");
    orderly_end(cache).await;
    assert_eq!(open(&folder, BLOCKS).usage(), usage, "a restart finds the same");
}

#[tokio::test]
async fn the_record_counts_toward_disk_usage() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let mut meta = meta("k", "e", 1);
    let long = "x".repeat(30_000);
    meta.headers.insert("x-amz-meta-long", long.parse().unwrap());
    arrive(lead(&cache, &meta).await, b"1").await.unwrap();
    let usage = cache.usage();
    assert!((32_768..=32_768 + 65_536).contains(&usage.bytes), "{usage:?}");
    assert_eq!(super::usage(folder.path()).unwrap(), usage);
    orderly_end(cache).await;
    let cache = open(&folder, 100 * MIB);
    assert_eq!(cache.usage(), usage);
    assert!(cache.find(&name("k"), None).await.is_some(), "it is found by its name on disk");
    cache.evict(&object("k"), &["http://gateway".into()]).await;
    assert_eq!((cache.usage(), files_in(&folder)), (Usage::default(), 0));
}

#[tokio::test]
async fn a_later_response_updates_the_description() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let described = |value: &'static str, learned: u64| {
        let mut meta = meta("k", "e", 1);
        meta.version.validator.last_modified = Some("Thu, 01 Jan 1970 00:00:10 GMT".to_owned());
        meta.headers.insert("x-amz-meta-value", value.parse().unwrap());
        meta.learned_when(Learned { at: Some(learned), by: 0 })
    };
    arrive(lead(&cache, &described("unsettled", 10)).await, b"1").await.unwrap();
    let object = cache.find(&name("k"), None).await.unwrap();
    for (value, learned, held) in [
        ("within the second", 10, "within the second"),
        ("settled", 12, "settled"),
        ("from before", 11, "settled"),
        ("otherwise", 13, "otherwise"),
    ] {
        cache.learn(&object, &described(value, learned));
        assert_eq!(object.meta().headers["x-amz-meta-value"], held);
    }
}

#[tokio::test]
async fn objects_are_bounded_by_number_too() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, 100 * MIB, &CachePlan { objects: 5, ..PLAN });
    for key in 0..12 {
        put(&cache, &key.to_string(), "e", 0).await;
    }
    assert_eq!(cache.usage().objects, 5);
    orderly_end(cache).await;
    let cache = open_as(&folder, 100 * MIB, &CachePlan { objects: 3, ..PLAN });
    assert_eq!(cache.usage().objects, 3);
    assert!(cache.get(&meta("11", "e", 0).version, None).await.is_some(), "the last ones stay");
}

#[tokio::test]
async fn the_reserve_of_the_disk_is_restored() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    for key in 0..4 {
        put(&cache, &key.to_string(), "e", MIB).await;
    }
    orderly_end(cache).await;
    // Other programs use the reserve of the disk: everything is evicted, and no fill starts.
    let cache = open_as(&folder, 100 * MIB, &CachePlan { min_free: u64::MAX, ..PLAN });
    cache.disks[0].tidy(true).unwrap();
    assert_eq!((cache.usage().objects, files_in(&folder)), (0, 0));
}

#[tokio::test]
async fn admission_by_frequency_protects_from_scans() {
    for (admission, kept) in [(Admission::All, 0), (Admission::Frequent, 10)] {
        let folder = TempDir::new().unwrap();
        let cache = open_as(&folder, 10 * DISK, &CachePlan { low: 100, high: 100, admission, ..PLAN });
        let fetch = async |key: String| {
            cache.count_read(&name(&key), None);
            if let Ok(Join::Lead(fill)) = cache.begin_fill(&meta(&key, "e", MIB), None, POD).await {
                arrive(fill, &content(MIB, MIB)).await.unwrap();
            }
        };
        for _ in 0..3 {
            for key in 0..10 {
                fetch(format!("hot-{key}")).await;
            }
        }
        for key in 0..50 {
            fetch(format!("scan-{key}")).await;
        }
        let mut hot = 0;
        for key in 0..10 {
            hot += u32::from(holds(&cache, &format!("hot-{key}")).await);
        }
        assert_eq!(hot, kept, "{admission:?}");
        // An object that is read often enough is admitted.
        for _ in 0..6 {
            fetch("scan-3".into()).await;
        }
        assert!(holds(&cache, "scan-3").await);
    }
}

#[tokio::test]
async fn objects_spread_over_disks_and_a_failed_disk_is_skipped() {
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap()];
    let disks = folders.each_ref().map(|folder| disk(folder, 100 * MIB));
    let cache = Arc::new(Cache::open(&disks, &PLAN, &[]).unwrap());
    for key in 0..60 {
        put(&cache, &key.to_string(), "e", 1000).await;
    }
    let each = folders.each_ref().map(files_in);
    assert!(each.iter().all(|files| (8..35).contains(files)), "{each:?}");
    let lost = &cache.disks[1];
    lost.notice(&io::ErrorKind::NotFound.into());
    lost.notice(&io::Error::from_raw_os_error(nix::libc::ENOSPC));
    assert!(!lost.has_failed(), "neither error means a broken disk");
    lost.notice(&io::Error::from_raw_os_error(nix::libc::EIO));
    assert_eq!(cache.usage().objects, each[0] + each[2]);
    let mut found = 0;
    for key in 0..60 {
        found += usize::from(cache.find(&name(&key.to_string()), None).await.is_some());
        let Ok(Join::Follow(_) | Join::Lead(_)) =
            cache.begin_fill(&meta(&key.to_string(), "e", 1000), None, POD).await
        else {
            panic!("the others take its objects")
        };
    }
    assert_eq!(found, each[0] + each[2]);
    assert_eq!(cache.disks().filter(|disk| disk.works).count(), 2);
    for disk in &cache.disks {
        disk.notice(&io::Error::from_raw_os_error(nix::libc::EROFS));
    }
    let NoRoom { why, .. } = cache.begin_fill(&meta("k", "e", 1), None, POD).await.unwrap_err();
    assert_eq!(why, "no disk works");
}

#[tokio::test]
async fn an_unreadable_object_is_fetched_again() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    put(&cache, "k", "e", MIB).await;
    let object = cache.find(&name("k"), None).await.unwrap();
    object.file().set_failed();
    assert!(cache.find(&name("k"), None).await.is_none());
    none_left(&folder).await;
    put(&cache, "k", "e", MIB).await;
}

/// An ETag, headers, and whether they match the bytes.
type StatedChecksums<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);

#[tokio::test]
async fn an_object_with_a_wrong_checksum_is_not_stored() {
    let bytes = content(3, 2 * MIB + 9);
    let md5 = format!("{:x}", md5::compute(&bytes));
    let crc32c = {
        use base64::Engine as _;
        base64::prelude::BASE64_STANDARD.encode(crc32c::crc32c(&bytes).to_be_bytes())
    };
    let other_md5 = md5.replace('1', "2");
    let sha256 = {
        use {base64::Engine as _, sha2::Digest as _};
        base64::prelude::BASE64_STANDARD.encode(sha2::Sha256::digest(&bytes))
    };
    let cases: [StatedChecksums<'_>; 12] = [
        ("e", &[], true),
        (&md5, &[], true),
        (&other_md5, &[], false),
        (&other_md5, &[("x-amz-server-side-encryption", "aws:kms")], true),
        (&other_md5, &[("x-amz-server-side-encryption", "AES256")], false),
        (&format!("{other_md5}-3"), &[], true),
        // A checksum takes precedence over the ETag.
        (&other_md5, &[("x-amz-checksum-crc32c", &crc32c)], true),
        ("e", &[("x-amz-checksum-crc32c", "AAAAAA==")], false),
        ("e", &[("x-amz-checksum-crc32c", "AAAAAA=="), ("x-amz-checksum-type", "COMPOSITE")], true),
        ("e", &[("x-amz-checksum-crc32c", "AAAAAA==-2")], true),
        ("e", &[("x-amz-checksum-sha256", &sha256)], true),
        ("e", &[("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=")], false),
    ];
    for (etag, headers, sound) in cases {
        let folder = TempDir::new().unwrap();
        let cache = open(&folder, 100 * MIB);
        let mut meta = meta("k", etag, bytes.len() as u64);
        for (name, value) in headers {
            meta.headers.insert(hyper::header::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let filled = arrive(lead(&cache, &meta).await, &bytes).await;
        assert_eq!(filled.is_ok(), sound, "{etag} {headers:?}: {filled:?}");
        assert_eq!(cache.find(&name("k"), None).await.is_some(), sound);
    }
}

#[tokio::test]
async fn other_files_in_the_folder_are_not_touched() {
    let folder = TempDir::new().unwrap();
    let write = |path: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "kept").unwrap();
    };
    let of_others = ["v1/data", "lost-and-found/data", "v3/data", "v1-notes"];
    of_others.into_iter().for_each(write);
    orderly_end(open(&folder, MIB)).await;
    ["lota-cache/v1/object", "lota-cache/lost-0123/object"].into_iter().for_each(write);
    let cache = open(&folder, MIB);
    let own = folder.path().join("lota-cache");
    assert!(own.join("v1").exists(), "the daemon before may still use it");
    cache.remove_other_formats();
    while own.join("v1").exists() || own.join("lost-0123").exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    orderly_end(cache).await;
    for kept in of_others {
        assert_eq!(std::fs::read_to_string(folder.path().join(kept)).unwrap(), "kept");
    }
    let mut names: Vec<_> = std::fs::read_dir(own)
        .unwrap()
        .map(|found| found.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["CACHEDIR.TAG", "lock", "v4"]);
}
