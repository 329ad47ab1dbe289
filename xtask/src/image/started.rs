//! Runs the image's files as a container, with runc: with the privileges of the hardened DaemonSet's pod, and its own
//! network namespace instead of the host's.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{VERSION, folder, remove, suite::ARCHITECTURE};
use crate::{
    process::{command, output_of, succeeds},
    setup::ImageTools,
};

/// Name of the container and of its network namespace.
const NAME: &str = "lota-image-test";
/// CAP_BPF, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE and CAP_PERFMON, as the kernel shows them.
const FOUR: &str = "000000c000001400";
/// Timeout for the daemon to become ready, and to stop after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

const CONFIG: &str = r#"[node]
name = "image"
address = "127.0.0.1"

[datapath]
pod_interfaces = ["pod"]

[gateway]
endpoint = "https://gateway.test:9000"   # so that it wants certificates

[cache]
folder = "/var/cache/lota"
capacity = "64MiB"
min_free = "1MiB"

[admin]
listen = "127.0.0.1:7481"

[access]
host_network = true
"#;
const HOSTS: &str = "127.0.0.1 localhost gateway.test\n";
/// LOTA's own responder, which answers for its zone.
const RESOLV: &str = "nameserver 169.254.77.80\noptions timeout:1 attempts:1\n";

/// Configuration of the container; `ARGUMENTS`, `ROOT` and `OUTSIDE` are filled in.
const RUNTIME: &str = r#"{
  "ociVersion": "1.0.2",
  "process": {
    "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ARGUMENTS,
    "env": ["AWS_ACCESS_KEY_ID=none", "AWS_SECRET_ACCESS_KEY=none"],
    "capabilities": {
      "bounding": ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_PERFMON"],
      "permitted": ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_PERFMON"],
      "effective": ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_PERFMON"]
    },
    "noNewPrivileges": true
  },
  "root": {"path": "ROOT", "readonly": true},
  "mounts": [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    {"destination": "/sys/fs/bpf", "type": "bpf", "source": "bpf"},
    {"destination": "/run/lota", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "mode=755"]},
    {"destination": "/var/cache/lota", "type": "bind", "source": "OUTSIDE/cache", "options": ["rbind", "rw"]},
    {"destination": "/etc/lota", "type": "bind", "source": "OUTSIDE/etc", "options": ["rbind", "ro"]},
    {"destination": "/etc/hosts", "type": "bind", "source": "OUTSIDE/hosts", "options": ["bind", "ro"]},
    {"destination": "/etc/resolv.conf", "type": "bind", "source": "OUTSIDE/resolv.conf", "options": ["bind", "ro"]}
  ],
  "linux": {
    "cgroupsPath": "/lota-image-test",
    "namespaces": [
      {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
      {"type": "network", "path": "/run/netns/lota-image-test"}
    ],
    "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
    "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
  }
}
"#;

/// Removes the container and its network namespace. Arguments: runc, its libraries, and the folder of its state.
const CLEAN: &str = r#"
LD_LIBRARY_PATH="$2" "$1" --root "$3" delete --force lota-image-test
ip netns del lota-image-test
"#;
/// Waits for the end of this process, by whatever signal, before it does so.
const GUARD: &str = "trap '' INT TERM HUP; read -r _;";

/// A container that exists until it is dropped, or until this process ends.
pub(super) struct Container<'a> {
    tools: &'a ImageTools,
    root: PathBuf,
    outside: PathBuf,
    node: Option<Child>,
    /// Process that removes the container once its standard input is closed.
    guard: Option<Child>,
}

impl<'a> Container<'a> {
    /// Creates the environment of the container.
    pub(super) fn new(tools: &'a ImageTools, root: &Path) -> Result<Self, String> {
        let outside = folder(ARCHITECTURE).join("outside");
        let mut container = Self { tools, root: root.to_owned(), outside, node: None, guard: None };
        succeeds(&mut container.script(CLEAN));
        remove(&container.outside)?;
        let mut guard = container.script(&format!("{GUARD}{CLEAN}"));
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        container.guard = Some(guard.spawn().map_err(|error| format!("cannot run {guard:?}: {error}"))?);
        let failed = |error: std::io::Error| format!("{}: {error}", container.outside.display());
        for folder in ["cache", "etc", "state"] {
            fs::create_dir_all(container.outside.join(folder)).map_err(failed)?;
        }
        for (name, text) in [("etc/lota.toml", CONFIG), ("hosts", HOSTS), ("resolv.conf", RESOLV)] {
            fs::write(container.outside.join(name), text).map_err(failed)?;
        }
        for arguments in [
            &["netns", "add", NAME][..],
            &["-n", NAME, "link", "set", "lo", "up"],
            &["-n", NAME, "link", "add", "pod", "type", "veth", "peer", "name", "inside"],
            &["-n", NAME, "link", "set", "pod", "up"],
        ] {
            output_of(&mut command("ip", arguments))?;
        }
        Ok(container)
    }

    /// Verifies `lota --version`.
    pub(super) fn version(&self) -> Result<(), String> {
        let output = output_of(&mut self.run_container(&["--version"])?)?;
        if output == format!("lota {VERSION}") { Ok(()) } else { Err(format!("it prints `{output}`")) }
    }

