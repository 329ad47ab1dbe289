//! Metrics and health, on a port of their own.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    http::{
        Body, SentBytes, full,
        server::{self, Limits},
    },
    metrics::Exposition,
};

/// Is the datapath up, and requests served?
pub type Ready = Arc<AtomicBool>;

/// Serves for as long as it is polled.
pub async fn serve(
    listener: TcpListener,
    exposition: Arc<Exposition>,
    ready: Ready,
    stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = server::accept(&listener).await;
        let (exposition, ready) = (exposition.clone(), ready.clone());
        let service = move |_, request: Request<Incoming>| {
            let answer = answer(&request, &exposition, &ready);
            async move { Ok(answer) }
        };
        tokio::spawn(server::serve(accepted, Limits::CLIENT, SentBytes::default(), stop.clone(), service));
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
