//! Errors, defaults and reading of files that sections of the configuration share.

use std::{
    fs,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Errors of reading a configuration or a file that it names.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {error}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// The contents are invalid.
    #[error("{path}: {message}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line or key, and the reason.
        message: String,
    },
}

impl ConfigError {
    /// Returns the error for a file whose contents are invalid.
    pub(crate) fn invalid(path: &Path, message: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), message: message.into() }
    }
}

/// Reads a file that the configuration names.
///
/// # Errors
/// [`ConfigError::Read`], never with the contents of the file.
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })
}

/// Returns the default region of LOTA's signatures.
pub(crate) fn default_region() -> String {
    "us-east-1".to_owned()
}
