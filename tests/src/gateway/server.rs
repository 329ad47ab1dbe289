//! Accepts connections and adds request ids to the S3 service.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, HttpRequest, HttpResponse};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::Shared;
use super::access::{AccessRules, Zone};
use super::handler::Handler;
use super::reads::Reads;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(50);

/// Serves `listener` until its task is aborted, which also closes the connections.
pub(super) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let service = build_service(&shared);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(serve_connection(
                        TokioIo::new(stream),
                        service.clone(),
                        Arc::clone(&shared),
                    ));
                }
                // Usually "too many open files", which is temporary.
                Err(_) => tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

fn build_service(shared: &Arc<Shared>) -> S3Service {
    let mut builder = S3ServiceBuilder::new(Handler::new(Arc::clone(shared)));
    builder.set_host(Zone::new(Arc::clone(shared)));
    builder.set_auth(AccessRules::new(Arc::clone(shared)));
    builder.set_access(AccessRules::new(Arc::clone(shared)));
    builder.set_route(Reads::new(Arc::clone(shared)));
    builder.build()
}

async fn serve_connection(io: TokioIo<tokio::net::TcpStream>, service: S3Service, shared: Arc<Shared>) {
    let answer = service_fn(|request| answer(&service, &shared, request));
    // An error means that the client has disconnected.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, answer).await;
}

async fn answer(
    service: &S3Service,
    shared: &Shared,
    request: hyper::Request<Incoming>,
) -> Result<HttpResponse, HttpError> {
    if let Some(node) = request.headers().get("lota-node") {
        shared.saw_node(&String::from_utf8_lossy(node.as_bytes()));
    }
    let request: HttpRequest = request.map(Body::from);
    let response = service.call(request).await?;
    Ok(with_request_id(response))
}

fn with_request_id(mut response: HttpResponse) -> HttpResponse {
    let id = new_request_id();
    if response.status().as_u16() >= 400 {
        add_to_error_document(&mut response, &id);
    }
    if let Ok(value) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn new_request_id() -> String {
    let mut id = Uuid::new_v4().simple().to_string().to_ascii_uppercase();
    id.truncate(16);
    id
}

fn add_to_error_document(response: &mut HttpResponse, id: &str) {
    const END: &str = "</Error>";
    let Some(body) = response.body().bytes() else {
        return;
    };
    let document = String::from_utf8_lossy(&body);
    let Some(document) = document.strip_suffix(END) else {
        return;
    };
    let document = format!("{document}<RequestId>{id}</RequestId>{END}");
    response.headers_mut().remove(CONTENT_LENGTH);
    *response.body_mut() = Body::from(document);
}
