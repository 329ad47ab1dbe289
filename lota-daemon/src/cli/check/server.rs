//! Sends requests to servers and evaluates the answers.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use http_body_util::{BodyExt as _, Collected, Limited};
use hyper::{HeaderMap, Request, StatusCode, header};
use lota_s3::Origin;
use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::CheckReport;
use crate::http::{
    empty,
    upstream::{Upstream, chain},
};

/// Timeout for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout for name resolution and for a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of bytes read of an answer.
const MAX_ANSWER: usize = 64 << 10;
/// Reserved names of examples (RFC 2606).
const PLACEHOLDERS: [&str; 4] = [".example", ".example.com", ".example.net", ".example.org"];

/// An answer, and the difference between the server's clock and this one's.
pub(super) struct ServerAnswer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
    pub(super) skew: Option<Duration>,
}

/// The body of an S3 error.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ErrorBody {
    code: String,
}

impl ServerAnswer {
    /// Returns the S3 error code, if the body is an S3 error.
    pub(super) fn code(&self) -> Option<String> {
        quick_xml::de::from_str::<ErrorBody>(&self.body).ok().map(|error| error.code)
    }

    /// Returns the status, and the S3 error code if there is one.
    pub(super) fn summary(&self) -> String {
        match self.code() {
            Some(code) => format!("{} {}", self.status.as_u16(), printable(&code)),
            None => self.status.as_u16().to_string(),
        }
    }
}

/// Returns whether the host name is a reserved name of examples.
pub(super) fn is_placeholder(origin: &Origin) -> bool {
    let host = format!(".{}", origin.authority.host().to_ascii_lowercase());
    PLACEHOLDERS.iter().any(|placeholder| host.ends_with(placeholder))
}

/// Checks that the name resolves and that the server accepts connections.
pub(super) async fn is_reached(report: &mut CheckReport<'_>, part: &str, key: &str, origin: &Origin) -> bool {
    if is_placeholder(origin) {
        let what = format!("{origin} is a placeholder");
        report.fail(part, what, format!("set {key} to the address of your server"));
        return false;
    }
    let host = origin.authority.host().trim_matches(['[', ']']).to_owned();
    let port = origin.authority.port_u16().unwrap_or(if origin.tls { 443 } else { 80 });
    let found = timeout(RESPONSE_TIMEOUT, lookup_host((host.as_str(), port))).await;
    let found = found.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let addresses: Vec<SocketAddr> = match found {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            let fix = format!("check {key} and the node's resolver with `getent hosts {host}`");
            report.fail(part, format!("{host} does not resolve: {error}"), fix);
            return false;
        }
    };
    let (mut reached, mut failed) = (0, Vec::new());
    for address in &addresses {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => reached += 1,
            Ok(Err(error)) => failed.push(format!("{address}: {error}")),
            Err(_) => failed.push(format!("{address}: no connection within {} s", CONNECT_TIMEOUT.as_secs())),
        }
    }
    let failures = failed.join("; ");
    if reached == 0 {
        let fix = format!("check that it runs, that firewalls allow this node, and {key}");
        report.fail(part, format!("{origin} cannot be reached: {failures}"), fix);
        return false;
    }
    if !failed.is_empty() {
        let fix = "requests use all of its addresses: some will be slow or fail";
        report.warn(part, format!("not every address of {origin} can be reached: {failures}"), fix);
    }
    true
}

/// Sends a request. Returns the answer, or the reason why there is none.
pub(super) async fn ask(upstream: &Upstream, request: Request<()>) -> Result<ServerAnswer, String> {
    let response = timeout(RESPONSE_TIMEOUT, upstream.send(request.map(|()| empty()))).await;
    let answer = response.map_err(|_| format!("no response within {} s", RESPONSE_TIMEOUT.as_secs()))?;
    let answer = answer.map_err(|error| chain(&error))?;
    let now = SystemTime::now();
    let (head, body) = answer.into_parts();
    let body = timeout(RESPONSE_TIMEOUT, Limited::new(body, MAX_ANSWER).collect()).await;
    let body = body.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
    let date = head.headers.get(header::DATE).and_then(|date| date.to_str().ok());
    let skew = date.and_then(|date| OffsetDateTime::parse(date, &Rfc2822).ok()).map(|date| {
        let date = SystemTime::from(date);
        now.duration_since(date).unwrap_or_else(|ahead| ahead.duration())
    });
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(ServerAnswer { status: head.status, headers: head.headers, body, skew })
}

/// Returns a server's text without control characters, shortened for a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(100).collect()
}
