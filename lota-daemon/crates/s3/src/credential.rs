//! Secrets and S3 credentials.

use std::fmt;

use serde::Deserialize;

/// Secret string that `Debug` output does not show.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct Secret(String);

impl Secret {
    /// Returns the secret in plain text, for computing signatures.
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

/// S3 credential.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Access key ID.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: Secret,
    /// Session token of a temporary credential.
    pub session_token: Option<Secret>,
}

impl Credential {
    /// Returns whether key and token can be sent in headers.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let token = self.session_token.as_ref().is_none_or(|token| is_visible_ascii(token.expose()));
        is_visible_ascii(&self.access_key) && token
    }
}

/// Returns whether a key or token is not empty and consists of visible ASCII characters only, so that a header can
/// carry it.
#[must_use]
pub fn is_visible_ascii(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}
