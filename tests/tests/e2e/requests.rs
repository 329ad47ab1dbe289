//! Behavior that HTTP and S3 clients rely on besides the bytes: 100-continue, early errors, limits, prefetching by
//! HEAD.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, Credential, GATEWAY, Mode, Namespace, Style, VIP,
        raw::{Reply, Request, Signing},
        run,
    },
    tour::{MIB, Tour},
};
use nix::sys::signal::Signal;
use serde_json::json;

/// Returns the head of a signed upload, without its body.
pub(crate) fn upload(
    tour: &Tour,
    key: &str,
    length: u64,
    credential: &Credential,
    more: &str,
) -> Result<Vec<u8>> {
    let target = format!("/{}", tour.client.name(key));
    let request = Request::new(Method::PUT, "cwlota.com", &target).sign(credential, Signing::Presigned)?;
    Ok(format!(
        "PUT {} HTTP/1.1\r\nHost: cwlota.com\r\nContent-Length: {length}\r\n{more}\r\n",
        request.target
    )
    .into_bytes())
}

/// Runs a function over one connection from a pod.
fn converse<T: Send + 'static>(
    pod: &Namespace,
    talk: impl FnOnce(&mut TcpStream) -> Result<T> + Send + 'static,
) -> Result<T> {
    pod.run(move || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        talk(&mut stream)
    })?
}

/// Reads up to the end of a head.
pub(crate) fn head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(
            stream.read(&mut byte)? == 1,
            "the connection ended after {:?}",
            String::from_utf8_lossy(&head)
        );
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head)?)
}

/// Replaces the gateway of the first node by `play` for one connection.
pub(crate) fn play_gateway<P: Send + 'static>(
    tour: &mut Tour,
    play: impl FnOnce(&mut TcpStream) -> Result<P> + Send + 'static,
) -> Result<JoinHandle<Result<P>>> {
    let listener = tour.lab.switch().run(|| TcpListener::bind((GATEWAY, 0)))??;
    let port = listener.local_addr()?.port();
    let gateway = std::thread::spawn(move || -> Result<P> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        play(&mut stream)
    });
    let node = &mut tour.nodes[0];
    node.stop(Signal::SIGTERM)?;
    node.configure_gateway(Mode::OwnCredential, &format!("http://{GATEWAY}:{port}"))?;
    node.start()?;
    Ok(gateway)
}

/// Replaces the gateway of the first node by `play` for one connection, while a client in the pod runs.
pub(crate) fn with_gateway<P: Send + 'static, T: Send + 'static>(
    tour: &mut Tour,
    play: impl FnOnce(&mut TcpStream) -> Result<P> + Send + 'static,
    talk: impl FnOnce(&mut TcpStream) -> Result<T> + Send + 'static,
) -> Result<(P, T)> {
    let gateway = play_gateway(tour, play)?;
    let talked = converse(&tour.pod(1, 1), talk)?;
    let played = gateway.join().map_err(|_| anyhow::anyhow!("the gateway panicked"))??;
    Ok((played, talked))
}

pub(crate) fn expectations(tour: &mut Tour) -> Result<()> {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    const NO: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nsorry";
    let put = upload(tour, "expect", 5, &ADMIN, "Expect: 100-continue\r\n")?;
    let sent = put.clone();
    let slowly = |stream: &mut TcpStream| {
        let request = head(stream)?;
        // No part of the body arrives before the gateway requests it.
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        ensure!(stream.read(&mut [0]).is_err(), "a body was sent before 100-continue");
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        let mut body = [0; 5];
        stream.read_exact(&mut body)?;
        stream.write_all(ANSWER)?;
        Ok((request, body))
    };
    let ((request, body), received) = with_gateway(tour, slowly, move |stream| {
        stream.write_all(&sent)?;
        let first = head(stream)?;
        stream.write_all(b"12345")?;
        Ok((first, head(stream)?))
    })?;
    ensure!(
        request.to_ascii_lowercase().contains("\r\nexpect: 100-continue\r\n"),
        "the gateway received {request}"
    );
    ensure!(&body == b"12345", "{body:?}");
    ensure!(
        received.0.starts_with("HTTP/1.1 100 ") && received.1.starts_with("HTTP/1.1 200 "),
        "{received:?}"
    );

    let refuses = |stream: &mut TcpStream| {
        head(stream)?;
        stream.write_all(NO)?;
        // The gateway keeps reading: nothing must arrive as a body.
        let mut more = Vec::new();
        let _ = stream.read_to_end(&mut more);
        Ok(more)
    };
    let (more, received) = with_gateway(tour, refuses, move |stream| {
        stream.write_all(&put)?;
        let received = head(stream)?;
        // A client that has received the refusal may send another request, which is not a body.
        let _ = stream.write_all(b"GET /other HTTP/1.1\r\nhost: cwlota.com\r\n\r\n");
        let mut rest = String::new();
        let _ = stream.read_to_string(&mut rest);
        Ok((received, rest))
    })?;
    ensure!(received.0.starts_with("HTTP/1.1 403 "), "a refused upload got 100-continue: {received:?}");
    ensure!(received.1.starts_with("sorry"), "{received:?}");
    ensure!(more.is_empty(), "the gateway was sent {:?} as a body", String::from_utf8_lossy(&more));
    tour.restart(Mode::OwnCredential)
}

