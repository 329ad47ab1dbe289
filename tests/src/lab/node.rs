//! A node's daemon: its configuration, process and status.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    ADMIN, BACKEND_PORT, Credential, DENIED, GATEWAY, GATEWAY_PORT, Lab, NOBODY, NODES, Namespace, POD_ONLY,
    PODS, Pod, READER, VIP6, node_address, node_address6, run,
};

/// Port for connections between nodes.
pub const PEER_PORT: u16 = 7480;
/// Port of metrics and health checks.
pub const ADMIN_PORT: u16 = 7481;
/// Timeout for a daemon to start. An emulated machine takes half a minute to verify the programs.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Timeout for a daemon to stop.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(35);

/// Configuration of fills and of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A plain S3 gateway, and a credential of LOTA for fills.
    OwnCredential,
    /// A gateway with LOTA's protocol.
    Direct,
    /// A plain S3 gateway only.
    ClientOnly,
    /// A plain S3 gateway with a fixed host name: clients' requests are re-signed.
    ReSign,
}

/// Path of the built daemon.
#[derive(Clone, Debug)]
pub struct Program(pub PathBuf);

/// One node of a lab.
#[derive(Debug)]
pub struct Node {
    number: u8,
    namespace: Namespace,
    folder: PathBuf,
    pins: PathBuf,
    program: Program,
    edits: Vec<(String, String)>,
    environment: Vec<(&'static str, PathBuf)>,
    wrapper: Vec<&'static str>,
    ipv6: bool,
    /// Access rules of Kubernetes; `None` to configure pods and nodes statically.
    kubernetes: Option<String>,
    process: Option<Child>,
    /// Whether the daemon waits for SIGTERM after a handover, as in a pod.
    stays: bool,
}

impl Node {
    /// Creates a node that does not run yet.
    #[must_use]
    pub fn new(lab: &Lab, number: u8, program: &Program) -> Self {
        let folder = lab.folder().join(format!("n{number}"));
        let (namespace, pins) = (lab.node(number), lab.pins(number));
        Self {
            number,
            namespace,
            folder,
            pins,
            program: program.clone(),
            edits: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            ipv6: false,
            kubernetes: None,
            process: None,
            stays: false,
        }
    }

    /// Returns the node's name.
    #[must_use]
    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// Replaces a text in every configuration that is written from now on.
    pub fn edit(&mut self, from: &str, to: &str) {
        self.edits.push((from.to_owned(), to.to_owned()));
    }

    /// Discards all edits of the configuration.
    pub fn forget_edits(&mut self) {
        self.edits.clear();
    }

    /// Configures connections between nodes for IPv6 or IPv4, from the next configuration on.
    pub fn use_ipv6(&mut self, ipv6: bool) {
        self.ipv6 = ipv6;
    }

    /// Takes pods, which these rules select, and nodes from an API server, from the next configuration on.
    pub fn use_kubernetes(&mut self, rules: Option<&str>) {
        self.kubernetes = rules.map(str::to_owned);
    }

    /// Returns whether pods and nodes come from an API server.
    #[must_use]
    pub fn uses_kubernetes(&self) -> bool {
        self.kubernetes.is_some()
    }

    /// Sets the build of the daemon and of the commands, from the next start on.
    pub fn set_program(&mut self, program: &Program) {
        self.program = program.clone();
    }

    /// Sets a command that starts the daemon from now on.
    pub fn set_wrapper(&mut self, wrapper: Vec<&'static str>) {
        self.wrapper = wrapper;
    }

    /// Returns a node's address in the cluster.
    fn address(&self, node: u8) -> IpAddr {
        if self.ipv6 { node_address6(node).into() } else { node_address(node).into() }
    }

    /// Sets environment variables of the daemon, from the next start on.
    pub fn set_environment(&mut self, environment: Vec<(&'static str, PathBuf)>) {
        self.environment = environment;
    }

    /// Writes the configuration.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn configure(&self, mode: Mode) -> Result<()> {
        self.configure_gateway(mode, &format!("http://{GATEWAY}:{GATEWAY_PORT}"))
    }

    /// Writes the configuration with another gateway.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn configure_gateway(&self, mode: Mode, gateway: &str) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        fs::write(self.folder.join("cluster-secret"), "the lab's cluster key, nothing to protect")?;
        let credential =
            format!("access_key = \"{}\"\nsecret_key = \"{}\"\n", READER.access_key, READER.secret_key);
        fs::write(self.folder.join("credential.toml"), credential)?;
        fs::write(self.folder.join("clients.toml"), clients())?;
        let mut text = self.config_text(mode, gateway)?;
        for (from, to) in &self.edits {
            ensure!(text.contains(from), "the configuration has no `{from}` to edit:\n{text}");
            text = text.replace(from, to);
        }
        fs::write(self.config(), text)?;
        Ok(())
    }

