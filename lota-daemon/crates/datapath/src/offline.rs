//! Functions that need no running daemon: they read the pinned maps, and remove everything from the kernel.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    AccessTable, DatapathConfig, Denied,
    attach::{self, Hook},
    maps::Pinned,
    nat_exemption,
    netlink::Netlink,
    pins::{self, Pins},
};

/// Reads a node's pinned maps, whether a daemon runs or not.
#[derive(Clone, Debug)]
pub struct PinnedMaps(PathBuf);

impl PinnedMaps {
    /// Creates a reader of the maps in this configuration's folder.
    #[must_use]
    pub fn new(config: &DatapathConfig) -> Self {
        Self(Pins::folder_in(&config.bpffs_path))
    }

    /// Returns the access entries.
    ///
    /// # Errors
    /// If there are no maps, or they cannot be read.
    pub fn access(&self) -> Result<AccessTable> {
        Pinned(&self.0).access()
    }

    /// Returns the refused addresses, most recent first.
    ///
    /// # Errors
    /// As for [`PinnedMaps::access`].
    pub fn denied(&self) -> Result<Vec<Denied>> {
        Pinned(&self.0).denied()
    }
}

/// Removes LOTA from the kernel: first the VIPs, because without the programs other listeners would receive their
/// connections, then the programs and maps of every layout.
///
/// # Errors
/// If a part cannot be removed.
pub async fn detach(config: &DatapathConfig, vips: &[IpAddr]) -> Result<()> {
    pins::check_unused(&config.bpffs_path).context("the daemon must be stopped first")?;
    let netlink = Netlink::connect()?;
    for vip in vips {
        netlink.remove_virtual_address(*vip).await?;
    }
    nat_exemption::remove()?;
    let interfaces = netlink.interfaces().await?;
    // Also from interfaces that were redirected only because a pod was behind them.
    for interface in interfaces.0.values() {
        Hook::ALL.iter().for_each(|hook| attach::remove_clsact(&interface.name, hook.direction()));
    }
    pins::remove_all(&config.bpffs_path).with_context(|| format!("removing {}", config.bpffs_path.display()))
}
