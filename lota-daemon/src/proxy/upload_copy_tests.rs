use std::net::Ipv4Addr;

use lota_cache::shares::Shares;

use super::*;
use crate::{
    http::full,
    proxy::keep_upload::{COPY_MEMORY, KeepLimits},
};

type Pieces = BoxStream<'static, io::Result<Bytes>>;

fn queue(size: u64) -> (Arc<CopyQueue>, Pieces, Arc<Shares>) {
    let shares = KeepLimits::default().memory;
    let memory = shares.take(Ipv4Addr::LOCALHOST.into(), size.clamp(MIN_SHARE, MAX_QUEUED)).unwrap();
    let (queue, pieces) = CopyQueue::new(size, memory);
    (queue, pieces, shares)
}

/// Returns the bytes that the owner gets, and whether they end.
async fn receive(mut pieces: Pieces) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(bytes) => all.extend_from_slice(&bytes),
            Err(_) => return (all, false),
        }
    }
    (all, true)
}

async fn pass(queue: &Arc<CopyQueue>, is_chunked: bool, body: &'static str) {
    let passed = queue.tapping(is_chunked, full(body)).collect().await.unwrap().to_bytes();
    assert_eq!(passed, body, "the gateway gets the body as it is");
}

#[test]
fn only_uploads_that_may_be_kept_are_copied() {
    let put = CopyFacts {
        mode: AfterWrite::Keep,
        operation: WriteOperation::Put,
        has_customer_key: false,
        has_own_credential: true,
        is_striped: false,
    };
    assert!(is_copied(put));
    for facts in [
        CopyFacts { mode: AfterWrite::Off, ..put },
        CopyFacts { mode: AfterWrite::Fetch, ..put },
        CopyFacts { operation: WriteOperation::Copy, ..put },
        CopyFacts { operation: WriteOperation::CompleteMultipart, ..put },
        CopyFacts { has_customer_key: true, ..put },
        CopyFacts { has_own_credential: false, ..put },
        CopyFacts { is_striped: true, ..put },
    ] {
        assert!(!is_copied(facts), "{facts:?}");
    }
}

#[tokio::test]
async fn the_owner_gets_the_bytes_of_the_object() {
    let chunked = "3;chunk-signature=ab\r\nabc\r\n2;chunk-signature=cd\r\nde\r\n0;chunk-signature=ef\r\n\r\n";
    for (is_chunked, body) in [(false, "abcde"), (true, chunked)] {
        let (queue, pieces, shares) = queue(5);
        pass(&queue, is_chunked, body).await;
        queue.end();
        assert_eq!(receive(pieces).await, (b"abcde".to_vec(), true));
        assert_eq!(shares.free(), COPY_MEMORY, "the memory is released");
    }
}

#[tokio::test]
async fn a_copy_ends_only_with_the_upload() {
    let (queue, pieces, _) = queue(SMALL as u64);
    queue.push(vec![1; SMALL].into());
    drop(queue);
    assert_eq!(receive(pieces).await, (vec![1; SMALL], false), "although all bytes have arrived");
}

#[tokio::test]
async fn the_upload_does_not_wait_for_the_owner() {
    let (queue, pieces, _) = queue(u64::MAX);
    let half = Bytes::from(vec![0; usize::try_from(MAX_QUEUED / 2).unwrap()]);
    let gave_up = || *queue.gave_up.lock();
    queue.push(half.clone());
    queue.push(half.clone());
    assert_eq!(gave_up(), None);
    queue.push(half.slice(..SMALL));
    assert_eq!(gave_up(), Some(WriteFetch::KeepTooSlow));
    queue.push(Bytes::from_static(b"y"));
    queue.end();
    let (received, is_whole) = receive(pieces).await;
    assert_eq!((received.len(), is_whole), (half.len() * 2, false));
}

#[tokio::test]
async fn what_the_owner_has_taken_makes_room() {
    let (queue, mut pieces, _) = queue(u64::MAX);
    let all = Bytes::from(vec![0; usize::try_from(MAX_QUEUED).unwrap()]);
    for _ in 0..3 {
        queue.push(all.clone());
        assert_eq!(pieces.next().await.unwrap().unwrap().len(), all.len());
    }
    assert_eq!(*queue.gave_up.lock(), None);
}

#[tokio::test]
async fn small_fragments_are_merged_and_do_not_keep_their_buffers() {
    let (queue, mut pieces, _) = queue(u64::MAX);
    let buffer = Bytes::from(vec![1; SMALL]);
    (0..MERGED).for_each(|at| queue.push(buffer.slice(at % SMALL..=at % SMALL)));
    queue.push(buffer.slice(1..));
    assert!(buffer.is_unique(), "fragments keep the buffer");
    queue.push(buffer.clone());
    queue.push(buffer.slice(..5));
    queue.end();
    let mut lengths = Vec::new();
    while let Some(piece) = pieces.next().await {
        lengths.push(piece.unwrap().len());
    }
    assert_eq!(lengths, [MERGED, SMALL - 1, SMALL, 5], "in order");
}

#[tokio::test]
async fn the_last_fragments_may_exceed_the_room() {
    let (queue, pieces, _) = queue(5);
    pass(&queue, false, "abcdef").await;
    queue.end();
    assert_eq!(*queue.gave_up.lock(), Some(WriteFetch::KeepTooSlow));
    assert!(!receive(pieces).await.1);
}

#[tokio::test]
async fn malformed_chunks_end_the_copy_and_not_the_upload() {
    let (queue, pieces, _) = queue(5);
    pass(&queue, true, "5\r\nabcdefg\r\n").await;
    queue.end();
    assert_eq!(*queue.gave_up.lock(), Some(WriteFetch::KeepDiffers));
    assert!(!receive(pieces).await.1);
}

#[tokio::test]
async fn each_answer_of_the_owner_has_one_consequence() {
    let open = || queue(5).0;
    let unavailable = Err(Some(WriteFetch::KeepUnavailable));
    for (answer, expected) in [
        (OwnerAnswer::Settled, Ok(())),
        (OwnerAnswer::NotKept, Err(None)),
        (OwnerAnswer::Missing, unavailable),
    ] {
        let answered = std::future::ready(answer);
        for sending in
            [CopySending::Later(answered.clone().boxed()), CopySending::Now(tokio::spawn(answered))]
        {
            assert_eq!(UploadCopy { queue: open(), sending }.end().await, expected);
        }
    }
    let slow = CopyQueue::closed(WriteFetch::KeepTooSlow);
    let sending = CopySending::Now(tokio::spawn(std::future::ready(OwnerAnswer::Missing)));
    let late = UploadCopy { queue: slow.clone(), sending };
    assert_eq!(late.end().await, Err(Some(WriteFetch::KeepTooSlow)));
    let none = UploadCopy { queue: slow, sending: CopySending::Never };
    assert_eq!(none.end().await, Err(Some(WriteFetch::KeepTooSlow)));
}
