//! Addresses of HTTP servers.

use std::{fmt, sync::Arc};

use hyper::{Uri, http::uri::Authority};
use serde::{Deserialize, Deserializer, de};

/// Scheme, host and port of an HTTP server; no path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Whether the server uses TLS.
    pub tls: bool,
    /// Host, with the port if one was given.
    pub authority: Authority,
}

impl Origin {
    /// Parses `http://host[:port]` or `https://host[:port]`.
    ///
    /// # Errors
    /// A message with the expected form.
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

    /// Returns the origin of an absolute URL, without a default port; `None` if the URL contains a user or password.
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

    /// Returns `http` or `https`.
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

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Identity of a gateway: its URL. Objects of different gateways are different objects, whatever their names.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayId(Arc<str>);

impl GatewayId {
    /// Returns the URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for GatewayId {
    fn from(url: &str) -> Self {
        Self(url.into())
    }
}

impl From<&Origin> for GatewayId {
    fn from(origin: &Origin) -> Self {
        Self(origin.to_string().into())
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}
