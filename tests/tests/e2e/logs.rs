//! Log lines of requests, and the absence of secrets in logs.

use std::{fs, io::Write as _, net::TcpStream, sync::mpsc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, Credential, Mode, POD_ONLY, READER, VIP,
        raw::{Reply, Request, Signing, content},
    },
    tour::{Tour, wait_until},
};
use serde_json::Value;
use socket2::SockRef;

use crate::requests::{head, play_gateway, upload};

/// Session token of a client, which must not be logged.
const TOKEN: &str = "a-session-token-that-nobody-is-to-read";
const CUSTOMER_KEY: &str = "YS1rZXktb2YtdGhlLWN1c3RvbWVyLW9mLTMyLWJ5dGU=";

/// Sets level and format of every node's log from its next start.
fn log_as(tour: &mut Tour, level: &str, format: &str) {
    for node in &mut tour.nodes {
        node.set_environment(vec![("LOTA_LOG", level.into()), ("LOTA_LOG_FORMAT", format.into())]);
    }
}

fn restart(tour: &mut Tour, mode: Mode) -> Result<()> {
    tour.restart_each(|node| {
        fs::write(node.log(), "")?;
        node.configure(mode)
    })
}

/// Returns the logs of all nodes.
fn logged(tour: &Tour) -> Result<String> {
    tour.nodes.iter().map(|node| Ok(fs::read_to_string(node.log())?)).collect()
}

fn ask(tour: &Tour, requests: &[Request]) -> Result<Vec<Reply>> {
    tour.pod(1, 1).send_all((VIP, 80).into(), requests.to_vec())
}

/// Returns the parts of a signed request that are secrets for a while.
fn signatures(request: &Request) -> Vec<String> {
    let headers = request.headers.iter().filter(|(name, _)| name == "authorization").map(|(_, value)| value);
    headers
        .chain([&request.target])
        .flat_map(|text| text.split(['&', '?', ',', ' ']))
        .filter_map(|part| part.split_once("ignature="))
        .map(|(_, signature)| signature.to_owned())
        .collect()
}

pub(crate) fn secrets(tour: &mut Tour) -> Result<()> {
    for mode in [Mode::OwnCredential, Mode::Direct, Mode::ClientOnly, Mode::ReSign] {
        // Even at the most verbose level, also of the modules that sign.
        log_as(tour, "trace,aws_sigv4=trace,aws_sigv4::http_request=trace,hyper=trace", "json");
        restart(tour, mode)?;
        let seen = in_mode(tour, mode);
        log_as(tour, "info", "text");
        tour.restart(Mode::OwnCredential)?;
        seen.with_context(|| format!("{mode:?}"))?;
    }
    tour.nodes.iter_mut().for_each(|node| node.set_environment(Vec::new()));
    Ok(())
}

fn in_mode(tour: &Tour, mode: Mode) -> Result<()> {
    let path = format!("/{}", tour.client.name(&format!("logs/{mode:?}")));
    let who: &Credential = if mode == Mode::ReSign { &POD_ONLY } else { &ADMIN };
    let request = |method| Request::new(method, "cwlota.com", &path);
    let put = request(Method::PUT).body(content(100_000)).sign(who, Signing::Header)?;
    ensure!(ask(tour, std::slice::from_ref(&put))?[0].status == 200, "the upload");
    let with_token = request(Method::GET)
        .header("x-amz-security-token", TOKEN)
        .header("x-amz-server-side-encryption-customer-key", CUSTOMER_KEY)
        .sign(who, Signing::Header)?;
    let mut requests = vec![
        request(Method::GET).sign(who, Signing::Header)?,
        request(Method::GET).sign(who, Signing::Presigned)?,
        request(Method::GET).header("range", "bytes=5-9").sign(who, Signing::RangeUnsigned)?,
        request(Method::PUT).body(content(100_000)).sign(who, Signing::Presigned)?,
        with_token,
    ];
    if mode != Mode::ReSign {
        requests.push(request(Method::GET).sign(who, Signing::PresignedV2)?);
    }
    ask(tour, &requests)?;
    wait_until("a hit", || Ok(ask(tour, &requests[..1])?[0].cache() == "hit"))?;
    // A response of LOTA itself.
    ask(
        tour,
        &[request(Method::CONNECT).header("authorization", "AWS4-HMAC-SHA256 Signature=feedfacefeedface")],
    )?;
    requests.push(put);

    let log = logged(tour)?;
    ensure!(log.contains("\"request\"") && log.contains("TRACE"), "requests are not logged: {log}");
    let mut forbidden: Vec<String> = requests.iter().flat_map(signatures).collect();
    ensure!(forbidden.len() >= requests.len(), "{} signatures", forbidden.len());
    let fixed = [
        TOKEN,
        CUSTOMER_KEY,
        "feedfacefeedface",
        "X-Amz-Signature",
        "Signature=",
        "AWS4-HMAC-SHA256",
        "X-Amz-Credential",
        &*ADMIN.secret_key,
        &*READER.secret_key,
        &*POD_ONLY.secret_key,
    ];
    forbidden.extend(fixed.map(str::to_owned));
    let lower = log.to_ascii_lowercase();
    for secret in &forbidden {
        let line = lower.lines().find(|line| line.contains(&secret.to_ascii_lowercase()));
        ensure!(line.is_none(), "`{secret}` is in the log: {}", line.unwrap_or_default());
    }
    Ok(())
}

