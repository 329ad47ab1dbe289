//! Access control by commands and configuration.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lota_common::map;
use lota_tests::{
    lab::{AT_ONCE, DENIED, Mode, Node, Pod, Reached, VIP, VIP6, knock},
    tour::{Tour, wait_until},
};
use nix::sys::signal::Signal;

use super::{dump, lota_json};

/// Limit for the end of a connection after its access is revoked.
const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn commands(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[2];
    let denied = tour.lab.pod(DENIED);
    let address = DENIED.address().to_string();
    let reached = || -> Result<Reached> { Ok(knock(&denied, VIP, 80)?.0) };
    let source = |subject: &str| -> Result<Option<String>> {
        let entries = lota_json(node, &["access", "list"])?;
        let entry = entries.into_iter().find(|entry| entry["subject"] == subject);
        Ok(entry.map(|entry| format!("{} {} {}", entry["source"], entry["allow"], entry["interface"])))
    };
    ensure!(reached()? == Reached::Refused && source(&address)?.is_none(), "initially");
    node.lota(&["access", "allow", &address])?;
    ensure!(reached()? == Reached::Open, "allowed, with the interface of its route");
    let expected = format!("\"command\" true \"{}\"", DENIED.interface());
    ensure!(source(&address)? == Some(expected.clone()), "listed as {:?}", source(&address)?);
    node.lota(&["access", "allow", &address, "--interface", "veth-p1"])?;
    ensure!(reached()? == Reached::Refused, "bound to its neighbor's interface");
    node.lota(&["access", "forget", &address])?;
    ensure!(source(&address)?.is_none(), "forgotten");
    node.lota(&["access", "allow", "10.77.13.0/24"])?;
    ensure!(reached()? == Reached::Open, "allowed by its prefix");
    node.lota(&["access", "deny", &address])?;
    ensure!(reached()? == Reached::Refused, "denied, in an allowed prefix");
    let table = node.lota(&["access", "list"])?;
    for word in ["10.77.13.0/24", "deny", "(all others)", "veth-p1", "config", "command"] {
        ensure!(table.contains(word), "no `{word}` in\n{table}");
    }
    ensure!(dump(node, map::RULES4)?.len() == 1, "{:?}", dump(node, map::RULES4)?);
    // Entries of operators survive a restart of the daemon.
    tour.nodes[2].start()?;
    let node = &tour.nodes[2];
    ensure!(reached()? == Reached::Refused && dump(node, map::RULES4)?.len() == 1, "after a restart");
    node.lota(&["access", "forget", &address])?;
    node.lota(&["access", "forget", "10.77.13.0/24"])?;
    ensure!(reached()? == Reached::Refused, "after all entries were removed");
    for (words, expected) in [
        (&["access", "allow", "10.1.2.3/16"][..], "10.1.0.0/16"),
        (&["access", "allow", "10.1.2.3", "--interface", "veth9"], "no interface `veth9`"),
        (&["access", "allow", "10.1.0.0/16", "--interface", "veth-p1"], "single address"),
        (&["access", "forget", "10.1.2.3"], "no operator"),
    ] {
        let output = node.command().args(words).arg("--config").arg(node.config()).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && stderr.contains(expected), "{words:?}: {stderr}");
    }
    Ok(())
}

/// An idle connection and one within a request head, in both families.
pub(crate) fn revocation(tour: &mut Tour) -> Result<()> {
    let pod = Pod(2, 1);
    let place = tour.lab.pod(pod);
    let node = &tour.nodes[1];
    for (vip, address) in
        [(IpAddr::from(VIP), IpAddr::from(pod.address())), (VIP6.into(), pod.address6().into())]
    {
        for request in [&b""[..], b"GET /b/k HTTP/1.1\r\nhost: cwl"] {
            let mut stream = place.run(move || -> Result<TcpStream> {
                let mut stream = TcpStream::connect_timeout(&SocketAddr::from((vip, 80)), SECOND)?;
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                stream.write_all(request)?;
                Ok(stream)
            })??;
            std::thread::sleep(Duration::from_millis(100));
            let started = Instant::now();
            node.lota(&["access", "deny", &address.to_string()])?;
            let mut rest = Vec::new();
            let ended = stream.read_to_end(&mut rest).map_err(|error| error.kind());
            let after = started.elapsed();
            let (reached, _) = knock(&place, vip, 80)?;
            node.lota(&["access", "forget", &address.to_string()])?;
            ensure!(
                ended == Err(ErrorKind::ConnectionReset) && after < SECOND,
                "{address}: the connection ended by {ended:?} after {after:?}"
            );
            ensure!(reached == Reached::Refused, "{address}: a new connection got {reached:?}");
        }
        let (reached, _) = knock(&place, vip, 80)?;
        ensure!(reached == Reached::Open, "{address}: with its access back, it got {reached:?}");
    }
    Ok(())
}

