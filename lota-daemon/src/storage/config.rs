//! `[backend]` of the configuration.

use std::path::PathBuf;

use lota_s3::{Credential, Origin};
use serde::Deserialize;

use crate::settings::{ConfigError, default_region, read};

/// Storage that fills read directly, past the gateway, with LOTA's own credential.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendConfig {
    /// S3 endpoints, used in rotation.
    pub endpoints: Vec<Origin>,
    /// Region in LOTA's signatures.
    #[serde(default = "default_region")]
    pub region: String,
    /// TOML file with `access_key` and `secret_key`. Use a credential with read-only permissions. The file is read again when it
    /// changes.
    pub credential_file: PathBuf,
}

impl BackendConfig {
    /// Reads LOTA's own credential for the backend.
    ///
    /// # Errors
    /// [`ConfigError`], never with the contents of the file.
    pub fn credential(&self) -> Result<Credential, ConfigError> {
        self.parse_credential(&read(&self.credential_file)?)
    }

    /// Parses the contents of the file with LOTA's own credential.
    ///
    /// # Errors
    /// [`ConfigError`], never with the contents of the file.
    pub fn parse_credential(&self, text: &str) -> Result<Credential, ConfigError> {
        let credential = toml::from_str(text).ok().filter(Credential::is_sound);
        credential.ok_or_else(|| {
            ConfigError::invalid(
                &self.credential_file,
                "must contain `access_key = \"…\"`, `secret_key = \"…\"`, and optionally `session_token = \"…\"`, all of \
                 visible ASCII characters",
            )
        })
    }
}
