//! `cache.after_write = "fetch"`: what a client has just written is a hit, and what it failed to write leaves nothing.

use std::{collections::HashMap, io::Write as _, sync::mpsc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hyper::{Method, StatusCode};
use lota_tests::{
    lab::{
        ADMIN, Credential, GATEWAY, GATEWAY_PORT, Mode, NOBODY, Namespace, VIP,
        raw::{Reply, Request, Signing, content},
    },
    tour::{MIB, Tour, wait_until},
};
use nix::sys::signal::Signal;

use crate::{
    cold::sum,
    requests::{head, with_gateway},
};

pub(crate) const OFF: &str = "[cache]\n";
const FETCH: &str = "[cache]\nafter_write = \"fetch\"\n";
/// Number of objects that are read on their owner and on another node, in turns.
const SMALL: u8 = 6;
/// Headers of the object, which a hit must have as the gateway's own response does.
pub(crate) const HEADERS: [&str; 5] =
    ["content-type", "content-length", "etag", "last-modified", "x-amz-meta-made-by"];

pub(crate) fn request(tour: &Tour, method: Method, key: &str, query: &str) -> Request {
    Request::new(method, "cwlota.com", &format!("/{}{query}", tour.client.name(key)))
}

pub(crate) fn put(tour: &Tour, key: &str, body: &[u8]) -> Request {
    request(tour, Method::PUT, key, "")
        .header("content-type", "text/x-lab")
        .header("x-amz-meta-made-by", "lab")
        .body(body.to_vec())
}

/// Sends a signed request through LOTA.
pub(crate) fn send(from: &Namespace, request: Request, credential: &Credential) -> Result<Reply> {
    let replies = from.send_all((VIP, 80).into(), vec![request.sign(credential, Signing::Header)?])?;
    replies.into_iter().next().context("no response")
}

/// Sends a signed request directly to the gateway.
pub(crate) fn send_past_lota(tour: &Tour, request: Request) -> Result<Reply> {
    let request = request.sign(&ADMIN, Signing::Header)?;
    let replies = tour.lab.switch().send_all((GATEWAY, GATEWAY_PORT).into(), vec![request])?;
    replies.into_iter().next().context("no response")
}

/// Returns the number of written objects with any result, on all nodes.
fn results(tour: &Tour) -> Result<f64> {
    sum(tour, |line| line.starts_with("lota_write_fetches_total{"))
}

pub(crate) fn first_reads(tour: &mut Tour) -> Result<()> {
    let (writer, reader) = (tour.pod(1, 1), tour.pod(2, 1));
    let before = send(&writer, put(tour, "written/off", b"off"), &ADMIN)?;
    ensure!(before.status == StatusCode::OK, "{before:?}");
    let got = send(&reader, request(tour, Method::GET, "written/off", ""), &ADMIN)?;
    ensure!(got.cache() == "miss" && got.body.as_ref() == b"off", "without the option: {got:?}");

    tour.restart_with(Mode::OwnCredential, OFF, FETCH)?;
    failed_writes_leave_nothing(tour)?;
    successful_writes_are_hits(tour)?;
    overwritten(tour)?;
    tour.restart(Mode::OwnCredential)
}

fn failed_writes_leave_nothing(tour: &Tour) -> Result<()> {
    let pod = tour.pod(1, 1);
    let refused = send(&pod, put(tour, "written/refused", b"refused"), &NOBODY)?;
    let complete = "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>\"e\"</ETag></Part></CompleteMultipartUpload>";
    let unknown = request(tour, Method::POST, "written/unknown-upload", "?uploadId=none").body(complete);
    let unknown = send(&pod, unknown, &ADMIN)?;
    let source = format!("/{}", tour.client.name("written/no-such-object"));
    let copy = request(tour, Method::PUT, "written/copy-of-nothing", "").header("x-amz-copy-source", &source);
    let copy = send(&pod, copy, &ADMIN)?;
    for (what, reply) in [("refused", refused), ("unknown upload", unknown), ("copy of nothing", copy)] {
        ensure!(!reply.code().is_empty(), "{what}: {} {:?}", reply.status, reply.body);
    }
    let begun = send(&pod, request(tour, Method::POST, "written/aborted", "?uploads="), &ADMIN)?;
    let begun = String::from_utf8(begun.body.to_vec())?;
    let id =
        begun.split("<UploadId>").nth(1).and_then(|rest| rest.split('<').next()).context(begun.clone())?;
    let part = request(tour, Method::PUT, "written/aborted", &format!("?partNumber=1&uploadId={id}"));
    let part = send(&pod, part.body(content(1000)), &ADMIN)?;
    let query = format!("?uploadId={id}");
    let aborted = send(&pod, request(tour, Method::DELETE, "written/aborted", &query), &ADMIN)?;
    ensure!(part.status.is_success() && aborted.status.is_success(), "{part:?} {aborted:?}");
    Ok(())
}

fn successful_writes_are_hits(tour: &Tour) -> Result<()> {
    let writer = tour.pod(1, 1);
    let small = |number: u8| (format!("written/small-{number}"), content(200_000 + usize::from(number)));
    let mut keys = Vec::new();
    for (key, body) in (0..SMALL).map(small) {
        let reply = send(&writer, put(tour, &key, &body), &ADMIN)?;
        ensure!(reply.status == StatusCode::OK, "{reply:?}");
        keys.push(key);
    }
    let source = format!("/{}", tour.client.name(&keys[0]));
    let copy = request(tour, Method::PUT, "written/copy", "").header("x-amz-copy-source", &source);
    let copied = send(&writer, copy, &ADMIN)?;
    ensure!(copied.status == StatusCode::OK && copied.code().is_empty(), "{copied:?}");
    let parts = tour.client.upload(&writer, "written/parts", 180, 20 * MIB + 7)?;
    ensure!(parts.status == 200, "{} {}", parts.status, parts.code);
    keys.extend(["written/copy", "written/parts"].map(str::to_owned));

    let fetched = || tour.metric("lota_write_fetches_total{result=\"fetched\"}");
    let waited = wait_until("what was written to be fetched", || Ok(fetched()? >= keys.len() as f64));
    ensure!(waited.is_ok(), "{} of {} objects were fetched", fetched()?, keys.len());
    let mut owners = HashMap::new();
    for node in &tour.nodes {
        owners.extend(node.cached()?.into_keys().map(|name| (name, node.name())));
    }
    for key in ["refused", "unknown-upload", "copy-of-nothing", "aborted"] {
        let name = tour.client.name(&format!("written/{key}"));
        ensure!(!owners.contains_key(&name), "{key} is cached: {owners:?}");
    }
    let fetched = tour.backend.received();
    for (key, is_at_owner) in keys.iter().zip([true, false].into_iter().cycle()) {
        let owner = owners.get(&tour.client.name(key)).with_context(|| format!("{key} is nowhere"))?;
        let is_entry = |node: &u8| (format!("n{node}") == *owner) == is_at_owner;
        let (node, pod) = tour.one_pod_per_node().find(|(node, _)| is_entry(node)).context("no such node")?;
        let got = send(&pod, request(tour, Method::GET, key, ""), &ADMIN)?;
        let own = send_past_lota(tour, request(tour, Method::GET, key, ""))?;
        ensure!(got.cache() == "hit", "{key}, first read at n{node}, owner {owner}: {}", got.cache());
        ensure!(got.status == own.status && got.body == own.body, "{key}: {} {}", got.status, own.status);
        for name in HEADERS {
            ensure!(got.header(name) == own.header(name), "{key}: {name}: {got:?} {own:?}");
        }
    }
    ensure!(tour.backend.received() == fetched, "a hit was fetched from the backend");
    let denied = send(&writer, request(tour, Method::GET, &keys[0], ""), &NOBODY)?;
    ensure!(denied.status == StatusCode::FORBIDDEN, "a fetched object for anyone: {denied:?}");
    Ok(())
}

fn overwritten(tour: &Tour) -> Result<()> {
    for round in 0..4_u8 {
        let key = format!("written/over-{round}");
        let bodies = [1, 2, 3].map(|version| vec![version + 10 * round; 300_000]);
        let writer = tour.pod(1 + round % 3, 1);
        for body in &bodies[..2] {
            let reply = send(&writer, put(tour, &key, body), &ADMIN)?;
            ensure!(reply.status == StatusCode::OK, "{reply:?}");
        }
        let expect = |body: &[u8], when: &str| -> Result<()> {
            for (node, pod) in tour.one_pod_per_node() {
                let got = send(&pod, request(tour, Method::GET, &key, ""), &ADMIN)?;
                ensure!(
                    got.body.as_ref() == body,
                    "{key} at n{node}, {when}: {} {}, byte {:?}",
                    got.status,
                    got.cache(),
                    got.body.first()
                );
            }
            Ok(())
        };
        expect(&bodies[1], "after two writes")?;
        send_past_lota(tour, put(tour, &key, &bodies[2]))?;
        expect(&bodies[2], "after a write past LOTA")?;
        send(&writer, put(tour, &key, &bodies[0]), &ADMIN)?;
        send(&writer, request(tour, Method::DELETE, &key, ""), &ADMIN)?;
        let gone = send(&tour.pod(2, 1), request(tour, Method::GET, &key, ""), &ADMIN)?;
        ensure!(gone.status == StatusCode::NOT_FOUND, "after a delete: {} {}", gone.status, gone.cache());
    }
    Ok(())
}

pub(crate) fn late_results(tour: &mut Tour) -> Result<()> {
    const HEAD: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nTransfer-Encoding: chunked\r\n\r\n";
    tour.nodes[0].edit(OFF, FETCH);
    let success = "<?xml version=\"1.0\"?>\n<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>";
    let progress = "<Progress>123456789</Progress>".repeat(5000);
    for (counted, result) in [
        (None, "<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code></Error>".to_owned()),
        (Some(""), success.to_owned()),
        (Some(""), success.replace("<ETag>", &format!("{progress}<ETag>"))),
        (Some("{result=\"unrecognized\"}"), success.replace("Complete", "Other")),
        // Ceph RGW states no ETag of an upload.
        (Some(""), success.replace(">e<", "><")),
    ] {
        let post = request(tour, Method::POST, "written/late", "?uploadId=late");
        let post = post.sign(&ADMIN, Signing::Presigned)?;
        let post = format!("POST {} HTTP/1.1\r\nHost: cwlota.com\r\nContent-Length: 0\r\n\r\n", post.target);
        let (seen, proceeds) = mpsc::channel();
        let gateway = move |stream: &mut std::net::TcpStream| {
            head(stream)?;
            stream.write_all(HEAD)?;
            for _ in 0..3 {
                stream.write_all(b"4\r\n    \r\n")?;
            }
            // The rest comes after the client has seen the beginning.
            proceeds.recv_timeout(Duration::from_secs(20)).context("LOTA holds back the response")?;
            for piece in result.as_bytes().chunks(9.max(result.len() / 1000)) {
                write!(stream, "{:x}\r\n", piece.len())?;
                stream.write_all(piece)?;
                stream.write_all(b"\r\n")?;
            }
            stream.write_all(b"0\r\n\r\n")?;
            Ok(())
        };
        let ((), answer) = with_gateway(tour, gateway, move |stream| {
            stream.write_all(post.as_bytes())?;
            let mut answer = head(stream)?;
            let mut byte = [0];
            while !answer.ends_with("\r\n0\r\n\r\n") {
                std::io::Read::read_exact(stream, &mut byte)?;
                answer.push(char::from(byte[0]));
                if answer.ends_with("    ") {
                    let _ = seen.send(());
                }
            }
            Ok(answer)
        })?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        // The owner does not have the object, or is another node with another gateway.
        match counted {
            Some(labels) => wait_until("the write to be counted", || {
                let name = format!("lota_write_fetches_total{labels}");
                let counted = sum(tour, |line| line.starts_with(&name))?;
                ensure!(results(tour)? <= 1.0, "counted twice");
                Ok(counted == 1.0)
            })?,
            None => {
                std::thread::sleep(Duration::from_millis(200));
                ensure!(results(tour)? == 0.0, "counts as a write");
            }
        }
    }
    let node = &mut tour.nodes[0];
    node.forget_edits();
    node.stop(Signal::SIGTERM)?;
    node.configure(Mode::OwnCredential)?;
    tour.revive()
}
