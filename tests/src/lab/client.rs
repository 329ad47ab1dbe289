//! boto3 clients in namespaces.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Lab, Namespace, boto3::Boto3Pool};

/// An S3 credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Access key.
    pub access_key: Cow<'static, str>,
    /// Secret key.
    pub secret_key: Cow<'static, str>,
}

/// Addressing style of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Bucket in the path, as most SDKs use for this endpoint.
    Path,
    /// Bucket in the host.
    Virtual,
}

/// An S3 client that runs boto3 in namespaces.
#[derive(Clone, Debug)]
pub struct Client {
    python: PathBuf,
    script: PathBuf,
    home: PathBuf,
    /// Credential that signs.
    pub credential: Credential,
    bucket: String,
    processes: Boto3Pool,
}

/// Result of a request.
#[derive(Clone, Debug, Deserialize)]
pub struct Got {
    /// The HTTP status.
    pub status: u16,
    /// S3 error code; empty on success.
    #[serde(default)]
    pub code: String,
    /// Response headers, with names in lower case.
    #[serde(default)]
    pub headers: HashMap<String, String>,
    /// SHA-256 of the body sent or received, in hex.
    #[serde(default)]
    pub sha256: String,
    /// Size of the body in bytes; for errors, from `Content-Length`.
    #[serde(default)]
    pub size: u64,
    /// Duration of the transfer in seconds.
    pub seconds: f64,
}

impl Credential {
    /// Creates a constant credential.
    #[must_use]
    pub const fn fixed(access_key: &'static str, secret_key: &'static str) -> Self {
        Self { access_key: Cow::Borrowed(access_key), secret_key: Cow::Borrowed(secret_key) }
    }
}

impl Style {
    fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Virtual => "virtual",
        }
    }
}

impl Client {
    /// Creates a client that signs with `credential` and uses `bucket`.
    ///
    /// # Errors
    /// If its script cannot be written.
    pub fn new(lab: &Lab, python: PathBuf, credential: Credential, bucket: &str) -> Result<Self> {
        let script = lab.folder().join("client.py");
        fs::write(&script, include_str!("client.py"))?;
        let home = lab.folder().to_owned();
        let processes = Boto3Pool::default();
        Ok(Self { python, script, home, credential, bucket: bucket.to_owned(), processes })
    }

    /// Returns a client with another credential.
    #[must_use]
    pub fn with(&self, credential: Credential) -> Self {
        Self { credential, ..self.clone() }
    }

    /// Creates the bucket.
    ///
    /// # Errors
    /// If the client cannot be run; S3's errors are answers.
    pub fn create_bucket(&self, from: &Namespace) -> Result<Got> {
        self.ask(from, "create_bucket", "", Style::Path, json!({}))
    }

    /// Uploads `size` pseudo-random bytes in one request.
    ///
    /// # Errors
    /// If the client cannot be run, or the upload is refused.
    pub fn put(&self, from: &Namespace, key: &str, seed: u64, size: u64) -> Result<Got> {
        self.put_at("http://cwlota.com", from, key, seed, size)
    }

