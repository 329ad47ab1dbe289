//! What lies on disk: found again, checked, kept within bounds.

use std::os::unix::fs::FileExt as _;

use super::{tests::*, *};
use crate::s3::ByteRange;

async fn orderly_end(cache: Arc<Cache>) {
    cache.close();
    drop(cache);
}

/// Changes one bit of the object in a folder that holds one object.
fn flip_a_bit(folder: &TempDir, at: u64) {
    let listed = list(folder.path()).unwrap();
    let file = File::options().read(true).write(true).open(&listed[0].file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// Removals go on behind the index.
async fn none_left(folder: &TempDir) {
    while files_in(folder) > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
}

async fn holds(cache: &Arc<Cache>, key: &str) -> bool {
    cache.get(&meta(key, "e", MIB).version).await.is_some()
}

#[tokio::test]
async fn the_order_of_use_outlives_a_restart() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 3 * MIB);
    for key in ["a", "b", "c"] {
        put(&cache, key, "e", MIB).await;
    }
    cache.find(&name("a")).await.unwrap();
    orderly_end(cache).await;
    let cache = open(&folder, 3 * MIB);
    put(&cache, "d", "e", MIB).await;
    assert!(holds(&cache, "a").await && !holds(&cache, "b").await && holds(&cache, "c").await);
    orderly_end(cache).await;
    // A damaged note costs the order, nothing else.
    std::fs::write(folder.path().join("v2/order"), b"nonsense, and long enough to be one id").unwrap();
    assert_eq!(open(&folder, 3 * MIB).usage().objects, 3);
}

#[tokio::test]
async fn a_smaller_capacity_lets_the_oldest_go() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 3 * MIB);
    for key in ["a", "b", "c"] {
        put(&cache, key, "e", MIB).await;
    }
    orderly_end(cache).await;
    let cache = open(&folder, MIB);
    assert_eq!((cache.usage().objects, files_in(&folder)), (1, 1));
    assert!(holds(&cache, "c").await);
}

#[tokio::test]
async fn after_a_sudden_end_nothing_is_served_unchecked() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    let size = 4 * MIB + 5;
    put(&cache, "k", "e", size).await;
    // No `close`.
    drop(cache);
    let cache = open(&folder, 100 * MIB);
    let object = cache.find(&name("k")).await.unwrap();
    assert!(object.is_complete(), "it is a hit all the same");
    assert!(read(object, None).await.unwrap() == content(size, size));
    drop(cache);

    flip_a_bit(&folder, 3 * MIB + 7);
    let cache = open(&folder, 100 * MIB);
    let object = cache.find(&name("k")).await.unwrap();
    let sound = ByteRange { start: 0, end: 1000 };
    let broken = ByteRange { start: 3 * MIB, end: 3 * MIB + 1 };
    assert_eq!(read(object.clone(), Some(broken)).await, Err(Broken));
    let _ = read(object, Some(sound)).await;
    assert!(cache.find(&name("k")).await.is_none(), "it is gone");
    assert_eq!(cache.disks().map(|disk| disk.corrupt).sum::<u64>(), 1);
    none_left(&folder).await;
    put(&cache, "k", "e", size).await;
    let object = cache.find(&name("k")).await.unwrap();
    assert!(read(object, None).await.unwrap() == content(size, size), "and fetched again");
}

#[tokio::test]
async fn what_is_unchecked_stays_so_until_it_is_checked() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    put(&cache, "k", "e", 2 * MIB).await;
    drop(cache);
    flip_a_bit(&folder, MIB);
    // Opened after the sudden end, never read, and closed in good order.
    orderly_end(open(&folder, 100 * MIB)).await;
    let cache = open(&folder, 100 * MIB);
    assert_eq!(read(cache.find(&name("k")).await.unwrap(), None).await, Err(Broken));
}

#[tokio::test]
async fn that_nothing_is_left_to_check_is_noted_however_it_left() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    put(&cache, "k", "e", MIB).await;
    drop(cache);
    let cache = open(&folder, 100 * MIB);
    let unchecked = folder.path().join("v2/unchecked");
    cache.disks[0].tidy(true).unwrap();
    assert!(unchecked.exists(), "one is");
    cache.forget(&name("k"));
    cache.disks[0].tidy(true).unwrap();
    assert!(!unchecked.exists());
}

