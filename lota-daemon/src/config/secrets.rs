//! Files with secrets, which configuration names. No error shows what is in them.

use std::{collections::HashMap, fs, path::Path};

use serde::Deserialize;

use super::{Backend, ConfigError, Peers, Resign, Secret};

impl Backend {
    /// LOTA's own credential for reading from the backend.
    ///
    /// # Errors
    /// [`ConfigError`]; never with the file's contents.
    pub fn credential(&self) -> Result<Credential, ConfigError> {
        let path = &self.credential_file;
        let text = read(path)?;
        let credential = toml::from_str(&text).ok().filter(Credential::is_sound);
        credential.ok_or_else(|| ConfigError::Invalid {
            path: path.clone(),
            message: "must hold `access_key = \"…\"`, `secret_key = \"…\"`, and perhaps `session_token = \"…\"`, all of \
                      visible ASCII characters"
                .into(),
        })
    }
}

/// An S3 credential.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The access key's name.
    pub access_key: String,
    /// Its secret.
    pub secret_key: Secret,
    /// The session it belongs to, if it is a temporary one.
    pub session_token: Option<Secret>,
}

impl Credential {
    /// Can it be sent in headers?
    fn is_sound(&self) -> bool {
        let token = self.session_token.as_ref().is_none_or(|token| sound(token.expose()));
        sound(&self.access_key) && token
    }
}

fn sound(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Clients' credentials, and what takes their place.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clients {
    client: Vec<Client>,
}

/// A credential that clients sign with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// The access key's name.
    pub access_key: String,
    /// Its secret.
    pub secret_key: Secret,
    /// The session it belongs to: clients must send it.
    pub session_token: Option<Secret>,
    /// What LOTA signs their requests with; the same, if nothing is said.
    pub gateway: Option<Credential>,
}

impl Client {
    /// What LOTA signs its requests with.
    #[must_use]
    pub fn at_gateway(&self) -> Credential {
        self.gateway.clone().unwrap_or_else(|| Credential {
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.clone(),
            session_token: self.session_token.clone(),
        })
    }
}

impl Resign {
    /// Clients' credentials, by access key.
    ///
    /// # Errors
    /// [`ConfigError`]; never with a secret.
    pub fn clients(&self) -> Result<HashMap<String, Client>, ConfigError> {
        let path = &self.clients_file;
        let text = read(path)?;
        let invalid = |message| ConfigError::Invalid { path: path.clone(), message };
        // TOML's own message would show the line, which may hold a secret.
        let clients: Clients = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            invalid(format!(
                "line {line}: must hold `[[client]]` tables with `access_key`, `secret_key`, perhaps `session_token`, \
                 and perhaps a `[client.gateway]` with the same keys"
            ))
        })?;
        let mut by_key = HashMap::new();
        for client in clients.client {
            if !client.at_gateway().is_sound() || !sound(&client.access_key) {
                let key = client.access_key.escape_default();
                return Err(invalid(format!(
                    "the client {key}: keys and tokens are of visible ASCII characters"
                )));
            }
            if let Some(twice) = by_key.insert(client.access_key.clone(), client) {
                return Err(invalid(format!("the access key {} stands there twice", twice.access_key)));
            }
        }
        Ok(by_key)
    }
}

impl Peers {
    /// The cluster's secret.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is missing or shorter than 32 bytes.
    pub fn secret(&self) -> Result<Secret, ConfigError> {
        let path = &self.secret_file;
        let text = read(path)?;
        let secret = text.trim();
        if secret.len() < 32 {
            return Err(ConfigError::Invalid {
                path: path.clone(),
                message: "the cluster's secret must have at least 32 bytes (`openssl rand -hex 32`)".into(),
            });
        }
        Ok(Secret::from(secret.to_owned()))
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Style;

    fn clients(text: &str) -> Result<HashMap<String, Client>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let resign =
            Resign { clients_file: file.path().to_owned(), region: "us-east-1".into(), style: Style::Path };
        resign.clients().map_err(|error| error.to_string())
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
    fn mistakes_are_told_without_secrets() {
        for (text, hint) in [
            ("[[client]]\naccess_key = \"A\"\nsecret_key = \"hunter2", "line 3"),
            ("[[client]]\naccess_key = \"A B\"\nsecret_key = \"hunter2\"", "visible"),
            ("[[client]]\naccess_key = \"A\"\nsecret_key = 7\nhunter2 = 1", "secret_key"),
            (
                "[[client]]\naccess_key = \"A\"\nsecret_key = \"hunter2\"\n[[client]]\naccess_key = \"A\"\n\
                 secret_key = \"hunter2\"",
                "A stands there twice",
            ),
        ] {
            let message = clients(text).unwrap_err();
            assert!(message.contains(hint) && !message.contains("hunter2"), "{message}");
        }
    }
}
