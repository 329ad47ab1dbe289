//! Whether a server can be reached at all, and what it says.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use http_body_util::{BodyExt as _, Collected, Limited};
use hyper::{HeaderMap, Request, StatusCode, header};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::Report;
use crate::{
    config::Origin,
    http::{
        empty,
        upstream::{Upstream, chain},
    },
};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are looked at.
const MOST: usize = 64 << 10;
/// Names that stand for others in examples (RFC 2606).
const PLACEHOLDERS: [&str; 4] = [".example", ".example.com", ".example.net", ".example.org"];

/// An answer, and how far the server's clock is from this one's.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
    pub(super) skew: Option<Duration>,
}

impl Answer {
    /// What is between these tags.
    pub(super) fn tag(&self, name: &str) -> Option<&str> {
        let (_, rest) = self.body.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
    }

    /// The status, and S3's code if it is an error.
    pub(super) fn said(&self) -> String {
        match self.tag("Code") {
            Some(code) => format!("{} {}", self.status.as_u16(), printable(code)),
            None => self.status.as_u16().to_string(),
        }
    }
}

/// Does the name stand for another one in an example?
pub(super) fn is_placeholder(origin: &Origin) -> bool {
    let host = format!(".{}", origin.authority.host().to_ascii_lowercase());
    PLACEHOLDERS.iter().any(|placeholder| host.ends_with(placeholder))
}

/// Is the name one of a server, and does something listen there?
pub(super) async fn is_reached(
    report: &mut Report<'_>,
    about: &'static str,
    key: &str,
    origin: &Origin,
) -> bool {
    if is_placeholder(origin) {
        let what = format!("{origin} is a placeholder");
        report.fail(about, what, format!("set {key} to the address of your own server"));
        return false;
    }
    let host = origin.authority.host().trim_matches(['[', ']']).to_owned();
    let port = origin.authority.port_u16().unwrap_or(if origin.tls { 443 } else { 80 });
    let found = timeout(PATIENCE, lookup_host((host.as_str(), port))).await;
    let found = found.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let addresses: Vec<SocketAddr> = match found {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            let todo = format!("see {key}, and the node's resolver: `getent hosts {host}`");
            report.fail(about, format!("{host} does not resolve: {error}"), todo);
            return false;
        }
    };
    let (mut reached, mut failed) = (0, Vec::new());
    for address in &addresses {
        match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => reached += 1,
            Ok(Err(error)) => failed.push(format!("{address}: {error}")),
            Err(_) => failed.push(format!("{address}: no connection within {} s", CONNECT.as_secs())),
        }
    }
    let failures = failed.join("; ");
    if reached == 0 {
        let todo = format!("does it run, and do firewalls let this node reach it? See {key}");
        report.fail(about, format!("{origin} cannot be reached: {failures}"), todo);
        return false;
    }
    if !failed.is_empty() {
        let todo = "requests go to any of its addresses: some would be slow or fail";
        report.warn(about, format!("not every address of {origin} can be reached: {failures}"), todo);
    }
    true
}

/// Asks; what it answers, or why it does not.
pub(super) async fn ask(upstream: &Upstream, request: Request<()>) -> Result<Answer, String> {
    let asked = timeout(PATIENCE, upstream.send(request.map(|()| empty()))).await;
    let answer = asked.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?;
    let answer = answer.map_err(|error| chain(&error))?;
    let now = SystemTime::now();
    let (head, body) = answer.into_parts();
    let body = timeout(PATIENCE, Limited::new(body, MOST).collect()).await;
    let body = body.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
    let date = head.headers.get(header::DATE).and_then(|date| date.to_str().ok());
    let skew = date.and_then(|date| OffsetDateTime::parse(date, &Rfc2822).ok()).map(|date| {
        let date = SystemTime::from(date);
        now.duration_since(date).unwrap_or_else(|ahead| ahead.duration())
    });
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Answer { status: head.status, headers: head.headers, body, skew })
}

/// A server's text, fit for a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(100).collect()
}
