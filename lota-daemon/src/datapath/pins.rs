//! Where maps and links are pinned: `<pins>/v<layout>/<map>`, and links in `<pins>/v<layout>/links`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::programs::links::FdLink;
use lota_common::LAYOUT;
use nix::fcntl::{Flock, FlockArg};

const POD_LINK: &str = "pod-";

/// What ends the name of a link on its way to its place.
const NEW: &str = "-new";

/// The pin folder of this build's layout, written by this process alone.
pub(super) struct Pins {
    folder: PathBuf,
    _lock: Flock<File>,
}

impl Pins {
    pub(super) fn open(pins: &Path) -> Result<Self> {
        let folder = pins.join(format!("v{LAYOUT}"));
        let links = folder.join("links");
        fs::create_dir_all(&links).with_context(|| format!("creating {}", links.display()))?;
        let lock = Flock::lock(File::open(&folder)?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| errno)
            .with_context(|| format!("locking {}: another daemon uses it", folder.display()))?;
        let pins = Self { folder, _lock: lock };
        // Left by a daemon that was killed in between.
        pins.remove_links(|name| name.ends_with(NEW));
        Ok(pins)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.folder.join("links").join(name)
    }

    /// By index rather than name: bpffs allows no dots, interface names do.
    pub(super) fn pod_link(index: u32) -> String {
        format!("{POD_LINK}{index}")
    }

    /// Pins a link under a name that may be taken. The old one, if any, stays in force until the new one is
    /// in its place, so that no packet sees neither.
    pub(super) fn replace_link(&self, name: &str, link: FdLink) -> Result<()> {
        let (new, place) = (self.link(&format!("{name}{NEW}")), self.link(name));
        let _ = fs::remove_file(&new);
        link.pin(&new).with_context(|| format!("pinning {}", new.display()))?;
        fs::rename(&new, &place).with_context(|| format!("renaming {} into place", new.display()))
    }

    /// Removes the links whose name says so; what they attached is detached.
    pub(super) fn remove_links(&self, unwanted: impl Fn(&str) -> bool) {
        let Ok(links) = fs::read_dir(self.folder.join("links")) else { return };
        for link in links.flatten() {
            if unwanted(&link.file_name().to_string_lossy()) {
                let _ = fs::remove_file(link.path());
            }
        }
    }

    /// Removes the links to interfaces that are no longer there, or no longer pods'.
    pub(super) fn keep_only_pod_links(&self, keep: impl Iterator<Item = u32>) {
        let keep: Vec<String> = keep.map(Self::pod_link).collect();
        self.remove_links(|name| name.starts_with(POD_LINK) && !keep.iter().any(|kept| kept == name));
    }
}

/// Removes the pins of every layout, and nothing else that may be in the folder.
pub(super) fn remove_all(pins: &Path) -> io::Result<()> {
    let folders = match fs::read_dir(pins) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        folders => folders?,
    };
    for folder in folders {
        let folder = folder?;
        let name = folder.file_name();
        let layout = name.to_str().and_then(|name| name.strip_prefix('v'));
        if layout.is_some_and(|layout| layout.parse::<u32>().is_ok()) {
            fs::remove_dir_all(folder.path())?;
        }
    }
    // Others' things may be in it.
    let _ = fs::remove_dir(pins);
    Ok(())
}
