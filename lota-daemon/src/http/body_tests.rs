use futures_util::{FutureExt as _, stream};
use http_body_util::StreamBody;
use lota_cache::{BodyFile, FileSlice};
use tokio::sync::mpsc;

use super::*;
use crate::http::Slice;

const LONGEST: Duration = Duration::from_secs(10);
const ALMOST: Duration = Duration::from_secs(9);

/// A body with a timeout, and what makes its frames.
fn body(slices: &Slices) -> (Body, mpsc::UnboundedSender<Bytes>) {
    let (sender, receiver) = mpsc::unbounded_channel::<Bytes>();
    let frames = stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|bytes| (Ok(Frame::data(bytes)), receiver))
    });
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    answer.extensions_mut().insert(BodyTimeout(LONGEST));
    (timed(answer, slices.clone()).into_body(), sender)
}

fn is_stalled(frame: Option<Result<Frame<Bytes>, BodyError>>) -> bool {
    matches!(frame, Some(Err(error)) if error.downcast_ref::<BodyStalled>().is_some())
}

#[tokio::test(start_paused = true)]
async fn a_source_that_stalls_ends_the_body_and_a_slow_one_does_not() {
    let (mut body, source) = body(&Slices::default());
    tokio::spawn(async move {
        for _ in 0..5 {
            sleep(ALMOST).await;
            source.send(Bytes::from_static(b"slow")).unwrap();
        }
        sleep(100 * LONGEST).await;
    });
    for _ in 0..5 {
        assert!(body.frame().await.unwrap().is_ok());
    }
    let began = Instant::now();
    assert!(is_stalled(body.frame().await));
    assert!(began.elapsed() >= LONGEST && began.elapsed() < 2 * LONGEST, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_pauses_of_a_client_do_not_count() {
    let (mut body, source) = body(&Slices::default());
    for _ in 0..3 {
        assert!(body.frame().now_or_never().is_none(), "nothing was sent");
        source.send(Bytes::from_static(b"more")).unwrap();
        // The client takes nothing, so that the body is not polled.
        sleep(10 * LONGEST).await;
        assert!(body.frame().await.unwrap().is_ok());
        sleep(10 * LONGEST).await;
    }
    assert!(body.frame().now_or_never().is_none(), "the timeout begins with the wait");
    sleep(ALMOST).await;
    assert!(body.frame().now_or_never().is_none());
    sleep(LONGEST - ALMOST).await;
    assert!(is_stalled(body.frame().await));
}

#[tokio::test(start_paused = true)]
async fn bytes_that_the_client_has_yet_to_take_are_no_stall() {
    let slices = Slices::default();
    let file = BodyFile::new(tempfile::tempfile().unwrap());
    let _ = slices.queue(Slice::File(FileSlice { file, offset: 0, length: 1 }));
    let (mut body, _source) = body(&slices);
    assert!(tokio::time::timeout(5 * LONGEST, body.frame()).await.is_err());
    slices.advance(1);
    assert!(is_stalled(tokio::time::timeout(2 * LONGEST, body.frame()).await.unwrap()));
}
