//! Finds the cgroups of pods where kubelet makes them.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Inode of the root of a cgroup hierarchy (`kernfs_create_root`).
const ROOT_INODE: u64 = 1;
/// Classes of pods that have a folder of their own; guaranteed pods have none.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];

/// A folder of the cgroup v2 hierarchy in which kubelet makes its `kubepods`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupHierarchy {
    folder: PathBuf,
    /// Level of the folder; the root has level 0.
    level: u32,
}

/// Cgroup of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodCgroup {
    /// ID of the cgroup, which the kernel does not reuse.
    pub id: u64,
    /// Level in the hierarchy.
    pub level: u32,
}

impl PodCgroup {
    /// Form in the kernel's maps of a cgroup that is not known.
    pub(crate) const NONE: Self = Self { id: 0, level: 0 };
}

/// The cgroups of this node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodCgroups {
    /// Cgroups by the UID in their names.
    pub by_uid: BTreeMap<String, PodCgroup>,
    /// IDs of the cgroups with all pods, one level above the first of `levels`; 0 for none.
    pub kubepods: [u64; 2],
    /// Levels at which pods can be; 0 for none.
    pub levels: [u32; 2],
}

/// Reason why a folder does not show the cgroups of pods.
#[derive(Debug)]
pub enum CgroupProblem {
    /// The folder cannot be read.
    Unreadable(io::Error),
    /// The folder is not in a cgroup v2 hierarchy.
    NotVersion2,
    /// The mount does not show the root of the hierarchy, so that levels are unknown.
    NoRoot,
    /// Kubelet makes its cgroups elsewhere.
    NoPods,
}

impl fmt::Display for CgroupProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => error.fmt(f),
            Self::NotVersion2 => f.write_str("it is not a cgroup v2 hierarchy"),
            Self::NoRoot => f.write_str("it does not show the root of the hierarchy (a cgroup namespace)"),
            Self::NoPods => f.write_str("it has no kubepods; kubelet makes its cgroups elsewhere"),
        }
    }
}

impl std::error::Error for CgroupProblem {}

impl CgroupProblem {
    /// Returns whether another folder may show the cgroups of pods. Otherwise, none on this node does.
    #[must_use]
    pub fn can_be_configured(&self) -> bool {
        match self {
            Self::Unreadable(_) | Self::NoPods => true,
            Self::NotVersion2 | Self::NoRoot => false,
        }
    }
}

impl CgroupHierarchy {
    /// Opens the hierarchy at a folder: its mount, or the folder that kubelet has as `--cgroup-root`.
    ///
    /// # Errors
    /// If it does not show the cgroups of pods.
    pub fn open(folder: &Path) -> Result<Self, CgroupProblem> {
        let folder = folder.canonicalize().map_err(CgroupProblem::Unreadable)?;
        let found = statfs(&folder).map_err(|error| CgroupProblem::Unreadable(error.into()))?;
        if found.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(CgroupProblem::NotVersion2);
        }
        let device = folder.metadata().map_err(CgroupProblem::Unreadable)?.dev();
        let inodes = folder.ancestors().map_while(|path| {
            path.metadata().ok().filter(|found| found.dev() == device).map(|found| found.ino())
        });
        let level = inodes.into_iter().position(|inode| inode == ROOT_INODE).ok_or(CgroupProblem::NoRoot)?;
        let found = folders(&folder).map_err(CgroupProblem::Unreadable)?;
        if !found.iter().any(|(name, _)| Driver::of(name).is_some()) {
            return Err(CgroupProblem::NoPods);
        }
        Ok(Self { level: u32::try_from(level).map_err(|_| CgroupProblem::NoRoot)?, folder })
    }

    /// Returns the cgroups of pods. A UID with several has none.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn pods(&self) -> io::Result<PodCgroups> {
        let mut found = BTreeMap::<String, Vec<PodCgroup>>::new();
        // There is one, or two after a change of the driver.
        let mut all = Vec::new();
        for (name, id) in folders(&self.folder)? {
            let Some(driver) = Driver::of(&name) else { continue };
            all.push(id);
            let kubepods = self.folder.join(&name);
            let mut add = |inside: &Path, level| -> io::Result<()> {
                for (name, id) in folders(inside)? {
                    let parent = inside.file_name().unwrap_or_default().to_string_lossy();
                    if let Some(uid) = driver.uid(&parent, &name) {
                        found.entry(uid).or_default().push(PodCgroup { id, level });
                    }
                }
                Ok(())
            };
            add(&kubepods, self.level + 2)?;
            for class in CLASSES {
                match add(&kubepods.join(driver.class(&name, class)), self.level + 3) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        let only = |cgroups: Vec<PodCgroup>| <[PodCgroup; 1]>::try_from(cgroups).ok().map(|[only]| only);
        let by_uid = found.into_iter().filter_map(|(uid, cgroups)| Some((uid, only(cgroups)?)));
        let kubepods = [0, 1].map(|place| all.get(place).copied().unwrap_or(0));
        Ok(PodCgroups { by_uid: by_uid.collect(), kubepods, levels: [self.level + 2, self.level + 3] })
    }
}

/// Method by which kubelet makes cgroups (`cgroupDriver`), which determines their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Cgroupfs,
    Systemd,
}

impl Driver {
    /// Returns the driver that names the cgroup of all pods like this; `None` if no driver does.
    fn of(kubepods: &str) -> Option<Self> {
        match kubepods {
            "kubepods" => Some(Self::Cgroupfs),
            "kubepods.slice" => Some(Self::Systemd),
            // Below a `--cgroup-root`, which is a slice, too.
            other => other.ends_with("-kubepods.slice").then_some(Self::Systemd),
        }
    }

    /// Returns the name of a class in `kubepods`.
    fn class(self, kubepods: &str, class: &str) -> String {
        match self {
            Self::Cgroupfs => class.to_owned(),
            Self::Systemd => format!("{}-{class}.slice", kubepods.trim_end_matches(".slice")),
        }
    }

    /// Returns the UID in the name of a pod's cgroup; `None` if it is not that of a pod.
    fn uid(self, parent: &str, name: &str) -> Option<String> {
        let uid = match self {
            Self::Cgroupfs => name.strip_prefix("pod")?.to_owned(),
            Self::Systemd => {
                let inner = name.strip_prefix(parent.strip_suffix(".slice")?)?;
                inner.strip_prefix("-pod")?.strip_suffix(".slice")?.replace('_', "-")
            }
        };
        let is_sound =
            !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        is_sound.then_some(uid)
    }
}

/// Returns names and inodes of the folders in a folder.
fn folders(inside: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(inside)? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            folders.push((name, entry.ino()));
        }
    }
    Ok(folders)
}

#[cfg(test)]
#[path = "cgroups_tests.rs"]
mod tests;
