//! `[gateway]` and `[gateways.NAME]` of the configuration, and the file with clients' credentials.

use std::{
    collections::HashMap,
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use lota_s3::{Credential, Origin, Secret, Zone, credential::is_visible_ascii};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::settings::{ConfigError, default_region, read};

/// S3 gateway that authorizes requests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// URL of the gateway: `http://host:port` or `https://host:port`.
    pub endpoint: Origin,
    /// Host names of the gateway that clients use. Pods with access reach LOTA under these names and their subdomains
    /// without any change; all other pods, and all pods while LOTA is down, reach the gateway itself.
    #[serde(default)]
    pub names: Vec<Zone>,
    /// IPv4 addresses of the gateway that clients use instead of a name, with the port of `endpoint`, which must be an
    /// `http` URL. Pods with access reach LOTA there, too; all other pods, and all pods while LOTA is down, reach the
    /// gateway itself.
    #[serde(default)]
    pub addresses: Vec<Ipv4Addr>,
    /// Further TCP ports on which pods reach LOTA under `names`, besides 80, 443 and the port of `endpoint`. At most 65471.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Certificate for clients that use HTTPS. Without it, connections over TLS are passed on to the server of their name,
    /// encrypted and uncached.
    pub tls: Option<TlsConfig>,
    /// Protocol of the gateway.
    #[serde(default)]
    pub protocol: Protocol,
    /// Allowed targets of direct paths: `http://host:port`, matched exactly. LOTA does not follow a direct path to
    /// any other server.
    #[serde(default)]
    pub direct_allow: Vec<Origin>,
    /// Timeout in seconds for the start of a response, after the request has been sent completely and while the
    /// gateway accepts connections. It detects a gateway that hangs; keep it longer than the timeouts of the clients.
    /// For `POST` the timeout is at least six hours.
    #[serde(default = "default_response_timeout_seconds")]
    pub response_timeout_seconds: u64,
    /// Re-signing of requests, for a gateway that has a fixed host name and rejects signatures made for another one:
    /// LOTA verifies clients' signatures itself and signs the requests again.
    pub re_sign: Option<ReSignConfig>,
}

fn default_response_timeout_seconds() -> u64 {
    900
}

/// Maximum length of the name of a gateway.
const MAX_NAME: usize = 32;

/// Name of a gateway in the configuration, in metrics and in the status.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayName(Arc<str>);

impl GatewayName {
    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the section of the configuration about this gateway.
    #[must_use]
    pub fn section(&self) -> String {
        match self.is_default() {
            true => "gateway".to_owned(),
            false => format!("gateways.{self}"),
        }
    }

    /// Returns the section of the configuration about the backend of this gateway.
    #[must_use]
    pub fn backend_section(&self) -> String {
        match self.is_default() {
            true => "backend".to_owned(),
            false => format!("backends.{self}"),
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for GatewayName {
    /// The gateway of section `[gateway]`.
    fn default() -> Self {
        Self("default".into())
    }
}

impl fmt::Display for GatewayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for GatewayName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
            return Err(de::Error::custom(format!(
                "`{name}` is not a name of a gateway; use 1 to {MAX_NAME} lower-case letters, digits and hyphens"
            )));
        }
        Ok(Self(name.into()))
    }
}

impl GatewayConfig {
    /// Returns the ports on which pods reach LOTA under the gateway's own names.
    pub fn all_ports(&self) -> impl Iterator<Item = u16> {
        let of_endpoint =
            self.endpoint.authority.port_u16().unwrap_or(if self.endpoint.tls { 443 } else { 80 });
        let own = [80, 443, of_endpoint].into_iter().chain(self.ports.iter().copied());
        own.filter(|_| !self.names.is_empty())
    }

    /// Returns the addresses and ports at which connections of pods are intercepted.
    pub fn targets(&self) -> impl Iterator<Item = SocketAddrV4> {
        let port = self.endpoint.authority.port_u16().unwrap_or(80);
        self.addresses.iter().map(move |address| SocketAddrV4::new(*address, port))
    }

    /// Returns the timeout for the start of a response.
    #[must_use]
    pub fn response_timeout(&self) -> Duration {
        Duration::from_secs(self.response_timeout_seconds)
    }
}

/// Protocol of the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Plain S3.
    #[default]
    S3,
    /// S3 with the LOTA gateway protocol (`docs/gateway-protocol.md`).
    Lota,
}

/// Certificate of a gateway's names, from a certificate authority that clients trust. Its files are read again when they
/// change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificate, followed by intermediate certificates.
    pub certificate: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// Re-signing of clients' requests.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReSignConfig {
    /// TOML file with a `[[client]]` table for each access key that clients use. It is read again when it changes.
    pub clients_file: PathBuf,
    /// Region in LOTA's signatures.
    #[serde(default = "default_region")]
    pub region: String,
    /// Addressing style of requests to the gateway.
    #[serde(default)]
    pub style: AddressingStyle,
}

