//! Admin port: metrics, health, and the state of the node. An optional second port serves only metrics and health,
//! and may be reached by pods.

mod config;
mod error;
mod exposition;
pub mod node_status;
mod page;
mod route;
pub mod socket;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    admin::{error::AdminError, node_status::Reporter, route::Route},
    http::{
        Body, HeadBudget, SentBytes, Slots, full,
        server::{self, ConnectionLimits, Life},
    },
    reconciler::ControlCommand,
};

pub use config::AdminConfig;
pub use exposition::Exposition;

/// Duration for which metrics are reused on the port that pods can reach, so that their requests keep nothing busy.
const METRICS_TTL: Duration = Duration::from_secs(1);
/// Maximum number of concurrent connections to each of the two ports.
pub const CONNECTIONS: usize = 128;
/// Maximum number of concurrent connections from one address.
const CONNECTIONS_OF_ONE: usize = 16;
/// Memory in bytes for incomplete heads of each port, enough for all of its connections.
const HEAD_MEMORY: usize = CONNECTIONS * ConnectionLimits::ADMIN.head;
/// Content type of the text format, which Prometheus requires to be stated.
const TEXT_FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Response of the admin port.
#[derive(Clone, Copy)]
enum AdminTarget {
    Page,
    Status,
    Metrics,
    Health,
    Ready,
}

const ROUTES: [Route<AdminTarget>; 5] = [
    Route(Method::GET, "/", AdminTarget::Page),
    Route(Method::GET, "/status.json", AdminTarget::Status),
    Route(Method::GET, "/metrics", AdminTarget::Metrics),
    Route(Method::GET, "/healthz", AdminTarget::Health),
    Route(Method::GET, "/readyz", AdminTarget::Ready),
];

/// Routes of the port that pods can reach.
const POD_ROUTES: [Route<AdminTarget>; 3] = [
    Route(Method::GET, "/metrics", AdminTarget::Metrics),
    Route(Method::GET, "/healthz", AdminTarget::Health),
    Route(Method::GET, "/readyz", AdminTarget::Ready),
];

/// The metrics that were encoded last. One request at a time encodes them.
#[derive(Debug, Default)]
pub struct LastScrape(tokio::sync::Mutex<Option<(Instant, Bytes)>>);

