//! Reports of a node for people, scripts and probes.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, bail, ensure};
use lota_daemon::admin::node_status::{INSTANCE, Level, NodeReport};
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

/// Returns the output of a command that exits with this code.
fn output_with_status(command: &mut Command, code: i32) -> Result<String> {
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
    let text = output_with_status(&mut command(node, &["status"]), OK)?;
    let parts: Vec<_> =
        text.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>()).collect();
    let expected = [
        "node",
        "gateway",
        "backend",
        "datapath",
        "connections",
        "access",
        "kubernetes",
        "cache",
        "peers",
        "traffic",
    ];
    ensure!(parts == expected.map(|part| ["ok", part]), "{text}");

    let report: NodeReport =
        serde_json::from_str(&output_with_status(&mut command(node, &["status", "--json"]), OK)?)?;
    ensure!(report.node.name == "n1" && report.level() == Level::Ok, "{:?}", report.findings);
    let name = client.name(key);
    let object = report.top.objects.iter().flatten().find(|object| object.name == name);
    ensure!(object.is_some_and(|object| object.requests >= 2 && object.bytes >= 2 * MIB), "{:?}", report.top);
    // The client may use either address family.
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

    // The admin port reports the same, without the names of objects.
    let text = node.admin("/status.json")?;
    ensure!(!text.contains("often read"), "the admin port names objects: {text}");
    let public: NodeReport = serde_json::from_str(&text)?;
    ensure!(
        public.top.objects.is_none() && public.top.pods.len() == report.top.pods.len(),
        "{:?}",
        public.top
    );
    ensure!(node.admin("/")?.starts_with("<!DOCTYPE html>"), "no page");

    // Refused addresses are shown.
    let (reached, _) = knock(&tour.lab.pod(DENIED), VIP, 80)?;
    ensure!(reached == Reached::Refused, "{reached:?}");
    let node = &tour.nodes[usize::from(DENIED.0) - 1];
    let report: NodeReport =
        serde_json::from_str(&output_with_status(&mut command(node, &["status", "--json"]), OK)?)?;
    let denied = report.access.context("no access status")?.denied;
    let refused = denied.iter().find(|refused| refused.address == DENIED.address());
    ensure!(refused.is_some_and(|refused| refused.interface == Some(DENIED.interface())), "{denied:?}");
    Ok(())
}

pub(crate) fn top(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[0];
    let screen = output_with_status(command(node, &["top", "--once"]).env("NO_COLOR", "1"), OK)?;
    ensure!(!screen.contains('\u{1b}') && screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    for words in ["lota top  n1", "THROUGHPUT FROM", "OBJECTS", "PODS", "REFUSED", "PEERS", "n2"] {
        ensure!(screen.contains(words), "no `{words}` in\n{screen}");
    }
    let line = output_with_status(&mut command(node, &["top", "--once", "--json", "--interval", "0.5"]), OK)?;
    let line: Value = serde_json::from_str(&line)?;
    ensure!(line["node"] == "n1" && line["requests_per_second"].is_number(), "{line}");
    // A script's pipe is not a terminal.
    ensure!(output_with_status(&mut command(node, &["top"]), WRONG)?.contains("--once"), "no hint at --once");
    Ok(())
}

/// Verifies that a probe reports its own daemon during a handover, when two daemons share the node.
pub(crate) fn ready(tour: &mut Tour) -> Result<()> {
    let node = &mut tour.nodes[0];
    let ready = |node: &Node, instance: &str, code| {
        output_with_status(command(node, &["ready"]).env(INSTANCE, instance), code)
    };
    output_with_status(&mut command(node, &["ready"]), OK)?;
    ensure!(ready(node, "pod-1", WRONG)?.contains("another daemon"), "it reports another daemon as its own");
    for (instance, other) in [("pod-1", "pod-2"), ("pod-2", "pod-1")] {
        node.set_environment(vec![(INSTANCE, PathBuf::from(instance))]);
        // The second daemon starts beside the first, which ends after the handover.
        node.start()?;
        ready(node, instance, OK)?;
        ensure!(ready(node, other, WRONG)?.contains(instance), "it does not name the instance that answers");
        output_with_status(&mut command(node, &["ready"]), OK)?;
    }
    node.set_environment(Vec::new());
    node.stop(Signal::SIGTERM)?;
    for arguments in [&["ready"][..], &["status"], &["status", "--json"]] {
        ensure!(
            output_with_status(&mut command(node, arguments), NO_DAEMON)?.contains("check that it runs"),
            "{arguments:?}"
        );
    }
    output_with_status(&mut command(node, &["top", "--once"]), WRONG)?;
    node.start()
}

pub(crate) fn gateway_gone(tour: &mut Tour) -> Result<()> {
    let (node, switch) = (&tour.nodes[0], tour.lab.switch());
    switch.ip("addr del 10.77.0.100/24 dev br0")?;
    // The status reuses a recent response of the gateway for a short time.
    let has_failed = || Ok(command(node, &["status"]).output()?.status.code() == Some(WRONG));
    let text = wait_until("status to report the gateway", has_failed)
        .and_then(|()| output_with_status(&mut command(node, &["status", "--json"]), WRONG));
    switch.ip("addr add 10.77.0.100/24 dev br0")?;
    let report: NodeReport = serde_json::from_str(&text?)?;
    let find = |part: &str| report.findings.iter().find(|finding| finding.part == part);
    let (gateway, backend) = (find("gateway").context("no gateway")?, find("backend").context("no backend")?);
    ensure!(
        gateway.level == Level::Fail && gateway.what.contains("cannot be reached") && gateway.fix.is_some(),
        "{gateway}"
    );
    ensure!(backend.level == Level::Warn && backend.fix.is_some(), "{backend}");
    wait_until("status to be healthy again", || {
        Ok(command(node, &["status"]).output()?.status.code() == Some(OK))
    })
}

/// Verifies that a bundle contains no secret, whatever is in the log.
pub(crate) fn support_bundle(tour: &mut Tour) -> Result<()> {
    let secret = "the lab's cluster key, nothing to protect";
    let folder = tour.lab.folder().join("bundle");
    fs::create_dir_all(&folder)?;
    tour.restart(Mode::ReSign)?;
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    client.put(&pod, "status/secret name", 42, 1000)?;
    client.get(&pod, "status/secret name", Style::Path)?;
    let node = &tour.nodes[0];
    // Replaces the journal by the daemon's own log and lines with secrets.
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
    output_with_status(&mut bundle, OK)?;
    ensure!(
        fs::metadata(&archive)?.permissions().mode() & 0o777 == 0o600,
        "the archive is readable by others"
    );
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
    // As with `kubectl exec` in a pod with a read-only root file system.
    let mut bundle = node.command();
    bundle.args(["support-bundle", "-", "--config"]).arg(node.config());
    let output = bundle.current_dir("/proc").output()?;
    ensure!(output.status.success() && output.stdout.starts_with(&[0x1f, 0x8b]), "{output:?}");
    tour.restart(Mode::OwnCredential)
}
