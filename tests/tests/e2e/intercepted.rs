//! Pods that change nothing: they use the gateway's own name, and reach LOTA while it lives.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hickory_proto::{
    op::{Message, Metadata},
    rr::{RData, Record, RecordType, rdata},
};
use lota_tests::{
    lab::{DENIED, GATEWAY, GATEWAY_PORT, Got, Mode, NODES, Namespace, UdpServer},
    tour::{MIB, Tour, wait_settled, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{cold::sum, tls::TlsProxy};

/// The gateway's own name.
const NAME: &str = "s3.internal";
/// Time within which pods reach the gateway again after the daemon has stopped.
const FAIL_OPEN: Duration = Duration::from_secs(10);

/// Starts a cluster's DNS, for which every name is the gateway's, at the gateway's address, with routes to all pods, which
/// use it.
pub(crate) fn cluster_dns(tour: &Tour) -> Result<UdpServer> {
    (1..=NODES).try_for_each(|node| tour.lab.route_to_pods(node))?;
    let server = UdpServer::start(&tour.lab.switch(), (GATEWAY, 53).into(), answer)?;
    for (_, pod) in pods(tour) {
        pod.set_resolver(GATEWAY, "")?;
    }
    Ok(server)
}

fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?;
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata = Metadata::response_from_request(&query.metadata);
    if question.query_type() == RecordType::A {
        answer.add_answer(Record::from_rdata(question.name().clone(), 1, RData::A(rdata::A(GATEWAY))));
    }
    answer.queries = query.queries.clone();
    answer.to_vec().ok()
}

fn pods(tour: &Tour) -> impl Iterator<Item = (u8, Namespace)> {
    tour.one_pod_per_node().chain([(DENIED.0, tour.lab.pod(DENIED))])
}

/// Reads an object at the gateway's own name.
fn read(tour: &Tour, pod: &Namespace, key: &str, endpoint: &str) -> Result<Got> {
    tour.client.get_with(pod, key, json!({ "endpoint": endpoint, "style": "path" }))
}

fn restart(tour: &mut Tour, more: &str) -> Result<()> {
    restart_with(tour, &format!("names = [\"{NAME}\"]\n{more}"))
}

/// Restarts every node with more keys in the gateway's section.
fn restart_with(tour: &mut Tour, keys: &str) -> Result<()> {
    tour.restart_with(Mode::OwnCredential, "[gateway]\n", &format!("[gateway]\n{keys}"))
}

pub(crate) fn by_name(tour: &mut Tour) -> Result<()> {
    tour.nodes
        .iter_mut()
        .for_each(|node| node.edit("[endpoint]\n", "[endpoint]\nwhen_down = \"cluster-dns\"\n"));
    restart(tour, "")?;
    let dns = cluster_dns(tour)?;
    let endpoint = format!("http://{NAME}:{GATEWAY_PORT}");
    reads_through_lota(tour, &endpoint)?;
    let own = format!("http://cwlota.com:{GATEWAY_PORT}");
    fails_open(tour, Signal::SIGKILL, &own, &read(tour, &tour.pod(1, 1), "intercepted", &endpoint)?)
        .context("LOTA's own name, with endpoint.when_down")?;
    drop(dns);
    for (_, pod) in pods(tour) {
        pod.set_resolver(lota_tests::lab::VIP, "")?;
    }
    tour.restart(Mode::OwnCredential)
}

pub(crate) fn by_address(tour: &mut Tour) -> Result<()> {
    (1..=NODES).try_for_each(|node| tour.lab.route_to_pods(node))?;
    restart_with(tour, &format!("addresses = [\"{GATEWAY}\"]\n"))?;
    reads_through_lota(tour, &format!("http://{GATEWAY}:{GATEWAY_PORT}"))?;
    // Whatever name led a pod to this address: the answer is the gateway's.
    let passed = || sum(tour, |line| line.starts_with("lota_requests_total{cache=\"bypass\""));
    for host in ["elsewhere.test", "bucket.elsewhere.test:9000", "cwlota.com.evil"] {
        let before = passed()?;
        let [through, direct] = [tour.pod(1, 1), tour.lab.pod(DENIED)].map(|pod| answer_to(&pod, host));
        let (through, direct) = (through?, direct?);
        let body = |answer: &str| {
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
            let status = head.lines().next().unwrap_or_default().to_owned();
            (status, body.split("<requestid>").next().unwrap_or_default().to_owned())
        };
        ensure!(body(&through) == body(&direct), "{host}: {through}, but the gateway answers {direct}");
        wait_until("the request to be counted", || Ok(passed()? >= before + 1.0))?;
    }
    tour.restart(Mode::OwnCredential)
}

/// Returns the answer at the gateway's address to an anonymous request for a host.
fn answer_to(pod: &Namespace, host: &str) -> Result<String> {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answer = pod.run(move || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect((GATEWAY, GATEWAY_PORT))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    })??;
    Ok(String::from_utf8_lossy(&answer).to_lowercase())
}

