//! The admin socket: HTTP with JSON bodies, for commands that read or change the daemon of the same node.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client, server,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use lota_cache::{DiskStatus, EvictSelector, EvictedTotal, PinnedPrefix};
use lota_datapath::DatapathStatus;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use crate::{
    admin::{
        error::AdminError,
        node_status::{NodeReport, Presence, Reporter},
        route::{self, Route},
    },
    gateway::GatewayServer,
    http::Slots,
    metrics::Reads,
    proxy::{PinChanged, PinReport, PinRequest, Proxy},
    reconciler::{AccessRequest, ControlCommand, ControlError},
};

/// Maximum size of a request body, in bytes.
const MAX_BODY: usize = 64 << 10;
/// Maximum number of concurrent connections to the socket.
const CONNECTIONS: usize = 64;
/// Maximum number of versions in one request.
const VERSIONS: usize = 1000;

/// A server, as `lota gateway status` prints it.
#[derive(Debug, Deserialize, Serialize)]
pub struct ServerOfGateway {
    /// Name of the gateway that it has answered as.
    pub gateway: String,
    /// The server.
    #[serde(flatten)]
    pub server: GatewayServer,
}

/// State of the cache, as `lota cache stat` prints it.
#[derive(Debug, Deserialize, Serialize)]
pub struct CacheReport {
    /// State of each disk.
    pub disks: Vec<DiskStatus>,
    /// Outcomes of the reads of this node's pods since the daemon started, from any node's cache.
    pub reads: Reads,
}

/// Serves the socket until the future is dropped.
pub async fn serve(
    listener: UnixListener,
    control: mpsc::Sender<ControlCommand>,
    proxy: Arc<Proxy>,
    reporter: Arc<Reporter>,
) {
    accept(listener, move |request| {
        let (control, proxy, reporter) = (control.clone(), proxy.clone(), reporter.clone());
        async move { answer(request, &control, &proxy, &reporter).await }
    })
    .await;
}

/// Accepts connections, within a limit, and answers their requests.
async fn accept<F>(
    listener: UnixListener,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) where
    F: Future<Output = Result<Response<Full<Bytes>>, io::Error>> + Send + 'static,
{
    // Only one user can connect, so all connections share one address.
    let (slots, user) = (Slots::new(CONNECTIONS, CONNECTIONS), IpAddr::from(Ipv4Addr::LOCALHOST));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection on the admin socket; retrying");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(slot) = slots.take(user) else { continue };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(async |request| {
                let _busy = slot.marker().busy();
                answer(request).await
            });
            let mut http = server::conn::http1::Builder::new();
            let connection = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection to the admin socket ended");
                    }
                }
                () = slot.closed() => {}
            }
        });
    }
}

/// Operation of the admin socket.
#[derive(Clone, Copy)]
enum SocketTarget {
    Reload,
    Access,
    Status,
    Report,
    Presence,
    Gateway,
    Cache,
    Evict,
    Repair,
    Pins,
    Pin,
    Unpin,
}

const ROUTES: [Route<SocketTarget>; 12] = [
    Route(Method::POST, "/reload", SocketTarget::Reload),
    Route(Method::POST, "/access", SocketTarget::Access),
    Route(Method::GET, "/status", SocketTarget::Status),
    Route(Method::GET, "/report", SocketTarget::Report),
    Route(Method::GET, "/presence", SocketTarget::Presence),
    Route(Method::GET, "/gateway", SocketTarget::Gateway),
    Route(Method::GET, "/cache", SocketTarget::Cache),
    Route(Method::POST, "/cache/evict", SocketTarget::Evict),
    Route(Method::POST, "/cache/repair", SocketTarget::Repair),
    Route(Method::GET, "/cache/pins", SocketTarget::Pins),
    Route(Method::POST, "/cache/pin", SocketTarget::Pin),
    Route(Method::POST, "/cache/unpin", SocketTarget::Unpin),
];

async fn answer(
    request: Request<Incoming>,
    control: &mpsc::Sender<ControlCommand>,
    proxy: &Proxy,
    reporter: &Reporter,
) -> Result<Response<Full<Bytes>>, io::Error> {
    let done = execute(request, control, proxy, reporter).await;
    Ok(match done {
        Ok(body) => Response::new(Full::from(body)),
        Err(error) => error.response(Full::from),
    })
}

