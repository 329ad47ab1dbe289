//! Several gateways, each with its own host names.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{Mode, Namespace, scripted::CorrectGateway},
    tour::{Tour, wait_until},
};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::{
    cold::sum,
    http::exchange_with,
    misbehaviour::{ParsedResponse, start, stored},
};

/// A host name of the second gateway.
const OTHER: &str = "s3.other.test";
/// The same object at both gateways, as to bucket, key and ETag.
const PATH: &str = "/scripted/same";
/// Signatures that the scripted gateways accept and refuse.
const GOOD: char = '0';
const BAD: char = '1';

/// Timeout for a response, which is also how long a gateway that is gone is tried.
const TIMEOUT: Duration = Duration::from_secs(60);

fn read(pod: &Namespace, host: &str, signed: char) -> Result<ParsedResponse> {
    let signature = signed.to_string().repeat(64);
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nhost: {host}\r\nx-amz-date: 20260101T000000Z\r\nauthorization: AWS4-HMAC-SHA256 \
         Credential=AK/20260101/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, \
         Signature={signature}\r\nconnection: close\r\n\r\n"
    );
    let answer = exchange_with(pod, request.as_bytes(), true, TIMEOUT).with_context(|| host.to_owned())?;
    Ok(ParsedResponse::of(&answer))
}

/// Returns the level of each part in the status of a node.
fn levels(tour: &Tour, node: usize) -> Result<Vec<(String, String)>> {
    let node = &tour.nodes[node];
    let output = node.command().args(["status", "--json", "--config"]).arg(node.config()).output()?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    let findings = status["findings"].as_array().context("no findings")?;
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    Ok(findings.iter().map(|finding| (text(finding, "part"), text(finding, "level"))).collect())
}

pub(crate) fn several(tour: &mut Tour) -> Result<()> {
    let runtime = Runtime::new()?;
    let contents = ["first".repeat(20_000), "other".repeat(20_000)];
    let [first, other] = [&contents[0], &contents[1]]
        .map(|content| CorrectGateway::new().object(PATH, stored(content, "\"same\"")));
    let (first, other) = (start(tour, &runtime, first)?, start(tour, &runtime, other)?);
    let section =
        format!("[gateways.other]\nendpoint = \"{}\"\nnames = [\"{OTHER}\"]\n\n[cache]", other.endpoint());
    tour.restart_each(|node| {
        node.edit("[cache]", &section);
        let configured = node.configure_gateway(Mode::ClientOnly, &first.endpoint());
        node.forget_edits();
        configured
    })?;
    let hosts = [("cwlota.com", &contents[0]), (OTHER, &contents[1])];
    for (node, pod) in tour.one_pod_per_node() {
        for (host, content) in hosts {
            wait_until("a hit", || {
                let response = read(&pod, host, GOOD)?;
                ensure!(response.is_whole(content), "n{node}: {host}: {}", response.head);
                Ok(response.is_hit())
            })?;
            ensure!(read(&pod, host, BAD)?.status == "403", "n{node}: {host} answers without a right");
        }
    }
    let pod = tour.pod(1, 1);
    for host in ["elsewhere.test", "xs3.other.test", "other.test", "10.0.0.1"] {
        let requests = (first.seen().len(), other.seen().len());
        let response = read(&pod, host, GOOD)?;
        ensure!(
            response.status == "403" && response.body.contains("AccessDenied"),
            "{host}: {}",
            response.head
        );
        ensure!(
            response.body.contains(host) && response.body.contains("<RequestId>"),
            "{host}: {}",
            response.body
        );
        ensure!(requests == (first.seen().len(), other.seen().len()), "{host}: a gateway received a request");
    }
    let trusted = |gateway: &str| {
        let series = format!("lota_gateway_trusted{{gateway=\"{gateway}\"}}");
        sum(tour, |line| line.starts_with(&series))
    };
    // Only owners of an object ask for it.
    ensure!(trusted("default")? >= 1.0 && trusted("other")? >= 1.0, "a gateway is not trusted anywhere");

    drop(other);
    // Connections that the gateway has accepted may still be answered.
    wait_until("the other gateway to be gone", || Ok(read(&pod, OTHER, GOOD)?.status == "503"))?;
    for (node, pod) in tour.one_pod_per_node() {
        let response = read(&pod, "cwlota.com", GOOD)?;
        ensure!(
            response.is_hit() && response.is_whole(&contents[0]),
            "n{node}, without the other: {}",
            response.head
        );
    }
    let failing: Vec<_> = levels(tour, 0)?.into_iter().filter(|(_, level)| level == "fail").collect();
    ensure!(failing == [("gateway other".to_owned(), "fail".to_owned())], "{failing:?}");
    tour.restart(Mode::OwnCredential)
}