pub(crate) fn denied(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[2];
    let place = tour.lab.pod(DENIED);
    for (vip, address, map) in [
        (IpAddr::from(VIP), IpAddr::from(DENIED.address()), map::DENIED4),
        (VIP6.into(), DENIED.address6().into(), map::DENIED6),
    ] {
        knock(&place, vip, 80)?;
        let find = || -> Result<_> {
            let all = lota_json(node, &["access", "denied"])?;
            let found = all.into_iter().find(|denied| denied["address"] == address.to_string());
            found.with_context(|| format!("{address} is not among the denied"))
        };
        let before = find()?;
        knock(&place, vip, 80)?;
        let after = find()?;
        let packets = |denied: &serde_json::Value| denied["packets"].as_u64().unwrap_or(0);
        ensure!(packets(&after) > packets(&before), "{before}, then {after}");
        ensure!(after["interface"] == DENIED.interface() && after["verdict"] == "denied", "{after}");
        ensure!(after["seconds_ago"].as_f64().is_some_and(|ago| ago < 5.0), "{after}");
        let dumped = dump(node, map)?;
        ensure!(dumped.iter().any(|entry| entry["value"]["count"] == after["packets"]), "{dumped:?}");
    }
    let table = node.lota(&["access", "denied"])?;
    ensure!(table.contains(&DENIED.address().to_string()) && table.contains("s ago"), "{table}");
    Ok(())
}

/// SIGHUP reloads access, reports changes that need a restart, and ignores an invalid file.
pub(crate) fn reload(tour: &mut Tour) -> Result<()> {
    let node = &mut tour.nodes[2];
    let place = tour.lab.pod(DENIED);
    let address = DENIED.address();
    let hang_up = |node: &Node, message: &str| {
        let logged = fs::read_to_string(node.log())?.len();
        node.signal(Signal::SIGHUP)?;
        wait_until(message, || Ok(fs::read_to_string(node.log())?[logged..].contains(message)))
    };
    let pid = node.pid();
    node.edit("[access]\n", &format!("[access]\nallow = [\"{address}\"]\n"));
    node.edit("min_free = \"64MiB\"", "min_free = \"63MiB\"");
    node.configure(Mode::OwnCredential)?;
    hang_up(node, "cache.min_free")?;
    let (open, _) = knock(&place, VIP, 80)?;
    node.edit("[access]\n", "[access]\nalow = []\n");
    node.configure(Mode::OwnCredential)?;
    hang_up(node, "did you mean `allow`?")?;
    let (still, _) = knock(&place, VIP, 80)?;
    node.forget_edits();
    node.configure(Mode::OwnCredential)?;
    let output = node.lota(&["reload"])?;
    ensure!(output == "[access], public keys of nodes and files with secrets reloaded\n", "{output}");
    let (refused, _) = knock(&place, VIP, 80)?;
    ensure!(open == Reached::Open && still == Reached::Open, "allowed, it got {open:?}, then {still:?}");
    ensure!(refused == Reached::Refused, "no longer allowed, it got {refused:?}");
    ensure!(node.pid() == pid, "another daemon runs");
    Ok(())
}

pub(crate) fn default_allow(tour: &mut Tour) -> Result<()> {
    let node = &mut tour.nodes[2];
    node.edit("[access]\n", "[access]\ndefault = \"allow\"\ndeny = [\"fd77:d::/32\"]\n");
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    let place = tour.lab.pod(DENIED);
    let (open, _) = knock(&place, VIP, 80)?;
    let (refused, after) = knock(&place, VIP6, 80)?;
    let listed = node.lota(&["access", "list"])?;
    node.forget_edits();
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    ensure!(open == Reached::Open, "a pod without an entry got {open:?}");
    ensure!(refused == Reached::Refused && after < AT_ONCE, "one in a denied prefix got {refused:?}");
    ensure!(
        listed.lines().any(|line| line.starts_with("(all others)") && line.contains("allow")),
        "{listed}"
    );
    let (refused, _) = knock(&place, VIP, 80)?;
    ensure!(refused == Reached::Refused, "without the configuration, it got {refused:?}");
    Ok(())
}