    fn config_text(&self, mode: Mode, gateway: &str) -> Result<String> {
        let folder = self.folder.display();
        let mut text = String::new();
        writeln!(text, "[node]\nname = \"{}\"\naddress = \"{}\"", self.name(), self.address(self.number))?;
        writeln!(text, "zone = \"rack-{}\"\nregion = \"lab\"\n", self.number)?;
        writeln!(text, "[endpoint]\nvip6 = \"{VIP6}\"\n")?;
        writeln!(text, "[datapath]\npod_interfaces = [\"veth-*\"]\nuplink = \"uplink\"")?;
        writeln!(text, "mode = \"auto\"\nattach = \"auto\"\nbpffs_path = \"{}\"\n", self.pins.display())?;
        writeln!(text, "[gateway]\nendpoint = \"{gateway}\"")?;
        if mode == Mode::Direct {
            writeln!(text, "protocol = \"lota\"\ndirect_allow = [\"http://{GATEWAY}:{BACKEND_PORT}\"]")?;
        }
        if mode == Mode::OwnCredential {
            writeln!(text, "\n[backend]\nendpoints = [\"http://{GATEWAY}:{BACKEND_PORT}\"]")?;
            writeln!(text, "credential_file = \"{folder}/credential.toml\"")?;
        }
        if mode == Mode::ReSign {
            writeln!(text, "\n[gateway.re_sign]\nclients_file = \"{folder}/clients.toml\"")?;
        }
        writeln!(
            text,
            "\n[cache]\nfolder = \"{folder}/cache\"\ncapacity = \"4GiB\"\nmin_free = \"64MiB\"\n"
        )?;
        writeln!(text, "[peers]\nport = {PEER_PORT}\nsecret_file = \"{folder}/cluster-secret\"")?;
        if self.kubernetes.is_none() {
            writeln!(text, "nodes = [")?;
            for node in 1..=NODES {
                let address = self.address(node);
                writeln!(
                    text,
                    "    {{ name = \"n{node}\", address = \"{address}\", capacity = \"4GiB\" }},"
                )?;
            }
            writeln!(text, "]")?;
        }
        let admin = SocketAddr::new(self.address(self.number), ADMIN_PORT);
        writeln!(text, "\n[admin]\nlisten = \"{admin}\"")?;
        writeln!(text, "socket = \"{folder}/admin.sock\"\n")?;
        if self.kubernetes.is_some() {
            writeln!(text, "[kubernetes]\n")?;
        }
        writeln!(text, "[access]")?;
        writeln!(text, "pods = [")?;
        for pod in (1..=PODS).map(|pod| Pod(self.number, pod)).filter(|pod| *pod != DENIED) {
            for address in [IpAddr::from(pod.address()), pod.address6().into()] {
                writeln!(text, "    {{ address = \"{address}\", interface = \"{}\" }},", pod.interface())?;
            }
        }
        writeln!(text, "]")?;
        text.extend(self.kubernetes.as_deref());
        Ok(text)
    }

