//! The cluster keys that a node signs and verifies messages with: one, and during a rotation two.

use std::path::Path;

use lota_s3::Secret;

use crate::settings::{ConfigError, read};

/// Minimum length of a cluster key in bytes.
const MIN_KEY_LENGTH: usize = 32;

/// Keys of `peers.secret_file`, in their order there; at least one.
#[derive(Debug)]
pub struct ClusterKeys(Vec<Secret>);

impl ClusterKeys {
    /// Maximum number of keys.
    pub const MAX: usize = 3;

    /// Parses the contents of the file: a key on each line, without white space around it. Empty lines are ignored.
    ///
    /// # Errors
    /// The line, what is wrong and what to do, never with a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().enumerate().map(|(place, line)| (place + 1, line.trim()));
        let mut keys: Vec<(usize, &str)> = Vec::new();
        for (line, key) in lines.filter(|(_, key)| !key.is_empty()) {
            if key.len() < MIN_KEY_LENGTH {
                return Err(format!(
                    "line {line}: a cluster key must be at least {MIN_KEY_LENGTH} bytes long; make one with \
                     `openssl rand -hex 32`"
                ));
            }
            if let Some((first, _)) = keys.iter().find(|(_, known)| *known == key) {
                return Err(format!("line {line}: the same key as on line {first}; remove one of them"));
            }
            if keys.len() == Self::MAX {
                return Err(format!(
                    "line {line}: more than {} keys; remove those that no node needs any more",
                    Self::MAX
                ));
            }
            keys.push((line, key));
        }
        if keys.is_empty() {
            return Err(
                "no cluster key; make one of at least 32 bytes with `openssl rand -hex 32`".to_owned()
            );
        }
        Ok(Self(keys.into_iter().map(|(_, key)| Secret::from(key.to_owned())).collect()))
    }

    /// Parses the contents of a file.
    ///
    /// # Errors
    /// [`ConfigError`], never with a key.
    pub fn of_file(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::parse(text).map_err(|message| ConfigError::invalid(path, message))
    }

    /// Reads the keys in a file.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is missing or invalid, never with a key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::of_file(path, &read(path)?)
    }

    /// Returns the keys.
    pub fn each(&self) -> impl Iterator<Item = &Secret> {
        self.0.iter()
    }

    /// Returns the number of keys.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "0123456789abcdef0123456789abcdef";
    const NEW: &str = "hunter2-hunter2-hunter2-hunter2-";
    const LAST: &str = "a third key with spaces, 32 bytes";

    fn parse(text: &str) -> Result<Vec<String>, String> {
        let keys = ClusterKeys::parse(text)?;
        assert_eq!(keys.each().count(), keys.count());
        assert!(!format!("{keys:?}").contains("hunter2"));
        Ok(keys.each().map(|key| key.expose().to_owned()).collect())
    }

    #[test]
    fn each_line_is_a_key() {
        assert_eq!(parse(OLD), Ok(vec![OLD.to_owned()]));
        assert_eq!(parse(&format!("{OLD}\n")), Ok(vec![OLD.to_owned()]));
        let in_order = Ok(vec![NEW.to_owned(), OLD.to_owned()]);
        assert_eq!(parse(&format!("{NEW}\n{OLD}")), in_order);
        assert_eq!(
            parse(&format!("\n  {NEW}\t\r\n \r\n\n{OLD} \n\n")),
            in_order,
            "white space is not of the key"
        );
        assert_eq!(parse(&format!("{OLD}\n{NEW}\n{LAST}\n")).unwrap().len(), 3);
    }

    #[test]
    fn errors_name_the_line_and_show_no_key() {
        for (text, hint) in [
            (String::new(), "no cluster key"),
            (" \n\r\n".to_owned(), "no cluster key"),
            ("hunter2".to_owned(), "line 1: a cluster key must be at least 32 bytes long"),
            (format!("{OLD}\n\nhunter2\n"), "line 3: a cluster key must be"),
            (format!("{NEW}\n{OLD}\n {NEW}\n"), "line 3: the same key as on line 1"),
            (format!("{NEW}\n{OLD}\n{LAST}\n\n{NEW}x"), "line 5: more than 3 keys"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(hint) && !error.contains("hunter2"), "{text:?}: {error}");
        }
    }
}
