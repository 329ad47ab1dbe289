//! The folder inside a configured cache folder that belongs to LOTA. LOTA never writes or removes anything beside it,
//! since a configured folder may be the root of a disk with other files.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use lota_common::lockfile;

/// Name of the folder.
const NAME: &str = "lota-cache";
/// Lock file of the daemon that uses the folder.
pub(super) const LOCK: &str = "lock";
/// Marker file, by which backup programs recognize caches: <https://bford.info/cachedir/>.
const TAG: &str = "CACHEDIR.TAG";
/// Content of the marker file.
const TAG_TEXT: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
                        # The cache of LOTA, whose daemon alone creates, changes and removes what is in this folder.\n";

/// Returns the folder that LOTA owns, or would own, inside a configured one.
pub(super) fn path(configured: &Path) -> PathBuf {
    configured.join(NAME)
}

/// Returns the file for the pins of the cluster in a configured folder. It is beside the folders of the formats, so that an
/// upgrade to another format keeps it.
#[must_use]
pub fn pins_file(configured: &Path) -> PathBuf {
    path(configured).join("pins.json")
}

/// Creates the folder with its marker file, unless it exists. Other users of the machine cannot read it.
///
/// # Errors
/// If the folder cannot be created, or exists, is not empty and has no marker file.
pub(super) fn claim(configured: &Path) -> io::Result<PathBuf> {
    let own = path(configured);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&own)?;
    let tag = own.join(TAG);
    match fs::read(&tag) {
        Ok(text) if text == TAG_TEXT.as_bytes() => return Ok(own),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // Missing, or cut short by a crash.
        _ => {}
    }
    for found in fs::read_dir(&own)? {
        if found?.file_name() != TAG {
            let why = format!(
                "{} is not empty and has no {TAG} of LOTA: move its files away, or configure another \
                 cache.folder",
                own.display()
            );
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
    }
    let mut file = File::create(tag)?;
    file.write_all(TAG_TEXT.as_bytes())?;
    file.sync_all()?;
    Ok(own)
}

/// Removes the folder and its contents, if it exists. Other files in the configured folder are not touched.
///
/// # Errors
/// If a daemon uses the folder, if it has no marker file, or if something in it cannot be removed.
pub fn uninstall(configured: &Path) -> io::Result<()> {
    let own = path(configured);
    match fs::read(own.join(TAG)) {
        Ok(text) if text == TAG_TEXT.as_bytes() => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && !own.exists() => return Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {
            return Err(io::Error::other(format!(
                "{} has no {TAG} of LOTA: remove it manually",
                own.display()
            )));
        }
    }
    let lock = File::options().create(true).truncate(false).write(true).open(own.join(LOCK))?;
    let _locked = lockfile::lock(lock, &[])?;
    fs::remove_dir_all(own)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_marked_folder_is_claimed_again() {
        let configured = TempDir::new().unwrap();
        let own = claim(configured.path()).unwrap();
        fs::write(own.join("an object"), "").unwrap();
        assert_eq!(claim(configured.path()).unwrap(), own);
    }

    #[test]
    fn an_incomplete_marker_is_rewritten() {
        let configured = TempDir::new().unwrap();
        let own = claim(configured.path()).unwrap();
        fs::write(own.join(TAG), "Signature: ").unwrap();
        claim(configured.path()).unwrap();
        assert_eq!(fs::read_to_string(own.join(TAG)).unwrap(), TAG_TEXT);
    }

    #[test]
    fn uninstall_removes_only_the_folder() {
        let configured = TempDir::new().unwrap();
        let own = claim(configured.path()).unwrap();
        fs::write(own.join("an object"), "").unwrap();
        fs::write(configured.path().join("thesis"), "").unwrap();
        uninstall(configured.path()).unwrap();
        assert!(!own.exists() && configured.path().join("thesis").exists());
        uninstall(configured.path()).unwrap();
    }

    #[test]
    fn uninstall_refuses_a_folder_in_use_or_without_marker() {
        let configured = TempDir::new().unwrap();
        let own = claim(configured.path()).unwrap();
        let lock = File::create(own.join(LOCK)).unwrap();
        let held = lockfile::lock(lock, &[]).unwrap();
        assert!(uninstall(configured.path()).is_err() && own.exists());
        drop(held);
        fs::remove_file(own.join(TAG)).unwrap();
        assert!(uninstall(configured.path()).is_err() && own.exists());
    }

    #[test]
    fn claim_refuses_a_folder_without_marker() {
        let configured = TempDir::new().unwrap();
        let own = path(configured.path());
        fs::create_dir(&own).unwrap();
        fs::write(own.join("thesis"), "").unwrap();
        assert_eq!(claim(configured.path()).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(own).unwrap().count(), 1);
    }
}