    /// Returns the path of the configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("lota.toml")
    }

    /// Returns the path of a pinned map.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.pins.join(format!("v{}", lota_common::LAYOUT)).join(name)
    }

    /// Returns the process id of the running daemon.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Starts the daemon and waits until it is ready. A running daemon hands over to it and must end.
    ///
    /// # Errors
    /// If it does not become ready, with the end of its log.
    pub fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = match self.wrapper.split_first() {
            Some((wrapper, arguments)) => {
                let mut command = self.namespace.command(wrapper);
                command.args(arguments).arg(&self.program.0);
                command
            }
            None => self.command(),
        };
        let process = command
            .args(["run", "--config"])
            .arg(self.config())
            .env("LOTA_LOG", std::env::var("LOTA_LOG").unwrap_or_else(|_| "info".into()))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let before = self.process.replace(process);
        if let Err(error) = self.wait_ready() {
            if let Some(mut failed) = std::mem::replace(&mut self.process, before) {
                let _ = failed.kill();
                failed.wait()?;
            }
            return Err(error);
        }
        // The previous daemon has handed over and ends with its last client.
        let stays = std::mem::replace(&mut self.stays, self.kubernetes.is_some());
        let Some(mut before) = before else { return Ok(()) };
        if stays {
            ensure!(
                before.try_wait()?.is_none(),
                "{}: the previous daemon ended without SIGTERM",
                self.name()
            );
            kill(Pid::from_raw(before.id().cast_signed()), Signal::SIGTERM)?;
        }
        self.wait_end(before)
    }

    fn wait_end(&self, mut process: Child) -> Result<()> {
        let deadline = Instant::now() + DAEMON_TIMEOUT;
        while process.try_wait()?.is_none() {
            if Instant::now() > deadline {
                process.kill()?;
                process.wait()?;
                bail!("{}: the daemon that handed over did not end", self.name());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let serving = format!("pid={}\n", self.pid().unwrap_or_default());
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(ended) = self.process.as_mut().and_then(|process| process.try_wait().ok()?) {
                bail!("{} ended ({ended}) instead of starting:\n{}", self.name(), self.log_tail());
            }
            if self
                .admin("/readyz")
                .is_ok_and(|answer| answer.starts_with("ready") && answer.contains(&serving))
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} is not ready after {START_TIMEOUT:?}:\n{}", self.name(), self.log_tail());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns a `lota` command on this node.
    #[must_use]
    pub fn command(&self) -> Command {
        self.namespace.command(&self.program.0)
    }

    /// Runs a `lota` command with this node's configuration; returns its output.
    ///
    /// # Errors
    /// If it fails, with its standard error.
    pub fn lota(&self, words: &[&str]) -> Result<String> {
        run(self.command().args(words).arg("--config").arg(self.config()))
    }

    /// Sends a signal to the daemon.
    ///
    /// # Errors
    /// If it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} does not run", self.name()))?;
        Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?)
    }

    /// Sends a signal to the daemon and waits for its end.
    ///
    /// # Errors
    /// If it does not run, or does not end.
    pub fn stop(&mut self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        self.wait_ended().with_context(|| format!("after {signal}")).map(|_| ())
    }

    /// Waits until the daemon has ended.
    ///
    /// # Errors
    /// If it does not run, or does not end, in which case it is killed.
    pub fn wait_ended(&mut self) -> Result<ExitStatus> {
        let mut process = self.process.take().with_context(|| format!("{} does not run", self.name()))?;
        let deadline = Instant::now() + DAEMON_TIMEOUT;
        loop {
            if let Some(status) = process.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                process.kill()?;
                process.wait()?;
                bail!("{} did not end within {DAEMON_TIMEOUT:?}", self.name());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the response body of the admin port for a GET request.
    ///
    /// # Errors
    /// If the port does not answer.
    pub fn admin(&self, path: &'static str) -> Result<String> {
        let address = SocketAddr::new(self.address(self.number), ADMIN_PORT);
        let answer = self.namespace.run(move || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })??;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        Ok(body.to_owned())
    }

    /// Returns the value of a metric, given as `name{labels}`; 0 if it does not exist yet.
    ///
    /// # Errors
    /// If the admin port does not answer.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = self.admin("/metrics")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.and_then(|value| value.parse().ok()).unwrap_or(0.0))
    }

    /// Returns the complete objects in the cache: `bucket/key` → size in bytes.
    ///
    /// # Errors
    /// If `lota cache ls` fails.
    pub fn cached(&self) -> Result<HashMap<String, u64>> {
        let list = self.lota(&["cache", "ls", "--json"])?;
        list.lines()
            .map(|line| {
                let object: Value = serde_json::from_str(line)?;
                let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
                Ok((format!("{}/{}", text("bucket"), text("key")), object["size"].as_u64().unwrap_or(0)))
            })
            .collect()
    }

    /// Returns the configured cache folder.
    #[must_use]
    pub fn cache_folder(&self) -> PathBuf {
        self.folder.join("cache")
    }

    /// Replaces a file of this node at once, as `mv` does.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn replace(&self, file: &str, content: &str) -> Result<()> {
        let (path, new) = (self.folder.join(file), self.folder.join(format!("{file}.new")));
        fs::write(&new, content)?;
        Ok(fs::rename(new, path)?)
    }

    /// Runs `lota reload`, and returns its output.
    ///
    /// # Errors
    /// If it fails, for example because a file cannot be used.
    pub fn reload(&self) -> Result<String> {
        self.lota(&["reload"])
    }

    /// Returns the path of the log file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Returns the folder with all files of this node.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Returns the clients whose requests are re-signed: the gateway's users as themselves, and one that only LOTA knows.
fn clients() -> String {
    let table = |name, Credential { access_key, secret_key, .. }: &Credential| {
        format!("{name}\naccess_key = \"{access_key}\"\nsecret_key = \"{secret_key}\"\n\n")
    };
    let selves: String = [ADMIN, READER, NOBODY].iter().map(|user| table("[[client]]", user)).collect();
    selves + &table("[[client]]", &POD_ONLY) + &table("[client.gateway]", &ADMIN)
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.process.is_some() {
            let _ = self.stop(Signal::SIGKILL);
        }
    }
}
