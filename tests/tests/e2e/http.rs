//! Malformed and unusual HTTP requests from a pod.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, Namespace, VIP,
        raw::{Request, Signing},
    },
    tour::Tour,
};

/// Timeout for a response.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends bytes, closes the sending side, and returns all that is received.
fn exchange(from: &Namespace, bytes: &[u8]) -> Result<String> {
    exchange_with(from, bytes, true, ANSWER_TIMEOUT)
}

/// Sends bytes, closes the sending side if `half_close`, and returns all that is received without a longer pause than
/// `timeout`.
pub(crate) fn exchange_with(
    from: &Namespace,
    bytes: &[u8],
    half_close: bool,
    timeout: Duration,
) -> Result<String> {
    let bytes = bytes.to_vec();
    let answer = from.run(move || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(timeout))?;
        // The other side may have closed already.
        let _ = stream.write_all(&bytes);
        if half_close {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(answer),
        }
    })??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Verifies that uploads with a malformed chunk are refused by LOTA, which has sent the gateway their beginning.
fn malformed_chunks(tour: &Tour) -> Result<()> {
    let target = format!("/{}", tour.client.name("malformed-chunks"));
    let put = Request::new(Method::PUT, "cwlota.com", &target).sign(&ADMIN, Signing::Presigned)?.target;
    for body in [
        "hello",
        "hello world this is not a chunk",
        "5\r\nhelloworld\r\n0",
        "5\r\nhello\r\nx\r\n",
        "ffffffffffffffffff\r\n",
        "3\r\nabc\r\n0\r\n: x\r\n\r\n",
    ] {
        let decoded = "x-amz-decoded-content-length: 5\r\ntransfer-encoding: chunked\r\n";
        let request = format!("PUT {put} HTTP/1.1\r\nhost: cwlota.com\r\n{decoded}\r\n{body}");
        // The client may send more, and waits for an answer.
        let answer = exchange_with(&tour.pod(1, 1), request.as_bytes(), false, ANSWER_TIMEOUT)
            .with_context(|| body.to_owned())?;
        let refused = answer.starts_with("HTTP/1.1 400 ") && answer.contains("<Code>IncompleteBody</Code>");
        ensure!(refused, "{body:?} is answered {answer:?}");
        ensure!(answer.matches("HTTP/1.1 ").count() == 1, "{body:?} is answered {answer:?}");
    }
    let stored = Request::new(Method::HEAD, "cwlota.com", &target).sign(&ADMIN, Signing::Header)?;
    let stored = tour.pod(1, 1).send_all((VIP, 80).into(), vec![stored])?;
    ensure!(stored[0].status.as_u16() == 404, "a malformed upload was stored: {}", stored[0].status);
    Ok(())
}

pub(crate) fn malformed(tour: &mut Tour) -> Result<()> {
    let pod = tour.pod(1, 1);
    let long = format!("GET /bucket/{} HTTP/1.1\r\nhost: cwlota.com\r\n\r\n", "k".repeat(100_000));
    let many = format!("GET /bucket/k HTTP/1.1\r\nhost: cwlota.com\r\n{}\r\n", "x-h: v\r\n".repeat(1000));
    let cases: [(&str, &[u8], &[&str]); 17] = [
        ("garbage", b"\x00\x01\x02\x03 garbage\r\n\r\n", &["400"]),
        ("nothing", b"", &[""]),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &["", "400"]),
        ("no version", b"GET /bucket/k\r\n\r\n", &["400"]),
        ("no host", b"GET /bucket/k HTTP/1.1\r\n\r\n", &["400"]),
        ("two hosts", b"GET /bucket/k HTTP/1.1\r\nhost: cwlota.com\r\nhost: other\r\n\r\n", &["400"]),
        (
            "hosts that disagree",
            b"GET http://bucket.cwlota.com/k HTTP/1.1\r\nhost: c.cwlota.com\r\n\r\n",
            &["400"],
        ),
        (
            "an invalid header name",
            b"GET /bucket/k HTTP/1.1\r\nhost: cwlota.com\r\nbad header: x\r\n\r\n",
            &["400"],
        ),
        (
            "two lengths",
            b"PUT /bucket/k HTTP/1.1\r\nhost: cwlota.com\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
            &["400"],
        ),
        (
            "a length that is not a number",
            b"PUT /bucket/k HTTP/1.1\r\nhost: cwlota.com\r\ncontent-length: x\r\n\r\n",
            &["400"],
        ),
        ("an endless path", long.as_bytes(), &["414", "431", "400"]),
        ("endless headers", many.as_bytes(), &["431", "400"]),
        ("a bucket of dots", b"GET /../../etc/passwd HTTP/1.1\r\nhost: cwlota.com\r\n\r\n", &["400", "403", "404"]),
        ("an encoded one", b"GET /%2e%2e%2fetc/passwd HTTP/1.1\r\nhost: cwlota.com\r\n\r\n", &["400", "403", "404"]),
        (
            "a GET with a chunked body",
            b"GET /bucket/key HTTP/1.1\r\nhost: cwlota.com\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            &["400", "403", "404"],
        ),
        (
            "anonymous",
            b"GET /bucket/k HTTP/1.1\r\nhost: cwlota.com\r\nconnection: close\r\n\r\n",
            &["403", "404"],
        ),
        (
            "a proxy's CONNECT",
            b"CONNECT cwlota.com:80 HTTP/1.1\r\nhost: cwlota.com:80\r\n\r\n",
            &["400", "403", "405", "501"],
        ),
    ];
    for (name, bytes, statuses) in cases {
        let answer = exchange(&pod, bytes).with_context(|| name.to_owned())?;
        let status = answer.strip_prefix("HTTP/1.1 ").map_or("", |rest| rest.get(..3).unwrap_or_default());
        ensure!(statuses.contains(&status), "{name}: answered {status:?}, not one of {statuses:?}\n{answer}");
        if status == "400" {
            ensure!(answer.contains("<Error><Code>") && answer.contains("<RequestId>"), "{name}: {answer}");
        }
    }
    malformed_chunks(tour)?;
    ensure!(tour.nodes[0].admin("/healthz")?.starts_with("alive"), "the daemon did not survive");
    let log = std::fs::read_to_string(tour.nodes[0].log())?;
    ensure!(!log.contains("panicked"), "the daemon panicked");
    Ok(())
}

pub(crate) fn stripped_headers(tour: &mut Tour) -> Result<()> {
    let request = b"GET /bucket/k HTTP/1.1\r\nhost: cwlota.com\r\nlota-accept: direct\r\nlota-node: name=evil\r\nlota-peer: \
                    v=1;from=n2;to=n1;time=0;nonce=00;mac=00\r\nconnection: close\r\n\r\n";
    let answer = exchange(&tour.pod(1, 1), request)?;
    ensure!(answer.starts_with("HTTP/1.1 403") || answer.starts_with("HTTP/1.1 404"), "{answer}");
    let location = tour.origin.last_node().unwrap_or_default();
    ensure!(!location.contains("evil"), "the gateway received {location}");
    Ok(())
}