    /// Uploads like [`Client::put`], to another endpoint.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn put_at(&self, endpoint: &str, from: &Namespace, key: &str, seed: u64, size: u64) -> Result<Got> {
        let more = json!({"seed": seed, "size": size, "endpoint": endpoint});
        let got = self.ask(from, "put", key, Style::Path, more)?;
        ensure!(got.status == 200, "the upload of {key} was answered {} {}", got.status, got.code);
        Ok(got)
    }

    /// Uploads in parallel parts, as the transfer manager does.
    ///
    /// # Errors
    /// If the client cannot be run.
    pub fn upload(&self, from: &Namespace, key: &str, seed: u64, size: u64) -> Result<Got> {
        self.ask(from, "upload", key, Style::Path, json!({"seed": seed, "size": size}))
    }

    /// Reads an object.
    ///
    /// # Errors
    /// If the client cannot be run; S3's errors are answers.
    pub fn get(&self, from: &Namespace, key: &str, style: Style) -> Result<Got> {
        self.ask(from, "get", key, style, json!({}))
    }

    /// Reads an object with further parameters: `range`, `cache_control`, `attempts`.
    ///
    /// # Errors
    /// If the client cannot be run; S3's errors are answers.
    pub fn get_with(&self, from: &Namespace, key: &str, more: Value) -> Result<Got> {
        self.ask(from, "get", key, Style::Path, more)
    }

    /// Reads in parallel ranges, as the transfer manager does.
    ///
    /// # Errors
    /// If the client cannot be run.
    pub fn download(&self, from: &Namespace, key: &str, style: Style) -> Result<Got> {
        self.ask(from, "download", key, style, json!({}))
    }

    /// Writes `count` small objects and reads each until it is a hit.
    ///
    /// # Errors
    /// If the client cannot be run, or the last object is never a hit.
    pub fn put_and_hit(&self, from: &Namespace, key: &str, count: u64) -> Result<()> {
        let more = json!({"count": count, "seed": 7, "size": 1000});
        let got = self.ask(from, "put_and_hit", key, Style::Path, more)?;
        ensure!(
            got.cache() == "hit",
            "{key} is answered {} {} and `{}`, never a hit",
            got.status,
            got.code,
            got.cache()
        );
        Ok(())
    }

    /// Reads objects of [`Client::put_and_hit`] by concurrent threads, each with its own connection and without
    /// retries, until the file `until` exists. Returns the number of reads and the errors.
    ///
    /// # Errors
    /// If the client cannot be run.
    pub fn busy(&self, from: &Namespace, key: &str, threads: u32, until: &Path) -> Result<(u64, String)> {
        let more =
            json!({"count": 10, "seed": 7, "size": 1000, "threads": threads, "attempts": 1, "until": until});
        let got = self.ask(from, "busy", key, Style::Path, more)?;
        Ok((got.size, got.code))
    }

    /// Returns the SHA-256 of bytes `start..end` of the content that [`Client::put`] writes.
    ///
    /// # Errors
    /// If the script cannot be run.
    pub fn digest(&self, from: &Namespace, seed: u64, size: u64, start: u64, end: u64) -> Result<String> {
        let more = json!({"seed": seed, "size": size, "start": start, "end": end});
        Ok(self.ask(from, "digest", "", Style::Path, more)?.sha256)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// If the client cannot be run.
    pub fn delete(&self, from: &Namespace, key: &str) -> Result<Got> {
        self.ask(from, "delete", key, Style::Path, json!({}))
    }

    /// Returns the name of an object in cache listings.
    #[must_use]
    pub fn name(&self, key: &str) -> String {
        format!("{}/{key}", self.bucket)
    }

    fn ask(&self, from: &Namespace, what: &str, key: &str, style: Style, more: Value) -> Result<Got> {
        let mut ask = Map::new();
        ask.insert("do".into(), what.into());
        ask.insert("endpoint".into(), "http://cwlota.com".into());
        ask.insert("style".into(), style.name().into());
        ask.insert("bucket".into(), self.bucket.clone().into());
        ask.insert("key".into(), key.into());
        if let Value::Object(more) = more {
            ask.extend(more);
        }
        let Credential { access_key, secret_key } = &self.credential;
        let command = || {
            let mut command = from.pod_command(&self.python);
            command
                .arg(&self.script)
                // The user's own proxies and profiles must not apply.
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap_or_default())
                .env("HOME", &self.home)
                .env("AWS_ACCESS_KEY_ID", &**access_key)
                .env("AWS_SECRET_ACCESS_KEY", &**secret_key)
                .env("AWS_EC2_METADATA_DISABLED", "true");
            command
        };
        let user = format!("{access_key} {secret_key}");
        let output = self.processes.ask(from, &user, command, &Value::Object(ask).to_string())?;
        let answer: Value = serde_json::from_str(&output)
            .with_context(|| format!("unexpected output of the client: {output:?}"))?;
        if let Some(error) = answer["error"].as_str() {
            bail!("the client in {}: {error}", from.name());
        }
        serde_json::from_value(answer).with_context(|| format!("unexpected output of the client: {output:?}"))
    }
}

impl Got {
    /// Returns the cache status in `Lota-Cache`: `hit`, `miss`, `fill` or `bypass`; empty without the header.
    #[must_use]
    pub fn cache(&self) -> &str {
        self.headers.get("lota-cache").and_then(|value| value.split(';').next()).unwrap_or_default()
    }

    /// Returns the node in `Lota-Cache`.
    #[must_use]
    pub fn node(&self) -> &str {
        self.headers.get("lota-cache").and_then(|value| value.split("node=").nth(1)).unwrap_or_default()
    }
}
