//! Statuses of the admin socket and the admin port.

use std::{fs, io::Write as _, os::unix::net::UnixStream, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{ADMIN_PORT, Node, node_address},
    tour::Tour,
};

/// Sends a request to the admin socket. Returns the head of the response.
fn ask(node: &Node, method: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = UnixStream::connect(node.folder().join("admin.sock"))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: lota\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    head(stream)
}

/// Returns the head of a response.
fn head(mut stream: impl std::io::Read) -> Result<String> {
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, _) = response.split_once("\r\n\r\n").context("no response")?;
    Ok(head.to_ascii_lowercase())
}

fn expect(head: &str, status: u16) -> Result<()> {
    ensure!(head.starts_with(&format!("http/1.1 {status} ")), "not {status}: {head}");
    Ok(())
}

pub(crate) fn statuses(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[0];
    expect(&ask(node, "GET", "/presence", "")?, 200)?;
    for (method, path, body, status) in [
        ("GET", "/no-such-path", "", 404),
        ("POST", "/cache/evict", "{", 400),
        ("POST", "/cache/evict", r#"{"some": {}}"#, 400),
        ("POST", "/access", r#"{"verb": "forget", "subject": "10.99.0.1", "interface": "eth0"}"#, 400),
        ("POST", "/access", r#"{"verb": "forget", "subject": "10.99.0.1", "interface": null}"#, 404),
        ("POST", "/access", r#"{"verb": "allow", "subject": "10.99.0.1", "interface": "no-such"}"#, 404),
    ] {
        expect(&ask(node, method, path, body)?, status).with_context(|| format!("{method} {path} {body}"))?;
    }
    for (method, path, allowed) in [("GET", "/reload", "post"), ("DELETE", "/cache", "get")] {
        let head = ask(node, method, path, "")?;
        expect(&head, 405)?;
        ensure!(head.contains(&format!("\r\nallow: {allowed}")), "{method} {path}: {head}");
    }
    let good = fs::read_to_string(node.config())?;
    fs::write(node.config(), "[gatway]\n")?;
    let reloaded = ask(node, "POST", "/reload", "");
    fs::write(node.config(), good)?;
    expect(&reloaded?, 409)?;
    expect(&ask(node, "POST", "/reload", "")?, 200)?;

    for (method, path, status) in [("GET", "/no-such-path", 404), ("POST", "/metrics", 405)] {
        let namespace = tour.lab.node(1);
        let head = namespace.run(move || -> Result<String> {
            let mut stream = std::net::TcpStream::connect((node_address(1), ADMIN_PORT))?;
            write!(stream, "{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
            head(stream)
        })??;
        expect(&head, status)?;
    }
    Ok(())
}
