//! Parsing of bucket and key from a request, in virtual-host or path style.

use std::fmt;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer, de};

use crate::GatewayId;

/// Longest key S3 allows, in bytes of UTF-8.
const MAX_KEY: usize = 1024;

/// A host name with its subdomains, such as `cwlota.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(String);

/// Name of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bucket(String);

/// Key of an object, percent-decoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(String);

/// The object that a request names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectName {
    /// Gateway through which the object is read.
    pub gateway: GatewayId,
    /// Bucket.
    pub bucket: Bucket,
    /// Key.
    pub key: Key,
    /// Requested version id, if any.
    pub version_id: Option<String>,
}

/// Resource that the host and path of a request name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The service itself (`ListBuckets`).
    Service,
    /// A bucket.
    Bucket(Bucket),
    /// An object.
    Object(Bucket, Key),
    /// Not recognized: another host, or a name that cannot be decoded. The gateway answers.
    Unknown,
}

impl Zone {
    /// Parses a zone name of letters, digits, hyphens and dots.
    ///
    /// # Errors
    /// A message, if it is not a DNS name.
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

    /// Returns the name in lower case, without a final dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name in the wire format of DNS (RFC 1035, section 3.1).
    #[must_use]
    pub fn wire(&self) -> Vec<u8> {
        let labels = self.0.split('.').flat_map(|label| {
            let length = u8::try_from(label.len()).unwrap_or(0);
            [length].into_iter().chain(label.bytes())
        });
        labels.chain([0]).collect()
    }

    /// Returns the resource for the `host` (with or without port) and the raw `path` of a request.
    #[must_use]
    pub fn resource(&self, host: &str, path: &str) -> Resource {
        let Some(path) = path.strip_prefix('/') else { return Resource::Unknown };
        if let Some(bucket) = self.bucket_of(host) {
            return match path {
                "" => Bucket::parse(&bucket).map_or(Resource::Unknown, Resource::Bucket),
                key => object(&bucket, key),
            };
        }
        if self.is_apex(host) {
            return match path.split_once('/').unwrap_or((path, "")) {
                ("", "") if path.is_empty() => Resource::Service,
                (bucket, "") => Bucket::parse(bucket).map_or(Resource::Unknown, Resource::Bucket),
                (bucket, key) => object(bucket, key),
            };
        }
        Resource::Unknown
    }

    /// Returns whether `host`, with or without port, is the name itself rather than a subdomain.
    pub(crate) fn is_apex(&self, host: &str) -> bool {
        without_port(host).trim_end_matches('.').eq_ignore_ascii_case(&self.0)
    }

    /// Returns the part of `host` before this zone, which is the bucket in virtual-host style. It is not validated.
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

pub(crate) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

impl Bucket {
    fn parse(name: &str) -> Option<Self> {
        Self::is_sound(name).then(|| Self(name.to_owned()))
    }

    /// Returns whether a bucket name is valid for common gateways. They allow names older than today's rules, with
    /// capitals or underscores.
    #[must_use]
    pub fn is_sound(name: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        (1..=255).contains(&name.len()) && name.bytes().all(allowed) && !matches!(name, "." | "..")
    }

    /// Returns whether the name is a DNS label, so that a wildcard certificate covers it in virtual-host style.
    #[must_use]
    pub fn is_label(name: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&name.len())
            && name.bytes().all(allowed)
            && !name.starts_with('-')
            && !name.ends_with('-')
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Key {
    /// Decodes a key from a raw request path without its leading slash. Only `%` escapes; `+` is literal.
    fn decode(raw: &str) -> Option<Self> {
        let key = percent_decode_str(raw).decode_utf8().ok()?;
        (1..=MAX_KEY).contains(&key.len()).then(|| Self(key.into_owned()))
    }

    /// Returns the decoded key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ObjectName {
    /// Creates a name from decoded parts, such as those of a cache record; `None` if a part is invalid.
    #[must_use]
    pub fn from_parts(
        gateway: impl Into<GatewayId>,
        bucket: &str,
        key: &str,
        version_id: Option<String>,
    ) -> Option<Self> {
        let key = (1..=MAX_KEY).contains(&key.len()).then(|| Key(key.to_owned()))?;
        Some(Self { gateway: gateway.into(), bucket: Bucket::parse(bucket)?, key, version_id })
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

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
#[path = "address_tests.rs"]
mod tests;
