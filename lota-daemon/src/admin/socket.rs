//! The admin socket: HTTP with JSON bodies, for the commands that look at or change a daemon on the same node.

use std::{io, path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client, server,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use crate::{
    cache::{DiskStatus, Gone, Which},
    control::{AccessRequest, Command},
    datapath::Status,
    gateway::Server,
    metrics::Reads,
    proxy::Proxy,
    report::{Presence, Report, Reporter},
};

/// Longer requests are nobody's.
const MOST: usize = 64 << 10;
/// Versions that one of them names, at most.
const VERSIONS: usize = 1000;

/// The cache, as `lota cache stat` shows it.
#[derive(Debug, Deserialize, Serialize)]
pub struct CacheReport {
    /// Each disk.
    pub disks: Vec<DiskStatus>,
    /// How this node's pods were answered since the daemon began, by whichever node's cache.
    pub reads: Reads,
}

/// Serves for as long as it is polled.
pub async fn serve(
    listener: UnixListener,
    control: mpsc::Sender<Command>,
    proxy: Arc<Proxy>,
    reporter: Arc<Reporter>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection on the admin socket; trying again");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (control, proxy, reporter) = (control.clone(), proxy.clone(), reporter.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &control, &proxy, &reporter));
            let mut http = server::conn::http1::Builder::new();
            let connection = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the admin socket ended");
            }
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    control: &mpsc::Sender<Command>,
    proxy: &Proxy,
    reporter: &Reporter,
) -> Result<Response<Full<Bytes>>, io::Error> {
    let answered = match (request.method().clone(), request.uri().path()) {
        (Method::POST, "/reload") => {
            let later = ask(control, Command::Reload).await.and_then(|read| read.map_err(anyhow::Error::msg));
            later.and_then(|later| Ok(serde_json::to_vec(&later)?))
        }
        (Method::POST, "/access") => change_access(request, control).await.map(String::into_bytes),
        (Method::GET, "/status") => {
            let status = status(control).await;
            status.and_then(|status| Ok(serde_json::to_vec(&status)?))
        }
        (Method::GET, "/report") => serde_json::to_vec(&reporter.report(true).await).map_err(Into::into),
        (Method::GET, "/presence") => serde_json::to_vec(&reporter.presence()).map_err(Into::into),
        (Method::GET, "/gateway") => serde_json::to_vec(&proxy.gateway.servers()).map_err(Into::into),
        (Method::GET, "/cache") => {
            let report = CacheReport { disks: proxy.cache.disks().collect(), reads: proxy.metrics.reads() };
            serde_json::to_vec(&report).map_err(Into::into)
        }
        (Method::POST, "/cache/evict") => evict(request, proxy).await,
        (Method::POST, "/cache/repair") => repair(request, proxy).await,
        (method, path) => Err(anyhow::anyhow!("there is no {method} {path} here")),
    };
    let (status, body) = match answered {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}").into_bytes()),
    };
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    Ok(answer)
}

async fn change_access(request: Request<Incoming>, control: &mpsc::Sender<Command>) -> Result<String> {
    let wanted: AccessRequest = read(request).await?;
    ask(control, |answer| Command::Access(wanted, answer)).await?.map_err(anyhow::Error::msg)
}

async fn evict(request: Request<Incoming>, proxy: &Proxy) -> Result<Vec<u8>> {
    let which: Which = read(request).await?;
    let gone = proxy.cache.evict(&which).await;
    tracing::info!(?which, objects = gone.objects, bytes = gone.bytes, "evicted, as an operator asked");
    Ok(serde_json::to_vec(&gone)?)
}

async fn repair(request: Request<Incoming>, proxy: &Proxy) -> Result<Vec<u8>> {
    let versions: Vec<String> = read(request).await?;
    Ok(serde_json::to_vec(&proxy.cache.drop_corrupt(&versions).await)?)
}

/// What a request's body says.
async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T> {
    let body = Limited::new(request.into_body(), MOST).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    Ok(serde_json::from_slice(&body)?)
}

/// Has the control part do something; what it answers.
///
/// # Errors
/// If it is gone, or busy handing over to a new daemon.
async fn ask<T>(
    control: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    control.send(command(answer)).await.ok().context("the daemon is stopping")?;
    answered.await.context("the daemon is stopping")
}

