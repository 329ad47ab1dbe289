//! The kernel side beyond the tour.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{DENIED, Mode, Pod, Style, VIP, run},
    tour::{MIB, Tour, wait_until},
};
use nix::sys::signal::Signal;

/// A process of the node, which is not a pod, looks for the listener and finds it.
pub(crate) fn hidden_listener(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[0];
    let pid = node.pid().context("n1 does not run")?;
    let sockets = run(tour.lab.node(1).command("ss").args(["-Hltnp"]))?;
    let hidden = sockets
        .lines()
        .filter(|line| line.contains(&format!("pid={pid},")))
        .find_map(|line| {
            line.split_whitespace().find_map(|word| word.strip_prefix("127.0.0.1:")?.parse::<u16>().ok())
        })
        .context("no listener on 127.0.0.1")?;
    let came = tour.lab.node(1).run(move || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], hidden)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.read(&mut [0; 100])
    })?;
    let reset = came.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
    ensure!(reset, "the hidden listener gave a process of the node {came:?}, not a reset");
    ensure!(node.metric("lota_unsteered_connections_total")? >= 1.0, "it was not counted");
    Ok(())
}

pub(crate) fn clsact(tour: &mut Tour) -> Result<()> {
    let (client, pod, key) = (tour.client.clone(), tour.pod(1, 1), "clsact/object");
    let node = &mut tour.nodes[0];
    // Everything out, as an operator would; then in again the older way.
    node.stop(Signal::SIGTERM)?;
    run(node.command().args(["datapath", "detach", "--config"]).arg(node.config()))?;
    ensure!(!node.map("").exists(), "detach left pins");
    node.edit("attach = \"auto\"", "attach = \"clsact\"");
    node.configure(Mode::OwnCredential)?;
    for _ in 0..2 {
        // Twice: a restart replaces the filter that is there.
        node.start()?;
        let filters =
            run(tour.lab.node(1).command("tc").args(["filter", "show", "dev", "veth-p1", "ingress"]))?;
        ensure!(filters.matches("handle 0x107a lota_pod").count() == 1, "the filters are:\n{filters}");
        let put = client.put(&pod, key, 110, MIB)?;
        let got = client.get(&pod, key, Style::Path)?;
        ensure!(got.sha256 == put.sha256, "{} {}", got.status, got.code);
        node.stop(Signal::SIGKILL)?;
        let refused =
            pod.run(|| TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(1)))?;
        let kind = refused.map(|_| ()).map_err(|error| error.kind());
        ensure!(kind == Err(std::io::ErrorKind::ConnectionRefused), "with the daemon killed: {kind:?}");
    }
    run(node.command().args(["datapath", "detach", "--config"]).arg(node.config()))?;
    let filters = run(tour.lab.node(1).command("tc").args(["filter", "show", "dev", "veth-p1", "ingress"]))?;
    ensure!(!filters.contains("lota_pod"), "detach left the filter:\n{filters}");
    node.forget_edits();
    node.configure(Mode::OwnCredential)?;
    node.start()
}

/// A pod's interface goes and comes again under its name: a new interface, and so a new entry.
pub(crate) fn interfaces(tour: &mut Tour) -> Result<()> {
    let pod = Pod(2, 2);
    ensure!(pod != DENIED, "this pod has access");
    let (namespace, node) = (tour.lab.pod(pod), tour.lab.node(2));
    let denied = || -> Result<bool> {
        let tried = namespace
            .run(|| TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_millis(300)))?;
        Ok(tried.is_err())
    };
    ensure!(!denied()?, "it cannot connect to begin with");
    let entries = || -> Result<usize> {
        let map = tour.nodes[1].map(lota_common::map::ACCESS4);
        let dump = run(Command::new("bpftool").args(["--json", "map", "dump", "pinned"]).arg(map))?;
        Ok(serde_json::from_str::<Vec<serde_json::Value>>(&dump)?.len())
    };
    ensure!(entries()? == 2, "{} entries to begin with", entries()?);
    node.ip(&format!("link del {}", pod.interface()))?;
    wait_until("the entry to go with its interface", || Ok(entries()? == 1))?;
    tour.lab.connect_pod(pod)?;
    wait_until("the new interface to be attached and allowed", || Ok(entries()? == 2 && !denied()?))?;
    let got = tour.client.put(&namespace, "interfaces/object", 111, 1000)?;
    ensure!(got.status == 200, "{} {}", got.status, got.code);
    Ok(())
}
