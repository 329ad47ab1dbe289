//! Gateways and backends that misbehave: what they send is relayed or refused, and never cached as something else.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{
        BACKEND_PORT, GATEWAY, Mode, Namespace,
        scripted::{
            Access, CorrectGateway, Misbehaviour, Script, ScriptedGateway, SeenRequest, StoredObject,
        },
    },
    tour::{Tour, wait_until},
};
use tokio::runtime::Runtime;

use crate::{
    cold::sum,
    http::{ANSWER_TIMEOUT, exchange_with},
};

/// Signatures that the scripted gateways accept and refuse.
const GOOD: char = '0';
const BAD: char = '1';
/// Headers in addition to those that a GET needs: more than hyper accepts by default.
const MANY: usize = 230;

/// Size of an object that is filled in several parts.
const SEVERAL_PARTS: usize = 40 << 20;
/// Delay of the slow gateway, which is longer than an owner that does not respond to pings is waited for.
const SLOW: Duration = Duration::from_secs(25);

/// A response as a client receives it, split into its parts.
pub(crate) struct ParsedResponse {
    pub(crate) status: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl ParsedResponse {
    pub(crate) fn of(answer: &str) -> Self {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    fn header(&self, name: &str) -> &str {
        let lines = self.head.split("\r\n").filter_map(|line| line.split_once(": "));
        lines
            .filter(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .next()
            .unwrap_or("")
    }

    pub(crate) fn is_whole(&self, body: &str) -> bool {
        self.status == "200" && self.body == body && self.header("content-length") == body.len().to_string()
    }

    pub(crate) fn is_hit(&self) -> bool {
        self.header("lota-cache").starts_with("hit")
    }
}

/// Reads an object of the scripted gateway with further headers.
fn read(pod: &Namespace, key: &str, signed: char, more: &str) -> Result<ParsedResponse> {
    read_within(pod, key, signed, more, ANSWER_TIMEOUT)
}

fn read_within(
    pod: &Namespace,
    key: &str,
    signed: char,
    more: &str,
    timeout: Duration,
) -> Result<ParsedResponse> {
    let signature = signed.to_string().repeat(64);
    let request = format!(
        "GET /scripted/{key} HTTP/1.1\r\nhost: cwlota.com\r\nx-amz-date: 20260101T000000Z\r\nauthorization: \
         AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, \
         Signature={signature}\r\n{more}connection: close\r\n\r\n"
    );
    let answer = exchange_with(pod, request.as_bytes(), true, timeout).with_context(|| key.to_owned())?;
    Ok(ParsedResponse::of(&answer))
}

/// Returns an object whose 304 can prove that it is unchanged, since it is older than the answer.
pub(crate) fn stored(body: &str, etag: &str) -> StoredObject {
    StoredObject::new(body).etag(etag).header("date", "Sat, 02 Jan 2021 00:00:00 GMT")
}

/// Starts a scripted server in the lab.
pub(crate) fn start(tour: &Tour, runtime: &Runtime, script: impl Script) -> Result<ScriptedGateway> {
    let listener = tour.lab.switch().run(|| TcpListener::bind((GATEWAY, 0)))??;
    listener.set_nonblocking(true)?;
    let _inside = runtime.enter();
    Ok(ScriptedGateway::serve(tokio::net::TcpListener::from_std(listener)?, script)?)
}

/// Restarts all nodes with a scripted gateway, and scripted endpoints of a backend if there are any.
pub(crate) fn use_scripted(
    tour: &mut Tour,
    gateway: &ScriptedGateway,
    backends: &[&ScriptedGateway],
) -> Result<()> {
    let mode = if backends.is_empty() { Mode::ClientOnly } else { Mode::OwnCredential };
    let endpoints: Vec<_> = backends.iter().map(|backend| backend.endpoint()).collect();
    tour.restart_each(|node| {
        if !endpoints.is_empty() {
            node.edit(&format!("http://{GATEWAY}:{BACKEND_PORT}"), &endpoints.join("\", \""));
        }
        let configured = node.configure_gateway(mode, &gateway.endpoint());
        node.forget_edits();
        std::fs::write(node.log(), "")?;
        configured
    })
}

/// Returns the number of requests that nodes have forwarded to others.
fn forwarded(tour: &Tour) -> Result<f64> {
    sum(tour, |line| line.starts_with("lota_peer_requests_total{role=\"sent\"}"))
}

pub(crate) fn is_cached(tour: &Tour, key: &str) -> Result<bool> {
    for node in &tour.nodes {
        if node.cached()?.contains_key(&format!("scripted/{key}")) {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) fn gateways(tour: &mut Tour) -> Result<()> {
    use Misbehaviour as M;
    let (runtime, content) = (Runtime::new()?, "0123456789".repeat(10_000));
    let correct = CorrectGateway::new();
    let server = start(tour, &runtime, correct.clone())?;
    use_scripted(tour, &server, &[])?;
    stored_headers(tour, &server, &correct, &content)?;
    many_headers(tour, &server, &content)?;
    slow(tour, &server, &correct, &content)?;
    // A server that was found to misbehave is distrusted for a while, so those come last that are.
    let all = [
        M::None,
        M::BareNotModified,
        M::Slow(Duration::from_secs(1)),
        M::ManyHeaders(900),
        M::LongBody,
        M::ShortBody,
        M::ClosesMidway,
        M::Rdma,
        M::GzipIfAccepted,
        M::Always(503),
        M::Always(200),
        M::ConditionsIgnored,
    ];
    for what in &all {
        misbehaves_and_recovers(tour, &server, &correct, what, &content)?;
    }
    tour.restart(Mode::OwnCredential)
}

/// A gateway that sends bytes where HTTP allows none. Only a server that does so from the beginning is always detected: one
/// that was found clean is no longer observed at each response.
pub(crate) fn stray_bytes(tour: &mut Tour) -> Result<()> {
    let (runtime, content) = (Runtime::new()?, "0123456789".repeat(10_000));
    let correct = CorrectGateway::new();
    let what = Misbehaviour::BodyAfterHead(Duration::from_millis(5));
    let server = start(tour, &runtime, what.clone().script(correct.clone()))?;
    use_scripted(tour, &server, &[])?;
    misbehaves_and_recovers(tour, &server, &correct, &what, &content)?;
    tour.restart(Mode::OwnCredential)
}

/// Verifies what pods get while a gateway misbehaves, and that a correct one then serves every client that may read, and
/// nobody else.
fn misbehaves_and_recovers(
    tour: &Tour,
    server: &ScriptedGateway,
    correct: &CorrectGateway,
    what: &Misbehaviour,
    content: &str,
) -> Result<()> {
    let key = format!("{what:?}").replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    correct.put(&format!("/scripted/{key}"), stored(content, &format!("\"{key}\"")));
    server.set_script(what.clone().script(correct.clone()));
    misbehaves(tour, what, &key, content).with_context(|| format!("{what:?}"))?;
    server.set_script(correct.clone());
    for (node, pod) in tour.one_pod_per_node() {
        let response = read(&pod, &key, GOOD, "")?;
        ensure!(
            response.is_whole(content),
            "{what:?}, later, by n{node}: {} {}",
            response.head,
            response.body.len()
        );
        ensure!(read(&pod, &key, BAD, "")?.status == "403", "{what:?}: n{node} answers without a right");
    }
    Ok(())
}

/// Reads an object of a gateway that misbehaves.
fn misbehaves(tour: &Tour, what: &Misbehaviour, key: &str, content: &str) -> Result<()> {
    use Misbehaviour as M;
    let pod = tour.pod(1, 1);
    let whole = |more: &str| -> Result<ParsedResponse> {
        let response = read(&pod, key, GOOD, more)?;
        ensure!(response.is_whole(content), "{} {} bytes", response.head, response.body.len());
        Ok(response)
    };
    match what {
        M::None | M::BareNotModified => {
            wait_until("a hit", || Ok(whole("")?.is_hit()))?;
        }
        M::ShortBody | M::ClosesMidway => {
            for _ in 0..2 {
                let response = read(&pod, key, GOOD, "")?;
                ensure!(response.status != "200" || response.body.len() < content.len(), "{}", response.head);
                ensure!(
                    response.body.is_empty()
                        || content.starts_with(&response.body)
                        || response.status == "503",
                    "{}",
                    response.head
                );
                ensure!(!response.is_hit() && !is_cached(tour, key)?, "a truncated object is cached");
            }
        }
        M::ManyHeaders(count) => {
            for _ in 0..2 {
                let relayed = whole("")?.head.matches("\r\nx-amz-meta-").count();
                ensure!(relayed == *count, "{relayed} of {count} headers are relayed");
            }
        }
        M::Rdma => {
            let response = read(&pod, key, GOOD, "x-amz-rdma-token: abc\r\n")?;
            ensure!(response.status == "200" && response.body.is_empty(), "{}", response.head);
            ensure!(response.header("x-amz-rdma-reply") == "200", "{}", response.head);
            ensure!(!is_cached(tour, key)?, "an answer by RDMA is cached");
        }
        M::GzipIfAccepted => {
            let gzip = || read(&pod, key, GOOD, "accept-encoding: gzip\r\n");
            let is_declared = |response: &ParsedResponse| match response.header("content-encoding") {
                "gzip" => response.is_whole("gzip bytes"),
                // An object that is stored without an encoding suits every client.
                encoding => encoding.is_empty() && response.is_whole(content),
            };
            let response = gzip()?;
            ensure!(
                response.header("content-encoding") == "gzip" && is_declared(&response),
                "{}",
                response.head
            );
            ensure!(!is_cached(tour, key)?, "an answer that depends on Accept-Encoding is cached");
            for _ in 0..2 {
                ensure!(whole("")?.header("content-encoding").is_empty(), "plain bytes are declared as gzip");
                let response = gzip()?;
                ensure!(is_declared(&response), "{} {} bytes", response.head, response.body.len());
            }
        }
        M::Always(status) => {
            let response = read(&pod, key, GOOD, "")?;
            ensure!(
                response.status == status.to_string() && response.body.is_empty(),
                "{} {}",
                response.head,
                response.body
            );
            ensure!(!is_cached(tour, key)?, "it is cached");
        }
        _ => {
            for _ in 0..10 {
                whole("")?;
            }
        }
    }
    Ok(())
}

/// Verifies that a hit has the headers of the object as they were when it was stored, whatever the gateway's 304 states.
fn stored_headers(
    tour: &Tour,
    server: &ScriptedGateway,
    correct: &CorrectGateway,
    content: &str,
) -> Result<()> {
    let object = stored(content, "\"stored\"").header("content-type", "text/stored");
    let object =
        object.header("x-amz-meta-a", "stored").header("access-control-allow-origin", "http://filler");
    correct.put("/scripted/stored", object);
    let (of_304, proofs) = (correct.clone(), Arc::<AtomicUsize>::default());
    let proved = proofs.clone();
    server.set_script(move |request: &SeenRequest| match of_304.answer(request) {
        answer if answer.code() == 304 => {
            proved.fetch_add(1, Ordering::Relaxed);
            let answer = answer.header("content-type", "text/later").header("cache-control", "no-transform");
            answer.header("x-amz-meta-a", "later").header("x-amz-meta-b", "later")
        }
        answer => answer,
    });
    for (node, pod) in tour.one_pod_per_node() {
        let mut hit = None;
        wait_until("a hit by a 304", || {
            let before = proofs.load(Ordering::Relaxed);
            hit = Some(read(&pod, "stored", GOOD, "")?).filter(ParsedResponse::is_hit);
            Ok(hit.is_some() && proofs.load(Ordering::Relaxed) == before + 1)
        })?;
        let hit = hit.context("no hit")?;
        let (kind, metadata) = (hit.header("content-type"), hit.head.matches("x-amz-meta-").count());
        ensure!(hit.is_whole(content) && kind == "text/stored" && metadata == 1, "n{node}: {}", hit.head);
        ensure!(hit.header("x-amz-meta-a") == "stored", "n{node}: {}", hit.head);
        ensure!(
            !hit.head.contains("later") && hit.header("cache-control").is_empty(),
            "n{node}: {}",
            hit.head
        );
        ensure!(
            hit.header("access-control-allow-origin").is_empty(),
            "n{node}: a header of another client's response"
        );
    }
    Ok(())
}

/// Verifies that a request with hundreds of headers is forwarded to the owner, and to the gateway with all of them.
fn many_headers(tour: &Tour, server: &ScriptedGateway, content: &str) -> Result<()> {
    let more: String = (0..MANY).map(|number| format!("x-datadog-{number}: {number}\r\n")).collect();
    let before = forwarded(tour)?;
    let has_all = |seen: &SeenRequest| {
        (0..MANY).all(|number| seen.header(&format!("x-datadog-{number}")) == Some(&*number.to_string()))
    };
    for (node, pod) in tour.one_pod_per_node() {
        let _ = server.take_seen();
        let response = read(&pod, "stored", GOOD, &more)?;
        ensure!(
            response.is_whole(content) && !response.header("lota-cache").is_empty(),
            "n{node}: {}",
            response.head
        );
        ensure!(server.seen().iter().any(has_all), "n{node}: the gateway did not receive all headers");
    }
    let forwarded = forwarded(tour)? - before;
    ensure!(forwarded >= 2.0, "{forwarded} requests were forwarded to the owner");
    Ok(())
}

/// Verifies that an object that another node owns is read through a gateway that takes long to respond, by one request.
fn slow(tour: &Tour, server: &ScriptedGateway, correct: &CorrectGateway, content: &str) -> Result<()> {
    let pod = tour.pod(1, 1);
    // With a correct gateway, this is a request that was forwarded to another node.
    let mut number = 0;
    let mut key = String::new();
    wait_until("an object that another node owns", || {
        number += 1;
        key = format!("slow-{number}");
        correct.put(&format!("/scripted/{key}"), stored(content, "\"slow\""));
        let before = forwarded(tour)?;
        let response = read(&pod, &key, BAD, "")?;
        ensure!(response.status == "403", "{}", response.head);
        Ok(forwarded(tour)? > before)
    })?;
    server.set_script(Misbehaviour::Slow(SLOW).script(correct.clone()));
    let _ = server.take_seen();
    let response = read_within(&pod, &key, GOOD, "", SLOW * 4)?;
    ensure!(response.is_whole(content), "{} {} bytes", response.head, response.body.len());
    let path = format!("/scripted/{key}");
    let seen = server.take_seen().iter().filter(|seen| seen.path() == path).count();
    ensure!(seen == 1, "the gateway received {seen} requests for the object");
    server.set_script(correct.clone());
    Ok(())
}

/// Verifies that a backend with another object than the gateway is reported, and an object that was replaced is not.
pub(crate) fn other_content(tour: &mut Tour) -> Result<()> {
    let (runtime, content) = (Runtime::new()?, "0123456789".repeat(10_000));
    let object = |etag: &str| stored(&content, etag);
    let old = CorrectGateway::new()
        .object("/scripted/replaced", object("\"old\""))
        .object("/scripted/other", object("\"gateway's\""));
    let new = CorrectGateway::new()
        .object("/scripted/replaced", object("\"new\""))
        .object("/scripted/other", object("\"backend's\""))
        .rule(|_| Access::Signed);
    let gateway = start(tour, &runtime, old.clone())?;
    let backend = start(tour, &runtime, new)?;
    use_scripted(tour, &gateway, &[&backend])?;
    let pod = tour.pod(1, 1);
    let count = |tour: &Tour, name: &str| sum(tour, |line| line.starts_with(name));
    let range = "range: bytes=0-9\r\n";

    let response = read(&pod, "other", GOOD, range)?;
    ensure!(response.status == "206" && response.body == "0123456789", "{} {}", response.head, response.body);
    let refused = "lota_uncached_total{reason=\"fill-refused\"}";
    wait_until("the backend's content to be refused", || Ok(count(tour, refused)? == 1.0))?;
    ensure!(
        count(tour, "lota_errors_total{kind=\"source-refused\"}")? == 1.0,
        "it is not counted as an error"
    );
    let line = logged(tour, "other")?;
    ensure!(line.contains("WARN") && line.contains("cannot fill; not cached"), "{line}");
    ensure!(line.contains("the backend has another content than the gateway granted"), "{line}");

    // The gateway answers the first request before the object is replaced.
    let replaced = old.clone();
    let is_first = AtomicBool::new(true);
    gateway.set_script(move |request: &SeenRequest| {
        let answer = replaced.answer(request);
        if is_first.swap(false, Ordering::Relaxed) {
            replaced.put("/scripted/replaced", stored("another", "\"new\""));
        }
        answer
    });
    let response = read(&pod, "replaced", GOOD, range)?;
    ensure!(response.status == "206" && response.body == "0123456789", "{} {}", response.head, response.body);
    let ended = "lota_fills_total{authority=\"own\",end=\"replaced\"}";
    wait_until("the replaced object to be noticed", || Ok(count(tour, ended)? == 1.0))?;
    ensure!(count(tour, "lota_uncached_total{reason=\"replaced\"}")? == 1.0, "it is not counted as uncached");
    ensure!(count(tour, "lota_errors_total{kind=\"source-refused\"}")? == 1.0, "it is counted as an error");
    ensure!(count(tour, "lota_errors_total{kind=\"fill-broken\"}")? == 0.0, "it is counted as an error");
    let line = logged(tour, "replaced")?;
    ensure!(
        line.contains("INFO") && line.contains("object was replaced while it was being filled"),
        "{line}"
    );
    one_endpoint(tour, &runtime)?;
    ensure!(!is_cached(tour, "replaced")? && !is_cached(tour, "other")?, "another object is cached");
    tour.restart(Mode::OwnCredential)
}

/// Verifies that a backend is reported of which one endpoint has the gateway's object and the other has not, whichever part
/// of the object is requested.
fn one_endpoint(tour: &mut Tour, runtime: &Runtime) -> Result<()> {
    let content = "0123456789".repeat(SEVERAL_PARTS / 10);
    let good = CorrectGateway::new().object("/scripted/parts", stored(&content, "\"gateway's\""));
    let other = CorrectGateway::new()
        .object("/scripted/parts", stored(&content, "\"backend's\""))
        .rule(|_| Access::Signed);
    let gateway = start(tour, runtime, good.clone())?;
    // The good endpoint is the first to respond.
    let other = Misbehaviour::Slow(Duration::from_secs(1)).script(other);
    let endpoints = [start(tour, runtime, good.rule(|_| Access::Signed))?, start(tour, runtime, other)?];
    use_scripted(tour, &gateway, &[&endpoints[0], &endpoints[1]])?;
    let response = read(&tour.pod(1, 1), "parts", GOOD, "range: bytes=0-9\r\n")?;
    ensure!(response.status == "206" && response.body == "0123456789", "{} {}", response.head, response.body);
    let faults = |tour: &Tour| {
        sum(tour, |line| {
            line.starts_with("lota_errors_total{kind=\"fill-broken\"}")
                || line.starts_with("lota_errors_total{kind=\"source-refused\"}")
        })
    };
    wait_until("the other endpoint to be reported", || Ok(faults(tour)? == 1.0))?;
    let line = logged(tour, "parts")?;
    ensure!(line.contains("WARN"), "{line}");
    ensure!(line.contains("the backend has another content than the gateway granted"), "{line}");
    ensure!(!is_cached(tour, "parts")?, "a part of another object is cached");
    Ok(())
}

/// Returns the only log line about a fill of an object.
fn logged(tour: &Tour, key: &str) -> Result<String> {
    let name = format!("scripted/{key}");
    let logs = tour.nodes.iter().map(|node| Ok(std::fs::read_to_string(node.log())?));
    let logs: String = logs.collect::<Result<_>>()?;
    let lines: Vec<&str> = logs.lines().filter(|line| line.contains(&name)).collect();
    ensure!(lines.len() == 1, "{} lines about {name}: {lines:?}", lines.len());
    Ok(lines[0].to_owned())
}