pub(crate) fn early_errors(tour: &mut Tour) -> Result<()> {
    let length = 64 * MIB;
    let put = upload(tour, "early", length, &ADMIN, "")?;
    let refuses_and_listens = |stream: &mut TcpStream| {
        head(stream)?;
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        // Reads until the node closes the connection.
        let _ = std::io::copy(stream, &mut std::io::sink());
        Ok(())
    };
    let ((), received) = with_gateway(tour, refuses_and_listens, move |stream| {
        stream.write_all(&put)?;
        // Like most clients, it sends everything regardless of the response.
        let piece = vec![0; 1 << 20];
        for _ in 0..length / MIB {
            stream.write_all(&piece).context("the connection was cut while the client was sending")?;
        }
        head(stream)
    })?;
    ensure!(received.starts_with("HTTP/1.1 403 "), "{received}");
    tour.restart(Mode::OwnCredential)
}

pub(crate) fn staging(tour: &mut Tour) -> Result<()> {
    let (client, key) = (tour.client.clone(), "staged/object");
    let put = client.put(&tour.pod(1, 1), key, 130, 3 * MIB)?;
    let target = format!("/{}", client.name(key));
    let head = Request::new(Method::HEAD, "cwlota.com", &target).header("range", "bytes=0-0");
    let head = head.sign(&ADMIN, Signing::Header)?;
    let staged = tour.pod(2, 1).send_all((VIP, 80).into(), vec![head])?.pop().context("no answer")?;
    ensure!(staged.status.is_success() && staged.body.is_empty(), "{} {:?}", staged.status, staged.headers);
    ensure!(staged.cache() == "miss", "a HEAD of an uncached object returns `{}`", staged.cache());
    tour.wait_cached(key)?;
    let got = client.get(&tour.pod(3, 1), key, Style::Path)?;
    ensure!(got.sha256 == put.sha256 && got.cache() == "hit", "{} {}", got.status, got.cache());
    Ok(())
}

pub(crate) fn prefetch(tour: &mut Tour) -> Result<()> {
    let (client, pod) = (tour.client.clone(), tour.pod(2, 1));
    let keys = ["ahead/one", "ahead/two words+a plus", "ahead/\u{fc}", "ahead/deeper/four"];
    for key in keys {
        client.put(&pod, key, 133, MIB)?;
    }
    client.put(&pod, "behind/five", 133, MIB)?;
    let state = tour.lab.folder().join("prefetched");
    let run_it = || -> Result<serde_json::Value> {
        let mut command = pod.pod_command(&tour.program.0);
        command.args(["prefetch", "--json", "--jobs", "2", "--rate", "64MiB", "--state-file"]).arg(&state);
        command.arg(format!("s3://{}", client.name("ahead/")));
        command.env("AWS_ACCESS_KEY_ID", &*ADMIN.access_key).env("AWS_SECRET_ACCESS_KEY", &*ADMIN.secret_key);
        Ok(serde_json::from_str(&run(&mut command)?)?)
    };
    let summary = run_it()?;
    ensure!(summary["staged"] == 4 && summary["failed"] == 0 && summary["bytes"] == 4 * MIB, "{summary}");
    for key in keys {
        tour.wait_cached(key)?;
    }
    ensure!(tour.holders("behind/five")?.is_empty(), "an object that was not requested was loaded");
    let summary = run_it()?;
    ensure!(
        summary["skipped"] == 4 && summary["staged"] == 0,
        "with a state file, it starts again: {summary}"
    );
    std::fs::remove_file(&state)?;
    let summary = run_it()?;
    ensure!(summary["there"] == 4 && summary["staged"] == 0, "{summary}");
    Ok(())
}