async fn execute(
    request: Request<Incoming>,
    control: &mpsc::Sender<ControlCommand>,
    proxy: &Proxy,
    reporter: &Reporter,
) -> Result<Vec<u8>, AdminError> {
    Ok(match route::find(&ROUTES, request.method(), request.uri().path())? {
        SocketTarget::Reload => serde_json::to_vec(&ask(control, ControlCommand::Reload).await?)?,
        SocketTarget::Access => {
            let access_request: AccessRequest = read(request).await?;
            ask(control, |answer| ControlCommand::Access(access_request, answer)).await?.into_bytes()
        }
        SocketTarget::Status => serde_json::to_vec(&status(control).await?)?,
        SocketTarget::Report => serde_json::to_vec(&reporter.report(true).await)?,
        SocketTarget::Presence => serde_json::to_vec(&reporter.presence())?,
        SocketTarget::Gateway => {
            let servers = proxy.stores.each().flat_map(|store| {
                let gateway = store.name.as_str();
                let servers = store.gateway.servers().into_iter();
                servers.map(|server| ServerOfGateway { gateway: gateway.to_owned(), server })
            });
            serde_json::to_vec(&servers.collect::<Vec<_>>())?
        }
        SocketTarget::Cache => {
            let report = CacheReport { disks: proxy.cache.disks().collect(), reads: proxy.metrics.reads() };
            serde_json::to_vec(&report)?
        }
        SocketTarget::Evict => evict(request, proxy).await?,
        SocketTarget::Repair => {
            let versions: Vec<String> = read(request).await?;
            serde_json::to_vec(&proxy.cache.drop_corrupt(&versions).await)?
        }
        SocketTarget::Pins => serde_json::to_vec(&proxy.pins.report())?,
        SocketTarget::Pin => serde_json::to_vec(&proxy.pins.pin(read(request).await?).await?)?,
        SocketTarget::Unpin => serde_json::to_vec(&proxy.pins.unpin(read(request).await?).await?)?,
    })
}

async fn evict(request: Request<Incoming>, proxy: &Proxy) -> Result<Vec<u8>, AdminError> {
    let which: EvictSelector = read(request).await?;
    let gone = proxy.cache.evict(&which, &proxy.stores.gateways()).await;
    tracing::info!(
        ?which,
        objects = gone.objects,
        bytes = gone.bytes,
        "evicted objects on request of an operator"
    );
    Ok(serde_json::to_vec(&gone)?)
}

/// Parses the JSON body of a request.
async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, AdminError> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|error| AdminError::InvalidBody(error.to_string()))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| AdminError::InvalidBody(error.to_string()))
}

/// Sends a command to the control thread and returns its result.
///
/// # Errors
/// If the control thread has ended, or rejects or cannot execute the command.
async fn ask<T>(
    control: &mpsc::Sender<ControlCommand>,
    command: impl FnOnce(oneshot::Sender<Result<T, ControlError>>) -> ControlCommand,
) -> Result<T, AdminError> {
    let (answer, answered) = oneshot::channel();
    control.send(command(answer)).await.map_err(|_| AdminError::NotReady)?;
    Ok(answered.await.map_err(|_| AdminError::NotReady)??)
}

/// Returns the state of the kernel side, read by the control thread.
///
/// # Errors
/// If the control thread has ended, or if the state cannot be read.
pub(super) async fn status(control: &mpsc::Sender<ControlCommand>) -> Result<DatapathStatus, AdminError> {
    ask(control, ControlCommand::Status).await
}

/// A request that the daemon rejected, or could not execute.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct AdminRejection {
    /// Status of the response.
    pub status: StatusCode,
    /// The daemon's reason.
    pub message: String,
}

/// Changes an access entry of the daemon behind this socket. Returns the subject with the interface that it is bound
/// to.
///
/// # Errors
/// If no daemon runs, or if it rejects the change.
pub async fn request_access(socket: &Path, access_request: &AccessRequest) -> Result<String> {
    let response = send(socket, Method::POST, "/access", access_request).await?;
    Ok(String::from_utf8_lossy(&response).into_owned())
}

/// Reloads the configuration of the daemon behind this socket. Returns the changed keys that apply only after a
/// restart.
///
/// # Errors
/// If no daemon runs, or the configuration cannot be read.
pub async fn request_reload(socket: &Path) -> Result<Vec<String>> {
    Ok(serde_json::from_slice(&send(socket, Method::POST, "/reload", &()).await?)?)
}

/// Returns the state of the kernel side from the daemon behind this socket.
///
/// # Errors
/// If no daemon runs.
pub async fn request_status(socket: &Path) -> Result<DatapathStatus> {
    Ok(serde_json::from_slice(&send(socket, Method::GET, "/status", &()).await?)?)
}

/// Returns the servers that have answered as the gateway, and how far each is trusted.
///
/// # Errors
/// If no daemon runs.
pub async fn request_gateway(socket: &Path) -> Result<Vec<ServerOfGateway>> {
    Ok(serde_json::from_slice(&send(socket, Method::GET, "/gateway", &()).await?)?)
}

/// Returns the state of the cache.
///
/// # Errors
/// If no daemon runs.
pub async fn request_cache(socket: &Path) -> Result<CacheReport> {
    Ok(serde_json::from_slice(&send(socket, Method::GET, "/cache", &()).await?)?)
}