    /// Starts `lota run`.
    pub(super) fn start(&mut self) -> Result<(), String> {
        let log = File::create(self.log()).map_err(|error| error.to_string())?;
        let mut run = self.run_container(&["run"])?;
        let node = run.stdin(Stdio::null()).stderr(log).spawn();
        self.node = Some(node.map_err(|error| format!("cannot run {run:?}: {error}"))?);
        Ok(())
    }

    /// Verifies the capabilities of its process.
    pub(super) fn privileges(&self) -> Result<(), String> {
        let pids = output_of(&mut command("ip", &["netns", "pids", NAME]))?;
        let status = fs::read_to_string(format!("/proc/{}/status", pids.trim())).unwrap_or_default();
        let has = |line: &str| status.lines().any(|found| found == line);
        let sets = ["CapPrm", "CapEff", "CapBnd"].map(|set| format!("{set}:\t{FOUR}"));
        if sets.iter().all(|set| has(set)) && has("NoNewPrivs:\t1") { Ok(()) } else { Err(status) }
    }

    /// Verifies that the pod's interface is attached.
    pub(super) fn attached(&self) -> Result<(), String> {
        let status = output_of(&mut self.exec(&["datapath", "status"]))?;
        if status.lines().any(|line| line.contains("pod")) { Ok(()) } else { Err(status) }
    }

    /// Verifies the answer to a request to this server.
    pub(super) fn finds(&self, place: &str, answer: &str) -> Result<(), String> {
        let output = self.prefetch(place);
        if output.contains(answer) { Ok(()) } else { Err(output) }
    }

    fn prefetch(&self, place: &str) -> String {
        let mut prefetch = self.exec(&["prefetch", "--endpoint", &format!("http://{place}"), "s3://bucket/"]);
        output_of(&mut prefetch).unwrap_or_else(|error| error)
    }

    /// Stops the daemon, and verifies that it exits cleanly.
    pub(super) fn stop(&mut self) -> Result<(), String> {
        let mut node = self.node.take().ok_or("the daemon does not run")?;
        output_of(&mut self.runc(&["kill", NAME, "TERM"]))?;
        let started = Instant::now();
        while started.elapsed() < STOP_TIMEOUT {
            if let Some(status) = node.try_wait().map_err(|error| error.to_string())? {
                let log = || fs::read_to_string(self.log()).unwrap_or_default();
                return if status.success() { Ok(()) } else { Err(format!("{status}\n{}", log())) };
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.node = Some(node);
        Err(format!("the daemon still runs after {STOP_TIMEOUT:?}"))
    }

    fn log(&self) -> PathBuf {
        self.outside.join("log")
    }

    /// Returns the command of a new container in the foreground.
    fn run_container(&self, arguments: &[&str]) -> Result<Command, String> {
        let quoted: Vec<String> = arguments.iter().map(|argument| format!("\"{argument}\"")).collect();
        let config = RUNTIME
            .replace("ARGUMENTS", &format!("[\"/usr/bin/lota\", {}]", quoted.join(", ")))
            .replace("ROOT", &self.root.display().to_string())
            .replace("OUTSIDE", &self.outside.display().to_string());
        fs::write(self.outside.join("config.json"), config).map_err(|error| error.to_string())?;
        let mut run = self.runc(&["run", "--bundle"]);
        run.arg(&self.outside).arg(NAME);
        Ok(run)
    }

    /// Returns another command in the running container.
    fn exec(&self, arguments: &[&str]) -> Command {
        let mut exec = self.runc(&["exec", NAME, "/usr/bin/lota"]);
        exec.args(arguments);
        exec
    }

    fn runc(&self, arguments: &[&str]) -> Command {
        let mut runc = Command::new(&self.tools.runc);
        runc.env("LD_LIBRARY_PATH", &self.tools.libraries);
        runc.arg("--root").arg(self.outside.join("state")).args(arguments);
        runc
    }

    fn script(&self, script: &str) -> Command {
        let mut sh = Command::new("sh");
        sh.args(["-c", script, "sh"]).arg(&self.tools.runc).arg(&self.tools.libraries);
        sh.arg(self.outside.join("state"));
        sh
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            // Closes its standard input.
            let _ = guard.wait();
        }
        if let Some(mut node) = self.node.take() {
            let _ = node.wait();
        }
        let _ = remove(&self.outside);
    }
}

/// Waits until the node in the container is ready.
pub(super) fn ready() -> Result<(), String> {
    let started = Instant::now();
    let arguments = ["netns", "exec", NAME, "curl", "-sf", "--max-time", "1", "http://127.0.0.1:7481/readyz"];
    while started.elapsed() < STOP_TIMEOUT {
        if output_of(&mut command("ip", &arguments)).is_ok_and(|output| output.starts_with("ready")) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    let log = fs::read_to_string(folder(ARCHITECTURE).join("outside/log")).unwrap_or_default();
    Err(format!("not ready after {STOP_TIMEOUT:?}:\n{log}"))
}
