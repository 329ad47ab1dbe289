//! Forwards `Expect: 100-continue` end to end: the client gets `100 Continue` when the upstream server sends it.

use std::{io, time::Duration};

use futures_util::{StreamExt as _, future::ready, stream};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::{Request, StatusCode, body::Body as _, ext::on_informational, header};
use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{Body, BodyError};

/// Timeout for `100 Continue`, after which the body is sent. Not every server sends it, and clients wait no longer either
/// (RFC 9110, section 10.1.1).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout for the rest of the response to a request whose body the server does not want.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Delays the body of a request with `Expect: 100-continue` until the server sends `100 Continue` or the timeout ends.
/// hyper sends `100 Continue` to the client when the body is first polled. An earlier response is forwarded without it.
pub fn relay_continue(request: &mut Request<Body>) {
    let expects = request
        .headers()
        .get(header::EXPECT)
        .is_some_and(|expectation| expectation.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    // Requests without a body need no 100-continue.
    if !expects || request.body().is_end_stream() {
        return;
    }
    let (open, opened) = oneshot::channel();
    let open = Mutex::new(Some(open));
    on_informational(request, move |response| {
        if response.status() == StatusCode::CONTINUE
            && let Some(open) = open.lock().take()
        {
            let _ = open.send(());
        }
    });
    let body = std::mem::take(request.body_mut());
    let gate = async move {
        if let Ok(Err(_)) = timeout(CONTINUE_TIMEOUT, opened).await {
            // The server has responded without asking for the body, so the client must not be asked to send it. The
            // error below closes the connection to the server; delay it until the response body has arrived.
            drop(body);
            sleep(RESPONSE_TIMEOUT).await;
            let refused = BodyError::new(io::Error::other("the server did not want the body"));
            return stream::once(ready(Err(refused))).left_stream();
        }
        BodyStream::new(body).right_stream()
    };
    *request.body_mut() = StreamBody::new(stream::once(gate).flatten()).boxed_unsync();
}
