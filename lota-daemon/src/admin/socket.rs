//! The admin socket: HTTP with JSON bodies, for `lota access`, `lota datapath status` and `lota gateway status` on the
//! same node.

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
use serde::Serialize;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use crate::{
    control::{AccessRequest, Command},
    datapath::Status,
    gateway::{Gateway, Server},
};

/// Longer requests are nobody's.
const MOST: usize = 64 << 10;

/// Serves for as long as it is polled.
pub async fn serve(listener: UnixListener, control: mpsc::Sender<Command>, gateway: Arc<Gateway>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection on the admin socket; trying again");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (control, gateway) = (control.clone(), gateway.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &control, &gateway));
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
    gateway: &Gateway,
) -> Result<Response<Full<Bytes>>, io::Error> {
    let answered = match (request.method().clone(), request.uri().path()) {
        (Method::POST, "/access") => change_access(request, control).await.map(String::into_bytes),
        (Method::GET, "/status") => {
            let status = status(control).await;
            status.and_then(|status| Ok(serde_json::to_vec(&status)?))
        }
        (Method::GET, "/gateway") => serde_json::to_vec(&gateway.servers()).map_err(Into::into),
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
    let body = Limited::new(request.into_body(), MOST).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    let wanted: AccessRequest = serde_json::from_slice(&body)?;
    ask(control, |answer| Command::Access(wanted, answer)).await?.map_err(anyhow::Error::msg)
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
