//! A node's daemon: its configuration, its process, what it tells of itself.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
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

/// The port nodes talk to each other on.
pub const PEER_PORT: u16 = 7480;
/// The port of metrics and health.
pub const ADMIN_PORT: u16 = 7481;
/// Longest wait for a daemon to be ready or gone.
const PATIENCE: Duration = Duration::from_secs(35);

/// How the nodes get at whole objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A plain S3 gateway, and LOTA's own credential.
    OwnCredential,
    /// A gateway that speaks LOTA's protocol.
    Direct,
    /// A plain S3 gateway and nothing else.
    ClientOnly,
    /// A plain S3 gateway under a name of its own: clients' requests are signed anew.
    Resign,
}

/// The built daemon.
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
    /// What it is told of Kubernetes: `[kubernetes]`, and the rules.
    kubernetes: Option<String>,
    process: Option<Child>,
    /// Does it stay after handing over, until it is told to end? As a pod must.
    stays: bool,
}

impl Node {
    /// A node that does not run yet.
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

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// Has this text in its configuration replaced whenever that is written from now on.
    pub fn edit(&mut self, from: &str, to: &str) {
        self.edits.push((from.to_owned(), to.to_owned()));
    }

    /// Has its configuration as it is for every node again.
    pub fn forget_edits(&mut self) {
        self.edits.clear();
    }

    /// Has the nodes talk to each other by IPv6, from the next configuration on.
    pub fn use_ipv6(&mut self, ipv6: bool) {
        self.ipv6 = ipv6;
    }

    /// Has an API server tell it of pods, which these rules select, and of nodes, from the next configuration on.
    pub fn use_kubernetes(&mut self, rules: Option<&str>) {
        self.kubernetes = rules.map(str::to_owned);
    }

    /// Does an API server tell it who is who?
    #[must_use]
    pub fn uses_kubernetes(&self) -> bool {
        self.kubernetes.is_some()
    }

    /// Has the daemon started by this command from now on.
    pub fn set_wrapper(&mut self, wrapper: Vec<&'static str>) {
        self.wrapper = wrapper;
    }

    /// Its address in the cluster.
    fn address(&self, node: u8) -> IpAddr {
        if self.ipv6 { node_address6(node).into() } else { node_address(node).into() }
    }

    /// Variables of its process' environment, from the next start on.
    pub fn set_environment(&mut self, environment: Vec<(&'static str, PathBuf)>) {
        self.environment = environment;
    }

    /// Writes its configuration.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn configure(&self, mode: Mode) -> Result<()> {
        self.configure_gateway(mode, &format!("http://{GATEWAY}:{GATEWAY_PORT}"))
    }

    /// The same, with the gateway elsewhere.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn configure_gateway(&self, mode: Mode, gateway: &str) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        fs::write(self.folder.join("cluster-secret"), "the lab's cluster secret, nothing to protect")?;
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
        writeln!(text, "mode = \"auto\"\nattach = \"auto\"\npins = \"{}\"\n", self.pins.display())?;
        writeln!(text, "[gateway]\nendpoint = \"{gateway}\"")?;
        if mode == Mode::Direct {
            writeln!(text, "protocol = \"lota\"\ndirect_allow = [\"http://{GATEWAY}:{BACKEND_PORT}\"]")?;
        }
        if mode == Mode::OwnCredential {
            writeln!(text, "\n[backend]\nendpoints = [\"http://{GATEWAY}:{BACKEND_PORT}\"]")?;
            writeln!(text, "credential_file = \"{folder}/credential.toml\"")?;
        }
        if mode == Mode::Resign {
            writeln!(text, "\n[gateway.resign]\nclients_file = \"{folder}/clients.toml\"")?;
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

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("lota.toml")
    }

    /// Where its maps are pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.pins.join(format!("v{}", lota_common::LAYOUT)).join(name)
    }

    /// Its process' id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Starts the daemon, beside the one that may run, and waits until it is ready and that one has ended.
    ///
    /// # Errors
    /// If it ends instead, with what it said.
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
        // One that ran has handed over, and ends when its clients let it.
        let stays = std::mem::replace(&mut self.stays, self.kubernetes.is_some());
        let Some(mut before) = before else { return Ok(()) };
        if stays {
            ensure!(before.try_wait()?.is_none(), "{}: who handed over has ended by itself", self.name());
            kill(Pid::from_raw(before.id().cast_signed()), Signal::SIGTERM)?;
        }
        self.wait_end(before)
    }

    fn wait_end(&self, mut process: Child) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
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
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(ended) = self.process.as_mut().and_then(|process| process.try_wait().ok()?) {
                bail!("{} ended ({ended}) instead of starting:\n{}", self.name(), self.last_words());
            }
            if self
                .admin("/readyz")
                .is_ok_and(|answer| answer.starts_with("ready") && answer.contains(&serving))
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} is not ready after {PATIENCE:?}:\n{}", self.name(), self.last_words());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A `lota` command on this node.
    #[must_use]
    pub fn command(&self) -> Command {
        self.namespace.command(&self.program.0)
    }

    /// Ends the daemon by a signal and waits for it.
    ///
    /// # Errors
    /// If it does not run, or does not end.
    pub fn stop(&mut self, signal: Signal) -> Result<()> {
        let mut process = self.process.take().with_context(|| format!("{} does not run", self.name()))?;
        kill(Pid::from_raw(process.id().cast_signed()), signal)?;
        let deadline = Instant::now() + PATIENCE;
        while process.try_wait()?.is_none() {
            if Instant::now() > deadline {
                process.kill()?;
                process.wait()?;
                bail!("{} did not end within {PATIENCE:?} of {signal}", self.name());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What the admin port answers to a GET.
    ///
    /// # Errors
    /// If it does not answer.
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

    /// A metric's value: `name{labels}` as Prometheus sees it; 0 if it is not there yet.
    ///
    /// # Errors
    /// If the admin port does not answer.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = self.admin("/metrics")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.and_then(|value| value.parse().ok()).unwrap_or(0.0))
    }

    /// The complete objects in its cache: `bucket/key` → size.
    ///
    /// # Errors
    /// If `lota cache ls` fails.
    pub fn cached(&self) -> Result<HashMap<String, u64>> {
        let list = run(self.command().args(["cache", "ls", "--json", "--config"]).arg(self.config()))?;
        list.lines()
            .map(|line| {
                let object: Value = serde_json::from_str(line)?;
                let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
                Ok((format!("{}/{}", text("bucket"), text("key")), object["size"].as_u64().unwrap_or(0)))
            })
            .collect()
    }

    /// Its cache folder.
    #[must_use]
    pub fn cache_folder(&self) -> PathBuf {
        self.folder.join("cache")
    }

    /// Its log file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// The folder that holds everything of this node.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Who may have requests signed anew: the gateway's own users as themselves, and one that only LOTA knows.
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
