//! Connections with many requests: pipelining, half-closed clients, chunked bodies in both directions, stalled
//! clients.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, Mode, VIP,
        raw::{Request, Signing},
    },
    tour::{MIB, Tour},
};

use crate::requests::restart_with;

fn connect() -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Reads until the other side closes its end.
fn rest(mut stream: TcpStream) -> Result<String> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns a presigned target, which needs no further headers.
fn presigned(tour: &Tour, method: Method, key: &str) -> Result<String> {
    let target = format!("/{}", tour.client.name(key));
    Ok(Request::new(method, "cwlota.com", &target).sign(&ADMIN, Signing::Presigned)?.target)
}

/// Verifies that pipelined requests on a half-closed connection are answered completely and in order.
pub(crate) fn pipelined(tour: &mut Tour) -> Result<()> {
    let put = presigned(tour, Method::PUT, "pipelined")?;
    let get = presigned(tour, Method::GET, "pipelined")?;
    let head = presigned(tour, Method::HEAD, "pipelined")?;
    let chunked = "transfer-encoding: chunked\r\nx-amz-decoded-content-length: 9\r\n";
    let sent = format!(
        "PUT {put} HTTP/1.1\r\nhost: cwlota.com\r\ncontent-length: 9\r\n\r\nsome text\
         GET {get} HTTP/1.1\r\nhost: cwlota.com\r\n\r\n\
         \r\nHEAD {head} HTTP/1.1\r\nhost: cwlota.com\r\n\r\n\
         PUT /no-such-bucket/key HTTP/1.1\r\nhost: cwlota.com\r\n{chunked}\r\n4;x=y\r\nmore\r\n5\r\n text\r\n0\r\n\r\n\
         GET {get} HTTP/1.1\r\nhost: cwlota.com\r\nrange: bytes=5-\r\n\r\n"
    );
    let answers = tour.pod(1, 1).run(move || {
        let mut stream = connect()?;
        stream.write_all(sent.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        rest(stream)
    })??;
    let statuses: Vec<&str> =
        answers.split("HTTP/1.1 ").skip(1).map(|answer| answer.get(..3).unwrap_or_default()).collect();
    ensure!(statuses.len() == 5, "{} answers to five requests:\n{answers}", statuses.len());
    ensure!(
        [statuses[0], statuses[1], statuses[2], statuses[4]] == ["200", "200", "200", "206"],
        "{answers}"
    );
    // A gateway that rejects an upload without reading it may reset the connection before its response arrives.
    let refused = statuses[3].starts_with('4') || statuses[3] == "503";
    ensure!(refused, "an anonymous upload was answered {}", statuses[3]);
    ensure!(answers.matches("some text").count() == 1 && answers.ends_with("\r\n\r\ntext"), "{answers}");
    Ok(())
}

/// Verifies that stalled connections time out, and slow ones do not.
pub(crate) fn slow(tour: &mut Tour) -> Result<()> {
    restart_with(tour, 1, "idle_timeout_seconds = 2")?;
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    client.put(&pod, "slow", 140, 64 * MIB)?;
    let get = presigned(tour, Method::GET, "slow")?;
    let put = presigned(tour, Method::PUT, "slow-upload")?;
    let ask = format!("GET {get} HTTP/1.1\r\nhost: cwlota.com\r\n\r\n");
    let upload = format!("PUT {put} HTTP/1.1\r\nhost: cwlota.com\r\ncontent-length: 6\r\n\r\n");
    let (stalled_head, stalled_body, stalled_reader, slow_upload, slow_reader) =
        pod.run(move || -> Result<_> {
            let ended_after = |sent: &str| -> Result<Duration> {
                let mut stream = connect()?;
                stream.write_all(sent.as_bytes())?;
                let since = Instant::now();
                // A response or the end of the connection ends the wait.
                rest(stream).or_else(|error| {
                    if since.elapsed() < Duration::from_secs(15) { Ok(String::new()) } else { Err(error) }
                })?;
                Ok(since.elapsed())
            };
            let stalled_head = ended_after("GET / HTTP/1.1\r\nhost: cw")?;
            let stalled_body = ended_after(&format!("{upload}abc"))?;
            // Reads nothing of 64 MiB for longer than the timeout, then reads what has arrived.
            let mut stream = connect()?;
            stream.write_all(ask.as_bytes())?;
            // The timeout takes effect after once to twice its value, counted from when the buffers are full.
            std::thread::sleep(Duration::from_secs(10));
            let mut taken = 0;
            let mut piece = vec![0; 1 << 20];
            while let Ok(read @ 1..) = stream.read(&mut piece) {
                taken += read as u64;
            }
            // One byte per second is slow, but progress.
            let mut stream = connect()?;
            stream.write_all(upload.as_bytes())?;
            for byte in b"abcdef" {
                std::thread::sleep(Duration::from_secs(1));
                stream.write_all(&[*byte])?;
            }
            stream.shutdown(Shutdown::Write)?;
            let slow_upload = rest(stream)?;
            let mut stream = connect()?;
            stream.write_all(ask.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n").as_bytes())?;
            let mut slow_reader = 0;
            for round in 0.. {
                match stream.read(&mut piece)? {
                    0 => break,
                    read => slow_reader += read as u64,
                }
                if round < 5 {
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
            Ok((stalled_head, stalled_body, taken, slow_upload, slow_reader))
        })??;
    for (what, after) in [("head", stalled_head), ("body", stalled_body)] {
        ensure!(after < Duration::from_secs(12), "a stalled {what} was waited for {after:?}");
    }
    ensure!(stalled_reader < 64 * MIB, "a stalled reader received everything");
    ensure!(slow_upload.starts_with("HTTP/1.1 200 "), "a slow upload was answered {slow_upload}");
    ensure!(slow_reader > 64 * MIB, "a slow reader got {slow_reader} bytes");
    tour.restart(Mode::OwnCredential).context("afterwards")
}
