//! Files with secrets, which are read again when their content changes.
//!
//! Contents are compared, not times: a projected volume of Kubernetes replaces all of its files at once by switching a symbolic
//! link, which shows in no time of the files.

use std::{fmt::Display, fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;

use super::peer_stream::PeerLife;
use crate::{
    metrics::{Metrics, SecretReloadLabels},
    proxy::Proxy,
    settings::Reloadable,
};

/// Timeout for reading the files, for example from a file system that hangs. The heartbeat waits meanwhile.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum time that one refresh waits for another.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Kind of a file with secrets, as metrics and the log name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecretKind {
    ClusterKey,
    NodeKey,
    Clients,
    Credential,
    Tls,
    PeerTls,
}

impl SecretKind {
    fn name(self) -> &'static str {
        match self {
            Self::ClusterKey => "cluster-key",
            Self::NodeKey => "node-key",
            Self::Clients => "clients",
            Self::Credential => "credential",
            Self::Tls => "tls",
            Self::PeerTls => "peer-tls",
        }
    }
}

/// The files with secrets, and what their contents are used for.
pub(super) struct SecretFiles {
    files: Mutex<Vec<SecretFile>>,
    metrics: Metrics,
}

/// One file, or several that belong together, such as a certificate and its key.
struct SecretFile {
    kind: SecretKind,
    paths: Vec<PathBuf>,
    /// Digest of the contents that were read last, or why they could not be read.
    seen: Result<[u8; 32], String>,
    /// Why the current contents are not used.
    trouble: Option<String>,
    /// Parses the contents, and replaces the value in use.
    apply: Box<Apply>,
}

/// Uses the contents of files.
type Apply = dyn Fn(&[Vec<u8>]) -> Result<()> + Send;

/// Result of reading the files again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RefreshedSecrets {
    /// Kinds of the files that have changed and are in use now.
    pub(super) applied: Vec<SecretKind>,
    /// Why the current contents of files are not used, whether these have changed or not.
    pub(super) trouble: Vec<String>,
}

impl RefreshedSecrets {
    /// Returns the result if the files could not be read at all.
    pub(super) fn failed(error: &dyn Display) -> Self {
        tracing::error!(%error, "cannot read the files with secrets again; still using what was read before");
        let trouble = vec![format!("cannot read the files with secrets again: {error}")];
        Self { applied: Vec::new(), trouble }
    }
}

impl SecretFiles {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { files: Mutex::default(), metrics }
    }

    /// Reads files for the first time. The returned value changes with them.
    ///
    /// # Errors
    /// If a file cannot be read, or `parse` refuses the contents; never with them.
    pub(super) fn follow<T: Send + Sync + 'static>(
        &self,
        kind: SecretKind,
        paths: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T> + Send + 'static,
    ) -> Result<Reloadable<T>> {
        let contents = read(&paths)?;
        let current = Reloadable::new(parse(&contents)?);
        for result in ["applied", "failed"] {
            // Exported from the start, so that rates include the first event.
            let labels = SecretReloadLabels { file: kind.name(), result };
            drop(self.metrics.secret_reloads.get_or_create(&labels));
        }
        let (seen, value) = (Ok(digest(&contents)), current.clone());
        let apply = Box::new(move |contents: &[Vec<u8>]| parse(contents).map(|parsed| value.set(parsed)));
        self.files.lock().push(SecretFile { kind, paths, seen, trouble: None, apply });
        Ok(current)
    }

    /// Reads a file of text for the first time, like [`SecretFiles::follow`].
    ///
    /// # Errors
    /// The errors of [`SecretFiles::follow`], and if it is no text.
    pub(super) fn follow_text<T: Send + Sync + 'static>(
        &self,
        kind: SecretKind,
        path: PathBuf,
        parse: impl Fn(&str) -> Result<T> + Send + 'static,
    ) -> Result<Reloadable<T>> {
        let name = path.display().to_string();
        self.follow(kind, vec![path], move |contents| {
            let text = contents.first().map(|content| str::from_utf8(content)).transpose();
            parse(text.with_context(|| format!("{name}: not a text"))?.unwrap_or_default())
        })
    }

    /// Reads all files again like [`SecretFiles::refresh`], on a thread for blocking calls of `worker`.
    pub(super) async fn refresh_on(
        self: &Arc<Self>,
        worker: &Handle,
        proxy: &Arc<Proxy>,
        peer_life: &PeerLife,
    ) -> RefreshedSecrets {
        let (secrets, proxy, peer_life) = (self.clone(), proxy.clone(), peer_life.clone());
        let reading = worker.spawn_blocking(move || {
            let refreshed = secrets.refresh();
            // Also if nobody waits any more.
            if refreshed.applied.contains(&SecretKind::Credential) {
                proxy.stores.each().for_each(|store| store.gateway.own_credential_changed());
            }
            if refreshed.applied.contains(&SecretKind::PeerTls) {
                // A certificate may be refused now with which a connection was made.
                peer_life.renew();
                proxy.peers.iter().for_each(|peers| peers.renew_connections());
            }
            refreshed
        });
        match tokio::time::timeout(TIMEOUT, reading).await {
            Ok(Ok(refreshed)) => refreshed,
            Ok(Err(error)) => RefreshedSecrets::failed(&error),
            Err(late) => RefreshedSecrets::failed(&late),
        }
    }

    /// Reads all files again, and applies those that have changed. A file that cannot be used is reported once, and what was read
    /// from it before is still used.
    pub(super) fn refresh(&self) -> RefreshedSecrets {
        let mut refreshed = RefreshedSecrets::default();
        // Threads must not pile up while a file system hangs.
        let Some(mut files) = self.files.try_lock_for(LONGEST_WAIT) else {
            return RefreshedSecrets::failed(&"they are still being read");
        };
        for file in files.iter_mut() {
            if self.refresh_one(file) {
                refreshed.applied.push(file.kind);
            }
            refreshed.trouble.extend(file.trouble.clone());
        }
        refreshed
    }

    /// Reads one file again. Returns whether it has changed and is used now.
    fn refresh_one(&self, file: &mut SecretFile) -> bool {
        let contents = read(&file.paths);
        let seen = contents.as_ref().map(|contents| digest(contents)).map_err(|error| format!("{error:#}"));
        if seen == file.seen {
            return false;
        }
        file.seen = seen;
        let kind = file.kind.name();
        let applied = contents.and_then(|contents| (file.apply)(&contents));
        file.trouble = applied.err().map(|error| format!("{error:#}"));
        let result = match &file.trouble {
            None => {
                let path = file.paths.first().map(|path| path.display().to_string());
                tracing::info!(kind, path, "file reloaded");
                "applied"
            }
            Some(error) => {
                tracing::error!(
                    kind,
                    error,
                    "cannot reload a file; still using what it contained before. Correct it: the daemon does not start with it"
                );
                "failed"
            }
        };
        self.metrics.secret_reloads.get_or_create(&SecretReloadLabels { file: kind, result }).inc();
        file.trouble.is_none()
    }
}

fn read(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
    let read = |path: &PathBuf| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    paths.iter().map(read).collect()
}

fn digest(contents: &[Vec<u8>]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for content in contents {
        digest.update((content.len() as u64).to_le_bytes());
        digest.update(content);
    }
    digest.finalize().into()
}

#[cfg(test)]
#[path = "secret_files_tests.rs"]
mod tests;