/// Restarts a node with this in its configuration.
pub(crate) fn restart_with(tour: &mut Tour, number: usize, limits: &str) -> Result<()> {
    let node = &mut tour.nodes[number - 1];
    node.stop(Signal::SIGTERM)?;
    node.edit("[admin]\n", &format!("[limits]\n{limits}\n\n[admin]\n"));
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    node.forget_edits();
    tour.revive()
}

pub(crate) fn connections(tour: &mut Tour) -> Result<()> {
    restart_with(tour, 1, "connections = 6\nconnections_per_pod = 3")?;
    let request = b"GET / HTTP/1.1\r\nhost: cwlota.com\r\n\r\n";
    let (refusal, open) = tour.pod(1, 1).run(move || -> Result<_> {
        let connect = || TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(2));
        // A response on each connection ensures that it is counted.
        let mut open = Vec::new();
        for _ in 0..3 {
            let mut stream = connect()?;
            stream.write_all(request)?;
            head(&mut stream)?;
            open.push(stream);
        }
        let mut one_more = connect()?;
        one_more.set_read_timeout(Some(Duration::from_secs(10)))?;
        one_more.write_all(request)?;
        let mut refusal = String::new();
        one_more.read_to_string(&mut refusal)?;
        Ok((refusal, open))
    })??;
    let other =
        tour.pod(1, 2).send_all((VIP, 80).into(), vec![Request::new(Method::GET, "cwlota.com", "/")])?;
    ensure!(other[0].code() != "SlowDown", "another pod receives SlowDown because of this one");
    drop(open);
    ensure!(refusal.starts_with("HTTP/1.1 503 ") && refusal.contains("<Code>SlowDown</Code>"), "{refusal}");
    ensure!(refusal.to_ascii_lowercase().contains("\r\nretry-after: "), "{refusal}");
    // When those are closed, new connections are accepted.
    let tried: Result<Vec<Reply>> = (0..20)
        .find_map(|_| {
            std::thread::sleep(Duration::from_millis(100));
            let request = Request::new(Method::GET, "cwlota.com", "/").sign(&ADMIN, Signing::Header).ok()?;
            let replies = tour.pod(1, 1).send_all((VIP, 80).into(), vec![request]).ok()?;
            replies[0].status.is_success().then_some(Ok(replies))
        })
        .context("closed connections are still counted")?;
    tried?;
    tour.restart(Mode::OwnCredential)
}

pub(crate) fn first_bytes_only(tour: &mut Tour) -> Result<()> {
    for node in 1..=tour.nodes.len() {
        restart_with(tour, node, "fill_overread = \"20MiB\"")?;
    }
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    let uncached = |tour: &Tour| tour.metric("lota_uncached_total{reason=\"fill-overread\"}");
    for object in 0..12 {
        let key = format!("first-bytes/{object}");
        client.put(&pod, &key, 131, 8 * MIB)?;
        let got = client.get_with(&pod, &key, json!({"range": "bytes=0-0"}))?;
        ensure!(got.status == 206 && got.size == 1, "{key}: {} {}", got.status, got.size);
    }
    let stopped = uncached(tour)?;
    // Two or three such objects are within the limit at each of three owners.
    ensure!((3.0..12.0).contains(&stopped), "{stopped} of 12 reads went uncached");
    // Another pod is not limited, and a pod that reads what is fetched is not charged.
    for object in 0..6 {
        let key = format!("whole/{object}");
        client.put(&pod, &key, 132, 8 * MIB)?;
        client.get(&tour.pod(2, 1), &key, Style::Path)?;
        tour.wait_cached(&key)?;
    }
    ensure!(uncached(tour)? == stopped, "a pod that reads what is fetched was limited");
    tour.restart(Mode::OwnCredential)
}

