//! `lota node-key`: prints the public key of this node.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::args::NodeKeyArgs;
use crate::{cluster::NodeKey, config::Config};

/// Returns the public key of a key file as a line of text, after making the file if it is missing and that is wanted.
///
/// # Errors
/// If the file cannot be made, or read as a key.
pub(super) fn show(NodeKeyArgs { file, create }: NodeKeyArgs, config: &Path) -> Result<String> {
    let file = file.map_or_else(|| configured(config), Ok)?;
    if create {
        NodeKey::create_file(&file).with_context(|| format!("cannot make {}", file.display()))?;
    }
    Ok(format!("{}\n", NodeKey::read(&file)?.public()))
}

/// Returns the key file of a configuration.
fn configured(config: &Path) -> Result<PathBuf> {
    let peers = Config::read(config)?.peers;
    let file = peers.as_ref().and_then(|peers| peers.keys.node()).map(Path::to_owned);
    file.with_context(|| format!("{} has no peers.node_key_file; set it, or use --file", config.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_only_if_that_is_wanted_and_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node-key.pem");
        let show = |create| show(NodeKeyArgs { file: Some(file.clone()), create }, Path::new("/nonexistent"));
        let error = format!("{:#}", show(false).unwrap_err());
        assert!(error.contains("node-key.pem") && !file.exists(), "{error}");
        let shown = show(true).unwrap();
        assert_eq!(shown, format!("{}\n", NodeKey::read(&file).unwrap().public()));
        assert_eq!((show(true).unwrap(), show(false).unwrap()), (shown.clone(), shown));
    }
}
