//! What a node tells of itself: to people, scripts and probes, in health and not.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, bail, ensure};
use lota_daemon::report::{INSTANCE, Mark, Report};
use lota_tests::{
    lab::{ADMIN, DENIED, Mode, NOBODY, Node, POD_ONLY, Pod, READER, Reached, Style, VIP, knock, run},
    tour::{MIB, Tour, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Exit codes.
const OK: i32 = 0;
const WRONG: i32 = 1;
const NO_DAEMON: i32 = 2;

fn command(node: &Node, arguments: &[&str]) -> Command {
    let mut command = node.command();
    command.args(arguments).arg("--config").arg(node.config()).env_remove(INSTANCE);
    command
}

/// What a command says, if it ends as expected.
fn said(command: &mut Command, code: i32) -> Result<String> {
    let Output { status, stdout, stderr } = command.output()?;
    let (out, errors) = (String::from_utf8(stdout)?, String::from_utf8_lossy(&stderr).into_owned());
    ensure!(status.code() == Some(code), "{command:?}: {status}, not {code}:\n{out}{errors}");
    Ok(out + &errors)
}

pub(crate) fn healthy(tour: &mut Tour) -> Result<()> {
    let (client, pod, key) = (tour.client.clone(), tour.pod(1, 1), "status/often read");
    client.put(&pod, key, 41, MIB)?;
    wait_until("a hit", || Ok(client.get(&pod, key, Style::Path)?.cache() == "hit"))?;
    let node = &tour.nodes[0];
    let text = said(&mut command(node, &["status"]), OK)?;
    let parts: Vec<_> =
        text.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>()).collect();
    let expected =
        ["node", "gateway", "backend", "datapath", "access", "cluster", "cache", "peers", "traffic"];
    ensure!(parts == expected.map(|part| ["ok", part]), "{text}");

    let report: Report = serde_json::from_str(&said(&mut command(node, &["status", "--json"]), OK)?)?;
    ensure!(report.node.name == "n1" && report.mark() == Mark::Ok, "{:?}", report.findings);
    let name = client.name(key);
    let object = report.top.objects.iter().flatten().find(|object| object.name == name);
    ensure!(object.is_some_and(|object| object.requests >= 2 && object.bytes >= 2 * MIB), "{:?}", report.top);
    // Its client takes either.
    let addresses = [Pod(1, 1).address().to_string(), Pod(1, 1).address6().to_string()];
    ensure!(
        report.top.pods.iter().any(|pod| addresses.contains(&pod.name)),
        "{addresses:?}: {:?}",
        report.top.pods
    );
    ensure!(
        report.traffic.sent.all() >= 2 * MIB && report.traffic.count(&["hit"]) >= 1,
        "{:?}",
        report.traffic
    );
    ensure!(report.peers.is_some_and(|peers| peers.len() == 2), "two peers");

    // The admin port tells the same, but for others' names.
    let told = node.admin("/status.json")?;
    ensure!(!told.contains("often read"), "the admin port names objects: {told}");
    let told: Report = serde_json::from_str(&told)?;
    ensure!(told.top.objects.is_none() && told.top.pods.len() == report.top.pods.len(), "{:?}", told.top);
    ensure!(node.admin("/")?.starts_with("<!DOCTYPE html>"), "no page");

    // Who is refused is shown.
    let (reached, _) = knock(&tour.lab.pod(DENIED), VIP, 80)?;
    ensure!(reached == Reached::Refused, "{reached:?}");
    let node = &tour.nodes[usize::from(DENIED.0) - 1];
    let report: Report = serde_json::from_str(&said(&mut command(node, &["status", "--json"]), OK)?)?;
    let denied = report.access.context("no word of access")?.denied;
    let refused = denied.iter().find(|refused| refused.address == DENIED.address());
    ensure!(refused.is_some_and(|refused| refused.interface == Some(DENIED.interface())), "{denied:?}");
    Ok(())
}

pub(crate) fn top(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[0];
    let screen = said(command(node, &["top", "--once"]).env("NO_COLOR", "1"), OK)?;
    ensure!(!screen.contains('\u{1b}') && screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    for words in ["lota top  n1", "THROUGHPUT FROM", "OBJECTS", "PODS", "REFUSED", "PEERS", "n2"] {
        ensure!(screen.contains(words), "no `{words}` in\n{screen}");
    }
    let line = said(&mut command(node, &["top", "--once", "--json", "--interval", "0.5"]), OK)?;
    let line: Value = serde_json::from_str(&line)?;
    ensure!(line["node"] == "n1" && line["requests_per_second"].is_number(), "{line}");
    // A script's pipe is no terminal.
    ensure!(said(&mut command(node, &["top"]), WRONG)?.contains("--once"), "no hint");
    Ok(())
}

/// Two daemons share a node while one takes over from the other: a probe asks about its own.
pub(crate) fn ready(tour: &mut Tour) -> Result<()> {
    let node = &mut tour.nodes[0];
    let asked =
        |node: &Node, instance: &str, code| said(command(node, &["ready"]).env(INSTANCE, instance), code);
    said(&mut command(node, &["ready"]), OK)?;
    ensure!(asked(node, "pod-1", WRONG)?.contains("another daemon"), "it is taken for another");
    for (instance, other) in [("pod-1", "pod-2"), ("pod-2", "pod-1")] {
        node.set_environment(vec![(INSTANCE, PathBuf::from(instance))]);
        // The second beside the first, which ends when it has handed over.
        node.start()?;
        asked(node, instance, OK)?;
        ensure!(asked(node, other, WRONG)?.contains(instance), "it does not say which answers");
        said(&mut command(node, &["ready"]), OK)?;
    }
    node.set_environment(Vec::new());
    node.stop(Signal::SIGTERM)?;
    for arguments in [&["ready"][..], &["status"], &["status", "--json"]] {
        ensure!(said(&mut command(node, arguments), NO_DAEMON)?.contains("does it run?"), "{arguments:?}");
    }
    said(&mut command(node, &["top", "--once"]), WRONG)?;
    node.start()
}

pub(crate) fn gateway_gone(tour: &mut Tour) -> Result<()> {
    let (node, switch) = (&tour.nodes[0], tour.lab.switch());
    switch.ip("addr del 10.77.0.100/24 dev br0")?;
    // That it answered a moment ago is not asked again at once.
    let missed = || Ok(command(node, &["status"]).output()?.status.code() == Some(WRONG));
    let told = wait_until("the gateway to be missed", missed)
        .and_then(|()| said(&mut command(node, &["status"]), WRONG));
    switch.ip("addr add 10.77.0.100/24 dev br0")?;
    let told = told?;
    for words in
        ["FAIL  gateway   http://10.77.0.100:9000 cannot be reached: ", "> pods get 503", "warn  backend"]
    {
        ensure!(told.contains(words), "no `{words}` in\n{told}");
    }
    wait_until("all to be well again", || Ok(command(node, &["status"]).output()?.status.code() == Some(OK)))
}

/// Whatever is in the log, no secret is in a bundle.
pub(crate) fn support_bundle(tour: &mut Tour) -> Result<()> {
    let secret = "the lab's cluster secret, nothing to protect";
    let folder = tour.lab.folder().join("bundle");
    fs::create_dir_all(&folder)?;
    tour.restart(Mode::Resign)?;
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    client.put(&pod, "status/secret name", 42, 1000)?;
    client.get(&pod, "status/secret name", Style::Path)?;
    let node = &tour.nodes[0];
    // Stands for the journal: the daemon's own log, and the worst that a line could say.
    let lines = format!(
        "GET /b/k?X-Amz-Signature=5ec2e7&X-Amz-Security-Token=t0ken HTTP/1.1\n\
         authorization: AWS4-HMAC-SHA256 Credential=LOTALABADMIN00000001/20260101, Signature=5ec2e7\n{secret}\n{}\n",
        ADMIN.secret_key
    );
    fs::write(folder.join("lines"), lines)?;
    let journal = folder.join("journalctl");
    let script = format!("#!/bin/sh\ncat {} {}\n", node.log().display(), folder.join("lines").display());
    fs::write(&journal, script)?;
    fs::set_permissions(&journal, fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH")?);
    let archive = folder.join("support.tar.gz");
    let mut bundle = node.command();
    bundle.arg("support-bundle").arg(&archive).arg("--config").arg(node.config()).env("PATH", path);
    said(&mut bundle, OK)?;
    ensure!(fs::metadata(&archive)?.permissions().mode() & 0o777 == 0o600, "others may read it");
    run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&folder))?;
    let folder = folder.join("lota-support");
    let manifest = fs::read_to_string(folder.join("MANIFEST"))?;
    let names = [
        "version.txt",
        "lota.toml",
        "status.txt",
        "report.json",
        "metrics.txt",
        "interfaces.txt",
        "log.txt",
        "access.txt",
        "denied.txt",
        "datapath.txt",
        "gateway.txt",
    ];
    for name in names {
        let text = fs::read_to_string(folder.join(name)).with_context(|| format!("{name}\n{manifest}"))?;
        ensure!(!text.is_empty() && manifest.contains(name), "{name} is empty, or not in\n{manifest}");
    }
    let read = |name| fs::read_to_string(folder.join(name));
    ensure!(read("log.txt")?.contains("Signature=(masked)"), "the log is not there");
    ensure!(read("lota.toml")?.contains("/cluster-secret"), "the configuration names no files");
    ensure!(read("interfaces.txt")?.contains("uplink"), "{}", read("interfaces.txt")?);
    let users = [ADMIN, READER, NOBODY, POD_ONLY].map(|user| user.secret_key);
    let others = [secret, "5ec2e7", "t0ken", "secret name"];
    for secret in users.iter().map(|secret| &**secret).chain(others) {
        for file in fs::read_dir(&folder)?.flatten() {
            let text = String::from_utf8_lossy(&fs::read(file.path())?).into_owned();
            if text.contains(secret) {
                bail!("`{secret}` is in {}", file.path().display());
            }
        }
    }
    tour.restart(Mode::OwnCredential)
}
