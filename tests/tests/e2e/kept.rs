//! `cache.after_write = "keep"`: what passes to the gateway is a hit without a read from the backend, and only what the backend
//! states is kept.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::{Method, StatusCode};
use lota_tests::{
    lab::{
        ADMIN, Mode, NOBODY, Namespace, Origin, VIP,
        chunked::Chunked,
        raw::{Reply, Request, Signing, content},
        scripted::{Access, Answer, CorrectGateway, SeenRequest, StoredObject},
    },
    tour::{MIB, Tour, wait_until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{runtime::Runtime, sync::Notify};

use crate::{
    misbehaviour::{is_cached, start},
    write_fetches::{count, restart, write},
    written::{HEADERS, OFF, put, request, send, send_past_lota},
};

const KEEP: &str = "[cache]\nafter_write = \"keep\"\n";
/// Maximum number of bytes that the backend sends to describe an object.
const DESCRIPTION: u64 = 4096;
/// Size of uploads of which the owner gets the bytes after the gateway's response.
const SIZE: usize = 3 << 20;
/// Size of uploads of which the owner gets bytes before the gateway's response.
const LARGE: usize = 20 << 20;

/// Returns the bytes in use in all caches, with those of uploads in progress.
fn used(tour: &Tour) -> Result<f64> {
    tour.metric("lota_cache_bytes")
}

/// Waits until this number of written objects has a result, on all nodes.
fn wait_count(tour: &Tour, key: &str, result: &str, number: f64) -> Result<()> {
    let waited =
        wait_until(&format!("{key} to be counted as {result}"), || Ok(count(tour, result)? == number));
    waited.with_context(|| {
        let metrics = tour.nodes.iter().filter_map(|node| node.admin("/metrics").ok()).collect::<String>();
        let of_writes = |line: &&str| line.starts_with("lota_write_fetches_total{") && !line.ends_with(" 0");
        metrics.lines().filter(of_writes).collect::<Vec<_>>().join(", ")
    })
}

fn send_as_is(from: &Namespace, request: Request) -> Result<Reply> {
    from.send_all((VIP, 80).into(), vec![request])?.into_iter().next().context("no response")
}

pub(crate) fn first_reads(tour: &mut Tour) -> Result<()> {
    tour.restart_with(Mode::OwnCredential, OFF, KEEP)?;
    uploads_are_hits(tour)?;
    other_writes_are_fetched(tour)?;
    failed_uploads_leave_nothing(tour)?;
    tour.restart(Mode::OwnCredential)
}

fn uploads_are_hits(tour: &Tour) -> Result<()> {
    let data = content(SIZE);
    let checksum = BASE64_STANDARD.encode(crc32c::crc32c(&data).to_be_bytes());
    let signed = Chunked { size: 65_536, signed: true, trailer: None };
    let trailer = Chunked { trailer: Some(("x-amz-checksum-crc32c", &checksum)), ..signed };
    let unsigned = Chunked { signed: false, size: 1_000_000, ..trailer };
    // Ceph RGW 16 supports only chunks with signatures.
    let takes_trailers = !matches!(tour.origin, Origin::Rgw(_));
    let mut keys = Vec::new();
    for (node, pod) in tour.one_pod_per_node() {
        let mut forms = vec![("plain", None), ("signed", Some(signed))];
        if takes_trailers {
            forms.extend([("trailer", Some(trailer)), ("unsigned", Some(unsigned))]);
        }
        for (form, chunked) in forms {
            let key = format!("kept/{form}-{node}");
            let put = put(tour, &key, &data);
            let put = match chunked {
                Some(chunked) => put.sign_chunked(&ADMIN, chunked)?,
                None => put.sign(&ADMIN, Signing::Header)?,
            };
            let before = count(tour, "kept")?;
            let read = tour.backend.received();
            let reply = send_as_is(&pod, put)?;
            ensure!(reply.status == StatusCode::OK, "{key}: {} {}", reply.status, reply.code());
            wait_count(tour, &key, "kept", before + 1.0)?;
            let read = tour.backend.received() - read;
            ensure!(read < DESCRIPTION, "{key}: {read} bytes from the backend");
            keys.push((node, key));
        }
        let key = format!("kept/boto3-{node}");
        let before = count(tour, "kept")?;
        tour.client.put(&pod, &key, u64::from(node), 2 * MIB + 7)?;
        wait_count(tour, &key, "kept", before + 1.0)?;
        keys.push((node, key));
    }
    let (kept, bytes) = (count(tour, "kept")?, tour.metric("lota_write_kept_bytes_total")?);
    ensure!(bytes > kept * 2.0 * MIB as f64, "{bytes} bytes in {kept} objects");
    let read = tour.backend.received();
    for (writer, key) in &keys {
        let reader = tour.pod(writer % 3 + 1, 1);
        let got = send(&reader, request(tour, Method::GET, key, ""), &ADMIN)?;
        let own = send_past_lota(tour, request(tour, Method::GET, key, ""))?;
        ensure!(got.cache() == "hit", "{key}: first read: {} {}", got.status, got.cache());
        ensure!(got.status == own.status && got.body == own.body, "{key}: {} {}", got.status, own.status);
        for name in HEADERS {
            ensure!(got.header(name) == own.header(name), "{key}: {name}: {got:?} {own:?}");
        }
        let denied = send(&reader, request(tour, Method::GET, key, ""), &NOBODY)?;
        ensure!(denied.status == StatusCode::FORBIDDEN, "{key} for anyone: {denied:?}");
    }
    ensure!(tour.backend.received() == read, "a hit was read from the backend");
    Ok(())
}

fn other_writes_are_fetched(tour: &Tour) -> Result<()> {
    let (writer, kept, fetched) = (tour.pod(1, 1), count(tour, "kept")?, count(tour, "fetched")?);
    let parts = tour.client.upload(&writer, "kept/parts", 181, 20 * MIB + 7)?;
    ensure!(parts.status == 200, "{} {}", parts.status, parts.code);
    let source = format!("/{}", tour.client.name("kept/plain-1"));
    let copy = request(tour, Method::PUT, "kept/copy", "").header("x-amz-copy-source", &source);
    let copied = send(&writer, copy, &ADMIN)?;
    ensure!(copied.status == StatusCode::OK && copied.code().is_empty(), "{copied:?}");
    wait_count(tour, "what was written", "fetched", fetched + 2.0)?;
    ensure!(count(tour, "kept")? == kept, "parts or a copy were kept");
    Ok(())
}

fn failed_uploads_leave_nothing(tour: &Tour) -> Result<()> {
    let (before, results) = (used(tour)?, count(tour, "")?);
    for (node, pod) in tour.one_pod_per_node() {
        let refused = send(&pod, put(tour, &format!("kept/refused-{node}"), &content(SIZE)), &NOBODY);
        // Or the gateway closes the connection while the body is sent.
        let is_refused = refused.as_ref().map_or(true, |reply| !reply.status.is_success());
        ensure!(is_refused, "an upload without permission: {refused:?}");
        let key = format!("kept/aborted-{node}");
        let aborted = in_two(tour, pod, &key, &content(LARGE), || {
            wait_until("the upload to arrive", || Ok(used(tour)? >= before + LARGE as f64))?;
            Ok(Then::Abort)
        });
        ensure!(aborted?.is_none(), "an aborted upload was answered");
        wait_until("nothing to be left", || Ok(used(tour)? == before))?;
    }
    ensure!(count(tour, "")? == results, "a failed upload counts as a write");
    Ok(())
}

/// Event after the first half of an upload.
enum Then {
    Continue,
    Abort,
}

/// Sends half of an upload, calls `between`, and sends the rest or closes the connection. Returns the beginning of the response.
fn in_two(
    tour: &Tour,
    pod: Namespace,
    key: &str,
    body: &[u8],
    between: impl FnOnce() -> Result<Then>,
) -> Result<Option<String>> {
    let signed = request(tour, Method::PUT, key, "").sign(&ADMIN, Signing::Presigned)?;
    let head = format!(
        "PUT {} HTTP/1.1\r\nhost: cwlota.com\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        signed.target,
        body.len()
    );
    let (first, second) = body.split_at(body.len() / 2);
    let (first, second) = ([head.as_bytes(), first].concat(), second.to_vec());
    let (half, halfway) = mpsc::channel();
    let (go, goes) = mpsc::channel::<Then>();
    let sending = std::thread::spawn(move || {
        pod.run(move || -> Result<Option<String>> {
            let mut stream = TcpStream::connect((VIP, 80))?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.write_all(&first)?;
            half.send(())?;
            let Ok(Then::Continue) = goes.recv() else { return Ok(None) };
            stream.write_all(&second)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(Some(String::from_utf8_lossy(&answer).into_owned()))
        })?
    });
    let begun = halfway.recv_timeout(Duration::from_secs(20)).context("the first half was not sent");
    let then = begun.and_then(|()| between());
    let failed = then.map(|then| go.send(then)).err();
    drop(go);
    let answer = sending.join().map_err(|_| anyhow!("the writer panicked"))?;
    failed.map_or(answer, Err)
}

pub(crate) fn only_what_the_backend_states(tour: &mut Tour) -> Result<()> {
    let md5 = |body: &str| format!("\"{:x}\"", md5::compute(body));
    let (written, later, kms) =
        (md5("written"), md5("changed"), "\"00112233445566778899aabbccddeeff\"".to_owned());
    // Key, ETag that the gateway states, the backend's object, results, whether something is cached.
    type Case = (&'static str, String, Option<StoredObject>, &'static [&'static str], bool);
    let stored = |body: &str, etag: &str| {
        Some(StoredObject::new(body).etag(etag).header("date", "Fri, 01 Jan 2021 00:00:09 GMT"))
    };
    let no_quotes = written.trim_matches('"').to_uppercase();
    let encrypted =
        stored("written", &kms).map(|object| object.header("x-amz-server-side-encryption", "aws:kms"));
    let vary = stored("written", &written).map(|object| object.header("vary", "*"));
    let cases: [Case; 8] = [
        ("same", written.clone(), stored("written", &written), &["kept"], true),
        ("other-form", no_quotes.clone(), stored("written", &format!("\"{no_quotes}\"")), &["kept"], true),
        ("compressed", later.clone(), stored("changed", &later), &["keep-differs", "fetched"], true),
        ("encrypted", kms.clone(), encrypted, &["keep-differs", "fetched"], true),
        ("overtaken", written.clone(), stored("changed", &later), &["keep-differs", "other-object"], false),
        ("other-size", written.clone(), stored("written!", &written), &["keep-differs", "broken"], false),
        ("gone", written.clone(), None, &["keep-refused", "refused"], false),
        ("unstorable", written.clone(), vary, &["keep-refused", "refused"], false),
    ];
    let runtime = Runtime::new()?;
    let etags = cases.each_ref().map(|(key, etag, ..)| (format!("/scripted/{key}"), etag.clone()));
    let gateway = start(tour, &runtime, move |request: &SeenRequest| {
        let etag = etags.iter().find(|(path, _)| request.path() == path);
        etag.map_or(Answer::status(404), |(_, etag)| Answer::status(200).header("etag", etag))
    })?;
    let objects = CorrectGateway::new().rule(|_| Access::Signed);
    for (key, _, object, ..) in &cases {
        object.iter().for_each(|object| objects.put(&format!("/scripted/{key}"), object.clone()));
    }
    let backend = start(tour, &runtime, objects)?;
    restart(tour, &gateway, &backend, KEEP)?;
    for (key, _, _, results, cached) in cases {
        let before = results.iter().map(|result| count(tour, result)).collect::<Result<Vec<_>>>()?;
        drop(backend.take_seen());
        write(&tour.pod(1, 1), [key.to_owned()])?;
        for (result, before) in results.iter().zip(before) {
            wait_count(tour, key, result, before + 1.0)?;
        }
        ensure!(is_cached(tour, key)? == cached, "{key}: {results:?}, and cached or not");
        let methods: Vec<_> = backend.take_seen().into_iter().map(|seen| seen.method).collect();
        let expected: &[&str] = if results.len() == 1 { &["HEAD"] } else { &["HEAD", "GET"] };
        ensure!(methods == expected, "{key}: the backend received {methods:?}");
    }
    tour.restart(Mode::OwnCredential)
}

pub(crate) fn not_before_the_gateway(tour: &mut Tour) -> Result<()> {
    let runtime = Runtime::new()?;
    let etag = format!("\"{:x}\"", md5::compute("written"));
    let (answers, stated) = (Arc::new(Notify::new()), etag.clone());
    let waits = answers.clone();
    let gateway = start(tour, &runtime, move |request: &SeenRequest| {
        let answer = match request.path().contains("refused") {
            true => Answer::s3_error(403, "AccessDenied"),
            false => Answer::status(200).header("etag", &stated),
        };
        answer.wait_for(&waits)
    })?;
    // The objects are there before, from another writer.
    let objects = CorrectGateway::new().rule(|_| Access::Signed);
    for key in ["late", "refused"] {
        let object = StoredObject::new("written").etag(&etag);
        objects.put(&format!("/scripted/{key}"), object.header("date", "Fri, 01 Jan 2021 00:00:09 GMT"));
    }
    let backend = start(tour, &runtime, objects)?;
    restart(tour, &gateway, &backend, KEEP)?;
    for key in ["late", "refused"] {
        let (before, pod) = (used(tour)?, tour.pod(1, 1));
        let requests = gateway.seen().len();
        let writing = std::thread::spawn(move || write(&pod, [key.to_owned()]));
        wait_until("the upload to arrive at the gateway", || Ok(gateway.seen().len() > requests))?;
        std::thread::sleep(Duration::from_millis(500));
        let (seen, cached) = (backend.seen().len(), is_cached(tour, key)? || used(tour)? != before);
        answers.notify_one();
        let written = writing.join().map_err(|_| anyhow!("the writer panicked"))?;
        ensure!(
            seen == 0 && !cached,
            "{key}: before the gateway's answer: {seen} requests, cached: {cached}"
        );
        if key == "late" {
            written?;
            wait_count(tour, key, "kept", 1.0)?;
            ensure!(is_cached(tour, key)?, "not cached");
            drop(backend.take_seen());
        } else {
            ensure!(written.is_err(), "the gateway has refused the upload");
            wait_until("nothing to be left", || Ok(used(tour)? == before))?;
            ensure!(backend.seen().is_empty() && !is_cached(tour, key)?, "a refused upload was kept");
        }
    }
    tour.restart(Mode::OwnCredential)
}

pub(crate) fn owners_that_fail(tour: &mut Tour) -> Result<()> {
    tour.restart_with(Mode::OwnCredential, OFF, KEEP)?;
    let (key, large) = ("kept/owners", content(64 << 20));
    let kept = count(tour, "kept")?;
    let reply = send(&tour.pod(1, 1), put(tour, key, b"first"), &ADMIN)?;
    ensure!(reply.status == StatusCode::OK, "{reply:?}");
    wait_count(tour, key, "kept", kept + 1.0)?;
    let owner = tour.holders(key)?.pop().context("no owner")?;
    let owner = tour.nodes.iter().position(|node| node.name() == owner).context("no such node")?;
    let writer = tour.pod(u8::try_from((owner + 1) % tour.nodes.len() + 1)?, 1);

    // A stopped owner takes no bytes, and does not close its connections.
    let pid = Pid::from_raw(tour.nodes[owner].pid().context("the owner does not run")?.cast_signed());
    kill(pid, Signal::SIGSTOP)?;
    let entry = &tour.nodes[(owner + 1) % tour.nodes.len()];
    let slow = || entry.metric("lota_write_fetches_total{result=\"keep-too-slow\"}");
    let before = slow()?;
    let reply = send(&writer, put(tour, key, &large), &ADMIN);
    let counted = wait_until("the copy to be given up", || Ok(slow()? == before + 1.0));
    kill(pid, Signal::SIGCONT)?;
    let reply = reply?;
    ensure!(reply.status == StatusCode::OK, "with a stopped owner: {reply:?}");
    counted?;
    reads(tour, key, &large)?;

    tour.revive()?;
    let (before, body) = (used(tour)?, &large[..LARGE]);
    let killed = Pid::from_raw(tour.nodes[owner].pid().context("the owner does not run")?.cast_signed());
    let answer = in_two(tour, writer, key, body, || {
        wait_until("the upload to arrive", || Ok(used(tour)? >= before + LARGE as f64))?;
        kill(killed, Signal::SIGKILL)?;
        Ok(Then::Continue)
    });
    tour.nodes[owner].wait_ended()?;
    tour.revive()?;
    let answer = answer?.context("no response")?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "with a killed owner: {answer}");
    reads(tour, key, body)?;
    tour.restart(Mode::OwnCredential)
}

fn reads(tour: &Tour, key: &str, body: &[u8]) -> Result<()> {
    for (node, pod) in tour.one_pod_per_node() {
        let got = send(&pod, request(tour, Method::GET, key, ""), &ADMIN)?;
        ensure!(got.status == StatusCode::OK && got.body == body, "{key} at n{node}: {}", got.status);
    }
    Ok(())
}
