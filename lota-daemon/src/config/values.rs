//! Values that TOML has no type for, and how a mistake is explained.

use std::{fmt, net::IpAddr, path::PathBuf};

use hyper::{Uri, http::uri::Authority};
use serde::{Deserialize, Deserializer, de};

use crate::{
    cache::{Admission, DiskPlan, Encryption, Plan},
    s3::Zone,
};

/// A number of bytes: `10GiB`, `512MiB`, `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

/// Scheme, host and port of an HTTP server; no path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Over TLS?
    pub tls: bool,
    /// Host, and port if it was given.
    pub authority: Authority,
}

/// A secret, which no log or error shows.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct Secret(String);

/// `[node]` as it is written: where many nodes share a file, the environment says what differs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    /// Its name: what placement hashes, so it must not change while its cache lives. Left out, `LOTA_NODE_NAME` in the
    /// environment says it.
    name: Option<String>,
    /// Its address in the cluster; the peer port listens here and nowhere else. Left out, `LOTA_NODE_ADDRESS` says it.
    address: Option<IpAddr>,
    /// Its zone, told to gateways that speak LOTA; of several owners of an object, one in the same zone is asked. Left out,
    /// `LOTA_NODE_ZONE` says it, or else the API server.
    #[serde(default)]
    zone: String,
    /// Its region, told to gateways that speak LOTA.
    #[serde(default)]
    region: String,
}

impl TryFrom<Node> for super::Node {
    type Error = String;

    fn try_from(Node { name, address, zone, region }: Node) -> Result<Self, String> {
        let said = |variable: &str| std::env::var(variable).ok().filter(|value| !value.is_empty());
        let name = name.or_else(|| said("LOTA_NODE_NAME"));
        let name = name.ok_or("node.name: neither said here nor by LOTA_NODE_NAME in the environment")?;
        let address = match (address, said("LOTA_NODE_ADDRESS")) {
            (Some(address), _) => address,
            (None, Some(text)) => {
                text.parse().map_err(|_| format!("LOTA_NODE_ADDRESS: `{text}` is not an address"))?
            }
            (None, None) => {
                return Err(
                    "node.address: neither said here nor by LOTA_NODE_ADDRESS in the environment".into()
                );
            }
        };
        let zone = if zone.is_empty() { said("LOTA_NODE_ZONE").unwrap_or_default() } else { zone };
        Ok(Self { name, address, zone, region })
    }
}

/// `[cache]` as it is written: one folder, or several disks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cache {
    /// The folder, on a disk of its own if possible. It and `capacity` are needed, or `disks`.
    folder: Option<PathBuf>,
    /// Most bytes of objects there; also the node's weight in placement.
    capacity: Option<ByteSize>,
    /// Several disks, instead of `folder` and `capacity`.
    #[serde(default)]
    disks: Vec<Disk>,
    /// Space of each disk to leave to others, who get it back when they need it.
    #[serde(default = "default_min_free")]
    min_free: ByteSize,
    /// Hundredths of the capacity: beyond so many, what was used least recently goes, until `low_percent` are left.
    #[serde(default = "default_high")]
    high_percent: u8,
    /// Hundredths of the capacity that are left then.
    #[serde(default = "default_low")]
    low_percent: u8,
    /// Which objects may come in when something must go for them.
    #[serde(default)]
    admission: Admission,
    /// Must what is cached be encrypted, by the file system?
    #[serde(default)]
    encryption: Encryption,
    /// Bytes per second, on each disk, that are compared with their checksums behind the requests; 0 for none.
    #[serde(default = "default_scrub")]
    scrub: ByteSize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Disk {
    /// The folder.
    folder: PathBuf,
    /// Most bytes of objects there.
    capacity: ByteSize,
}

fn default_min_free() -> ByteSize {
    ByteSize(Plan::DEFAULT.min_free)
}

fn default_high() -> u8 {
    Plan::DEFAULT.high
}

fn default_low() -> u8 {
    Plan::DEFAULT.low
}

fn default_scrub() -> ByteSize {
    ByteSize(Plan::DEFAULT.scrub)
}

impl TryFrom<Cache> for super::Cache {
    type Error = &'static str;

    fn try_from(cache: Cache) -> Result<Self, Self::Error> {
        let disk = |Disk { folder, capacity }| DiskPlan { folder, capacity: capacity.0 };
        let disks: Vec<DiskPlan> = match (cache.folder, cache.capacity) {
            (Some(folder), Some(capacity)) if cache.disks.is_empty() => vec![disk(Disk { folder, capacity })],
            (None, None) if !cache.disks.is_empty() => cache.disks.into_iter().map(disk).collect(),
            _ => return Err("cache: give `folder` and `capacity`, or `disks` with both for each"),
        };
        Ok(Self {
            disks,
            min_free: cache.min_free,
            high_percent: cache.high_percent,
            low_percent: cache.low_percent,
            admission: cache.admission,
            encryption: cache.encryption,
            scrub: cache.scrub,
        })
    }
}

impl ByteSize {
    /// Parses a number with one of these units, or none.
    ///
    /// # Errors
    /// Says what it should have been.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size such as `10GiB`, `512MiB` or `4096`");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            "PiB" => 50,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(wrong)
    }
}

impl Origin {
    /// Parses `http://host[:port]` or `https://host[:port]`.
    ///
    /// # Errors
    /// Says what it should have been.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not an address such as `http://10.0.0.1:9000` or `https://s3.example`");
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let origin = Self::of(&uri).ok_or_else(wrong)?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || origin.authority.as_str().contains('@')
        {
            return Err(wrong());
        }
        Ok(origin)
    }

    /// The origin of an absolute URL, without a default port. `None` if it carries a user or password.
    #[must_use]
    pub fn of(uri: &Uri) -> Option<Self> {
        let tls = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') {
            return None;
        }
        let default = if tls { ":443" } else { ":80" };
        let authority = match authority.as_str().strip_suffix(default) {
            Some(host) => host.parse().ok()?,
            None => authority.clone(),
        };
        Some(Self { tls, authority })
    }

    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.authority)
    }
}

impl Secret {
    /// The secret itself, for the one place that computes with it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Line, column and message of a TOML error; for an unknown key or value, also the nearest right one.
pub(super) fn explain(text: &str, error: &toml::de::Error) -> String {
    let message = error.message();
    let place = error.span().map(|span| {
        let before = &text[..span.start.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("line {line}, column {column}: ")
    });
    let hint = nearest(message).map(|name| format!("; did you mean `{name}`?"));
    format!("{}{message}{}", place.unwrap_or_default(), hint.unwrap_or_default())
}

/// serde says "unknown field `a`, expected one of `b`, `c`": the one of these most like `a`.
fn nearest(message: &str) -> Option<&str> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    quoted
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}
