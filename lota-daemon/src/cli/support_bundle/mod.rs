//! `lota support-bundle`: collects diagnostics for a bug report, without secrets.
//!
//! Files with secrets are left out. Secrets in other files are masked: see [`mask`].

mod mask;

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::{Compression, write::GzEncoder};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, body::Bytes, client::conn::http1::handshake};
use hyper_util::rt::TokioIo;
use lota_datapath::{Interface, netlink::Netlink};
use lota_s3::Secret;
use tokio::{net::TcpStream, time::timeout};

use self::mask::{MASK, mask, mask_names};
use crate::{admin::socket, cluster::ClusterKeys, config::Config};

/// Timeout for collecting each part.
const PART_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of lines of the log.
const LINES: &str = "5000";
/// One file of a bundle, or the reason why it is missing.
struct BundlePart {
    name: &'static str,
    about: &'static str,
    text: Result<String>,
}

/// Contents of a support bundle.
pub struct Bundle {
    parts: Vec<BundlePart>,
    secrets: Vec<String>,
}

impl Bundle {
    /// Collects the parts. `config` is the configuration of the file at `path`.
    pub async fn gather(config: &Config, path: &Path) -> Self {
        let mut bundle = Self { parts: Vec::new(), secrets: secrets(config) };
        bundle.add("version.txt", "versions of LOTA, kernel and system", Ok(versions()));
        bundle.add("lota.toml", "the configuration, without comments", configuration(path));
        let report = timeout(PART_TIMEOUT, socket::request_report(&config.admin.socket)).await;
        let report = report.map_err(Into::into).and_then(|report| report);
        bundle.add("status.txt", "`lota status`", copy_error(&report).map(|report| report.table(false)));
        bundle.add(
            "report.json",
            "`lota status --json`, without the names of objects",
            copy_error(&report).and_then(|report| {
                let mut report = report.clone();
                report.top.objects = None;
                Ok(serde_json::to_string_pretty(&report)?)
            }),
        );
        bundle.add("metrics.txt", "`/metrics`", get(config.admin.listen, "/metrics").await);
        bundle.add("interfaces.txt", "the node's interfaces and their addresses", interfaces().await);
        let log = log().map(|log| mask_names(&log));
        bundle.add(
            "log.txt",
            "the end of the unit's log, without the names of objects; on Kubernetes, use `kubectl logs`",
            log,
        );
        bundle
    }

    /// Adds a file.
    pub fn add(&mut self, name: &'static str, about: &'static str, text: Result<String>) {
        self.parts.push(BundlePart { name, about, text });
    }

    /// Writes the bundle as a compressed archive.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, to: impl Write) -> io::Result<()> {
        let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
        let mut manifest = "\
What `lota support-bundle` has put together. There are no secrets in it: lota.toml names the files that hold them, and
none of those is here; what looks like a key, a signature or a token is masked. There are addresses of pods and nodes, and
folders of this node. Names of objects are left out where they stand by themselves; the text of an error may have one in it.

"
        .to_owned();
        for BundlePart { name, about, text } in &self.parts {
            let (size, about) = match text {
                Ok(text) => {
                    let text = mask(text, &self.secrets);
                    put(&mut archive, name, &text)?;
                    (text.len().to_string(), (*about).to_owned())
                }
                Err(error) => ("none".to_owned(), mask(&format!("{about}: {error:#}"), &self.secrets)),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(manifest, "{name:<16} {size:>10}  {about}");
        }
        put(&mut archive, "MANIFEST", &manifest)?;
        archive.into_inner()?.finish()?.flush()
    }
}

fn put(archive: &mut tar::Builder<impl Write>, name: &str, text: &str) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(now.as_secs());
    archive.append_data(&mut header, Path::new("lota-support").join(name), text.as_bytes())
}

/// Copies an error, which is written to another file, too.
fn copy_error<T>(of: &Result<T>) -> Result<&T> {
    of.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))
}