#[tokio::test]
async fn what_cannot_fit_on_the_disk_pushes_nothing_out() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, u64::MAX);
    put(&cache, "k", "e", MIB).await;
    cache.begin_fill(&meta("huge", "e", 1 << 60)).await.unwrap_err();
    assert_eq!(cache.usage(), Usage { objects: 1, bytes: MIB, fills: 0 });
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
async fn room_is_made_ahead_down_to_the_low_watermark() {
    let folder = TempDir::new().unwrap();
    let cache = open_as(&folder, 10 * MIB, &Plan { high: 80, low: 50, ..PLAN });
    for key in 0..8 {
        put(&cache, &key.to_string(), "e", MIB).await;
    }
    cache.disks[0].tidy(true).unwrap();
    assert_eq!(cache.usage().objects, 8, "not above it yet");
    put(&cache, "8", "e", MIB).await;
    cache.disks[0].tidy(true).unwrap();
    assert_eq!((cache.usage().bytes, files_in(&folder)), (5 * MIB, 5));
    assert!(!holds(&cache, "3").await && holds(&cache, "4").await);
}

#[tokio::test]
async fn what_others_need_of_the_disk_is_given_back() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    for key in 0..4 {
        put(&cache, &key.to_string(), "e", MIB).await;
    }
    orderly_end(cache).await;
    // Others fill the disk but for what must stay free: everything goes, and nothing comes.
    let cache = open_as(&folder, 100 * MIB, &Plan { min_free: u64::MAX, ..PLAN });
    cache.disks[0].tidy(true).unwrap();
    assert_eq!((cache.usage().objects, files_in(&folder)), (0, 0));
}

#[tokio::test]
async fn admission_keeps_a_scan_from_sweeping_the_cache() {
    for (admission, kept) in [(Admission::All, 0), (Admission::Frequent, 10)] {
        let folder = TempDir::new().unwrap();
        let cache = open_as(&folder, 10 * MIB, &Plan { low: 100, high: 100, admission, ..PLAN });
        let fetch = async |key: String| {
            cache.count_read(&name(&key));
            if let Ok(Join::Lead(fill)) = cache.begin_fill(&meta(&key, "e", MIB)).await {
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
        // What is wanted often enough gets in all the same.
        for _ in 0..6 {
            fetch("scan-3".into()).await;
        }
        assert!(holds(&cache, "scan-3").await);
    }
}

#[tokio::test]
async fn objects_spread_over_disks_and_one_that_fails_is_left_out() {
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap()];
    let disks = folders.each_ref().map(|folder| disk(folder, 100 * MIB));
    let cache = Arc::new(Cache::open(&disks, "http://gateway", &PLAN, &[]).unwrap());
    for key in 0..60 {
        put(&cache, &key.to_string(), "e", 1000).await;
    }
    let each = folders.each_ref().map(files_in);
    assert!(each.iter().all(|files| (8..35).contains(files)), "{each:?}");
    let lost = &cache.disks[1];
    lost.notice(&io::ErrorKind::NotFound.into());
    lost.notice(&io::Error::from_raw_os_error(nix::libc::ENOSPC));
    assert!(!lost.has_failed(), "neither says that it is broken");
    lost.notice(&io::Error::from_raw_os_error(nix::libc::EIO));
    assert_eq!(cache.usage().objects, each[0] + each[2]);
    let mut found = 0;
    for key in 0..60 {
        found += usize::from(cache.find(&name(&key.to_string())).await.is_some());
        let Ok(Join::Follow(_) | Join::Lead(_)) = cache.begin_fill(&meta(&key.to_string(), "e", 1000)).await
        else {
            panic!("the others take its objects")
        };
    }
    assert_eq!(found, each[0] + each[2]);
    assert_eq!(cache.disks().filter(|disk| disk.works).count(), 2);
    for disk in &cache.disks {
        disk.notice(&io::Error::from_raw_os_error(nix::libc::EROFS));
    }
    let NoRoom(why) = cache.begin_fill(&meta("k", "e", 1)).await.unwrap_err();
    assert_eq!(why, "no disk works");
}

#[tokio::test]
async fn an_object_that_could_not_be_sent_is_fetched_again() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, 100 * MIB);
    put(&cache, "k", "e", MIB).await;
    let object = cache.find(&name("k")).await.unwrap();
    object.file().fail_for_tests();
    assert!(cache.find(&name("k")).await.is_none());
    none_left(&folder).await;
    put(&cache, "k", "e", MIB).await;
}

/// An ETag, headers, and whether they go with the bytes.
type Told<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);

#[tokio::test]
async fn a_whole_that_is_not_what_its_server_says_never_becomes_an_object() {
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
    let cases: [Told<'_>; 12] = [
        ("e", &[], true),
        (&md5, &[], true),
        (&other_md5, &[], false),
        (&other_md5, &[("x-amz-server-side-encryption", "aws:kms")], true),
        (&other_md5, &[("x-amz-server-side-encryption", "AES256")], false),
        (&format!("{other_md5}-3"), &[], true),
        // A checksum says more than the ETag.
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
        assert_eq!(cache.find(&name("k")).await.is_some(), sound);
    }
}
