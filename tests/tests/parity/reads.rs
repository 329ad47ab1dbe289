//! Cold and warm reads from every node.

use std::{collections::BTreeMap, net::SocketAddr, thread, time::Duration};

use anyhow::{Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, GATEWAY, GATEWAY_PORT, Mode, Origin, VIP,
        raw::{Reply, Request, Signing, content},
    },
    tour::{Tour, wait_until},
};

use super::{
    compare, fail_on_differences,
    table::{Row, rows},
};

/// Number of requests after which responses are compared. Each has an object of its own, of up to 8 MiB.
const WAVE: usize = 64;
/// Age at which an object's date proves that it is unchanged, and a second more.
const SETTLED_AGE: Duration = Duration::from_secs(3);
/// Maximum number of bytes from the gateway for a hit whose headers are proven.
const SETTLED_HIT: u64 = 16 << 10;
/// Number of times that a read which was no hit is repeated, every half second: longer than a client is skipped after a
/// verification that failed.
const RETRIES: usize = 30;
/// Size from which objects are large, in bytes.
const LARGE: usize = 1 << 20;

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
    run(tour, Mode::ReSign, "anew")
}

/// Different reads of one object in turn: no response may affect the next.
pub(crate) fn one_after_the_other(tour: &mut Tour) -> Result<()> {
    const BUCKET: &str = "parity-mixed";
    let gateway = SocketAddr::from((GATEWAY, GATEWAY_PORT));
    let made =
        Request::new(Method::PUT, "cwlota.com", &format!("/{BUCKET}")).sign(&ADMIN, Signing::Header)?;
    tour.lab.switch().send_all(gateway, vec![made])?;
    for mode in [Mode::OwnCredential, Mode::ClientOnly, Mode::ReSign] {
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
        let labels: Vec<String> =
            (0..requests.len()).map(|number| format!("{mode:?}, request {number}")).collect();
        let expected = tour.lab.switch().send_all(gateway, requests.clone())?;
        let mut differences = BTreeMap::new();
        for round in 0..2 {
            for (node, pod) in tour.one_pod_per_node() {
                let got = pod.send_all((VIP, 80).into(), requests.clone())?;
                let way = format!("round {round} at n{node}");
                compare(&labels, ("the gateway", &expected), (&way, &got), &mut differences)?;
                ensure!(
                    round == 0 || got[9].cache() == "hit",
                    "{way}: with checksums, it is not a hit: `{}`",
                    got[9].cache()
                );
            }
            wait_until("the fills to end", || fills_have_ended(tour))?;
            if round == 0 && mode == Mode::OwnCredential {
                // The first answer that settles what is held has overridden headers.
                thread::sleep(SETTLED_AGE);
            }
        }
        if mode == Mode::OwnCredential {
            let fetched = tour.fetched();
            tour.pod(1, 1).send_all((VIP, 80).into(), vec![requests[2].clone()])?;
            let fetched = tour.fetched() - fetched;
            ensure!(fetched < SETTLED_HIT, "new metadata is not stored: a hit fetched {fetched} bytes");
        }
        fail_on_differences(&differences)?;
    }
    Ok(())
}

/// A gateway with one of its names.
pub(crate) struct NamedGateway {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// Returns the content of an object of this size, in bytes.
    pub(crate) content: fn(usize) -> Vec<u8>,
}

impl NamedGateway {
    /// The lab's gateway.
    pub(crate) fn first() -> Self {
        Self { name: "cwlota.com", address: (GATEWAY, GATEWAY_PORT).into(), content }
    }
}