impl LastScrape {
    /// Returns the last metrics if they are not older than `fresh`, or else encodes them.
    async fn text<E>(
        &self,
        fresh: Duration,
        encode: impl AsyncFnOnce() -> Result<String, E>,
    ) -> Result<Bytes, E> {
        let mut last = self.0.lock().await;
        if let Some((at, text)) = &*last
            && at.elapsed() < fresh
        {
            return Ok(text.clone());
        }
        let text = Bytes::from(encode().await?);
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

/// Whether the datapath is up and requests are served.
pub type Ready = Arc<AtomicBool>;

/// State of the admin port.
#[derive(Clone)]
pub struct Admin {
    /// Encodes the metrics.
    pub exposition: Arc<Exposition>,
    /// For `/readyz`.
    pub ready: Ready,
    /// Returns the state of the kernel side.
    pub control: mpsc::Sender<ControlCommand>,
    /// The metrics that were encoded last.
    pub scraped: Arc<LastScrape>,
    /// Returns the state of all parts.
    pub reporter: Arc<Reporter>,
}

impl Admin {
    /// Serves only metrics and health, to pods, until the future is dropped.
    pub async fn serve_pods(self, listener: TcpListener, life: watch::Receiver<Life>) {
        let admin = self.clone();
        let answer = move |request: Request<Incoming>| {
            let admin = admin.clone();
            async move { admin.answer(&request, &POD_ROUTES, METRICS_TTL).await }
        };
        accept(listener, life, answer).await;
    }

    /// Serves the admin port until the future is dropped.
    pub async fn serve(self, listener: TcpListener, life: watch::Receiver<Life>) {
        let admin = self.clone();
        let answer = move |request: Request<Incoming>| {
            let admin = admin.clone();
            async move { admin.answer(&request, &ROUTES, Duration::ZERO).await }
        };
        accept(listener, life, answer).await;
    }

    /// Answers a request. Metrics are at most as old as `fresh`.
    async fn answer<B>(
        &self,
        request: &Request<B>,
        routes: &[Route<AdminTarget>],
        fresh: Duration,
    ) -> Response<Body> {
        let done = match route::find(routes, request.method(), request.uri().path()) {
            Ok(AdminTarget::Page) => Ok(page::page()),
            // Names of objects are left out, since processes of other nodes may reach this port.
            Ok(AdminTarget::Status) => page::status(&self.reporter.report(false).await),
            Ok(AdminTarget::Metrics) => self.metrics(fresh).await,
            Ok(AdminTarget::Health) => Ok(text("alive\n".to_owned())),
            Ok(AdminTarget::Ready) if self.ready.load(Ordering::Acquire) => {
                Ok(text(format!("ready pid={}\n", std::process::id())))
            }
            Ok(AdminTarget::Ready) => Err(AdminError::NotReady),
            Err(error) => Err(error),
        };
        done.unwrap_or_else(|error| error.response(full))
    }

    async fn metrics(&self, fresh: Duration) -> Result<Response<Body>, AdminError> {
        let encoded = self.scraped.text(fresh, async || {
            // Threads that answer requests may not read the kernel's maps themselves.
            if let Ok(status) = socket::status(&self.control).await {
                self.exposition.set_datapath(status);
            }
            self.exposition.text().map_err(|error| AdminError::Encoding(error.to_string()))
        });
        let mut answer = text(encoded.await?);
        answer.headers_mut().insert(CONTENT_TYPE, TEXT_FORMAT);
        Ok(answer)
    }
}

/// Accepts connections, within limits for all and for each address, and answers their requests.
async fn accept<F>(
    listener: TcpListener,
    life: watch::Receiver<Life>,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let slots = Slots::new(CONNECTIONS, CONNECTIONS_OF_ONE);
    let heads = HeadBudget::new(HEAD_MEMORY, HEAD_MEMORY);
    loop {
        let accepted = server::accept(&listener).await;
        let client = accepted.1.ip().to_canonical();
        let Some(slot) = slots.take(client) else { continue };
        let (answer, marker) = (answer.clone(), slot.marker());
        let service = move |_, request: Request<Incoming>| {
            let (answer, busy) = (answer(request), marker.busy());
            async move {
                let answer = answer.await;
                drop(busy);
                Ok(answer)
            }
        };
        let terms = (ConnectionLimits::ADMIN, heads.charge(client));
        let serve =
            server::serve(accepted, terms, SentBytes::default(), life.clone(), slot.closed(), service);
        tokio::spawn(async move {
            serve.await;
            drop(slot);
        });
    }
}

fn text(text: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(full(text));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn scrapes_of_a_second_are_encoded_once() {
        let (scraped, encoded, at_once) =
            (LastScrape::default(), AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let scrape = |fresh| {
            scraped.text(fresh, async || {
                assert_eq!(at_once.fetch_add(1, Ordering::Relaxed), 0, "two at once");
                tokio::time::sleep(Duration::from_millis(1)).await;
                at_once.fetch_sub(1, Ordering::Relaxed);
                Ok::<_, ()>(format!("{}", encoded.fetch_add(1, Ordering::Relaxed)))
            })
        };
        let texts = join_all((0..100).map(|_| scrape(METRICS_TTL))).await;
        assert!(texts.iter().all(|text| text.as_deref() == Ok(b"0")));
        tokio::time::sleep(METRICS_TTL).await;
        assert_eq!(scrape(METRICS_TTL).await.as_deref(), Ok(&b"1"[..]));
        let texts = join_all((0..10).map(|_| scrape(Duration::ZERO))).await;
        assert_eq!(texts.last().unwrap().as_deref(), Ok(&b"11"[..]), "the admin port's are current");
    }
}
