//! `lota uninstall`: removes LOTA from the node.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result};
use lota_cache;

use crate::{config::Config, daemon::handover};

/// Detaches the datapath, and removes the VIPs, the pinned maps, the cache and the daemon's sockets. Can be repeated.
///
/// # Errors
/// If a daemon runs, or if something cannot be removed.
pub(super) async fn run(config: &Config) -> Result<()> {
    lota_datapath::detach(&config.datapath, &config.endpoint.vips()).await?;
    remove_files(config)
}

/// Removes the cache and the sockets.
fn remove_files(config: &Config) -> Result<()> {
    for disk in &config.cache.disks {
        lota_cache::uninstall(&disk.folder)
            .with_context(|| format!("cannot remove the cache in {}", disk.folder.display()))?;
    }
    let socket = &config.admin.socket;
    for socket in [socket.clone(), handover::path(socket)] {
        remove(&socket).with_context(|| format!("cannot remove {}", socket.display()))?;
    }
    Ok(())
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
