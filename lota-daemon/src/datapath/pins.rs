//! Where maps and links are pinned: `<pins>/v<layout>/<map>`, and links in `<pins>/v<layout>/links`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::programs::links::FdLink;
use lota_common::LAYOUT;

const POD_LINK: &str = "pod-";

/// The pin folder of this build's layout.
pub(super) struct Pins {
    folder: PathBuf,
}

impl Pins {
    pub(super) fn open(pins: &Path) -> Result<Self> {
        let folder = pins.join(format!("v{LAYOUT}"));
        let links = folder.join("links");
        fs::create_dir_all(&links).with_context(|| format!("creating {}", links.display()))?;
        Ok(Self { folder })
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
        let (new, place) = (self.link(&format!("{name}-new")), self.link(name));
        let _ = fs::remove_file(&new);
        link.pin(&new).with_context(|| format!("pinning {}", new.display()))?;
        fs::rename(&new, &place).with_context(|| format!("renaming {} into place", new.display()))
    }

    pub(super) fn remove_pod_link(&self, index: u32) {
        let _ = fs::remove_file(self.link(&Self::pod_link(index)));
    }

    /// Removes the links of interfaces that are no longer there.
    pub(super) fn keep_only_pod_links(&self, keep: impl Iterator<Item = u32>) {
        let keep: Vec<String> = keep.map(Self::pod_link).collect();
        let Ok(links) = fs::read_dir(self.folder.join("links")) else { return };
        for link in links.flatten() {
            let name = link.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(POD_LINK) && !keep.iter().any(|kept| *kept == name) {
                let _ = fs::remove_file(link.path());
            }
        }
    }
}

/// Removes all pins, of every layout.
pub(super) fn remove_all(pins: &Path) -> io::Result<()> {
    match fs::remove_dir_all(pins) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
