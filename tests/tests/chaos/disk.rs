//! A small disk for a node's cache, which can be filled.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result};
use lota_tests::lab::{Node, run};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

/// Size of the disk.
const SIZE: &str = "size=160m";
/// Name of the file that fills it.
const FILLER: &str = "filler";

/// The disk, mounted in a namespace of this thread and its children. Unmounted when it is dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Mounts a small disk for the cache of a node that is about to be restarted by this thread.
pub(crate) fn give_small_disk(node: &Node) -> Result<SmallDisk> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace; this needs root")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let folder = node.cache_folder();
    fs::create_dir_all(&folder)?;
    run(Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(&folder))?;
    Ok(SmallDisk(folder))
}

/// Writes to the disk until it is full.
pub(crate) fn fill(node: &Node) -> Result<()> {
    let mut file = File::create(node.cache_folder().join(FILLER))?;
    let piece = vec![1; 1 << 20];
    loop {
        match file.write_all(&piece) {
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            written => written?,
        }
    }
}

/// Makes room again.
pub(crate) fn empty(node: &Node) -> Result<()> {
    Ok(fs::remove_file(node.cache_folder().join(FILLER))?)
}