/// Verifies that pods which use the gateway's own endpoint read from LOTA while it lives, and from the gateway otherwise.
fn reads_through_lota(tour: &mut Tour, endpoint: &str) -> Result<()> {
    let put = tour.client.put_at(endpoint, &tour.pod(1, 1), "intercepted", 140, 2 * MIB)?;
    ensure!(put.status == 200 && put.headers.contains_key("date"), "upload: {} {}", put.status, put.code);
    wait_settled();
    for (node, pod) in tour.one_pod_per_node() {
        wait_until("a hit", || {
            let got = read(tour, &pod, "intercepted", endpoint)?;
            ensure!(got.status == 200 && got.sha256 == put.sha256, "n{node}: {} {}", got.status, got.code);
            Ok(got.cache() == "hit")
        })?;
    }
    // A pod without access never notices LOTA.
    let denied = tour.lab.pod(DENIED);
    let got = read(tour, &denied, "intercepted", endpoint)?;
    ensure!(got.status == 200 && got.sha256 == put.sha256, "a pod without access: {}", got.status);
    ensure!(got.cache().is_empty(), "a pod without access was served by LOTA");

    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        fails_open(tour, signal, endpoint, &put).with_context(|| format!("after {signal}"))?;
    }
    Ok(())
}

/// Verifies that a pod reads on from the gateway while its daemon is down or hangs, and from LOTA afterwards.
fn fails_open(tour: &mut Tour, signal: Signal, endpoint: &str, put: &Got) -> Result<()> {
    let pod = tour.pod(1, 1);
    match signal {
        Signal::SIGKILL => tour.nodes[0].stop(signal)?,
        _ => tour.nodes[0].signal(signal)?,
    }
    let since = Instant::now();
    loop {
        let got = read(tour, &pod, "intercepted", endpoint);
        if let Ok(got) = &got
            && got.status == 200
        {
            ensure!(
                got.sha256 == put.sha256 && got.cache().is_empty(),
                "not from the gateway: {}",
                got.cache()
            );
            break;
        }
        ensure!(since.elapsed() < FAIL_OPEN, "the gateway is not reached: {got:?}");
    }
    match signal {
        Signal::SIGKILL => tour.revive()?,
        _ => tour.nodes[0].signal(Signal::SIGCONT)?,
    }
    wait_until("LOTA to serve again", || Ok(read(tour, &pod, "intercepted", endpoint)?.cache() == "hit"))
}

pub(crate) fn https(tour: &mut Tour) -> Result<()> {
    let proxy = TlsProxy::start(tour, &[NAME.to_owned()], 443)?;
    restart(tour, "")?;
    let _dns = cluster_dns(tour)?;
    let (endpoint, pod) = (format!("https://{NAME}"), tour.pod(1, 1));
    let put = tour.client.put(&pod, "https", 141, 2 * MIB)?;
    wait_settled();
    let ask = |tour: &Tour| {
        let more = json!({ "endpoint": endpoint, "style": "path", "ca": proxy.root() });
        let got = tour.client.get_with(&pod, "https", more)?;
        ensure!(got.status == 200 && got.sha256 == put.sha256, "{} {}", got.status, got.code);
        Ok(got)
    };
    let handled = |tour: &Tour, how: &str| {
        let series = format!("lota_tls_connections_total{{handling=\"{how}\"}}");
        sum(tour, |line| line.starts_with(&series))
    };
    ensure!(ask(tour)?.cache().is_empty(), "without a certificate, LOTA has answered");
    wait_until("the connection to be counted", || Ok(handled(tour, "passed")? >= 1.0))?;

    let (certificate, key) = proxy.files();
    restart(
        tour,
        &format!("tls = {{ certificate = \"{}\", key = \"{}\" }}\n", certificate.display(), key.display()),
    )?;
    wait_until("a hit over TLS", || Ok(ask(tour)?.cache() == "hit"))?;
    ensure!(handled(tour, "terminated")? >= 1.0 && handled(tour, "failed")? == 0.0, "TLS is not counted");
    for (_, pod) in pods(tour) {
        pod.set_resolver(lota_tests::lab::VIP, "")?;
    }
    tour.restart(Mode::OwnCredential)
}
