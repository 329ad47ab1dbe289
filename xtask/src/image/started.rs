//! The image's files as a container, by runc: what the hardened DaemonSet's pod gets, and a network namespace of its
//! own instead of the host's.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{VERSION, folder, remove};
use crate::{
    setup::ImageTools,
    tell::{ask, command, succeeds},
};

/// The container's, and its network namespace's.
const NAME: &str = "lota-image-test";
/// CAP_BPF, CAP_NET_ADMIN and CAP_NET_BIND_SERVICE, as the kernel shows them.
const THREE: &str = "0000008000001400";
const PATIENCE: Duration = Duration::from_secs(30);

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
/// LOTA's own, which knows its zone.
const RESOLV: &str = "nameserver 169.254.77.80\noptions timeout:1 attempts:1\n";

/// How it is started: `ARGUMENTS`, `ROOT` and `OUTSIDE` are filled in.
const RUNTIME: &str = r#"{
  "ociVersion": "1.0.2",
  "process": {
    "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ARGUMENTS,
    "env": ["AWS_ACCESS_KEY_ID=none", "AWS_SECRET_ACCESS_KEY=none"],
    "capabilities": {
      "bounding": ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"],
      "permitted": ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"],
      "effective": ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"]
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

/// A container that is there until it is dropped.
pub(super) struct Container<'a> {
    tools: &'a ImageTools,
    root: PathBuf,
    outside: PathBuf,
    node: Option<Child>,
}

impl<'a> Container<'a> {
    /// Makes what is around it.
    pub(super) fn new(tools: &'a ImageTools, root: &Path) -> Result<Self, String> {
        let outside = folder().join("outside");
        let container = Self { tools, root: root.to_owned(), outside, node: None };
        container.clean();
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
            ask(&mut command("ip", arguments))?;
        }
        Ok(container)
    }

    /// `lota --version`, and that it is ours.
    pub(super) fn version(&self) -> Result<(), String> {
        let said = ask(&mut self.run_it(&["--version"])?)?;
        if said == format!("lota {VERSION}") { Ok(()) } else { Err(format!("it says `{said}`")) }
    }

    /// `lota run`.
    pub(super) fn start(&mut self) -> Result<(), String> {
        let log = File::create(self.log()).map_err(|error| error.to_string())?;
        let mut run = self.run_it(&["run"])?;
        let node = run.stdin(Stdio::null()).stderr(log).spawn();
        self.node = Some(node.map_err(|error| format!("cannot run {run:?}: {error}"))?);
        Ok(())
    }

    /// What the kernel lets its process do.
    pub(super) fn privileges(&self) -> Result<(), String> {
        let pids = ask(&mut command("ip", &["netns", "pids", NAME]))?;
        let status = fs::read_to_string(format!("/proc/{}/status", pids.trim())).unwrap_or_default();
        let has = |line: &str| status.lines().any(|found| found == line);
        let sets = ["CapPrm", "CapEff", "CapBnd"].map(|set| format!("{set}:\t{THREE}"));
        if sets.iter().all(|set| has(set)) && has("NoNewPrivs:\t1") { Ok(()) } else { Err(status) }
    }

    /// Is the pod's interface steered?
    pub(super) fn attached(&self) -> Result<(), String> {
        let status = ask(&mut self.exec(&["datapath", "status"]))?;
        if status.lines().any(|line| line.contains("pod")) { Ok(()) } else { Err(status) }
    }

    /// A request to this place is answered so.
    pub(super) fn finds(&self, place: &str, answer: &str) -> Result<(), String> {
        let said = self.prefetch(place);
        if said.contains(answer) { Ok(()) } else { Err(said) }
    }

    fn prefetch(&self, place: &str) -> String {
        let mut prefetch = self.exec(&["prefetch", "--endpoint", &format!("http://{place}"), "s3://bucket/"]);
        ask(&mut prefetch).unwrap_or_else(|error| error)
    }

    /// Asks it to end; it says that it did so in order.
    pub(super) fn stop(&mut self) -> Result<(), String> {
        let mut node = self.node.take().ok_or("it does not run")?;
        ask(&mut self.runc(&["kill", NAME, "TERM"]))?;
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(status) = node.try_wait().map_err(|error| error.to_string())? {
                let log = || fs::read_to_string(self.log()).unwrap_or_default();
                return if status.success() { Ok(()) } else { Err(format!("{status}\n{}", log())) };
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.node = Some(node);
        Err(format!("it still runs after {PATIENCE:?}"))
    }

    fn log(&self) -> PathBuf {
        self.outside.join("log")
    }

    /// A new container, in the foreground.
    fn run_it(&self, arguments: &[&str]) -> Result<Command, String> {
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

    /// Another command in the one that runs.
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

    fn clean(&self) {
        succeeds(&mut self.runc(&["delete", "--force", NAME]));
        succeeds(&mut command("ip", &["netns", "del", NAME]));
        let _ = remove(&self.outside);
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.clean();
        if let Some(mut node) = self.node.take() {
            let _ = node.wait();
        }
    }
}

/// Waits until the node in the container says that it is ready.
pub(super) fn ready() -> Result<(), String> {
    let started = Instant::now();
    let asked = ["netns", "exec", NAME, "curl", "-sf", "--max-time", "1", "http://127.0.0.1:7481/readyz"];
    while started.elapsed() < PATIENCE {
        if ask(&mut command("ip", &asked)).is_ok_and(|said| said.starts_with("ready")) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    let log = fs::read_to_string(folder().join("outside/log")).unwrap_or_default();
    Err(format!("not ready after {PATIENCE:?}:\n{log}"))
}