/// Returns every secret that the configuration names and that can be read.
fn secrets(config: &Config) -> Vec<String> {
    let mut secrets: Vec<Secret> = Vec::new();
    let shared = config.peers.iter().filter_map(|peers| ClusterKeys::read(peers.keys.shared()?).ok());
    secrets.extend(shared.flat_map(|keys| keys.each().cloned().collect::<Vec<_>>()));
    let own = config.peers.iter().filter_map(|peers| fs::read_to_string(peers.keys.node()?).ok());
    let lines = own.flat_map(|pem| pem.lines().map(str::to_owned).collect::<Vec<_>>());
    secrets.extend(lines.filter(|line| !line.starts_with('-')).map(Secret::from));
    let backends = config.all_gateways().filter_map(|configured| configured.backend?.credential().ok());
    let clients =
        config.all_gateways().filter_map(|configured| configured.gateway.re_sign.as_ref()?.clients().ok());
    let clients = clients.flat_map(std::collections::HashMap::into_values);
    let mut credentials: Vec<_> = backends.collect();
    for client in clients {
        credentials.push(client.at_gateway());
        secrets.push(client.secret_key);
        secrets.extend(client.session_token);
    }
    for credential in credentials {
        secrets.push(credential.secret_key);
        secrets.extend(credential.session_token);
    }
    secrets
        .iter()
        .map(|secret| secret.expose().trim().to_owned())
        .filter(|secret| !secret.is_empty())
        .collect()
}

/// Returns the configuration without comments, which may contain anything.
fn configuration(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    // The error would quote the text.
    let Ok(mut table) = text.parse::<toml::Table>() else { bail!("{} is not valid TOML", path.display()) };
    mask_table(&mut table);
    Ok(toml::to_string(&table)?)
}

fn mask_table(table: &mut toml::Table) {
    const SECRET: [&str; 5] = ["secret", "password", "token", "access_key", "private"];
    for (key, value) in table {
        match value {
            value if SECRET.iter().any(|name| key.contains(name)) && !key.ends_with("_file") => {
                *value = MASK.into();
            }
            toml::Value::Table(table) => mask_table(table),
            toml::Value::Array(array) => {
                array.iter_mut().filter_map(toml::Value::as_table_mut).for_each(mask_table);
            }
            _ => {}
        }
    }
}

fn versions() -> String {
    let mut text = format!("lota {}\n", env!("CARGO_PKG_VERSION"));
    for file in ["/proc/version", "/etc/os-release", "/proc/uptime"] {
        text += &fs::read_to_string(file).unwrap_or_else(|error| format!("{file}: {error}\n"));
    }
    text
}

async fn interfaces() -> Result<String> {
    let mut text = String::new();
    let interfaces = Netlink::connect()?.interfaces().await?;
    for (index, Interface { name, kind, controller, peer }) in &interfaces.0 {
        let of = controller.and_then(|controller| interfaces.name(controller));
        let of = of.map(|name| format!(", a port of {name}")).unwrap_or_default();
        let behind = peer
            .map(|peer| format!(", to interface {} of namespace {}", peer.index, peer.namespace))
            .unwrap_or_default();
        writeln!(text, "{index}: {name} {kind}{of}{behind}")?;
    }
    for address in nix::ifaddrs::getifaddrs().context("cannot list addresses")? {
        let shown =
            address.address.and_then(|shown| match (shown.as_sockaddr_in(), shown.as_sockaddr_in6()) {
                (Some(v4), _) => Some(IpAddr::from(v4.ip())),
                (_, v6) => v6.map(|v6| v6.ip().into()),
            });
        if let Some(shown) = shown {
            writeln!(text, "{} {shown}", address.interface_name)?;
        }
    }
    Ok(text)
}

fn log() -> Result<String> {
    let mut command = Command::new("journalctl");
    command.args(["--unit", "lota", "--lines", LINES, "--no-pager", "--output", "short-iso"]);
    let output = command.output().context("cannot run journalctl")?;
    ensure!(output.status.success(), "journalctl: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the response of the admin port.
async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let response = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder().uri(path).header("host", "lota").body(Empty::<Bytes>::new())?;
        let body = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    timeout(PART_TIMEOUT, response).await.with_context(|| format!("{address} does not answer"))?
}

#[cfg(test)]
mod tests;
