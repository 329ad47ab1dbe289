//! Starting where it should not, and ending when told.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{Lab, Mode, interrupt},
    tour::Tour,
};
use nix::sys::signal::Signal;

use super::{lota_lab, tool};

pub(crate) fn bad_configuration(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[0];
    let good = fs::read_to_string(node.config())?;
    let bad = node.folder().join("bad.toml");
    for (from, to, says) in [
        ("capacity = \"4GiB\"\nmin_free", "capacty = \"4GiB\"\nmin_free", "did you mean `capacity`?"),
        ("[gateway]", "[gatevay]", "did you mean `gateway`?"),
        ("attach = \"auto\"", "attach = \"tsx\"", "did you mean `tcx`?"),
        ("http://10.77.0.100:9000", "10.77.0.100:9000", "http://"),
        ("\"4GiB\"\nmin_free", "\"4 GB\"\nmin_free", "10GiB"),
        ("name = \"n1\"", "name = ", "line 2"),
    ] {
        fs::write(&bad, good.replacen(from, to, 1))?;
        let output = node.command().args(["run", "--config"]).arg(&bad).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(says), "{to:?}: {} {said}", output.status);
        ensure!(said.contains("bad.toml"), "it does not name the file: {said}");
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
    let run = |drop: &str| -> Result<String> {
        let mut command = tour.lab.node(1).command("setpriv");
        command.args([&format!("--bounding-set=-{drop}"), &format!("--inh-caps=-{drop}"), "--"]);
        let output = command.arg(tool("LOTA_BIN")?).args(["run", "--config"]).arg(node.config()).output()?;
        ensure!(!output.status.success(), "it started without {drop}");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (drop, names) in
        [("bpf", "CAP_BPF"), ("net_admin", "CAP_NET_ADMIN"), ("net_bind_service", "CAP_NET_BIND_SERVICE")]
    {
        let said = run(drop)?;
        ensure!(said.contains(names), "without {drop} it says: {said}");
    }
    let bad = node.folder().join("no-bpffs.toml");
    fs::write(&bad, fs::read_to_string(node.config())?.replace("/sys/fs/bpf/", "/tmp/"))?;
    let output = node.command().args(["run", "--config"]).arg(&bad).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("mount -t bpf"), "without a bpffs it says: {said}");
    Ok(())
}

pub(crate) fn second_daemon(tour: &mut Tour) -> Result<()> {
    let node = &mut tour.nodes[0];
    let output = node.command().args(["run", "--config"]).arg(node.config()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("another daemon uses it"), "{said}");
    ensure!(node.admin("/readyz")?.starts_with("ready"), "the first one suffered");
    node.stop(Signal::SIGTERM)?;
    node.configure(Mode::OwnCredential)?;
    node.start()
}

/// The tour, interrupted in its middle.
pub(crate) fn interrupted() -> Result<()> {
    let mut tour = lota_lab();
    tour.arg("tour").arg("--lota").arg(tool("LOTA_BIN")?).arg("--python").arg(tool("LOTA_PYTHON")?);
    let mut tour = tour.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let output = BufReader::new(tour.stdout.take().context("no output")?);
    for line in output.lines() {
        if line?.contains("upload 64 MiB") {
            break;
        }
    }
    interrupt(&mut tour)?;
    let left = Lab::leftovers("lota-demo")?;
    ensure!(left.is_empty(), "left behind after Ctrl-C: {}", left.join(", "));
    let daemons = Command::new("pgrep").args(["-f", "lota-lab-lota-demo"]).output()?;
    ensure!(daemons.stdout.is_empty(), "daemons left: {}", String::from_utf8_lossy(&daemons.stdout));
    Ok(())
}
