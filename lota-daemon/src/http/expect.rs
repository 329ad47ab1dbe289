//! `Expect: 100-continue`, end to end: the client is told to go on when the server behind says so.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, future::ready, stream};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::{Request, StatusCode, body::Body as _, ext::on_informational, header};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{Body, BodyError};

/// Not every server says it; clients begin to send after about a second, too (RFC 9110, section 10.1.1).
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the answer to a request whose body is not wanted may take to arrive.
const LEAVE: Duration = Duration::from_secs(10);

/// Holds a request's body back until the server says 100, if that is what the client wants. hyper tells the client
/// 100 when the body is first asked for; an answer that comes before is relayed without.
pub fn relay_continue(request: &mut Request<Body>) {
    let expects = request
        .headers()
        .get(header::EXPECT)
        .is_some_and(|expectation| expectation.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    // Of no body, nothing need be held back.
    if !expects || request.body().is_end_stream() {
        return;
    }
    let (open, opened) = oneshot::channel();
    let open = Mutex::new(Some(open));
    on_informational(request, move |told| {
        if told.status() == StatusCode::CONTINUE
            && let Some(open) = open.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            let _ = open.send(());
        }
    });
    let body = std::mem::take(request.body_mut());
    let gate = async move {
        if let Ok(Err(_)) = timeout(PATIENCE, opened).await {
            // The answer is there already, and nobody wants the body: the client must not be told to send it. The
            // answer's own body still has to arrive over this connection before that may be broken off.
            drop(body);
            sleep(LEAVE).await;
            let refused = BodyError::new(io::Error::other("the server did not want the body"));
            return stream::once(ready(Err(refused))).left_stream();
        }
        BodyStream::new(body).right_stream()
    };
    *request.body_mut() = StreamBody::new(stream::once(gate).flatten()).boxed_unsync();
}
