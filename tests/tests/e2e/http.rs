//! Raw HTTP from a pod.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{Namespace, VIP},
    tour::Tour,
};

/// Sends bytes, says no more, and returns all that comes back.
fn exchange(from: &Namespace, bytes: &[u8]) -> Result<String> {
    let bytes = bytes.to_vec();
    let answer = from.run(move || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        // The other side may have seen enough and closed.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(answer),
        }
    })??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
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
            "a bad header name",
            b"GET /bucket/k HTTP/1.1\r\nhost: cwlota.com\r\nbad header: x\r\n\r\n",
            &["400"],
        ),
        (
            "two lengths",
            b"PUT /bucket/k HTTP/1.1\r\nhost: cwlota.com\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
            &["400"],
        ),
        (
            "a length that is no number",
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
    let told = tour.origin.last_node().unwrap_or_default();
    ensure!(!told.contains("evil"), "the gateway was told {told}");
    Ok(())
}
