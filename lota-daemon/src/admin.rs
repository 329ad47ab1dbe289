//! Metrics, health, and the state of the node, on a port of their own; metrics and health also on another one that pods
//! may reach, if there is to be one.

mod page;
pub mod socket;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    control::Command,
    http::{
        Body, Seats, SentBytes, full,
        server::{self, Life, Limits},
    },
    metrics::Exposition,
    report::Reporter,
};

/// How long what the kernel said is shown again: pods could otherwise keep the control part busy.
const FRESH: Duration = Duration::from_secs(1);
/// Connections at once to the port that pods may reach, and of one of them.
const VISITORS: (usize, usize) = (128, 16);
/// Prometheus does not guess.
const TEXT_FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Is the datapath up, and requests served?
pub type Ready = Arc<AtomicBool>;

/// What the admin port shows.
#[derive(Clone)]
pub struct Admin {
    /// The metrics.
    pub exposition: Arc<Exposition>,
    /// For `/readyz`.
    pub ready: Ready,
    /// Who knows the state of the kernel side.
    pub control: mpsc::Sender<Command>,
    /// When the kernel side was last asked for its state.
    pub asked: Arc<tokio::sync::Mutex<Option<Instant>>>,
    /// Who knows the state of everything.
    pub reporter: Arc<Reporter>,
}

impl Admin {
    /// Serves what pods may see, likewise: metrics and health, and nothing else.
    pub async fn serve_pods(self, listener: TcpListener, life: watch::Receiver<Life>) {
        let seats = Seats::new(VISITORS.0, VISITORS.1);
        loop {
            let accepted = server::accept(&listener).await;
            // Whoever takes more than that gets none.
            let Some(seat) = seats.take(accepted.1.ip().to_canonical()) else { continue };
            let admin = self.clone();
            let service = move |_, request: Request<Incoming>| {
                let admin = admin.clone();
                async move {
                    Ok(match request.uri().path() {
                        "/metrics" if request.method() == Method::GET => admin.metrics(FRESH).await,
                        "/healthz" | "/readyz" => admin.answer(&request).await,
                        _ => text(
                            StatusCode::NOT_FOUND,
                            "here are /metrics, /healthz and /readyz\n".to_owned(),
                        ),
                    })
                }
            };
            let never = std::future::pending();
            let serve =
                server::serve(accepted, Limits::CLIENT, SentBytes::default(), life.clone(), never, service);
            tokio::spawn(async move {
                serve.await;
                drop(seat);
            });
        }
    }

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
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/") => page::page(),
            // Without the names of objects: processes of other nodes may reach this port.
            (&Method::GET, "/status.json") => page::status(&self.reporter.report(false).await),
            (&Method::GET, "/metrics") => self.metrics(Duration::ZERO).await,
            (&Method::GET, "/healthz") => text(StatusCode::OK, "alive\n".to_owned()),
            (&Method::GET, "/readyz") if self.ready.load(Ordering::Acquire) => {
                text(StatusCode::OK, format!("ready pid={}\n", std::process::id()))
            }
            (&Method::GET, "/readyz") => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
            _ => text(
                StatusCode::NOT_FOUND,
                "here are /, /status.json, /metrics, /healthz and /readyz\n".to_owned(),
            ),
        }
    }

    async fn metrics(&self, fresh: Duration) -> Response<Body> {
        let mut asked = self.asked.lock().await;
        if asked.is_none_or(|asked| asked.elapsed() >= fresh) {
            // The threads that answer here may not read the kernel's maps themselves.
            if let Ok(status) = socket::status(&self.control).await {
                self.exposition.set_datapath(status);
            }
            *asked = Some(Instant::now());
        }
        drop(asked);
        match self.exposition.text() {
            Ok(metrics) => {
                let mut answer = text(StatusCode::OK, metrics);
                answer.headers_mut().insert(CONTENT_TYPE, TEXT_FORMAT);
                answer
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut answer = Response::new(full(text));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}