pub(crate) fn requests(tour: &mut Tour) -> Result<()> {
    log_as(tour, "debug", "json");
    restart(tour, Mode::OwnCredential)?;
    let path = format!("/{}", tour.client.name("logs/a%20%22quoted%22%20key"));
    let request = |method| Request::new(method, "cwlota.com", &path);
    let put = request(Method::PUT).body(content(5000)).sign(&ADMIN, Signing::Header)?;
    let get = request(Method::GET).sign(&ADMIN, Signing::Header)?;
    ask(tour, &[put, get.clone()])?;
    wait_until("a hit", || Ok(ask(tour, std::slice::from_ref(&get))?[0].cache() == "hit"))?;
    let hit = ask(tour, &[get])?.remove(0);
    let id = hit.header("x-amz-request-id").to_owned();
    ensure!(!id.is_empty(), "no request id: {:?}", hit.headers);
    let mut lines: Vec<Value> = Vec::new();
    wait_until("the request's line", || {
        let log = fs::read_to_string(tour.nodes[0].log())?;
        lines = log.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("not JSON")?;
        lines.retain(|line| line["request_id"] == *id && line["message"] == "request");
        Ok(!lines.is_empty())
    })?;
    let [line] = &*lines else { anyhow::bail!("{} log lines for one request", lines.len()) };
    let bucket = tour.client.name("");
    for (field, value) in [
        ("level", Value::from("DEBUG")),
        ("method", "GET".into()),
        ("bucket", bucket.trim_end_matches('/').into()),
        ("key", "logs/a \"quoted\" key".into()),
        ("status", 200.into()),
        ("cache", "hit".into()),
        ("bytes", 5000.into()),
    ] {
        ensure!(line[field] == value, "{field} is {}, not {value}: {line}", line[field]);
    }
    ensure!(line["ms"].as_f64().is_some_and(|ms| ms > 0.0 && ms < 10_000.0), "{line}");
    // There is no line at the default level.
    log_as(tour, "info", "text");
    restart(tour, Mode::OwnCredential)?;
    tour.client.get(&tour.pod(1, 1), "logs/none", lota_tests::lab::Style::Path)?;
    let log = logged(tour)?;
    ensure!(!log.contains("request_id"), "it logs requests at `info`: {log}");
    tour.nodes.iter_mut().for_each(|node| node.set_environment(Vec::new()));
    Ok(())
}

/// Verifies that a request is counted and logged if its client resets the connection before the response.
pub(crate) fn abandoned_requests(tour: &mut Tour) -> Result<()> {
    const UNANSWERED: &str = "lota_requests_total{cache=\"bypass\",status=\"none\"}";
    log_as(tour, "debug", "json");
    let put = upload(tour, "logs/abandoned", 5, &ADMIN, "Expect: 100-continue\r\n")?;
    let (arrive, arrived) = mpsc::channel();
    let (reset, was_reset) = mpsc::channel();
    let gateway = play_gateway(tour, move |stream| {
        head(stream)?;
        arrive.send(())?;
        was_reset.recv()?;
        // The node relays this, and notices that the client has gone.
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        let _ = std::io::copy(stream, &mut std::io::sink());
        Ok(())
    })?;
    tour.pod(1, 1).run(move || -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&(VIP, 80).into(), Duration::from_secs(2))?;
        stream.write_all(&put)?;
        arrived.recv_timeout(Duration::from_secs(30))?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        drop(stream);
        reset.send(())?;
        Ok(())
    })??;
    let node = &tour.nodes[0];
    wait_until("the request to be counted", || Ok(node.metric(UNANSWERED)? == 1.0))?;
    gateway.join().map_err(|_| anyhow::anyhow!("the gateway panicked"))??;
    let log = fs::read_to_string(node.log())?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines: Vec<Value> =
        lines.filter(|line| line["message"] == "request" && line["key"] == "logs/abandoned").collect();
    let [line] = &*lines else { anyhow::bail!("{} log lines for one request", lines.len()) };
    ensure!(line["method"] == "PUT" && line["status"].is_null() && line["bytes"] == 0, "{line}");
    ensure!(line["ms"].as_f64().is_some_and(|ms| ms > 0.0), "{line}");
    log_as(tour, "info", "text");
    restart(tour, Mode::OwnCredential)?;
    tour.nodes.iter_mut().for_each(|node| node.set_environment(Vec::new()));
    Ok(())
}
