//! Cgroups that are named like those of pods.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mount point of the hierarchy if the machine has not mounted it.
const OWN_MOUNT: &str = "/run/lota-test-cgroup2";

/// A folder of the cgroup v2 hierarchy in which kubelet would make its `kubepods`. It is removed at the end.
#[derive(Debug)]
pub struct CgroupRoot {
    mount: PathBuf,
    folder: PathBuf,
    is_own_mount: bool,
}

/// Class of a pod, which determines where its cgroup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodClass {
    /// `kubepods-pod<UID>.slice`.
    Guaranteed,
    /// `kubepods-burstable.slice/kubepods-burstable-pod<UID>.slice`.
    Burstable,
}

impl CgroupRoot {
    /// Makes a folder of this name at the root of the hierarchy, which is mounted if necessary.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn make(name: &str) -> Result<Self> {
        let (mount, is_own_mount) = match mounted()? {
            Some(mount) => (mount, false),
            None => (mount_own()?, true),
        };
        let made = Self { folder: mount.join(format!("{name}.slice")), mount, is_own_mount };
        // Left by a run that was killed.
        remove(&made.folder);
        fs::create_dir(&made.folder).with_context(|| format!("creating {}", made.folder.display()))?;
        Ok(made)
    }

    /// Returns the folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the cgroup of a pod, as kubelet does with systemd, and that of a container in it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn make_pod(&self, uid: &str, class: PodClass) -> Result<()> {
        let container = self.pod(uid, class)?.join("cri-containerd-1.scope");
        fs::create_dir_all(&container).with_context(|| format!("creating {}", container.display()))
    }

    /// Removes the cgroup of a pod, which must not have processes.
    ///
    /// # Errors
    /// If it still exists.
    pub fn remove_pod(&self, uid: &str, class: PodClass) -> Result<()> {
        let pod = self.pod(uid, class)?;
        remove(&pod);
        ensure!(!pod.exists(), "cannot remove {}", pod.display());
        Ok(())
    }

    /// Returns the ID of a pod's cgroup.
    ///
    /// # Errors
    /// If it does not exist.
    pub fn id(&self, uid: &str, class: PodClass) -> Result<u64> {
        let pod = self.pod(uid, class)?;
        Ok(pod.metadata().with_context(|| pod.display().to_string())?.ino())
    }

    /// Runs a closure with this process in a container of the pod. Sockets and processes have the cgroup in which they are
    /// made.
    ///
    /// # Errors
    /// If the process cannot enter the cgroup.
    pub fn within<T>(&self, uid: &str, class: PodClass, inside: impl FnOnce() -> T) -> Result<T> {
        let container = self.pod(uid, class)?.join("cri-containerd-1.scope");
        let _inside = Inside::enter(&container, &self.mount)?;
        Ok(inside())
    }

    fn pod(&self, uid: &str, class: PodClass) -> Result<PathBuf> {
        let slice = self.folder.file_stem().and_then(|name| name.to_str()).context("no name")?;
        let (kubepods, uid) = (format!("{slice}-kubepods"), uid.replace('-', "_"));
        let all = self.folder.join(format!("{kubepods}.slice"));
        Ok(match class {
            PodClass::Guaranteed => all.join(format!("{kubepods}-pod{uid}.slice")),
            PodClass::Burstable => all
                .join(format!("{kubepods}-burstable.slice"))
                .join(format!("{kubepods}-burstable-pod{uid}.slice")),
        })
    }
}

impl Drop for CgroupRoot {
    fn drop(&mut self) {
        // Sockets and processes leave their cgroups soon after their end.
        for _ in 0..50 {
            remove(&self.folder);
            if !self.folder.exists() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        if self.is_own_mount {
            let _ = umount2(&self.mount, MntFlags::MNT_DETACH);
            let _ = fs::remove_dir(&self.mount);
        }
    }
}

/// This process in a cgroup; it returns to its previous one at the end.
struct Inside {
    before: PathBuf,
}

impl Inside {
    fn enter(cgroup: &Path, mount: &Path) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2")?;
        let before = mount.join(own);
        let procs = cgroup.join("cgroup.procs");
        fs::write(&procs, process::id().to_string())
            .with_context(|| format!("entering {}", procs.display()))?;
        Ok(Self { before })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.before.join("cgroup.procs"), process::id().to_string()) {
            eprintln!("cannot return to {}: {error}", self.before.display());
        }
    }
}

/// Returns where the root of the hierarchy is mounted.
fn mounted() -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let is_root = place.next()? == "/" && kind.starts_with("cgroup2 ");
        is_root.then_some(())?;
        Some(PathBuf::from(place.next()?))
    }))
}

fn mount_own() -> Result<PathBuf> {
    fs::create_dir_all(OWN_MOUNT)?;
    mount(Some("cgroup2"), OWN_MOUNT, Some("cgroup2"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting the cgroup v2 hierarchy at {OWN_MOUNT}"))?;
    Ok(OWN_MOUNT.into())
}

/// Removes a cgroup and those in it, as far as they are empty.
pub(super) fn remove(folder: &Path) {
    for inner in fs::read_dir(folder).into_iter().flatten().flatten() {
        if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&inner.path());
        }
    }
    let _ = fs::remove_dir(folder);
}
