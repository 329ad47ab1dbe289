use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn requested_chunks_come_first() {
    let progress = Arc::new(Progress::new(20 * MIB + 1));
    assert_eq!(progress.claim(4, true), None, "no reader waits");
    let waiting = |position| {
        let progress = progress.clone();
        tokio::spawn(async move { progress.available(position).await })
    };
    let (late, early) = (waiting(12 * MIB + 5), waiting(3));
    progress.wanted().await;
    tokio::task::yield_now().await;
    assert_eq!(progress.claim(4, true), Some(12..16));
    assert_eq!(progress.claim(4, true), Some(0..4));
    assert_eq!(progress.claim(4, true), None);
    assert_eq!(progress.claim(100, false), Some(4..12), "up to the next claimed chunk");
    assert_eq!(progress.claim(100, false), Some(16..21));
    assert_eq!(progress.claim(100, false), None);
    progress.arrived(0, 1);
    assert_eq!(early.await.unwrap(), Ok(Available::File(MIB)));
    progress.arrived(13, 1);
    progress.arrived(12, 1);
    assert_eq!(late.await.unwrap(), Ok(Available::File(14 * MIB)));
    progress.arrived(20, 1);
    assert_eq!(progress.available(20 * MIB).await, Ok(Available::File(20 * MIB + 1)));
    progress.end();
    assert_eq!(progress.available(5 * MIB).await, Err(Broken));
    assert_eq!(
        progress.available(12 * MIB).await,
        Ok(Available::File(14 * MIB)),
        "stored chunks are available"
    );
}

#[tokio::test]
async fn bytes_are_available_before_their_chunk_is_complete() {
    let progress = Progress::new(4 * MIB);
    let available = |position| {
        let look = progress.available(position);
        tokio::time::timeout(std::time::Duration::from_millis(20), look)
    };
    assert_eq!(progress.claim(2, false), Some(0..2));
    let content = Bytes::from_iter((0..=250).cycle().take(2000));
    let memory = |range: Range<usize>| Ok(Available::Memory(content.slice(range)));
    progress.arriving(1, 0, content.slice(..1000));
    progress.arriving(1, 0, content.slice(..400));
    progress.arriving(1, 400, content.slice(400..1200));
    progress.arriving(1, 1500, content.slice(1500..));
    assert_eq!(available(MIB).await.unwrap(), memory(0..1200), "with further bytes from another request");
    assert_eq!(available(MIB + 999).await.unwrap(), memory(999..1200));
    assert!(available(MIB + 1200).await.is_err(), "there is a gap");
    assert!(available(0).await.is_err());
    progress.arriving(2, 0, content.clone());
    assert!(available(2 * MIB).await.is_err(), "the chunk is not claimed");
    progress.arrived(0, 0);
    assert_eq!(available(5).await.unwrap(), Ok(Available::File(MIB)), "the stored chunk is in the file");
    progress.give_back(1..2);
    assert!(available(MIB).await.is_err(), "released bytes are dropped");
    progress.arrived(1, 0);
    progress.arriving(1, 0, content.clone());
    assert_eq!(available(MIB + 20).await.unwrap(), Ok(Available::File(2 * MIB)), "the chunk is stored");
    assert_eq!(progress.claim(1, false), Some(2..3));
    progress.arriving(2, 0, content.clone());
    progress.end();
    assert_eq!(available(2 * MIB).await.unwrap(), Err(Broken));
    assert_eq!(progress.so_far(), 2 * MIB);
}

#[tokio::test]
async fn released_chunks_are_requested_again() {
    let progress = Arc::new(Progress::new(4 * MIB));
    assert_eq!(progress.claim(4, false), Some(0..4));
    let reader = tokio::spawn({
        let progress = progress.clone();
        async move { progress.available(2 * MIB).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(progress.claim(4, true), None, "it is claimed");
    progress.arrived(0, 7);
    progress.give_back(1..4);
    progress.wanted().await;
    assert_eq!(progress.claim(1, true), Some(2..3));
    progress.arrived(2, 9);
    assert_eq!(reader.await.unwrap(), Ok(Available::File(3 * MIB)));
    assert_eq!(progress.checksums(), None);
    assert_eq!(progress.claim(4, false), Some(1..2));
    assert_eq!(progress.claim_in(0..9), vec![3]);
}

proptest! {
    /// With any claims and releases, no chunk is claimed twice, and in the end all are stored.
    #[test]
    fn every_chunk_is_claimed_once(size in 0..40 * MIB, steps in proptest::collection::vec((0..4u8, 0..45usize), 0..200)) {
        let progress = Progress::new(size);
        let mut mine: Vec<Index> = Vec::new();
        let mut there = 0;
        for (step, at) in steps {
            let claimed: Vec<Index> = match step {
                0 => progress.claim(at % 7 + 1, false).into_iter().flatten().collect(),
                1 => progress.claim_in(at..at + 3),
                2 => {
                    progress.want(at as u64 * MIB);
                    progress.claim(2, true).into_iter().flatten().collect()
                }
                _ => Vec::new(),
            };
            for chunk in &claimed {
                prop_assert!(!mine.contains(chunk), "{chunk} is claimed twice");
            }
            mine.extend(claimed);
            if step == 3 && !mine.is_empty() {
                let chunk = mine.swap_remove(at % mine.len());
                if at % 3 == 0 {
                    progress.give_back([chunk].into_iter());
                } else {
                    progress.arrived(chunk, 0);
                    there += 1;
                }
            }
            prop_assert_eq!(progress.state().there, there);
        }
        mine.into_iter().for_each(|chunk| progress.arrived(chunk, 0));
        while let Some(chunks) = progress.claim(3, false) {
            chunks.for_each(|chunk| progress.arrived(chunk, 0));
        }
        prop_assert!(progress.is_whole());
        prop_assert_eq!(progress.so_far(), size);
        prop_assert_eq!(progress.checksums().map(|all| all.len() as u64), Some(size.div_ceil(MIB)));
    }
}
