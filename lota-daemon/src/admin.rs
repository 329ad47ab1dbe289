//! Metrics and health, on a port of their own.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    http::{Body, SentBytes, full, server},
    metrics::Exposition,
};

/// Is the datapath up, and requests served?
pub type Ready = Arc<AtomicBool>;

/// Serves until the listener fails.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    exposition: Arc<Exposition>,
    ready: Ready,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    loop {
        let (stream, client) = listener.accept().await?;
        let (exposition, ready) = (exposition.clone(), ready.clone());
        let service = move |_, request: Request<Incoming>| {
            let answer = answer(&request, &exposition, &ready);
            async move { Ok(answer) }
        };
        tokio::spawn(server::serve(stream, client, SentBytes::default(), stop.clone(), service));
    }
}

fn answer<B>(request: &Request<B>, exposition: &Exposition, ready: &Ready) -> Response<Body> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match exposition.text() {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        (&Method::GET, "/healthz") => (StatusCode::OK, "alive\n".to_owned()),
        (&Method::GET, "/readyz") if ready.load(Ordering::Acquire) => (StatusCode::OK, "ready\n".to_owned()),
        (&Method::GET, "/readyz") => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "here are /metrics, /healthz and /readyz\n".to_owned()),
    };
    let mut answer = Response::new(full(text));
    *answer.status_mut() = status;
    answer
}
