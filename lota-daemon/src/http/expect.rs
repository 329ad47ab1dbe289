//! `Expect: 100-continue`, end to end: the client is told to go on when the server behind says so.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::{Request, StatusCode, ext::on_informational, header};
use tokio::{sync::oneshot, time::timeout};

use super::Body;

/// Not every server says it; clients begin to send after about a second, too (RFC 9110, section 10.1.1).
const PATIENCE: Duration = Duration::from_secs(1);

/// Holds a request's body back until the server says 100, if that is what the client wants. hyper tells the client
/// 100 when the body is first asked for; an answer that comes before is relayed without.
pub fn relay_continue(request: &mut Request<Body>) {
    let expects = request
        .headers()
        .get(header::EXPECT)
        .is_some_and(|expectation| expectation.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if !expects {
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
        let _ = timeout(PATIENCE, opened).await;
        BodyStream::new(body)
    };
    *request.body_mut() = StreamBody::new(stream::once(gate).flatten()).boxed_unsync();
}
