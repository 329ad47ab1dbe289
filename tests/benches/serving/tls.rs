//! Hits of another node with TLS between nodes, relative to those without.

use std::{fs, thread, time::Duration};

use anyhow::Result;
use lota_scripted::{Authority, CertificatePlan};
use lota_tests::{
    bench::{Goal, Report},
    lab::{Mode, NODES, Pod, VIP},
    tour::wait_until,
};
use nix::sys::signal::Signal;

use super::{LARGE, Stage, TURN, Turn, ratios, show, stub, turn};

/// Measurements with and without TLS; nodes restart before each.
const ROUNDS: usize = 4;

/// Measures reads of 64 MiB objects whose owner is another node.
pub(super) fn between_nodes(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let authority = Authority::new("the lab's nodes")?;
    for node in &stage.nodes {
        let issued = authority.issue(&["lota-peers"], CertificatePlan::default())?;
        issued.write(&node.folder().join("tls"), &authority.pem())?;
    }
    for connections in [1, 8] {
        let mut turns = vec![("with TLS", Vec::new()), ("without", Vec::new())];
        for round in 0..ROUNDS {
            eprint!("\r    TLS between nodes, {connections} connections: round {} of {ROUNDS} ", round + 1);
            for place in [round % 2, 1 - round % 2] {
                set(stage, place == 0)?;
                let pids = [stage.lota(0)?, stage.lota(1)?];
                let server = stage.server(Pod(2, 1), "LOTA", (VIP, 80).into(), &pids, LARGE);
                for _ in 0..2 {
                    turn(&server, connections, Duration::from_secs(1))?;
                    thread::sleep(Duration::from_millis(200));
                }
                turns[place].1.push(turn(&server, connections, TURN)?);
            }
        }
        eprintln!();
        let title = format!("64 MiB, {connections} connections, a remote owner");
        show(report, &title, "GB/s", &turns, |turn| turn.bytes_per_second / 1e9);
        let speed = ratios(&turns, 0, 1, |turn: &Turn| turn.bytes_per_second);
        report.add(format!("{title}: with TLS / without"), "x", Goal::None, speed);
        let cpu = ratios(&turns, 0, 1, |turn: &Turn| turn.cpu_seconds_per_gib);
        report.add(format!("{title}: CPU per GiB with TLS / without"), "x", Goal::None, cpu);
    }
    Ok(())
}

/// Restarts all nodes with or without TLS, and waits until they see each other.
fn set(stage: &mut Stage, tls: bool) -> Result<()> {
    for node in &mut stage.nodes {
        node.configure_gateway(Mode::ClientOnly, &format!("http://{}", stub()))?;
        if tls {
            let folder = node.folder().join("tls").display().to_string();
            let files = [("certificate", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt")];
            let files = files.map(|(key, file)| format!("{key} = \"{folder}/{file}\"\n")).concat();
            let section = format!("\n[peers.tls]\nserver_name = \"lota-peers\"\n{files}\n[admin]\n");
            let text = fs::read_to_string(node.config())?.replace("\n[admin]\n", &section);
            fs::write(node.config(), text)?;
        }
        node.stop(Signal::SIGTERM)?;
        node.start()?;
    }
    wait_until("every node to see every other", || {
        let seen = stage.nodes.iter().map(|node| node.metric("lota_nodes_active"));
        Ok(seen.collect::<Result<Vec<_>>>()?.iter().all(|nodes| *nodes == f64::from(NODES)))
    })
}
