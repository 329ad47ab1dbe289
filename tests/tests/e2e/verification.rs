//! A gateway that answers 304 to anyone, like one behind a cache.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{GATEWAY, Mode, NOBODY, Origin, Style},
    tour::{MIB, Tour, wait_settled, wait_until},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Port of the cache in front of the gateway.
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
    tour.restart_each(|node| {
        node.configure_gateway(Mode::OwnCredential, &format!("http://{GATEWAY}:{IN_FRONT}"))
    })?;
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
    ensure!(refused.status == 403, "a client without permission got {}", refused.status);
    let node = tour.nodes.iter().find(|node| node.name() == owner);
    let log = node.map(|node| std::fs::read_to_string(node.log())).transpose()?.unwrap_or_default();
    ensure!(log.contains("failed verification"), "the owner's log does not report it");
    let node = node.context("no such owner")?;
    let status = node.lota(&["gateway", "status"])?;
    ensure!(status.contains(" no ") && status.contains("to a broken signature"), "the status is {status}");
    tour.restart(Mode::OwnCredential)
}

/// Verifies that `lota gateway status` shows what the 304 of this gateway proves stored headers by.
pub(crate) fn proves_by(tour: &mut Tour) -> Result<()> {
    let expected = match &tour.origin {
        Origin::Embedded(..) => "last-modified",
        Origin::Seaweed(_) | Origin::Rgw(_) => "if-unmodified-since",
        Origin::Given(_) => return Ok(()),
    };
    tour.restart(Mode::OwnCredential)?;
    let (client, pod, key) = (&tour.client, tour.pod(1, 1), "proves-by");
    client.put(&pod, key, 121, MIB)?;
    wait_settled();
    client.get(&pod, key, Style::Path)?;
    let owner = tour.wait_cached(key)?;
    let node = tour.nodes.iter().find(|node| node.name() == owner).context("no such owner")?;
    let status = || node.lota(&["gateway", "status"]);
    let mut shown = String::new();
    let proved = wait_until("the gateway's 304 to prove something", || {
        ensure!(client.get(&pod, key, Style::Path)?.status == 200, "a read failed");
        shown = status()?;
        Ok(shown.lines().skip(1).any(|line| line.split_whitespace().nth(4) == Some(expected)))
    });
    proved.with_context(|| format!("not by {expected}:\n{shown}"))?;
    ensure!(shown.lines().next().is_some_and(|line| line.contains(" 304 PROVES BY ")), "{shown}");
    Ok(())
}

/// Relays one request per connection, and answers every `If-None-Match` with 304.
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
