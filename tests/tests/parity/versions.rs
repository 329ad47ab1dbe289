//! Versions of one object, and a delete marker.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, GATEWAY, GATEWAY_PORT, Mode, VIP,
        raw::{Reply, Request, Signing, content},
    },
    tour::Tour,
};

use super::{compare, fail_on_differences};

const BUCKET: &str = "parity-versions";
const SIZE: usize = 50_000;

pub(crate) fn all(tour: &mut Tour) -> Result<()> {
    tour.restart(Mode::OwnCredential)?;
    let gateway = SocketAddr::from((GATEWAY, GATEWAY_PORT));
    let at_gateway = |tour: &Tour, request: Request| -> Result<Reply> {
        let request = request.sign(&ADMIN, Signing::Header)?;
        let reply = tour.lab.switch().send_all(gateway, vec![request])?.pop().context("no answer")?;
        ensure!(reply.status.is_success(), "answered {} {}", reply.status, reply.code());
        Ok(reply)
    };
    let request = |method, rest: &str| Request::new(method, "cwlota.com", &format!("/{BUCKET}{rest}"));
    let enabled = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    at_gateway(tour, request(Method::PUT, ""))?;
    // Written before versioning is enabled, so its version is `null`.
    at_gateway(tour, request(Method::PUT, "/k").body(content(SIZE - 2)))?;
    at_gateway(tour, request(Method::PUT, "?versioning").body(enabled))?;
    let mut versions = vec!["null".to_owned(), "unheard-of".to_owned()];
    for size in [SIZE - 1, SIZE] {
        let put = at_gateway(tour, request(Method::PUT, "/k").body(content(size)))?;
        versions.push(put.header("x-amz-version-id").to_owned());
    }
    let read = |tour: &Tour, differences: &mut BTreeMap<_, _>, newest: &str| -> Result<()> {
        let queries = versions.iter().map(|version| format!("/k?versionId={version}"));
        let mut labels = Vec::new();
        let mut requests = Vec::new();
        for query in queries.chain(["/k".to_owned()]) {
            for (method, range) in [(Method::GET, ""), (Method::GET, "bytes=7-99"), (Method::HEAD, "")] {
                labels.push(format!("{method} {query} {range} {newest}"));
                let mut request = request(method, &query);
                if !range.is_empty() {
                    request = request.header("range", range);
                }
                requests.push(request.sign(&ADMIN, Signing::Header)?);
            }
        }
        let expected = tour.lab.switch().send_all(gateway, requests.clone())?;
        for (round, way) in ["cold", "warm"].into_iter().enumerate() {
            for (node, pod) in tour.one_pod_per_node() {
                let got = pod.send_all((VIP, 80).into(), requests.clone())?;
                let way = format!("{way} at n{node}");
                compare(&labels, ("the gateway", &expected), (&way, &got), differences)?;
                let hits = got.iter().filter(|reply| reply.cache() == "hit").count();
                ensure!(round == 0 || hits >= 4, "{way}: only {hits} hits");
            }
        }
        Ok(())
    };
    let mut differences = BTreeMap::new();
    read(tour, &mut differences, "as it is")?;
    at_gateway(tour, request(Method::DELETE, "/k"))?;
    read(tour, &mut differences, "when deleted")?;
    fail_on_differences(&differences)
}