/// Addressing style: where a request names the bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressingStyle {
    /// Bucket in the path.
    #[default]
    Path,
    /// Bucket in the host name.
    VirtualHost,
}

/// Contents of `gateway.re_sign.clients_file`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clients {
    client: Vec<ClientCredential>,
}

/// Credential that clients sign with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCredential {
    /// Access key ID.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: Secret,
    /// Session token of a temporary credential. Clients must send it.
    pub session_token: Option<Secret>,
    /// Credential that LOTA signs these clients' requests with. Default: the client's own.
    pub gateway: Option<Credential>,
}

impl ClientCredential {
    /// Returns the access key of the credential that LOTA signs the client's requests with.
    #[must_use]
    pub fn access_key_at_gateway(&self) -> &str {
        self.gateway.as_ref().map_or(&self.access_key, |gateway| &gateway.access_key)
    }

    /// Returns the credential that LOTA signs the client's requests with.
    #[must_use]
    pub fn at_gateway(&self) -> Credential {
        self.gateway.clone().unwrap_or_else(|| Credential {
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.clone(),
            session_token: self.session_token.clone(),
        })
    }
}

impl ReSignConfig {
    /// Reads the clients' credentials, by access key.
    ///
    /// # Errors
    /// [`ConfigError`], never with a secret.
    pub fn clients(&self) -> Result<HashMap<String, ClientCredential>, ConfigError> {
        self.parse_clients(&read(&self.clients_file)?)
    }

    /// Parses the contents of the file with the clients' credentials.
    ///
    /// # Errors
    /// [`ConfigError`], never with a secret.
    pub fn parse_clients(&self, text: &str) -> Result<HashMap<String, ClientCredential>, ConfigError> {
        let invalid = |message| ConfigError::invalid(&self.clients_file, message);
        // TOML's own message would show the line, which may contain a secret.
        let clients: Clients = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            invalid(format!(
                "line {line}: must contain `[[client]]` tables with `access_key`, `secret_key`, optionally \
                 `session_token`, and optionally a `[client.gateway]` table with the same keys"
            ))
        })?;
        let mut by_key = HashMap::new();
        for client in clients.client {
            if !client.at_gateway().is_sound() || !is_visible_ascii(&client.access_key) {
                let key = client.access_key.escape_default();
                return Err(invalid(format!(
                    "client {key}: keys and tokens must consist of visible ASCII characters"
                )));
            }
            if let Some(twice) = by_key.insert(client.access_key.clone(), client) {
                return Err(invalid(format!("duplicate access key {}; remove one", twice.access_key)));
            }
        }
        Ok(by_key)
    }
}

#[cfg(test)]
impl GatewayConfig {
    /// Returns the configuration of a plain S3 gateway.
    pub(crate) fn for_test(endpoint: Origin) -> Self {
        Self {
            endpoint,
            protocol: Protocol::S3,
            direct_allow: Vec::new(),
            response_timeout_seconds: 900,
            re_sign: None,
            names: Vec::new(),
            addresses: Vec::new(),
            ports: Vec::new(),
            tls: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn clients(text: &str) -> Result<HashMap<String, ClientCredential>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let re_sign = ReSignConfig {
            clients_file: file.path().to_owned(),
            region: "us-east-1".into(),
            style: AddressingStyle::Path,
        };
        re_sign.clients().map_err(|error| error.to_string())
    }

    #[test]
    fn clients_sign_as_themselves_or_as_another() {
        let read = clients(
            "[[client]]\naccess_key = \"A\"\nsecret_key = \"a\"\n[[client]]\naccess_key = \"B\"\nsecret_key = \"b\"\n\
             [client.gateway]\naccess_key = \"C\"\nsecret_key = \"c\"\n",
        );
        let read = read.unwrap();
        let at_gateway = |key: &str| read[key].at_gateway().access_key;
        assert_eq!((at_gateway("A"), at_gateway("B")), ("A".into(), "C".into()));
    }

    #[test]
    fn errors_show_no_secrets() {
        for (text, hint) in [
            ("[[client]]\naccess_key = \"A\"\nsecret_key = \"hunter2", "line 3"),
            ("[[client]]\naccess_key = \"A B\"\nsecret_key = \"hunter2\"", "visible"),
            ("[[client]]\naccess_key = \"A\"\nsecret_key = 7\nhunter2 = 1", "secret_key"),
            (
                "[[client]]\naccess_key = \"A\"\nsecret_key = \"hunter2\"\n[[client]]\naccess_key = \"A\"\n\
                 secret_key = \"hunter2\"",
                "duplicate access key A",
            ),
        ] {
            let message = clients(text).unwrap_err();
            assert!(message.contains(hint) && !message.contains("hunter2"), "{message}");
        }
    }
}
