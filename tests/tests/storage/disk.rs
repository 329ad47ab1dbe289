//! A disk in a file, which can fail.

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

/// An ext4 in a file, mounted where only this thread, and what it starts, can see it.
pub(crate) struct Disk {
    folder: PathBuf,
}

// <https://www.kernel.org/doc/html/latest/filesystems/ext4/>, EXT4_IOC_SHUTDOWN.
nix::ioctl_read!(shutdown, b'X', 125, u32);
const WITHOUT_FLUSHING: u32 = 2;

impl Disk {
    /// Makes one in a new file in `folder`.
    pub(crate) fn make(folder: &Path, mebibytes: u32) -> Result<Self> {
        let disk = Self { folder: folder.to_owned() };
        fs::create_dir_all(disk.mounted())?;
        File::create(disk.image())?.set_len(u64::from(mebibytes) << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-O", "encrypt"]).arg(disk.image()))?;
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

    /// Where it is mounted.
    pub(crate) fn mounted(&self) -> PathBuf {
        self.folder.join("mounted")
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// Fails from now on; what was not written to it yet never will be, as when power fails.
    pub(crate) fn fail(&self) -> Result<()> {
        let root = File::open(self.mounted())?;
        let mut how = WITHOUT_FLUSHING;
        // SAFETY: the kernel reads that number.
        unsafe { shutdown(root.as_raw_fd(), &raw mut how) }.context("failing the disk")?;
        Ok(())
    }

    /// Goes back to what an image, taken earlier, holds.
    pub(crate) fn become_the_copy(&self, copy: &Path) -> Result<()> {
        self.unmount()?;
        fs::rename(copy, self.image())?;
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The mount would go with its namespace; the loop device goes with it.
        let _ = umount2(&self.mounted(), MntFlags::MNT_DETACH);
    }
}