/// Evicts objects from the daemon's cache.
///
/// # Errors
/// If no daemon runs.
pub async fn request_eviction(socket: &Path, which: &EvictSelector) -> Result<EvictedTotal> {
    Ok(serde_json::from_slice(&send(socket, Method::POST, "/cache/evict", which).await?)?)
}

/// Verifies these objects against their checksums, and evicts those that differ.
///
/// # Errors
/// If no daemon runs.
pub async fn request_repair(socket: &Path, versions: &[String]) -> Result<EvictedTotal> {
    let mut gone = EvictedTotal::default();
    for some in versions.chunks(VERSIONS) {
        let dropped: EvictedTotal =
            serde_json::from_slice(&send(socket, Method::POST, "/cache/repair", &some).await?)?;
        gone = EvictedTotal { objects: gone.objects + dropped.objects, bytes: gone.bytes + dropped.bytes };
    }
    Ok(gone)
}

/// Returns all pins, and what this node has of them.
///
/// # Errors
/// If no daemon runs.
pub async fn request_pins(socket: &Path) -> Result<PinReport> {
    Ok(serde_json::from_slice(&send(socket, Method::GET, "/cache/pins", &()).await?)?)
}

/// Pins objects on all nodes.
///
/// # Errors
/// If no daemon runs, or it refuses.
pub async fn request_pin(socket: &Path, pin: &PinRequest) -> Result<PinChanged> {
    Ok(serde_json::from_slice(&send(socket, Method::POST, "/cache/pin", pin).await?)?)
}

/// Removes a pin on all nodes.
///
/// # Errors
/// If no daemon runs, or there is no such pin.
pub async fn request_unpin(socket: &Path, prefix: &PinnedPrefix) -> Result<PinChanged> {
    Ok(serde_json::from_slice(&send(socket, Method::POST, "/cache/unpin", prefix).await?)?)
}

/// Returns the state of all parts.
///
/// # Errors
/// If no daemon runs.
pub async fn request_report(socket: &Path) -> Result<NodeReport> {
    Ok(serde_json::from_slice(&send(socket, Method::GET, "/report", &()).await?)?)
}

/// Returns whether the daemon is ready, and its instance.
///
/// # Errors
/// If no daemon runs.
pub async fn request_presence(socket: &Path) -> Result<Presence> {
    Ok(serde_json::from_slice(&send(socket, Method::GET, "/presence", &()).await?)?)
}

async fn send(socket: &Path, method: Method, path: &str, body: &impl Serialize) -> Result<Bytes> {
    let about = || format!("cannot reach the daemon at {}; check that it runs", socket.display());
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
        let message = String::from_utf8_lossy(&body).trim_end().to_owned();
        return Err(AdminRejection { status, message }.into());
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tempfile::TempDir;

    use super::*;

    fn listen() -> (TempDir, std::path::PathBuf, UnixListener) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        (folder, path, listener)
    }

    #[tokio::test]
    async fn a_request_of_an_operator_has_a_maximum_size() {
        let (_folder, path, listener) = listen();
        tokio::spawn(accept(listener, async |request| {
            Ok(match read::<String>(request).await {
                Ok(text) => Response::new(Full::from(text.len().to_string())),
                Err(error) => error.response(Full::from),
            })
        }));
        // With its quotes.
        let ask = async |bytes: usize| send(&path, Method::POST, "/", &"a".repeat(bytes - 2)).await;
        assert_eq!(ask(MAX_BODY).await.unwrap(), (MAX_BODY - 2).to_string());
        let error = ask(MAX_BODY + 1).await.unwrap_err().downcast::<AdminRejection>().unwrap();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn the_number_of_requests_of_operators_is_bounded() {
        let (_folder, path, listener) = listen();
        let running = Arc::new(());
        let counted = Arc::downgrade(&running);
        tokio::spawn(accept(listener, move |_| {
            let running = counted.upgrade();
            async move {
                std::future::pending::<()>().await;
                drop(running);
                Err(io::ErrorKind::Other.into())
            }
        }));
        let asking = (0..CONNECTIONS + 9).map(|_| send(&path, Method::GET, "/", &()));
        let refused = async {
            let mut asking: Vec<_> = asking.map(Box::pin).collect();
            for _ in 0..9 {
                let (answered, _, waiting) = futures_util::future::select_all(asking).await;
                assert!(answered.is_err());
                asking = waiting;
            }
            asking
        };
        let waiting =
            tokio::time::timeout(std::time::Duration::from_secs(10), refused).await.expect("all wait");
        let all_run = async {
            while Arc::strong_count(&running) - 1 < CONNECTIONS {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), all_run).await.expect("fewer run");
        let others = tokio::time::timeout(std::time::Duration::from_millis(50), join_all(waiting)).await;
        assert!(others.is_err(), "requests in progress are not refused");
    }
}
