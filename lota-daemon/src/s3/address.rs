//! Which bucket and key a request names, in virtual-host or in path style.

use std::fmt;

use percent_encoding::percent_decode_str;

/// Longest key S3 allows, in bytes of UTF-8.
const MAX_KEY: usize = 1024;

/// The DNS zone that LOTA answers for; `cwlota.com` unless configured otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(String);

/// A bucket's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bucket(String);

/// An object's key, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(String);

/// The object that a request names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectName {
    /// Its bucket.
    pub bucket: Bucket,
    /// Its key.
    pub key: Key,
    /// The version asked for, if the request names one.
    pub version_id: Option<String>,
}

/// What the host and path of a request point at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The service itself (`ListBuckets`).
    Service,
    /// A bucket.
    Bucket(Bucket),
    /// An object.
    Object(Bucket, Key),
    /// Something LOTA has no opinion on: a foreign host, a name it cannot decode. The gateway decides.
    Unknown,
}

impl Zone {
    /// A zone from its name; letters, digits, hyphens and dots.
    ///
    /// # Errors
    /// Says what is wrong with the name.
    pub fn parse(name: &str) -> Result<Self, String> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(format!("`{name}` is not a DNS name"));
        }
        Ok(Self(name))
    }

    /// The zone's name, in lower case, without a final dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The zone's name as DNS messages write it (RFC 1035, section 3.1).
    #[must_use]
    pub fn wire(&self) -> Vec<u8> {
        let labels = self.0.split('.').flat_map(|label| {
            let length = u8::try_from(label.len()).unwrap_or(0);
            [length].into_iter().chain(label.bytes())
        });
        labels.chain([0]).collect()
    }

    /// What `host` (with or without port) and the raw `path` of a request point at.
    #[must_use]
    pub fn resource(&self, host: &str, path: &str) -> Resource {
        let Some(path) = path.strip_prefix('/') else { return Resource::Unknown };
        if let Some(bucket) = self.bucket_of(host) {
            return match path {
                "" => Bucket::parse(&bucket).map_or(Resource::Unknown, Resource::Bucket),
                key => object(&bucket, key),
            };
        }
        if without_port(host).trim_end_matches('.').eq_ignore_ascii_case(&self.0) {
            return match path.split_once('/').unwrap_or((path, "")) {
                ("", "") if path.is_empty() => Resource::Service,
                (bucket, "") => Bucket::parse(bucket).map_or(Resource::Unknown, Resource::Bucket),
                (bucket, key) => object(bucket, key),
            };
        }
        Resource::Unknown
    }

    /// The bucket that `host` itself names, as a name under this zone; not yet a sound one.
    #[must_use]
    pub fn bucket_of(&self, host: &str) -> Option<String> {
        let host = without_port(host).trim_end_matches('.').to_ascii_lowercase();
        Some(host.strip_suffix(&self.0)?.strip_suffix('.')?.to_owned())
    }
}

fn object(bucket: &str, key: &str) -> Resource {
    match (Bucket::parse(bucket), Key::decode(key)) {
        (Some(bucket), Some(key)) => Resource::Object(bucket, key),
        _ => Resource::Unknown,
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

impl Bucket {
    fn parse(name: &str) -> Option<Self> {
        Self::is_sound(name).then(|| Self(name.to_owned()))
    }

    /// Is it a bucket name as the gateways LOTA meets allow it? Older than today's rules, some have capitals or
    /// underscores.
    #[must_use]
    pub fn is_sound(name: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        (1..=255).contains(&name.len()) && name.bytes().all(allowed) && !matches!(name, "." | "..")
    }

    /// Can it stand before a server's name, and before that in a certificate with a wildcard?
    #[must_use]
    pub fn is_label(name: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&name.len())
            && name.bytes().all(allowed)
            && !name.starts_with('-')
            && !name.ends_with('-')
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Key {
    /// A key from a raw request path, without its leading slash. `+` means itself; only `%` escapes.
    fn decode(raw: &str) -> Option<Self> {
        let key = percent_decode_str(raw).decode_utf8().ok()?;
        (1..=MAX_KEY).contains(&key.len()).then(|| Self(key.into_owned()))
    }

    /// The key, decoded.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ObjectName {
    /// A name out of trusted parts, such as a cache record.
    #[must_use]
    pub fn from_parts(bucket: &str, key: &str, version_id: Option<String>) -> Option<Self> {
        let key = (1..=MAX_KEY).contains(&key.len()).then(|| Key(key.to_owned()))?;
        Some(Self { bucket: Bucket::parse(bucket)?, key, version_id })
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bucket.0, self.key.0)?;
        match &self.version_id {
            Some(version) => write!(f, "?versionId={version}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "address_tests.rs"]
mod tests;