/// The state of the kernel side, by the part that may look at it.
///
/// # Errors
/// As above, or if it cannot be read.
pub(super) async fn status(control: &mpsc::Sender<Command>) -> Result<Status> {
    ask(control, Command::Status).await?.map_err(anyhow::Error::msg)
}

/// Asks the daemon behind this socket to change what operators say about access; about whom, and at which interface, that
/// is now.
///
/// # Errors
/// If no daemon runs, or what it says against it.
pub async fn request_access(socket: &Path, wanted: &AccessRequest) -> Result<String> {
    let said = send(socket, Method::POST, "/access", wanted).await?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Has the daemon behind this socket read its configuration again; which keys have changed and hold only with the next
/// one.
///
/// # Errors
/// If no daemon runs, or the configuration cannot be read.
pub async fn request_reload(socket: &Path) -> Result<Vec<String>> {
    Ok(serde_json::from_slice(&send(socket, Method::POST, "/reload", &()).await?)?)
}

/// Asks the daemon behind this socket for the state of the kernel side.
///
/// # Errors
/// If no daemon runs.
pub async fn request_status(socket: &Path) -> Result<Status> {
    Ok(serde_json::from_slice(&send(socket, Method::GET, "/status", &()).await?)?)
}

/// Asks the daemon behind this socket which servers have answered as the gateway, and how far each is trusted.
///
/// # Errors
/// If no daemon runs.
pub async fn request_gateway(socket: &Path) -> Result<Vec<Server>> {
    Ok(serde_json::from_slice(&send(socket, Method::GET, "/gateway", &()).await?)?)
}

/// Asks the daemon behind this socket how its cache is.
///
/// # Errors
/// If no daemon runs.
pub async fn request_cache(socket: &Path) -> Result<CacheReport> {
    Ok(serde_json::from_slice(&send(socket, Method::GET, "/cache", &()).await?)?)
}

/// Has the daemon behind this socket evict objects.
///
/// # Errors
/// If no daemon runs.
pub async fn request_eviction(socket: &Path, which: &Which) -> Result<Gone> {
    Ok(serde_json::from_slice(&send(socket, Method::POST, "/cache/evict", which).await?)?)
}

/// Has the daemon behind this socket compare these objects with their checksums, and drop those that differ.
///
/// # Errors
/// If no daemon runs.
pub async fn request_repair(socket: &Path, versions: &[String]) -> Result<Gone> {
    let mut gone = Gone::default();
    for some in versions.chunks(VERSIONS) {
        let dropped: Gone =
            serde_json::from_slice(&send(socket, Method::POST, "/cache/repair", &some).await?)?;
        gone = Gone { objects: gone.objects + dropped.objects, bytes: gone.bytes + dropped.bytes };
    }
    Ok(gone)
}

/// Asks the daemon behind this socket for the state of everything.
///
/// # Errors
/// If no daemon runs.
pub async fn request_report(socket: &Path) -> Result<Report> {
    Ok(serde_json::from_slice(&send(socket, Method::GET, "/report", &()).await?)?)
}

/// Asks the daemon behind this socket whether it is ready, and which it is.
///
/// # Errors
/// If no daemon runs.
pub async fn request_presence(socket: &Path) -> Result<Presence> {
    Ok(serde_json::from_slice(&send(socket, Method::GET, "/presence", &()).await?)?)
}

async fn send(socket: &Path, method: Method, path: &str, body: &impl Serialize) -> Result<Bytes> {
    let about = || format!("asking the daemon at {}: does it run?", socket.display());
    let stream = UnixStream::connect(socket).await.with_context(about)?;
    let (mut sender, connection) =
        client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(about)?;
    tokio::spawn(connection);
    let body = Full::new(Bytes::from(serde_json::to_vec(body)?));
    let request = Request::builder().method(method).uri(path).header("host", "lota").body(body)?;
    let answer = sender.send_request(request).await.with_context(about)?;
    let status = answer.status();
    let body = answer.into_body().collect().await.with_context(about)?.to_bytes();
    if status != StatusCode::OK {
        bail!("{}", String::from_utf8_lossy(&body));
    }
    Ok(body)
}
