//! A gateway that answers 304 to anyone, as a cache in front of one does.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{GATEWAY, Mode, NOBODY, Style, run},
    tour::{MIB, Tour},
};
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Where the cache in front of the gateway listens.
const IN_FRONT: u16 = 9002;

pub(crate) fn cache_in_front(tour: &mut Tour) -> Result<()> {
    let listener = tour.lab.switch().run(|| TcpListener::bind((GATEWAY, IN_FRONT)))??;
    let runtime = tokio::runtime::Runtime::new()?;
    let origin = tour.origin.address();
    listener.set_nonblocking(true)?;
    runtime.spawn(async move {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(careless(client, origin));
        }
    });
    for node in &mut tour.nodes {
        node.stop(Signal::SIGTERM)?;
        node.configure_gateway(Mode::OwnCredential, &format!("http://{GATEWAY}:{IN_FRONT}"))?;
        node.start()?;
    }
    let (client, pod, key) = (&tour.client, tour.pod(1, 1), "trial/object");
    let put = client.put(&pod, key, 120, MIB)?;
    client.get(&pod, key, Style::Path)?;
    let owner = tour.wait_cached(key)?;
    for _ in 0..3 {
        let got = client.get(&pod, key, Style::Path)?;
        ensure!(got.sha256 == put.sha256, "{} {}", got.status, got.code);
        ensure!(got.cache() != "hit", "a hit behind a gateway that answers 304 to anyone");
    }
    let refused = client.with(NOBODY).get(&pod, key, Style::Path)?;
    ensure!(refused.status == 403, "one without permission got {}", refused.status);
    let node = tour.nodes.iter().find(|node| node.name() == owner);
    let log = node.map(|node| std::fs::read_to_string(node.log())).transpose()?.unwrap_or_default();
    ensure!(log.contains("failed its trial"), "the owner's log does not say so");
    let node = node.context("no such owner")?;
    let status = run(node.command().args(["gateway", "status", "--config"]).arg(node.config()))?;
    ensure!(status.contains(" no ") && status.contains("to a broken signature"), "the status says {status}");
    tour.restart(Mode::OwnCredential)
}

/// Relays one request a connection; whatever asks "if none match" is told "not modified".
async fn careless(mut client: TcpStream, origin: SocketAddr) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    if text.contains("\r\nif-none-match:") {
        client.write_all(b"HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n").await?;
        return client.shutdown().await;
    }
    let mut server = TcpStream::connect(origin).await?;
    let head = String::from_utf8_lossy(&head).replacen("\r\n", "\r\nconnection: close\r\n", 1);
    server.write_all(head.as_bytes()).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