fn run(tour: &mut Tour, mode: Mode, name: &str) -> Result<()> {
    tour.restart(mode)?;
    let bucket = format!("parity-{name}");
    let bucket = bucket.as_str();
    let gateway = NamedGateway::first();
    let made =
        Request::new(Method::PUT, "cwlota.com", &format!("/{bucket}")).sign(&ADMIN, Signing::Header)?;
    tour.lab.switch().send_all(gateway.address, vec![made])?;
    let (mut differences, mut missed, mut cacheable) = (BTreeMap::new(), Vec::new(), 0);
    let mut rows = rows();
    rows.retain(|row| mode != Mode::ReSign || row.can_be_signed_anew());
    if matches!(tour.origin, Origin::Rgw(_)) && mode != Mode::OwnCredential {
        // RGW is slow with large objects, which do not depend on the mode.
        rows.retain(|row| row.size < LARGE);
    }
    ensure!(rows.len() >= 200, "only {} requests", rows.len());
    for (wave, rows) in rows.chunks(WAVE).enumerate() {
        let keys: Vec<String> = (0..rows.len()).map(|row| format!("wave-{wave}/row-{row}")).collect();
        let requests = prepare(tour, &gateway, bucket, rows, &keys)?;
        let labels: Vec<String> = rows.iter().map(Row::name).collect();
        let at_gateway = tour.lab.switch().send_all(gateway.address, requests.clone())?;
        let cold = tour.pod(1, 1).send_all((VIP, 80).into(), requests.clone())?;
        compare(&labels, ("the gateway", &at_gateway), ("cold", &cold), &mut differences)?;
        wait_until("the fills to end", || fills_have_ended(tour))?;
        if wave == 0 {
            // The first possible hits start the verification of the gateway at each owner, which relays requests
            // meanwhile.
            wait_until("every node to trust the gateway", || {
                tour.pod(1, 1).send_all((VIP, 80).into(), requests.clone())?;
                trusts_everywhere(tour)
            })?;
        }
        for (node, pod) in tour.one_pod_per_node() {
            let warm = pod.send_all((VIP, 80).into(), requests.clone())?;
            let way = format!("warm at n{node}");
            compare(&labels, ("the gateway", &at_gateway), (&way, &warm), &mut differences)?;
            let is_hit = |row: &Row, reply: &Reply| !is_possible_hit(row, reply) || reply.cache() == "hit";
            cacheable += rows.iter().zip(&warm).filter(|(row, reply)| is_possible_hit(row, reply)).count();
            let pairs = || rows.iter().zip(&requests);
            let mut left: Vec<_> =
                pairs().zip(&warm).filter(|((row, _), reply)| !is_hit(row, reply)).collect();
            // An owner that meets a form of request for the first time relays it while it verifies the gateway.
            for _ in 0..if mode == Mode::ClientOnly { 0 } else { RETRIES } {
                if left.is_empty() {
                    break;
                }
                thread::sleep(Duration::from_millis(500));
                let again = left.iter().map(|((_, request), _)| (*request).clone()).collect();
                let replies = pod.send_all((VIP, 80).into(), again)?;
                let mut replies = replies.iter();
                left.retain(|((row, _), _)| replies.next().is_none_or(|reply| !is_hit(row, reply)));
            }
            missed.extend(
                left.iter().map(|((row, _), reply)| {
                    format!("{way}: {}: {}", row.name(), reply.header("lota-cache"))
                }),
            );
        }
    }
    if mode == Mode::ReSign {
        // LOTA's own refusals lack headers that describe the server.
        differences.retain(|kind, _| kind != "header accept-ranges" && kind != "header vary");
    }
    fail_on_differences(&differences)?;
    // Without a credential of LOTA, signed ranges do not start fills.
    let max_missed = if mode == Mode::ClientOnly { cacheable * 2 / 3 } else { 0 };
    ensure!(
        missed.len() <= max_missed,
        "{} of {cacheable} cacheable reads were not hits:\n    {}",
        missed.len(),
        missed[..missed.len().min(8)].join("\n    ")
    );
    Ok(())
}

pub(crate) fn is_possible_hit(row: &Row, reply: &Reply) -> bool {
    row.is_cacheable() && reply.status.is_success()
}

/// Creates the objects of the rows at the gateway; returns the requests.
pub(crate) fn prepare(
    tour: &Tour,
    gateway: &NamedGateway,
    bucket: &str,
    rows: &[Row],
    keys: &[String],
) -> Result<Vec<Request>> {
    let put = |(row, key): (&Row, &String)| {
        Request::new(Method::PUT, gateway.name, &format!("/{bucket}/{key}"))
            .header("content-type", "text/x-parity")
            .header("cache-control", "max-age=60")
            .header("content-disposition", "inline")
            .header("content-language", "de")
            .header("x-amz-meta-made-by", gateway.name)
            // RGW refuses a PUT without it, and hyper omits it for empty bodies.
            .header("content-length", &row.size.to_string())
            .body((gateway.content)(row.size))
            .sign(&ADMIN, Signing::Header)
    };
    let there = || rows.iter().zip(keys).filter(|(row, _)| row.exists);
    let puts = there().map(put).collect::<Result<_>>()?;
    for reply in tour.lab.switch().send_all(gateway.address, puts)? {
        ensure!(reply.status.is_success(), "an upload was answered {} {}", reply.status, reply.code());
    }
    let heads = there().map(|(_, key)| {
        Request::new(Method::HEAD, gateway.name, &format!("/{bucket}/{key}")).sign(&ADMIN, Signing::Header)
    });
    let heads = heads.collect::<Result<_>>()?;
    let mut stored = tour.lab.switch().send_all(gateway.address, heads)?.into_iter();
    rows.iter()
        .zip(keys)
        .map(|(row, key)| {
            let stored: Option<Reply> = if row.exists { stored.next() } else { None };
            let header =
                |name| stored.as_ref().map(|reply| reply.header(name).to_owned()).unwrap_or_default();
            row.request(gateway.name, bucket, key, (&header("etag"), &header("last-modified")))
        })
        .collect()
}

pub(crate) fn fills_have_ended(tour: &Tour) -> Result<bool> {
    for node in &tour.nodes {
        if node.metric("lota_fills_in_progress")? > 0.0 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn trusts_everywhere(tour: &Tour) -> Result<bool> {
    for node in &tour.nodes {
        if node.metric("lota_gateway_trusted{gateway=\"default\"}")? < 1.0 {
            return Ok(false);
        }
    }
    Ok(true)
}
