//! Starting in a wrong environment, and stopping.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{Lab, Mode, run},
    tool,
    tour::Tour,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::lota_lab;

pub(crate) fn bad_configuration(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[0];
    let good = fs::read_to_string(node.config())?;
    let bad = node.folder().join("bad.toml");
    for (from, to, message) in [
        ("capacity = \"4GiB\"\nmin_free", "capacty = \"4GiB\"\nmin_free", "did you mean `capacity`?"),
        ("[gateway]", "[gatevay]", "did you mean `gateway`?"),
        ("attach = \"auto\"", "attach = \"tsx\"", "did you mean `tcx`?"),
        ("http://10.77.0.100:9000", "10.77.0.100:9000", "http://"),
        ("\"4GiB\"\nmin_free", "\"4 GB\"\nmin_free", "10GiB"),
        ("name = \"n1\"", "name = ", "line 2"),
    ] {
        fs::write(&bad, good.replacen(from, to, 1))?;
        let output = node.command().args(["run", "--config"]).arg(&bad).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && stderr.contains(message), "{to:?}: {} {stderr}", output.status);
        ensure!(stderr.contains("bad.toml"), "the error does not name the file: {stderr}");
    }
    let output = node.command().args(["run", "--config", "/nonexistent.toml"]).output()?;
    ensure!(
        String::from_utf8_lossy(&output.stderr).contains("cannot read /nonexistent.toml"),
        "a missing file"
    );
    Ok(())
}

pub(crate) fn missing_privileges(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[0];
    let without = |drop: &str| -> Result<String> {
        let mut command = tour.lab.node(1).command("setpriv");
        command.args([&format!("--bounding-set=-{drop}"), &format!("--inh-caps=-{drop}"), "--"]);
        let output = command.arg(tool("LOTA_BIN")?).args(["run", "--config"]).arg(node.config()).output()?;
        ensure!(!output.status.success(), "it started without {drop}");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (drop, names) in [
        ("bpf", "CAP_BPF"),
        ("net_admin", "CAP_NET_ADMIN"),
        ("net_bind_service", "CAP_NET_BIND_SERVICE"),
        ("perfmon", "CAP_PERFMON"),
    ] {
        let stderr = without(drop)?;
        ensure!(stderr.contains(names), "without {drop}, it prints: {stderr}");
    }
    let bad = node.folder().join("no-bpffs.toml");
    fs::write(&bad, fs::read_to_string(node.config())?.replace("/sys/fs/bpf/", "/tmp/"))?;
    let output = node.command().args(["run", "--config"]).arg(&bad).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        !output.status.success() && stderr.contains("mount -t bpf"),
        "without a bpffs, it prints: {stderr}"
    );
    Ok(())
}

/// Starts a second daemon that cannot request a handover, because it has another admin socket.
pub(crate) fn second_daemon(tour: &mut Tour) -> Result<()> {
    let node = &mut tour.nodes[0];
    let good = fs::read_to_string(node.config())?.replace("admin.sock", "other.sock");
    let other = node.folder().join("other.toml");
    for (what, config) in [
        ("bpffs_path", good.replace("/cache\"", "/other-cache\"")),
        ("cannot open the cache", good.replace("\"/sys/fs/bpf/", "\"/sys/fs/bpf/other-")),
    ] {
        fs::write(&other, &config)?;
        let output = node.command().args(["run", "--config"]).arg(&other).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && stderr.contains("another daemon uses it"),
            "the same {what}: {} {stderr}",
            output.status
        );
    }
    ensure!(node.admin("/readyz")?.starts_with("ready"), "the first daemon is not ready");
    run(node.command().args(["datapath", "detach", "--config"]).arg(&other))?;
    node.stop(Signal::SIGTERM)?;
    node.configure(Mode::OwnCredential)?;
    node.start()
}

/// Interrupts the tour while it makes its lab, and later.
pub(crate) fn interrupted() -> Result<()> {
    for line_prefix in ["a lab: three nodes", "upload 64 MiB"] {
        let mut tour = lota_lab();
        tour.arg("tour").arg("--lota").arg(tool("LOTA_BIN")?).arg("--python").arg(tool("LOTA_PYTHON")?);
        let mut tour = tour.stdout(Stdio::piped()).spawn()?;
        let mut output = BufReader::new(tour.stdout.take().context("no output")?);
        let mut line = String::new();
        while !line.contains(line_prefix) {
            line.clear();
            ensure!(output.read_line(&mut line)? > 0, "the tour ended before `{line_prefix}`");
        }
        kill(Pid::from_raw(tour.id().cast_signed()), Signal::SIGINT)?;
        // Reading must continue: a full or closed pipe would end the tour in another way.
        std::io::copy(&mut output, &mut std::io::sink())?;
        let status = tour.wait()?;
        ensure!(status.code() == Some(130), "interrupted at `{line_prefix}` it ended with {status}");
        let left = Lab::leftovers("lota-demo");
        ensure!(left.is_empty(), "left behind after Ctrl-C at `{line_prefix}`: {}", left.join(", "));
    }
    Ok(())
}

/// Verifies the lab without the tour.
pub(crate) fn kept_lab() -> Result<()> {
    let lab = |arguments: &[&str]| -> Result<String> {
        let mut lab = lota_lab();
        lab.arg(arguments[0]);
        if arguments[0] == "up" {
            lab.arg("--lota").arg(tool("LOTA_BIN")?).arg("--python").arg(tool("LOTA_PYTHON")?);
        }
        run(lab.args(&arguments[1..]))
    };
    let stdout = lab(&["up"])?;
    ensure!(
        stdout.contains("ip netns exec lota-kept-n1p1"),
        "`lab up` does not say how to enter a pod: {stdout}"
    );
    let found = lab(&["exec", "n1p1", "getent", "ahostsv4", "some-bucket.cwlota.com"]);
    let on_node = lab(&["exec", "n1", "bpftool", "map", "list"]);
    lab(&["down"])?;
    ensure!(found?.contains("169.254.77.80"), "a pod of the kept lab does not resolve the zone");
    ensure!(on_node?.contains("lota_access4"), "a node of the kept lab does not see its maps");
    let left = Lab::leftovers("lota-kept");
    ensure!(left.is_empty(), "left behind after `lab down`: {}", left.join(", "));
    Ok(())
}
