//! `lota support-bundle`: what others need to see to help, and nothing that they must not.
//!
//! Secrets are in files of their own, which are not put in. Should one be in something else all the same, it is masked:
//! by its value, or by the name that stands before it.

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
use tokio::{net::TcpStream, time::timeout};

use crate::{
    admin::socket,
    config::{Config, Secret},
    datapath::{Interface, netlink::Netlink},
};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lines of the log.
const LINES: &str = "5000";
const MASK: &str = "(masked)";
/// In whatever text, what follows these up to the next separator is not for others.
const BEFORE_SECRETS: [&str; 7] = [
    "signature=",
    "x-amz-signature=",
    "x-amz-security-token=",
    "x-amz-credential=",
    "credential=",
    "awsaccesskeyid=",
    "bearer ",
];

/// One file of a bundle, or why there is none.
struct Part {
    name: &'static str,
    about: &'static str,
    text: Result<String>,
}

/// What is sent to others.
pub struct Bundle {
    parts: Vec<Part>,
    secrets: Vec<String>,
}

impl Bundle {
    /// Puts it together: the configuration is that of the file at `path`.
    pub async fn gather(config: &Config, path: &Path) -> Self {
        let mut bundle = Self { parts: Vec::new(), secrets: secrets(config) };
        bundle.add("version.txt", "versions of LOTA, kernel and system", Ok(versions()));
        bundle.add("lota.toml", "the configuration, without comments", configuration(path));
        let report = timeout(PATIENCE, socket::request_report(&config.admin.socket)).await;
        let report = report.map_err(Into::into).and_then(|report| report);
        bundle.add("status.txt", "`lota status`", said(&report).map(|report| report.table(false)));
        bundle.add(
            "report.json",
            "`lota status --json`, without the names of objects",
            said(&report).and_then(|report| {
                let mut report = report.clone();
                report.top.objects = None;
                Ok(serde_json::to_string_pretty(&report)?)
            }),
        );
        bundle.add("metrics.txt", "`/metrics`", get(config.admin.listen, "/metrics").await);
        bundle.add("interfaces.txt", "the node's interfaces and their addresses", interfaces().await);
        bundle.add("log.txt", "the end of the unit's log; on Kubernetes, ask kubectl for it", log());
        bundle
    }

    /// Adds a file.
    pub fn add(&mut self, name: &'static str, about: &'static str, text: Result<String>) {
        self.parts.push(Part { name, about, text });
    }

    /// Writes it, compressed.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, to: impl Write) -> io::Result<()> {
        let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
        let mut manifest = "\
What `lota support-bundle` has put together. There are no secrets in it: lota.toml names the files that hold them, and
none of those is here; signatures and tokens are masked. There are addresses of pods and nodes, and folders of this node.

"
        .to_owned();
        for Part { name, about, text } in &self.parts {
            let (size, about) = match text {
                Ok(text) => {
                    let text = mask(text, &self.secrets);
                    put(&mut archive, name, &text)?;
                    (text.len().to_string(), (*about).to_owned())
                }
                Err(error) => ("none".to_owned(), mask(&format!("{about}: {error:#}"), &self.secrets)),
            };
            // Writing to memory does not fail.
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

/// The same error, for another file.
fn said<T>(of: &Result<T>) -> Result<&T> {
    of.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))
}

/// Every secret that the configuration names, as far as it can be read.
fn secrets(config: &Config) -> Vec<String> {
    let mut secrets: Vec<Secret> = Vec::new();
    secrets.extend(config.peers.as_ref().and_then(|peers| peers.secret().ok()));
    let backend = config.backend.as_ref().and_then(|backend| backend.credential().ok());
    let clients = config.gateway.resign.as_ref().and_then(|resign| resign.clients().ok());
    let clients = clients.into_iter().flat_map(std::collections::HashMap::into_values);
    let mut credentials: Vec<_> = backend.into_iter().collect();
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

/// The text without secrets.
fn mask(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        text = text.replace(secret, MASK);
    }
    for before in BEFORE_SECRETS {
        text = mask_after(&text, before);
    }
    text
}

fn mask_after(text: &str, before: &str) -> String {
    // Of the same length, and byte for byte.
    let lower = text.to_ascii_lowercase();
    let (mut masked, mut done) = (String::with_capacity(text.len()), 0);
    for (found, _) in lower.match_indices(before) {
        let start = found + before.len();
        if start < done {
            continue;
        }
        let ends =
            |character: char| character.is_whitespace() || matches!(character, '&' | ',' | '"' | '\'' | ';');
        let end = text[start..].find(ends).map_or(text.len(), |length| start + length);
        if end > start {
            masked.push_str(&text[done..start]);
            masked.push_str(MASK);
            done = end;
        }
    }
    masked.push_str(&text[done..]);
    masked
}

/// The configuration as it is read. Comments are for those who wrote them.
fn configuration(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    // The error would quote the text.
    let Ok(mut table) = text.parse::<toml::Table>() else { bail!("{} is no TOML", path.display()) };
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
    for (index, Interface { name, kind, controller }) in &interfaces.0 {
        let of = controller.and_then(|controller| interfaces.name(controller));
        let of = of.map(|name| format!(", a port of {name}")).unwrap_or_default();
        writeln!(text, "{index}: {name} {kind}{of}")?;
    }
    for address in nix::ifaddrs::getifaddrs().context("listing addresses")? {
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
    let output = command.output().context("running journalctl")?;
    ensure!(output.status.success(), "journalctl: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the admin port answers.
async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let asked = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder().uri(path).header("host", "lota").body(Empty::<Bytes>::new())?;
        let body = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    timeout(PATIENCE, asked).await.with_context(|| format!("{address} does not answer"))?
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
