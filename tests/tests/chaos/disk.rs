//! Disks for nodes' caches: a small one, which can be filled, and one that can fail.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{self, Command},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lota_tests::lab::{Node, run};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, PosixFadviseAdvice, SealFlag, fcntl, posix_fadvise},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::ftruncate,
};

/// Size of the small disk.
const SIZE: &str = "size=160m";
/// Name of the file that fills it.
const FILLER: &str = "filler";
/// Size of the disk that can fail, in bytes.
const FAILING_SIZE: i64 = 256 << 20;
/// Number of attempts to seal an image, and the pause after each: the kernel may be writing to it.
const SEAL_ATTEMPTS: u32 = 100;
const SEAL_PAUSE: Duration = Duration::from_millis(10);

/// Moves this thread, and the daemons that it starts from now on, into a mount namespace of their own.
pub(crate) fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace; this needs root")?;
    Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?)
}

/// A small disk. Unmounted when it is dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Mounts a small disk for the cache of a node that is about to be restarted by this thread.
pub(crate) fn give_small_disk(node: &Node) -> Result<SmallDisk> {
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

/// A disk that can fail: ext4 on a loop device, whose image is in memory. Unmounted when it is dropped.
#[derive(Debug)]
pub(crate) struct FailingDisk {
    folder: PathBuf,
    image: OwnedFd,
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
    }
}

impl FailingDisk {
    /// Mounts a disk for the cache of a node that is about to be restarted by this thread.
    pub(crate) fn give(node: &Node) -> Result<Self> {
        let folder = node.cache_folder();
        fs::create_dir_all(&folder)?;
        let image = mount_new(&folder)?;
        Ok(Self { folder, image })
    }

    /// Makes each write fail with EIO from now on, which the file system notices when it writes back. If `reads_fail`, each
    /// read from the device fails with EIO as well.
    pub(crate) fn fail(&self, reads_fail: bool) -> Result<()> {
        // Writes must fail first: one into an image without content would turn the rest of it into readable zeros.
        let seal =
            || fcntl(&self.image, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW));
        for attempt in 1.. {
            match seal() {
                Err(Errno::EBUSY) if attempt < SEAL_ATTEMPTS => thread::sleep(SEAL_PAUSE),
                sealed => {
                    sealed.context("sealing the disk's image")?;
                    break;
                }
            }
        }
        if reads_fail {
            ftruncate(&self.image, 0)?;
            forget_pages(&self.folder);
        }
        Ok(())
    }

    /// Puts a new, empty disk in its place. Daemons that run continue to see the old one.
    pub(crate) fn renew(&mut self) -> Result<()> {
        umount2(&self.folder, MntFlags::MNT_DETACH).context("unmounting the failed disk")?;
        self.image = mount_new(&self.folder)?;
        Ok(())
    }
}

/// Mounts a new disk, and returns its image.
fn mount_new(folder: &Path) -> Result<OwnedFd> {
    let image = memfd_create("disk", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC)?;
    ftruncate(&image, FAILING_SIZE)?;
    let path = format!("/proc/{}/fd/{}", process::id(), image.as_raw_fd());
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", &path]))?;
    run(Command::new("mount").args(["-o", "loop", &path]).arg(folder))?;
    Ok(image)
}

/// Removes the pages of all files in a folder from memory, so that they are read from the disk again.
fn forget_pages(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => forget_pages(&entry.path()),
            // A file that cannot be opened will not be read either.
            _ => {
                if let Ok(file) = File::open(entry.path()) {
                    let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
                }
            }
        }
    }
}
