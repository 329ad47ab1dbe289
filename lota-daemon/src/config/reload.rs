//! Reloads the configuration on SIGHUP.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use toml::{Table, Value};

use super::{Config, ConfigError};
use crate::{access::AccessConfig, cluster::PublicKeys};

/// Prefix of the keys that a running daemon can change.
const AT_ONCE: &str = "access.";

/// The configuration file, with the contents of the last read.
#[derive(Debug)]
pub struct Reload {
    path: PathBuf,
    table: Table,
    hangup: Signal,
}

/// Configuration after a reload.
#[derive(Debug)]
pub struct Reloaded {
    /// Section `[access]`, which is applied at once.
    pub access: AccessConfig,
    /// Public keys of nodes, which are applied at once; `None` if the new configuration uses no keys of nodes.
    pub public_keys: Option<PublicKeys>,
    /// Other keys that have changed since the daemon started. They take effect after a restart.
    pub later: Vec<String>,
}

impl Reload {
    /// Makes SIGHUP reload this file.
    ///
    /// # Errors
    /// If the file cannot be read or the signal handler cannot be installed.
    pub fn on_hangup(path: &Path) -> io::Result<Self> {
        let table = fs::read_to_string(path)?.parse().unwrap_or_default();
        Ok(Self { path: path.to_owned(), table, hangup: signal(SignalKind::hangup())? })
    }

    /// Waits for the next SIGHUP.
    pub async fn requested(&mut self) {
        if self.hangup.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// If the file cannot be read or is invalid; nothing has changed then.
    pub fn read(&self) -> Result<Reloaded, ConfigError> {
        let path = || self.path.clone();
        let text =
            fs::read_to_string(&self.path).map_err(|error| ConfigError::Read { path: path(), error })?;
        let config =
            Config::parse(&text).map_err(|message| ConfigError::Invalid { path: path(), message })?;
        let now: Table = text.parse().unwrap_or_default();
        let mut later = Vec::new();
        let tables = [&self.table, &now].map(|table| without_public_keys(table.clone()));
        differences("", &tables[0], &tables[1], &mut later);
        later.retain(|key| !key.starts_with(AT_ONCE) && key != "access");
        let public_keys = config.peers.and_then(|peers| peers.published_keys());
        Ok(Reloaded { access: config.access, public_keys, later })
    }
}

/// Removes the public keys of nodes.
fn without_public_keys(mut table: Table) -> Table {
    let peers = table.get_mut("peers").and_then(Value::as_table_mut);
    let nodes = peers.and_then(|peers| peers.get_mut("nodes")?.as_array_mut());
    for node in nodes.into_iter().flatten().filter_map(Value::as_table_mut) {
        node.remove("public_keys");
    }
    table
}

/// Adds the keys that differ between both tables.
fn differences(prefix: &str, before: &Table, now: &Table, found: &mut Vec<String>) {
    let missing = now.keys().filter(|key| !before.contains_key(*key));
    for key in before.keys().chain(missing) {
        let path = format!("{prefix}{key}");
        match (before.get(key), now.get(key)) {
            (Some(Value::Table(before)), Some(Value::Table(now))) => {
                differences(&format!("{path}."), before, now, found);
            }
            (before, now) if before != now => found.push(path),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_keys_of_nodes_need_no_restart() {
        let nodes = |of_n1: &str| -> Table {
            format!("[peers]\nport = 1\nnodes = [{{ {of_n1} name = 'n1' }}, {{ name = 'n2' }}]")
                .parse()
                .unwrap()
        };
        let changed = |before: &str, now: &str| {
            let mut found = Vec::new();
            let [before, now] = [before, now].map(|of_n1| without_public_keys(nodes(of_n1)));
            differences("", &before, &now, &mut found);
            found
        };
        assert!(changed("public_keys = ['a'],", "public_keys = ['b', 'a'],").is_empty());
        assert!(changed("public_keys = ['a'],", "").is_empty());
        assert_eq!(changed("public_keys = ['a'],", "public_keys = ['a'], zone = 'z',"), ["peers.nodes"]);
    }

    #[test]
    fn changed_keys_are_listed() {
        let before =
            "a = 1\n[access]\nallow = []\n[gateway]\nendpoint = 'x'\n[gateway.re_sign]\nregion = 'r'";
        let now = "a = 1\n[access]\nallow = ['10.0.0.1']\n[gateway]\nendpoint = 'y'\nprotocol = 's3'\n[limits]\nfills = 2";
        let mut found = Vec::new();
        differences("", &before.parse().unwrap(), &now.parse().unwrap(), &mut found);
        assert_eq!(
            found,
            ["access.allow", "gateway.endpoint", "gateway.re_sign", "gateway.protocol", "limits"]
        );
    }
}
