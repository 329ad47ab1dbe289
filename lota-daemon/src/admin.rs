//! Metrics and health, on a port of their own.

pub mod socket;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::{
    control::Command,
    http::{
        Body, SentBytes, full,
        server::{self, Life, Limits},
    },
    metrics::Exposition,
};

/// Is the datapath up, and requests served?
pub type Ready = Arc<AtomicBool>;

/// What the admin port shows.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The metrics.
    pub exposition: Arc<Exposition>,
    /// For `/readyz`.
    pub ready: Ready,
    /// Who knows the state of the kernel side.
    pub control: mpsc::Sender<Command>,
}

impl Admin {
    /// Serves for as long as it is polled.
    pub async fn serve(self, listener: TcpListener, life: watch::Receiver<Life>) {
        loop {
            let accepted = server::accept(&listener).await;
            let admin = self.clone();
            let service = move |_, request: Request<Incoming>| {
                let admin = admin.clone();
                async move { Ok(admin.answer(&request).await) }
            };
            let never = std::future::pending();
            let serve =
                server::serve(accepted, Limits::CLIENT, SentBytes::default(), life.clone(), never, service);
            tokio::spawn(serve);
        }
    }

    async fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let (status, text) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => self.metrics().await,
            (&Method::GET, "/healthz") => (StatusCode::OK, "alive\n".to_owned()),
            (&Method::GET, "/readyz") if self.ready.load(Ordering::Acquire) => {
                (StatusCode::OK, format!("ready pid={}\n", std::process::id()))
            }
            (&Method::GET, "/readyz") => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
            _ => (StatusCode::NOT_FOUND, "here are /metrics, /healthz and /readyz\n".to_owned()),
        };
        let mut answer = Response::new(full(text));
        *answer.status_mut() = status;
        answer
    }

    async fn metrics(&self) -> (StatusCode, String) {
        // The threads that answer here may not read the kernel's maps themselves.
        if let Ok(status) = socket::status(&self.control).await {
            self.exposition.set_datapath(status);
        }
        match self.exposition.text() {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}
