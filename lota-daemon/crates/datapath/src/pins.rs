//! Pins of maps and links: `<pins>/v<layout>/<map>`, and links in `<pins>/v<layout>/links`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::programs::links::FdLink;
use lota_common::{LAYOUT, lockfile};

/// Suffix of the name of a link that is about to replace another.
const NEW: &str = "-new";

/// The pin folder of this build's layout. Only this process writes to it.
pub(super) struct Pins {
    root: PathBuf,
    folder: PathBuf,
    lock: Option<File>,
}

impl Pins {
    /// Returns the folder of this build's layout.
    pub(super) fn folder_in(root: &Path) -> PathBuf {
        root.join(format!("v{LAYOUT}"))
    }

    /// Opens the folder, with the lock that an earlier daemon handed over, if any.
    pub(super) fn open(root: &Path, handed_over: Option<&File>) -> Result<Self> {
        let folder = Self::folder_in(root);
        let links = folder.join("links");
        fs::create_dir_all(&links).with_context(|| format!("creating {}", links.display()))?;
        for other in layouts(root)?.iter().filter(|other| **other != folder) {
            // A daemon of another build must not assume that it still owns the node.
            lock(other, handed_over)?;
        }
        let lock = lock(&folder, handed_over)?;
        let pins = Self { root: root.to_owned(), folder, lock: Some(lock) };
        // Left by a daemon that was killed while it replaced a link.
        pins.remove_links(|name| name.ends_with(NEW));
        Ok(pins)
    }

    /// Returns the lock that makes this process the only writer.
    pub(super) fn lock(&self) -> Option<&File> {
        self.lock.as_ref()
    }

    /// Releases the lock, so that the next daemon can take it.
    pub(super) fn release_lock(&mut self) {
        self.lock = None;
    }

    /// Removes the pins of other layouts. This detaches the programs of their links.
    pub(super) fn remove_other_layouts(&self) -> io::Result<()> {
        let others = layouts(&self.root)?;
        others.iter().filter(|other| **other != self.folder).try_for_each(fs::remove_dir_all)
    }

    /// Removes the links of other layouts whose names have this prefix.
    pub(super) fn remove_others_links(&self, prefix: &str) {
        for other in layouts(&self.root).unwrap_or_default().iter().filter(|other| **other != self.folder) {
            remove_links(&other.join("links"), |name| name.starts_with(prefix));
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.folder.join("links").join(name)
    }

    /// Pins a link under a name that may be in use. An existing link stays attached until the new one replaces it, so
    /// that every packet passes a program.
    pub(super) fn replace_link(&self, name: &str, link: FdLink) -> Result<()> {
        let (new, place) = (self.link(&format!("{name}{NEW}")), self.link(name));
        let _ = fs::remove_file(&new);
        link.pin(&new).with_context(|| format!("pinning {}", new.display()))?;
        fs::rename(&new, &place).with_context(|| format!("cannot rename {} to its final name", new.display()))
    }

    /// Removes the links that `unwanted` selects, which detaches their programs.
    pub(super) fn remove_links(&self, unwanted: impl Fn(&str) -> bool) {
        remove_links(&self.folder.join("links"), unwanted);
    }
}

fn remove_links(folder: &Path, unwanted: impl Fn(&str) -> bool) {
    let Ok(links) = fs::read_dir(folder) else { return };
    for link in links.flatten() {
        if unwanted(&link.file_name().to_string_lossy()) {
            let _ = fs::remove_file(link.path());
        }
    }
}

/// Locks a layout's folder.
fn lock(folder: &Path, handed_over: Option<&File>) -> Result<File> {
    let locked = lockfile::lock(File::open(folder)?, handed_over.map_or(&[], std::slice::from_ref));
    Ok(locked.with_context(|| format!("locking {}", folder.display()))?.0)
}

/// Returns the folder of every existing layout.
fn layouts(root: &Path) -> io::Result<Vec<PathBuf>> {
    let folders = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folders => folders?,
    };
    let mut layouts = Vec::new();
    for folder in folders {
        let folder = folder?;
        let name = folder.file_name();
        let layout = name.to_str().and_then(|name| name.strip_prefix('v'));
        if layout.is_some_and(|layout| layout.parse::<u32>().is_ok()) {
            layouts.push(folder.path());
        }
    }
    Ok(layouts)
}

/// Verifies that no daemon uses the pins of any layout.
pub(super) fn check_unused(root: &Path) -> Result<()> {
    layouts(root)?.iter().try_for_each(|layout| lock(layout, None).map(drop))
}

/// Removes the pins of every layout, and nothing else from the folder.
pub(super) fn remove_all(root: &Path) -> io::Result<()> {
    layouts(root)?.iter().try_for_each(fs::remove_dir_all)?;
    // Fails if other files are in the folder, which then stays.
    let _ = fs::remove_dir(root);
    Ok(())
}
