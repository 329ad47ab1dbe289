//! Objects in stripes: spread over the nodes, byte-exact whatever is read of them, and under whatever fails.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper::{Method, StatusCode};
use lota_tests::{
    lab::{
        ADMIN, Credential, Mode, NOBODY, Namespace, VIP,
        raw::{Reply, Request, Signing, content},
        run,
    },
    tour::{MIB, Tour, wait_settled, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Size of the objects: 45 whole stripes and a part of one.
const SIZE: usize = (45 << 20) + 12_345;
const STRIPES: f64 = 46.0;
/// Time for which a signature is valid that expires during a read.
const VALID: Duration = Duration::from_secs(5);
const WHOLE: &str = "[cache]\n";
const STRIPED: &str = "[placement]\nstripe_above = \"8MiB\"\nstripe = \"1MiB\"\n[cache]\n";
/// Headers of the object, which a hit must have as the gateway's own response does.
const HEADERS: [&str; 4] = ["content-type", "content-length", "etag", "last-modified"];

fn send(from: &Namespace, request: Request, credential: &Credential) -> Result<Reply> {
    let request = request.sign(credential, Signing::Header)?;
    from.send_all((VIP, 80).into(), vec![request])?.pop().context("no response")
}

fn request(tour: &Tour, method: Method, key: &str) -> Request {
    Request::new(method, "cwlota.com", &format!("/{}", tour.client.name(key)))
}

fn put(tour: &Tour, key: &str, body: Vec<u8>) -> Result<()> {
    let put = request(tour, Method::PUT, key).header("content-type", "text/x-lab").body(body);
    let reply = send(&tour.pod(1, 1), put, &ADMIN)?;
    ensure!(reply.status == StatusCode::OK, "{reply:?}");
    Ok(())
}

/// Reads an object, or a range of it, on a node.
fn get(tour: &Tour, node: u8, key: &str, range: Option<&str>) -> Result<Reply> {
    let get = request(tour, Method::GET, key);
    let get = range.into_iter().fold(get, |get, range| get.header("range", range));
    send(&tour.pod(node, 1), get, &ADMIN)
}

/// Returns bytes that differ from those of [`content`] everywhere.
fn other_content(size: usize) -> Vec<u8> {
    content(size).into_iter().map(|byte| !byte).collect()
}

fn stripes(tour: &Tour) -> Result<f64> {
    tour.metric("lota_cache_stripes")
}

/// Removes all objects from the caches.
fn empty(tour: &Tour) -> Result<()> {
    for node in &tour.nodes {
        node.lota(&["cache", "evict", "--all"])?;
    }
    Ok(())
}

/// Puts an object, and reads it until all nodes have their stripes of it.
fn put_and_fill(tour: &Tour, key: &str) -> Result<Vec<u8>> {
    let body = content(SIZE);
    put(tour, key, body.clone())?;
    wait_settled();
    let before = stripes(tour)?;
    let cold = get(tour, 1, key, None)?;
    ensure!(cold.status == StatusCode::OK && cold.body == body, "cold: {} {}", cold.status, cold.cache());
    wait_until("all stripes to be cached", || Ok(stripes(tour)? - before >= STRIPES))?;
    Ok(body)
}

pub(crate) fn objects(tour: &mut Tour) -> Result<()> {
    start(tour)?;
    tour.client.put_and_hit(&tour.pod(1, 1), "striped/trial", 70)?;
    spread(tour)?;
    overwritten(tour)?;
    broken(tour)?;
    evicted(tour)?;
    prefetched(tour)?;
    tour.restart(Mode::OwnCredential)
}

/// Starts the nodes with stripes, and with caches that are smaller than the object.
fn start(tour: &mut Tour) -> Result<()> {
    for node in &mut tour.nodes {
        node.edit("capacity = \"4GiB\"", "capacity = \"40MiB\"");
        // A prefetch may load more than a quarter of these small caches.
        node.edit("[admin]\n", "[limits]\nfill_overread = \"1GiB\"\n\n[admin]\n");
    }
    tour.restart_with(Mode::OwnCredential, WHOLE, STRIPED)
}

/// The object is spread over the nodes, and each read of it is a hit, also after a restart.
fn spread(tour: &mut Tour) -> Result<()> {
    empty(tour)?;
    let before = tour.backend.received();
    let body = put_and_fill(tour, "striped/object")?;
    let fetched = (tour.backend.received() - before) as f64 / SIZE as f64;
    ensure!((1.0..1.05).contains(&fetched), "the backend sent {fetched} times the object");
    for node in &tour.nodes {
        let held = node.metric("lota_cache_stripes")?;
        ensure!(held <= 1.1 * STRIPES / 3.0 + 1.0, "{} has {held} of {STRIPES} stripes", node.name());
    }
    all_is_a_hit(tour, "striped/object", &body)?;
    start(tour)?;
    all_is_a_hit(tour, "striped/object", &body)
}

fn overwritten(tour: &Tour) -> Result<()> {
    for size in [SIZE - (2 << 20), 30 << 20, 9 << 20, 3 << 20, 0] {
        let body = other_content(size);
        put(tour, "striped/object", body.clone())?;
        for node in [2, 3, 1] {
            let got = get(tour, node, "striped/object", None)?;
            ensure!(got.body == body, "{size} bytes at n{node}: {} {}", got.status, got.body.len());
            let last = &body[size.saturating_sub(2 << 20)..];
            let suffix = get(tour, node, "striped/object", Some("bytes=-2097152"))?;
            ensure!(
                suffix.body == last || size == 0,
                "the end of {size} bytes at n{node}: {}",
                suffix.status
            );
        }
    }
    Ok(())
}

fn all_is_a_hit(tour: &Tour, key: &str, body: &[u8]) -> Result<()> {
    // Until a node has verified the gateway, it relays requests.
    wait_until("all nodes to verify the gateway", || {
        let mut are_verified = true;
        for (node, number) in tour.nodes.iter().zip(1..) {
            get(tour, number, key, None)?;
            are_verified &= node.metric("lota_gateway_trusted{gateway=\"default\"}")? >= 1.0;
        }
        Ok(are_verified)
    })?;
    let before = tour.backend.received();
    let origin = get(tour, 1, key, None)?;
    for node in 1..=3 {
        let got = get(tour, node, key, None)?;
        ensure!(got.body == body && got.cache() == "hit", "n{node}: {} {}", got.status, got.cache());
        for name in HEADERS {
            ensure!(got.header(name) == origin.header(name), "{name} at n{node}");
        }
        ensure!(got.header("content-length") == SIZE.to_string(), "{}", got.header("content-length"));
        let mib = 1 << 20;
        for (start, end) in [
            (0, 1),
            (5, mib - 1),
            (mib, 2 * mib),
            (mib - 1, mib + 1),
            (7 * mib + 99, 13 * mib + 5),
            (44 * mib, SIZE),
            (SIZE - 1, SIZE),
        ] {
            let got = get(tour, node, key, Some(&format!("bytes={start}-{}", end - 1)))?;
            let range = format!("bytes {start}-{}/{SIZE}", end - 1);
            ensure!(got.status == StatusCode::PARTIAL_CONTENT, "{range} at n{node}: {}", got.status);
            ensure!(got.header("content-range") == range, "{}", got.header("content-range"));
            ensure!(got.body == body[start..end] && got.cache() == "hit", "{range}: {}", got.cache());
        }
        let suffix = get(tour, node, key, Some("bytes=-2000000"))?;
        ensure!(suffix.body == body[SIZE - 2_000_000..], "suffix: {}", suffix.status);
        let beyond = get(tour, node, key, Some(&format!("bytes={SIZE}-")))?;
        ensure!(beyond.status == StatusCode::RANGE_NOT_SATISFIABLE, "{}", beyond.status);
        let get = request(tour, Method::GET, key);
        let denied = send(&tour.pod(node, 1), get, &NOBODY)?;
        ensure!(denied.status == StatusCode::FORBIDDEN, "stripes for anyone: {}", denied.status);
    }
    let more = tour.backend.received() - before;
    ensure!(more < MIB, "hits fetched {more} bytes");
    Ok(())
}

/// An eviction of the object evicts its stripes, and nothing else.
fn evicted(tour: &Tour) -> Result<()> {
    empty(tour)?;
    put_and_fill(tour, "striped/evicted")?;
    put_and_fill(tour, "striped/kept")?;
    let before = stripes(tour)?;
    let name = format!("s3://{}", tour.client.name("striped/evicted"));
    for node in &tour.nodes {
        node.lota(&["cache", "evict", &name])?;
    }
    let gone = before - stripes(tour)?;
    ensure!(gone == STRIPES, "{gone} of {STRIPES} stripes were evicted");
    Ok(())
}

/// A prefetch brings each stripe to its owner, once.
fn prefetched(tour: &Tour) -> Result<()> {
    empty(tour)?;
    let body = content(SIZE);
    put(tour, "striped/ahead/object", body.clone())?;
    wait_settled();
    let before = tour.backend.received();
    let prefetch = || -> Result<Value> {
        let mut command = tour.pod(2, 1).pod_command(&tour.program.0);
        command.args(["prefetch", "--json"]).arg(format!("s3://{}", tour.client.name("striped/ahead/")));
        command.env("AWS_ACCESS_KEY_ID", &*ADMIN.access_key).env("AWS_SECRET_ACCESS_KEY", &*ADMIN.secret_key);
        Ok(serde_json::from_str(&run(&mut command)?)?)
    };
    let summary = prefetch()?;
    ensure!(summary["staged"] == 1 && summary["failed"] == 0, "{summary}");
    wait_until("all stripes to be cached", || Ok(stripes(tour)? >= STRIPES))
        .with_context(|| format!("{:?} are, after {summary}", stripes(tour)))?;
    let summary = prefetch()?;
    ensure!(summary["there"] == 1 && summary["staged"] == 0, "{summary}");
    for node in 1..=3 {
        let got = get(tour, node, "striped/ahead/object", None)?;
        ensure!(got.body == body && got.cache() == "hit", "n{node}: {} {}", got.status, got.cache());
    }
    let fetched = (tour.backend.received() - before) as f64 / SIZE as f64;
    ensure!(fetched < 1.05, "the backend sent {fetched} times the object");
    Ok(())
}

/// While an object is read, the client's signature expires, an owner of some of its stripes is killed, or the object is
/// overwritten. The client gets the bytes of one version, or notices that the response ends early.
fn broken(tour: &mut Tour) -> Result<()> {
    empty(tour)?;
    let body = put_and_fill(tour, "striped/broken")?;
    let get_object =
        |tour: &Tour| request(tour, Method::GET, "striped/broken").sign(&ADMIN, Signing::Presigned);
    let expiring = request(tour, Method::GET, "striped/broken").presign_for(&ADMIN, VALID)?;
    let read = in_the_middle(tour, &expiring, |tour| {
        std::thread::sleep(VALID);
        wait_until("the signature to expire", || {
            let again = tour.pod(1, 1).send_all((VIP, 80).into(), vec![expiring.clone()])?;
            Ok(again.first().is_some_and(|reply| reply.status == StatusCode::FORBIDDEN))
        })
    })?;
    ensure!(read == body, "the signature expired: {} of {SIZE} bytes", read.len());
    let read = in_the_middle(tour, &get_object(tour)?, |tour| tour.nodes[2].stop(Signal::SIGKILL))?;
    ensure!(read == body, "an owner was killed: {} of {SIZE} bytes", read.len());
    tour.revive()?;
    let get_ = get_object(tour)?;
    let read = in_the_middle(tour, &get_, |tour| put(tour, "striped/broken", other_content(SIZE)))?;
    let is_one = body.starts_with(&read) && read.len() > 512 << 10;
    ensure!(is_one, "bytes of two versions, or {} of {SIZE}", read.len());
    let after = get(tour, 2, "striped/broken", None)?;
    ensure!(after.body == other_content(SIZE), "after it was overwritten: {}", after.status);
    Ok(())
}

/// Reads an object slowly on the first node, and calls `strikes` after the first bytes. Returns the body, as far as it
/// came.
fn in_the_middle(
    tour: &mut Tour,
    get: &Request,
    strikes: impl FnOnce(&mut Tour) -> Result<()>,
) -> Result<Vec<u8>> {
    let request = format!("GET {} HTTP/1.1\r\nhost: cwlota.com\r\nconnection: close\r\n\r\n", get.target);
    let reader = tour.pod(1, 1);
    let (started, first) = mpsc::channel();
    let (go, goes) = mpsc::channel::<()>();
    let reading = std::thread::spawn(move || -> Result<Vec<u8>> {
        reader.run(move || {
            let mut stream =
                TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(40)))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = vec![0; 1 << 20];
            stream.read_exact(&mut answer)?;
            started.send(())?;
            goes.recv()?;
            // A reset ends it, too.
            let _ = stream.read_to_end(&mut answer);
            Ok(answer)
        })?
    });
    let begun = first.recv_timeout(Duration::from_secs(20)).context("no first bytes");
    let struck = begun.and_then(|()| strikes(tour));
    let _ = go.send(());
    let answer = reading.join().map_err(|_| anyhow!("the reader panicked"))?;
    struck?;
    let answer = answer?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no head")? + 4;
    Ok(answer[end..].to_vec())
}
