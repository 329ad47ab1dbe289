//! Resources that a daemon uses.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result};

use crate::lab::Node;

/// Resources of a daemon's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Sockets and pipes.
    pub sockets: usize,
    /// All descriptors, with those of cached objects.
    pub descriptors: usize,
    /// Threads.
    pub threads: u64,
    /// Resident memory in KiB.
    pub memory: u64,
}

impl Footprint {
    /// Measures a node's daemon.
    ///
    /// # Errors
    /// If it does not run.
    pub fn of(node: &Node) -> Result<Self> {
        let process = format!("/proc/{}", node.pid().context("it does not run")?);
        let status = fs::read_to_string(format!("{process}/status"))?;
        let value = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            Ok(line.and_then(|line| line.split_whitespace().next()).context("no value")?.parse()?)
        };
        let targets: Vec<_> = fs::read_dir(format!("{process}/fd"))?
            .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
            .collect();
        let sockets = targets.iter().filter(|target| !target.has_root()).count();
        let (threads, memory) = (value("Threads:")?, value("VmRSS:")?);
        Ok(Self { sockets, descriptors: targets.len(), threads, memory })
    }
}

/// Returns the bytes of disk space and the number of files in a folder. What disappears meanwhile is not counted.
#[must_use]
pub fn folder_use(folder: &Path) -> (u64, u64) {
    let mut sum = (0, 0);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let (bytes, files) = match metadata.is_dir() {
            true => folder_use(&entry.path()),
            false => (metadata.blocks() * 512, 1),
        };
        sum = (sum.0 + bytes, sum.1 + files);
    }
    sum
}