pub(crate) fn given_up_reads(tour: &mut Tour) -> Result<()> {
    const SIZE: u64 = 8 * MIB;
    for node in 1..=tour.nodes.len() {
        restart_with(tour, node, "fill_overread = \"10MiB\"")?;
    }
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    let keys: Vec<_> = (0..24).map(|object| format!("given-up/{object}")).collect();
    for key in &keys {
        client.put(&pod, key, 134, SIZE)?;
    }
    let before = tour.fetched();
    for key in &keys {
        let target = format!("/{}", client.name(key));
        let get = Request::new(Method::GET, "cwlota.com", &target).sign(&ADMIN, Signing::Presigned)?;
        let get = format!("GET {} HTTP/1.1\r\nHost: cwlota.com\r\n\r\n", get.target);
        // The client reads up to the first byte, and resets the connection by closing it with unread data.
        let response = converse(&pod, move |stream| {
            stream.write_all(get.as_bytes())?;
            let response = head(stream)?;
            stream.read_exact(&mut [0])?;
            Ok(response)
        })?;
        ensure!(response.starts_with("HTTP/1.1 200 "), "{key}: {response}");
    }
    let cached = keys.iter().map(|key| Ok(usize::from(!tour.holders(key)?.is_empty())));
    let cached: usize = cached.sum::<Result<_>>()?;
    // Two or three at each of three owners; socket buffers hold some of the unread bytes.
    ensure!(cached <= 12, "{cached} of 24 objects were fetched for 24 bytes that were read");
    let fetched = tour.fetched() - before;
    println!("{cached} of 24 objects of 8 MiB cached, {} MiB fetched", fetched / MIB);
    // An uncached read costs what is in socket buffers when it is canceled.
    let bound = cached as u64 * SIZE + (keys.len() - cached) as u64 * SIZE / 2;
    ensure!(fetched <= bound, "{} MiB were fetched with {cached} of 24 objects cached", fetched / MIB);
    tour.restart(Mode::OwnCredential)
}

/// A 404 applies only to the client, since another tenant may have a bucket of the same name.
pub(crate) fn not_found(tour: &mut Tour) -> Result<()> {
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    client.put(&pod, "not-found", 135, MIB)?;
    client.get(&pod, "not-found", Style::Path)?;
    let owner = tour.wait_cached("not-found")?;
    client.delete(&pod, "not-found")?;
    let target = format!("/{}", client.name("not-found"));
    let request = Request::new(Method::GET, "cwlota.com", &target).sign(&ADMIN, Signing::Header)?;
    let replies = pod.send_all((VIP, 80).into(), vec![request])?;
    ensure!(replies[0].status.as_u16() == 404, "{}", replies[0].status);
    // Objects would be evicted after the response.
    std::thread::sleep(Duration::from_millis(200));
    ensure!(tour.holders("not-found")? == [owner], "a 404 evicted the object");
    Ok(())
}

pub(crate) fn endless_uploads(tour: &mut Tour) -> Result<()> {
    const LENGTH: u64 = 5 << 30;
    let put = upload(tour, "endless", LENGTH, &ADMIN, "")?;
    // The gateway only counts bytes, so that the disk does not matter.
    let counts = |stream: &mut TcpStream| {
        head(stream)?;
        let got = std::io::copy(&mut stream.take(LENGTH), &mut std::io::sink())?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 0\r\n\r\n")?;
        Ok(got)
    };
    let (got, response) = with_gateway(tour, counts, move |stream| {
        stream.write_all(&put)?;
        let piece = vec![7; 1 << 20];
        for _ in 0..LENGTH >> 20 {
            stream.write_all(&piece)?;
        }
        head(stream)
    })?;
    ensure!(
        response.starts_with("HTTP/1.1 200 ") && got == LENGTH,
        "{got} bytes of {LENGTH} came through: {response}"
    );
    let pid = tour.nodes[0].pid().context("the node does not run")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    let peak: u64 = peak.context("no VmHWM")?;
    ensure!(peak < 128 << 10, "{peak} KiB of memory for an upload of 5 GiB");
    tour.restart(Mode::OwnCredential)
}
