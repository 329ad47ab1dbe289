//! Network namespaces, managed with `ip netns` and `setns(2)`.

use std::{
    ffi::OsStr,
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::run;

/// Whether netfilter handles IPv4 packets at the ports of bridges.
const BRIDGE_FILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
/// Timeout for killed processes to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// A network namespace by name; it need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace(String);

impl Namespace {
    /// Returns the namespace of this name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Creates it, with `lo` up.
    ///
    /// # Errors
    /// If `ip` fails, for example without root.
    pub fn create(&self) -> Result<()> {
        run(Command::new("ip").args(["netns", "add", &self.0]))?;
        self.ip("link set lo up")
    }

    /// Kills its processes and removes it, if it exists. Safe to call concurrently.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn delete(&self) -> Result<()> {
        let deadline = Instant::now() + KILL_TIMEOUT;
        while self.path().exists() && Instant::now() < deadline {
            let pids = run(Command::new("ip").args(["netns", "pids", &self.0])).unwrap_or_default();
            if pids.trim().is_empty() {
                break;
            }
            for pid in pids.lines().filter_map(|pid| pid.trim().parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(10));
        }
        let deleted = run(Command::new("ip").args(["netns", "del", &self.0]));
        if self.path().exists() {
            deleted?;
        }
        match fs::remove_dir_all(self.etc()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Returns the paths that exist while it exists.
    pub(super) fn traces(&self) -> [PathBuf; 2] {
        [self.path(), self.etc()]
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        run(Command::new("ip").args(["-n", &self.0]).args(arguments.split(' '))).map(|_| ())
    }

    /// Returns a command in it that sees the machine's bpffs, which `ip netns exec` would hide.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Returns a command in it with its own `resolv.conf`, as for a process in a pod.
    #[must_use]
    pub fn pod_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).arg(program);
        command
    }

    /// Runs a closure on a thread in it.
    ///
    /// # Errors
    /// If the namespace does not exist.
    pub fn run<T: Send + 'static>(&self, inside: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let namespace = self.clone();
        let entered = thread::spawn(move || -> Result<T> {
            namespace.enter()?;
            Ok(inside())
        });
        entered.join().map_err(|_| anyhow!("the thread in {} panicked", self.0))?
    }

    /// Moves the calling thread into it permanently.
    ///
    /// # Errors
    /// If it does not exist.
    pub fn enter(&self) -> Result<()> {
        let path = self.path();
        let namespace = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).context("setns")
    }

    /// Writes to a file under `/proc/sys/net`, which belongs to the namespace of the thread that opens it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, file: &'static str, text: &'static str) -> Result<()> {
        self.run(move || fs::write(file, text))?.with_context(|| format!("writing {file} in {}", self.0))
    }

    /// Sets whether netfilter handles packets at the ports of its bridges. Returns whether it does: on a machine without the
    /// module `br_netfilter`, it never does.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_bridge_filter(&self, filters: bool) -> Result<bool> {
        if !Path::new(BRIDGE_FILTER).exists() {
            return Ok(false);
        }
        self.write(BRIDGE_FILTER, if filters { "1" } else { "0" })?;
        Ok(filters)
    }

    /// Sets the resolver of its processes, with further `options` of `resolv.conf(5)`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_resolver(&self, server: Ipv4Addr, options: &str) -> Result<()> {
        self.set("resolv.conf", &format!("nameserver {server}\noptions timeout:1 attempts:2 {options}\n"))
    }

    /// Sets the content of a file in `/etc` for its processes.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set(&self, file: &str, text: &str) -> Result<()> {
        fs::create_dir_all(self.etc())?;
        Ok(fs::write(self.etc().join(file), text)?)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Returns the folder whose files `ip netns exec` mounts over `/etc`.
    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.0)
    }
}
