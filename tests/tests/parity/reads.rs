//! Reads: cold, warm, and from every node.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, GATEWAY, GATEWAY_PORT, Mode, VIP,
        raw::{Reply, Request, Signing, content},
    },
    tour::{Tour, wait_until},
};

use super::{
    compare, judge,
    table::{Row, rows},
};

/// Requests before a wave's answers are compared: an object each, and the biggest ones have 8 MiB.
const WAVE: usize = 64;

pub(crate) fn own_credential(tour: &mut Tour) -> Result<()> {
    run(tour, Mode::OwnCredential, "own")
}

pub(crate) fn direct(tour: &mut Tour) -> Result<()> {
    run(tour, Mode::Direct, "direct")
}

pub(crate) fn client_only(tour: &mut Tour) -> Result<()> {
    run(tour, Mode::ClientOnly, "client")
}

pub(crate) fn signed_anew(tour: &mut Tour) -> Result<()> {
    run(tour, Mode::Resign, "anew")
}

/// One object, asked for in one way after the other: nothing of one answer may show in the next.
pub(crate) fn one_after_the_other(tour: &mut Tour) -> Result<()> {
    const BUCKET: &str = "parity-mixed";
    let gateway = SocketAddr::from((GATEWAY, GATEWAY_PORT));
    let made =
        Request::new(Method::PUT, "cwlota.com", &format!("/{BUCKET}")).sign(&ADMIN, Signing::Header)?;
    tour.lab.switch().send_all(gateway, vec![made])?;
    for mode in [Mode::OwnCredential, Mode::ClientOnly, Mode::Resign] {
        tour.restart(mode)?;
        let target = format!("/{BUCKET}/{mode:?}");
        let body = content(100_000);
        let checksum = BASE64_STANDARD.encode(crc32c::crc32c(&body).to_be_bytes());
        let put = Request::new(Method::PUT, "cwlota.com", &target).header("x-amz-checksum-crc32c", &checksum);
        let put = put.body(body).sign(&ADMIN, Signing::Header)?;
        ensure!(tour.lab.switch().send_all(gateway, vec![put])?[0].status.is_success(), "the upload failed");
        let ask = |method: Method, query: &str, headers: &[(&'static str, &str)]| {
            let mut request = Request::new(method, "cwlota.com", &format!("{target}{query}"));
            for (name, value) in headers {
                request = request.header(name, value);
            }
            request.sign(&ADMIN, Signing::Header)
        };
        let (range, checksums) = (("range", "bytes=5-9"), ("x-amz-checksum-mode", "ENABLED"));
        let requests = vec![
            ask(Method::GET, "?response-content-type=text%2Fcss", &[])?,
            ask(Method::GET, "", &[range])?,
            ask(Method::GET, "", &[])?,
            ask(Method::GET, "", &[checksums])?,
            ask(Method::GET, "", &[range, checksums])?,
            ask(Method::GET, "?response-content-type=text%2Fcss", &[checksums])?,
            ask(Method::HEAD, "", &[checksums])?,
            ask(Method::HEAD, "", &[("range", "bytes=0-0")])?,
            ask(Method::GET, "", &[])?,
            ask(Method::GET, "", &[checksums])?,
        ];
        let asked: Vec<String> =
            (0..requests.len()).map(|number| format!("{mode:?}, request {number}")).collect();
        let expected = tour.lab.switch().send_all(gateway, requests.clone())?;
        let mut differences = BTreeMap::new();
        for round in 0..2 {
            for (node, pod) in tour.one_pod_per_node() {
                let got = pod.send_all((VIP, 80).into(), requests.clone())?;
                let way = format!("round {round} at n{node}");
                compare(&asked, ("the gateway", &expected), (&way, &got), &mut differences)?;
                ensure!(
                    round == 0 || got[9].cache() == "hit",
                    "{way}: checksums cost a hit: `{}`",
                    got[9].cache()
                );
            }
            wait_until("the fills to end", || fills_have_ended(tour))?;
        }
        judge(&differences)?;
    }
    Ok(())
}

fn run(tour: &mut Tour, mode: Mode, name: &str) -> Result<()> {
    tour.restart(mode)?;
    let bucket = format!("parity-{name}");
    let bucket = bucket.as_str();
    let gateway = SocketAddr::from((GATEWAY, GATEWAY_PORT));
    let made =
        Request::new(Method::PUT, "cwlota.com", &format!("/{bucket}")).sign(&ADMIN, Signing::Header)?;
    tour.lab.switch().send_all(gateway, vec![made])?;
    let (mut differences, mut missed, mut cacheable) = (BTreeMap::new(), Vec::new(), 0);
    let mut rows = rows();
    rows.retain(|row| mode != Mode::Resign || row.can_be_signed_anew());
    ensure!(rows.len() >= 200, "only {} requests", rows.len());
    for (wave, rows) in rows.chunks(WAVE).enumerate() {
        let keys: Vec<String> = (0..rows.len()).map(|row| format!("wave-{wave}/row-{row}")).collect();
        let requests = prepare(tour, gateway, bucket, rows, &keys)?;
        let asked: Vec<String> = rows.iter().map(Row::name).collect();
        let at_gateway = tour.lab.switch().send_all(gateway, requests.clone())?;
        let cold = tour.pod(1, 1).send_all((VIP, 80).into(), requests.clone())?;
        compare(&asked, ("the gateway", &at_gateway), ("cold", &cold), &mut differences)?;
        wait_until("the fills to end", || fills_have_ended(tour))?;
        for (node, pod) in tour.one_pod_per_node() {
            let warm = pod.send_all((VIP, 80).into(), requests.clone())?;
            let way = format!("warm at n{node}");
            compare(&asked, ("the gateway", &at_gateway), (&way, &warm), &mut differences)?;
            for (row, reply) in rows.iter().zip(&warm) {
                if row.is_cacheable() && reply.status.is_success() {
                    cacheable += 1;
                    if reply.cache() != "hit" {
                        missed.push(format!("{way}: {}: {}", row.name(), reply.header("lota-cache")));
                    }
                }
            }
        }
    }
    if mode == Mode::Resign {
        // What a server says of itself is not in LOTA's own refusals.
        differences.retain(|kind, _| kind != "header accept-ranges" && kind != "header vary");
    }
    judge(&differences)?;
    // Without a credential of LOTA's own, ranges that are signed do not fill.
    let most = if mode == Mode::ClientOnly { cacheable * 2 / 3 } else { 0 };
    ensure!(
        missed.len() <= most,
        "{} of {cacheable} reads that should have been hits were none:\n    {}",
        missed.len(),
        missed[..missed.len().min(8)].join("\n    ")
    );
    Ok(())
}

/// Makes the rows' objects, at the gateway itself; the rows' requests.
fn prepare(
    tour: &Tour,
    gateway: SocketAddr,
    bucket: &str,
    rows: &[Row],
    keys: &[String],
) -> Result<Vec<Request>> {
    let put = |(row, key): (&Row, &String)| {
        Request::new(Method::PUT, "cwlota.com", &format!("/{bucket}/{key}"))
            .header("content-type", "text/x-parity")
            .header("cache-control", "max-age=60")
            .header("content-disposition", "inline")
            .header("content-language", "de")
            .header("x-amz-meta-made-by", "parity")
            .body(content(row.size))
            .sign(&ADMIN, Signing::Header)
    };
    let there = || rows.iter().zip(keys).filter(|(row, _)| row.exists);
    let puts = there().map(put).collect::<Result<_>>()?;
    for reply in tour.lab.switch().send_all(gateway, puts)? {
        ensure!(reply.status.is_success(), "an upload was answered {} {}", reply.status, reply.code());
    }
    let heads = there().map(|(_, key)| {
        Request::new(Method::HEAD, "cwlota.com", &format!("/{bucket}/{key}")).sign(&ADMIN, Signing::Header)
    });
    let mut told = tour.lab.switch().send_all(gateway, heads.collect::<Result<_>>()?)?.into_iter();
    rows.iter()
        .zip(keys)
        .map(|(row, key)| {
            let told: Option<Reply> = if row.exists { told.next() } else { None };
            let header = |name| told.as_ref().map(|told| told.header(name).to_owned()).unwrap_or_default();
            row.request(bucket, key, &header("etag"), &header("last-modified"))
        })
        .collect()
}

fn fills_have_ended(tour: &Tour) -> Result<bool> {
    for node in &tour.nodes {
        if node.metric("lota_fills_in_progress")? > 0.0 {
            return Ok(false);
        }
    }
    Ok(true)
}
