//! A disk image that can be made to fail.

use std::{
    fs::{self, File},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use lota_tests::lab::run;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

/// An ext4 file system in a file, mounted in a mount namespace of this thread and its children.
pub(crate) struct Disk {
    folder: PathBuf,
}

// <https://www.kernel.org/doc/html/latest/filesystems/ext4/>, EXT4_IOC_SHUTDOWN.
nix::ioctl_read!(shutdown, b'X', 125, u32);
const WITHOUT_FLUSHING: u32 = 2;

impl Disk {
    /// Creates and mounts a disk in a new file in `folder`.
    pub(crate) fn make(folder: &Path, mebibytes: u32) -> Result<Self> {
        Self::make_with(folder, mebibytes, &[])
    }

    /// Does the same with this number of inodes, rounded up by mkfs.
    pub(crate) fn with_inodes(folder: &Path, mebibytes: u32, inodes: u32) -> Result<Self> {
        Self::make_with(folder, mebibytes, &["-N", &inodes.to_string()])
    }

    fn make_with(folder: &Path, mebibytes: u32, options: &[&str]) -> Result<Self> {
        let disk = Self { folder: folder.to_owned() };
        fs::create_dir_all(disk.mounted())?;
        File::create(disk.image())?.set_len(u64::from(mebibytes) << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-O", "encrypt"]).args(options).arg(disk.image()))?;
        unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace; this needs root")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        disk.mount()?;
        Ok(disk)
    }

    pub(crate) fn mount(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).args([self.image(), self.mounted()]))?;
        Ok(())
    }

    pub(crate) fn unmount(&self) -> Result<()> {
        umount2(&self.mounted(), MntFlags::empty()).context("unmounting the disk")
    }

    /// Returns the mount point.
    pub(crate) fn mounted(&self) -> PathBuf {
        self.folder.join("mounted")
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// Makes the disk fail from now on. Data that is not yet on the disk is lost, as in a power failure.
    pub(crate) fn fail(&self) -> Result<()> {
        let root = File::open(self.mounted())?;
        let mut how = WITHOUT_FLUSHING;
        // SAFETY: the kernel reads that number.
        unsafe { shutdown(root.as_raw_fd(), &raw mut how) }.context("failing the disk")?;
        Ok(())
    }

    /// Replaces the disk with an earlier copy of its image.
    pub(crate) fn become_the_copy(&self, copy: &Path) -> Result<()> {
        self.unmount()?;
        fs::rename(copy, self.image())?;
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Unmounting releases the loop device.
        let _ = umount2(&self.mounted(), MntFlags::MNT_DETACH);
    }
}
